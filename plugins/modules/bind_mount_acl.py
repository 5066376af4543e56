# Copyright: sagequeue contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: bind_mount_acl
short_description: Share folders between a user and a rootless container
version_added: 0.1.0
description:
  - Makes folders that a user and the user of a rootless Podman container both read and write, with everything below them.
  - Folders get the mode 2770, an ACL and a default ACL; files lose all rights for the world. Missing folders are made.
  - Nobody is locked out at any moment. Mode and ACL of a file are set by one system call, and rights are granted before any are taken away.
  - Links are not followed, other file systems are not entered, files that vanish meanwhile do no harm,
    and the content of files is never touched.
  - A file that its owner made read-only stays so, for both, and a program stays a program.
  - Files of other users are left alone, and so are files of root that have several names. They are listed in RV(left_alone).
author:
  - sagequeue (@sagequeue)
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    support: full
    description: Returns details on what has changed when in diff mode, for the first 50 files.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  paths:
    description: The folders. A link here is followed if it leads to a folder of the user.
    type: list
    elements: path
    required: true
  user:
    description: The user.
    type: str
    required: true
  userns:
    description:
      - How the container's ids become ids of the host.
      - V(keep-id) means that the container's user is the user itself. Files that a program made for itself alone (mode 0600) stay so.
      - V(mapped) means that O(uid_map) gives the container's user another id, which gets ACL entries.
    type: str
    choices: [keep-id, mapped]
    default: keep-id
  uid_map:
    description:
      - What C(podman unshare cat /proc/self/uid_map) prints for the user.
      - With V(keep-id) it tells which files the user's containers wrote under other ids. Those become the user's.
    type: str
    default: ""
  container_uid:
    description: The user's id inside the container.
    type: int
    default: 1000
  storage:
    description: Podman's storage. A folder that holds it is refused, because the storage would inherit its ACLs.
    type: path
"""

EXAMPLES = r"""
- name: Read the uid map of the user's containers
  ansible.builtin.command: podman unshare cat /proc/self/uid_map
  register: map
  changed_when: false

- name: Share the notebooks with the container
  sagequeue.batch.bind_mount_acl:
    paths: [/home/alice/Jupyter]
    user: alice
    userns: mapped
    uid_map: "{{ map.stdout }}"
  become: true
"""

RETURN = r"""
container_id:
  description: The id on the host that the container's user writes as.
  returned: always
  type: int
  sample: 100999
walked:
  description: How many files and folders were looked at.
  returned: always
  type: int
  sample: 10006
changed_count:
  description: How many of them were changed.
  returned: always
  type: int
  sample: 6
left_alone:
  description: What was left alone, and why.
  returned: always
  type: list
  elements: str
  sample: ["/home/alice/Jupyter/data: another file system is mounted there"]
"""

import pwd

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._bind_mount import SHOWN, Walk
from ansible_collections.sagequeue.batch.plugins.module_utils._bind_mount_rights import BindMountError, Sharing, host_id, parse_id_map


def sharing_of(params):
    """Who shares, from the module's options."""
    try:
        user = pwd.getpwnam(params["user"])
    except KeyError as exc:
        raise BindMountError(f"the user {params['user']} does not exist. Make the user, or name another one.") from exc
    extents = tuple(parse_id_map(params["uid_map"]))
    if params["userns"] == "keep-id":
        return Sharing(user.pw_uid, user.pw_gid, None, extents)
    container_id = host_id(list(extents), params["container_uid"])
    if container_id is None:
        raise BindMountError(
            f"the uid map of {params['user']} has no id for the container's uid {params['container_uid']}. Give the user a range of "
            f"subordinate ids that is large enough in /etc/subuid and /etc/subgid, then run \"podman system migrate\" as {params['user']}."
        )
    return Sharing(user.pw_uid, user.pw_gid, container_id, extents)


def main():
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True},
            "user": {"type": "str", "required": True},
            "userns": {"type": "str", "choices": ["keep-id", "mapped"], "default": "keep-id"},
            "uid_map": {"type": "str", "default": ""},
            "container_uid": {"type": "int", "default": 1000},
            "storage": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        sharing = sharing_of(module.params)
        walk = Walk(sharing, module.params["storage"], module.check_mode)
        for path in module.params["paths"]:
            walk.folder(path)
    except BindMountError as exc:
        module.fail_json(msg=f"Cannot prepare the bind mounts: {exc}")
    report = walk.report
    more = [f"and {report.changed - SHOWN} more"] if report.changed > SHOWN else []
    for line in report.left_alone[:SHOWN]:
        module.warn(f"Left alone: {line}")
    module.exit_json(
        changed=report.changed > 0,
        container_id=sharing.uid if sharing.container_id is None else sharing.container_id,
        walked=report.walked,
        changed_count=report.changed,
        left_alone=report.left_alone,
        diff={
            "before": "".join(f"{line}\n" for line in report.before + more),
            "after": "".join(f"{line}\n" for line in report.after + more),
        },
    )


if __name__ == "__main__":
    main()
