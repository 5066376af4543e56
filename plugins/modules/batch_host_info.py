#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: batch_host_info
short_description: Look at what a user has on a host
version_added: 0.1.0
description:
  - Looks, by one call, at what the roles of this collection must know before they change something, such as the user, the user's systemd,
    Podman, its images and containers, packages and files.
  - What is not there is empty; nothing of it is an error.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.looking
options:
  user:
    description: The user. Podman and systemd are asked as this user.
    type: str
    required: true
  bus:
    description: Whether to ask the user's systemd over its bus.
    type: bool
    default: false
  podman:
    description: Whether to ask Podman for its version.
    type: bool
    default: false
  storage:
    description: Whether to ask Podman for the map of the user's ids, and where its storage is.
    type: bool
    default: false
  subids:
    description: Whether to ask for the user's ranges of subordinate ids.
    type: bool
    default: false
  images:
    description: Images to ask Podman for.
    type: list
    elements: str
    default: []
  containers:
    description: Containers to ask Podman for.
    type: list
    elements: str
    default: []
  packages:
    description: Debian packages to look for.
    type: list
    elements: str
    default: []
  paths:
    description: What to look for in the file system. C(~/) is the user's home, C(%U) the user's id.
    type: list
    elements: str
    default: []
  read:
    description: Files to read, at most 64 KiB of each. C(~/) is the user's home, C(%U) the user's id.
    type: list
    elements: str
    default: []
notes:
  - Run it as the user, or as root.
"""

EXAMPLES = r"""
- name: Look at the user's container
  sagequeue.batch.batch_host_info:
    user: anna
    containers: [sagemath]
  register: looked
  become: "{{ ansible_facts['user_id'] != 'anna' }}"
"""

RETURN = r"""
user:
  description: The user's C(name), C(uid), C(gid), C(home) and C(shell), empty where there is no such user.
  returned: always
  type: dict
systemd:
  description: Whether systemd is PID 1.
  returned: always
  type: bool
runtime_dir:
  description: The folder of the user's runtime files, empty where it is not there.
  returned: always
  type: str
bus:
  description: The version that the user's systemd says of itself, empty where it does not answer, or was not asked.
  returned: always
  type: str
bus_socket:
  description: Whether the socket of the user's bus is there.
  returned: always
  type: bool
podman:
  description: Podman's version, empty where it is not installed, or was not asked for.
  returned: always
  type: str
podman_error:
  description: What Podman complained of last, empty where it did not.
  returned: always
  type: str
uid_map:
  description: The map of the user's ids in rootless containers, as in C(/proc/self/uid_map).
  returned: always
  type: str
graph_root:
  description: Where Podman keeps the user's images.
  returned: always
  type: str
subids:
  description: Of C(user) and C(group), whether there is a range of subordinate ids; empty where that can't be asked.
  returned: always
  type: dict
images:
  description: What C(podman image inspect) says of each image that is there.
  returned: always
  type: dict
containers:
  description: What C(podman container inspect) says of each container that is there.
  returned: always
  type: dict
packages:
  description: The packages that are installed.
  returned: always
  type: list
  elements: str
paths:
  description: Of each path that is there, its C(type) (C(directory), C(file) or C(other)), C(mode), C(uid) and C(gid).
  returned: always
  type: dict
files:
  description: The text of each file that could be read.
  returned: always
  type: dict
