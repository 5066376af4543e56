# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""A look at this host: real files and users. Podman and the user's systemd are looked at on hosts that have them, see tests/roles."""

from __future__ import annotations

import os
import pwd
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.tests.unit.plugins.modules.test_queue_modules import call  # noqa: F401

ME = pwd.getpwuid(os.geteuid())
DPKG = """#!/bin/sh
printf 'bash installed\\ngone config-files\\n'
echo 'dpkg-query: no packages found matching nonsense' >&2
exit 1
"""
# Says whose runtime files it was given, and has one image.
PODMAN = """#!/bin/sh
case "$*" in
    --version) echo "podman version 5.4.2" ;;
    "image inspect there") echo '[{"Id": "1"}]' ;;
    "image inspect strange") echo podman version 1.0 ;;
    "unshare cat /proc/self/uid_map") printf '0 1000 1\\n' ;;
    *) echo "Error: $HOME $*" >&2; exit 125 ;;
esac
"""


def test_paths_and_files(call: Any, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "folder").mkdir(mode=0o750)
    (tmp_path / "file").write_bytes(b"caf\xe9\n")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        names = ["folder", "file", "link", "fifo", "socket", "none"]
        looked = call(
            "batch_host_info",
            True,
            root=None,
            user=ME.pw_name,
            paths=[*(str(tmp_path / name) for name in names), "~/", f"/proc/{os.getpid()}/../../run/user/%U"],
            read=[str(tmp_path / name) for name in names],
        )
    kinds = {Path(path).name: there["type"] for path, there in looked["paths"].items() if path.startswith(str(tmp_path))}
    assert kinds == {"folder": "directory", "file": "file", "link": "directory", "fifo": "other", "socket": "other"}
    assert looked["paths"][str(tmp_path / "folder")]["mode"] == "0750" and looked["paths"]["~/"]["type"] == "directory"
    assert looked["paths"]["~/"]["uid"] == os.stat(ME.pw_dir).st_uid
    assert {Path(path).name: text for path, text in looked["files"].items()}["file"] == "caf\udce9\n"
    assert "none" not in str(looked["files"]) and not looked["changed"]
    user = {"name": ME.pw_name, "uid": ME.pw_uid, "gid": ME.pw_gid, "home": ME.pw_dir, "shell": ME.pw_shell}
    assert looked["user"] == user and looked["systemd"] == os.path.isdir("/run/systemd/system")


def test_who_is_not_there_has_nothing(call: Any) -> None:  # noqa: F811
    looked = call("batch_host_info", root=None, user="nobody-of-this-name", bus=True, podman=True, storage=True, subids=True, images=["x"])
    assert looked["user"] == {} and not looked["bus"] and not looked["uid_map"] and looked["images"] == looked["subids"] == {}


def test_commands_are_asked_and_may_fail(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for name, text in {"dpkg-query": DPKG, "podman": PODMAN}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    options: dict[str, Any] = {"packages": ["bash", "gone", "nonsense"], "podman": True, "storage": True}
    options["images"] = ["there", "strange", "gone"]
    looked = call("batch_host_info", root=None, user=ME.pw_name, **options)
    assert looked["packages"] == ["bash"] and looked["podman"] == "5.4.2"
    if not looked["systemd"] or looked["runtime_dir"]:
        assert looked["images"] == {"there": {"Id": "1"}} and looked["uid_map"] == "0 1000 1\n"
        assert looked["graph_root"] == "" and looked["podman_error"] == f"Error: {ME.pw_dir} image inspect gone"
    # Without them, nothing is known, and nothing fails.
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    looked = call("batch_host_info", root=None, user=ME.pw_name, **options)
    assert looked["packages"] == [] and looked["podman"] == "" and looked["images"] == {}
