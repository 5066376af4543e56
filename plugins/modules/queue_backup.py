#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_backup
short_description: Write a jobset into one archive, while its workers run
version_added: 0.1.0
description:
  - Writes queue, logs, history, gate and definition of a jobset, and state files if asked for, into a tar.gz.
  - Each job is in it once, in a state that it had meanwhile. One that runs is in it as running, without an owner.
    M(sagequeue.batch.queue_restore) brings it back.
  - The archive is private to the user, and is there whole or not at all. None is replaced.
  - Values of secrets are not in it. They come from the inventory.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
attributes:
  check_mode:
    description: Says what would be in it, and writes nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: Each run writes another archive. A second one to the same file is refused.
    support: none
options:
  path:
    description: The archive on the host, a new file. By default F(backup/JOBSET-TIME.tar.gz) below the root.
    type: path
  state_files:
    description: Patterns of names in the jobset's workdir, such as V(state_*.txt). Files that match go into the archive, too.
    type: list
    elements: str
    default: []
seealso:
  - module: sagequeue.batch.queue_restore
"""

EXAMPLES = r"""
- name: Back a jobset up
  sagequeue.batch.queue_backup:
    jobset: rook_r3
    path: ~/rook_r3.tar.gz
    state_files: [state_rook_r3_*.txt]
"""

RETURN = r"""
path:
  description: The archive.
  returned: success
  type: str
size:
  description: Its bytes, 0 in check mode.
  returned: success
  type: int
files:
  description: How many files are in it.
  returned: success
  type: int
counts:
  description: How many jobs are in it, by state.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
refused:
  description: What lies in the queue, or matches, and is not in the archive, with the reason.
  returned: success
  type: dict
left_out:
  description: The names of the secrets, whose values are not in it.
  returned: success
  type: list
  elements: str
msg:
  description: The same in one line.
  returned: always
  type: str
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import run
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.backup import backup, described
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def write(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Write the archive."""
    named = f"{queue.jobset.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
    path = module.params["path"] or os.path.join(queue.layout.root, "backup", named)
    made = backup(queue, path, module.params["state_files"], module.check_mode)
    would = "would be written: " if module.check_mode else ""
    return {**made, "changed": True, "msg": f"{would}{made['path']}, {described(made)}"}


def main() -> None:
    """Run the module."""
    run({"path": {"type": "path"}, "state_files": {"type": "list", "elements": "str", "default": []}}, write)


if __name__ == "__main__":
    main()
