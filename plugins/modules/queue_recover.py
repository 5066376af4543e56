#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_recover
short_description: Bring the jobs of dead workers back to pending
version_added: 0.1.0
description:
  - Finds running jobs whose owner is dead, ends what they left running, and moves them back to pending.
  - A job whose worker died so often that it looks like the cause goes to failed, with the reason in its file.
  - A job whose owner lives is never touched.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.queue.actions
seealso:
  - module: sagequeue.batch.queue_retry
"""

EXAMPLES = r"""
- name: Bring orphans back
  sagequeue.batch.queue_recover:
    jobset: rook_r3
"""

RETURN = r"""
jobs:
  description: What became of each job.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The job.
      type: str
    old_state:
      description: The state it was in, null where there was no such job.
      type: str
    new_state:
      description: The state it is in, null where it is gone.
      type: str
    changed:
      description: Whether the two differ.
      type: bool
    reason:
      description: Why.
      type: str
    jobs:
      description: How many jobs the entry stands for, always 1 here.
      type: int
counts:
  description: How many jobs are in each state now.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
msg:
  description: The same in one line.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_change import change, report
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make


def bring_back(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Recover the jobset's orphans."""
    return report(recover(queue, make(queue.layout, queue.jobset), check=module.check_mode), "recovered", module.check_mode)


def main() -> None:
    """Run the module."""
    change({}, bring_back)


if __name__ == "__main__":
    main()