"""

import contextlib
import json
import os
import pwd
import re
import stat
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

_LISTS = ("images", "containers", "packages", "paths", "read")
_FLAGS = ("bus", "podman", "storage", "subids")
# The user's manager, on its bus.
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


class Look:
    """One look at a host."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        try:
            self.user: pwd.struct_passwd | None = pwd.getpwnam(module.params["user"])
        except KeyError:
            self.user = None
        uid = self.user.pw_uid if self.user else 0
        self.runtime_dir = f"/run/user/{uid}" if self.user and os.path.isdir(f"/run/user/{uid}") else ""
        self.found: dict[str, Any] = {
            "user": {"name": self.user.pw_name, "uid": uid, "gid": self.user.pw_gid, "home": self.user.pw_dir, "shell": self.user.pw_shell}
            if self.user
            else {},
            "systemd": os.path.isdir("/run/systemd/system"),
            "runtime_dir": self.runtime_dir,
            "podman_error": "",
            "bus_socket": bool(self.runtime_dir) and os.path.exists(f"{self.runtime_dir}/bus"),
        }

    def ask(self, *words: str) -> tuple[int, str, str]:
        """Run a command as the user; return its exit status, what it printed, and its complaints."""
        if not self.user:
            return 127, "", "there is no such user"
        environment = {"HOME": self.user.pw_dir, "LC_ALL": "C.UTF-8"}
        if self.runtime_dir:
            environment.update(XDG_RUNTIME_DIR=self.runtime_dir, DBUS_SESSION_BUS_ADDRESS=f"unix:path={self.runtime_dir}/bus")
        # Root is not asked for: it has containers and a systemd of its own.
        others = os.geteuid() == 0 and self.user.pw_uid != 0
        if others:
            words = ("runuser", "-u", self.user.pw_name, "--", *words)
        return self.run(words, environment, self.user.pw_dir if os.path.isdir(self.user.pw_dir) else "/")

    def run(self, words: Sequence[str], environment: dict[str, str] | None = None, folder: str | None = None) -> tuple[int, str, str]:
        """Run a command; return its exit status, 127 where it is not there, what it printed, and its complaints."""
        try:
            return self.module.run_command(list(words), environ_update=environment, cwd=folder, handle_exceptions=False)
        except OSError as exc:
            return 127, "", f"{words[0]}: {exc.strerror}"

    def podman(self, *words: str) -> str:
        """Return what Podman printed, nothing where it fails."""
        # Where the user's runtime files are to be and are not, it would keep its own elsewhere, and stumble over that later.
        if self.found["systemd"] and not self.runtime_dir:
            return ""
        status, said, complaint = self.ask("podman", *words)
        self.found["podman_error"] = complaint.strip() if status else ""
        return said if status == 0 else ""

    def inspect(self, kind: str, names: list[str]) -> dict[str, Any]:
        """Return what Podman says of each image or container that is there."""
        found: dict[str, Any] = {}
        for name in names:
            said = self.podman(kind, "inspect", name)
            # What is too old may answer something else.
            with contextlib.suppress(ValueError):
                found[name] = json.loads(said)[0]
        return found

    def subids(self) -> dict[str, bool]:
        """Return whether the user has ranges of subordinate ids."""
        asked = {kind: self.ask("getsubids", *option, self.module.params["user"])[0] for kind, option in (("user", []), ("group", ["-g"]))}
        return {} if 127 in asked.values() else {kind: status == 0 for kind, status in asked.items()}

    def installed(self, packages: list[str]) -> list[str]:
        """Return which packages are installed."""
        if not packages:
            return []
        # It fails if one is unknown, and tells of the others all the same.
        said = self.run(["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *packages])[1]
        return [line.split()[0] for line in said.splitlines() if line.endswith(" installed")]

    def place(self, path: str) -> str:
        """Return a path with the user's home and uid filled in."""
        path = path.replace("%U", str(self.found["user"].get("uid", "%U")))
        return os.path.join(self.user.pw_dir, path[2:]) if self.user and path.startswith("~/") else path

    def path(self, path: str) -> dict[str, Any]:
        """Return what is at a path, nothing where nothing is."""
        try:
            there = os.stat(self.place(path))
        except OSError:
            return {}
        kind = "directory" if stat.S_ISDIR(there.st_mode) else "file" if stat.S_ISREG(there.st_mode) else "other"
        return {"type": kind, "mode": f"{stat.S_IMODE(there.st_mode):04o}", "uid": there.st_uid, "gid": there.st_gid}

    def text(self, path: str) -> str | None:
        """Return the text of a file, None where it can't be read."""
        try:
            with open(self.place(path), "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                return file.read(1 << 16).decode("utf-8", "surrogateescape")
        except OSError:
            return None

    def all(self) -> dict[str, Any]:
        """Return everything that was asked for."""
        options = self.module.params
        # It tells its version whoever asks, and for whom there is no home yet.
        said = self.run(["podman", "--version"])[1] if options["podman"] else ""
        version = re.search(r"[0-9]+(\.[0-9]+)+", said)
        asked = {
            "podman": version.group() if version else "",
            "bus": self.ask("busctl", "--user", "--timeout=5", "get-property", *_MANAGER, "Version")[1].strip() if options["bus"] else "",
            "graph_root": self.podman("info", "--format", "{{.Store.GraphRoot}}").strip() if options["storage"] else "",
            "uid_map": self.podman("unshare", "cat", "/proc/self/uid_map") if options["storage"] else "",
            "subids": self.subids() if options["subids"] else {},
            "images": self.inspect("image", options["images"]),
            "containers": self.inspect("container", options["containers"]),
            "packages": self.installed(options["packages"]),
            "paths": {path: there for path in options["paths"] if (there := self.path(path))},
            "files": {path: text for path in options["read"] if (text := self.text(path)) is not None},
        }
        return {**self.found, **asked}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            **{name: {"type": "bool", "default": False} for name in _FLAGS},
            **{name: {"type": "list", "elements": "str", "default": []} for name in _LISTS},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **Look(module).all())


if __name__ == "__main__":
    main()
