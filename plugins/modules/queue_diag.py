#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_diag
short_description: Make one archive to attach to a bug report
version_added: 0.1.0
description:
  - Collects what a host says of its versions, units, journal, container, disk and, under WSL, of Windows, and how the queues stand, and
    writes it as one archive on the host.
  - Each command has ten seconds, and 256 KiB of what it says are kept. A tool that the host lacks is noted.
  - Values of secrets are replaced, those of jobsets, of Podman and of Jupyter, and what stands behind a name like C(password=).
    Jobs' logs and jobs' own files are left out.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: It collects nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: Each run writes a new archive.
    support: none
options:
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
  jobset:
    description: The jobset to look at. Without it, all that are defined on the host.
    type: str
    default: ''
  to:
    description: The folder for the archive. Without it, C(diag) below O(root).
    type: str
    default: ''
  container:
    description: The long-lived container.
    type: str
    default: sagemath
  controller:
    description: What the machine that runs Ansible has to say of itself.
    type: str
    default: ''
notes:
  - Run it as the batch user. The queue is private to that user.
requirements:
  - Python 3.8 or newer on the host
"""

EXAMPLES = r"""
- name: Collect what helps to find a fault
  sagequeue.batch.queue_diag:
  register: diag
"""

RETURN = r"""
path:
  description: The archive.
  returned: success
  type: str
  sample: /home/anna/sagequeue/diag/sagequeue-diag-pc-20261121T101500Z.tar.gz
files:
  description: What is in it.
  returned: success
  type: list
  elements: str
msg:
  description: Where it is, in one line.
  returned: always
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import root_of
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions, diag
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain


def main() -> None:
    """Run the module."""
    os.umask(0o077)
    text = {"type": "str", "default": ""}
    options = {"root": {"type": "path", "default": "~/sagequeue"}, "container": {"type": "str", "default": "sagemath"}}
    module = AnsibleModule(argument_spec={**options, "jobset": text, "to": text, "controller": text}, supports_check_mode=True)
    root, name, to = root_of(module.params["root"]), module.params["jobset"], module.params["to"]
    try:
        if name and name not in definitions.defined(root):
            # Says which there are.
            definitions.load(root, name)
        if module.check_mode:
            folder = to or os.path.join(root, "diag")
            module.exit_json(changed=True, path="", files=[], msg=f"An archive would be written into {folder}.")
        more = {"controller.txt": module.params["controller"] + "\n"} if module.params["controller"] else {}
        collected = diag.Diag(root, [name] if name else None, module.params["container"], more)
        collected.collect()
        path = collected.archive(to)
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(changed=True, path=path, files=sorted(collected.parts), msg=diag.said(path))


if __name__ == "__main__":
    main()
