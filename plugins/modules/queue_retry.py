#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_retry
short_description: Move failed jobs of a jobset back to pending
version_added: 0.1.0
description:
  - Moves failed jobs back to pending, with their attempts set to zero.
  - A job that failed because its file is malformed is left alone and reported.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.queue.actions
options:
  jobs:
    description: The jobs to retry, named as in M(sagequeue.batch.queue_control). Without it, all that failed.
    type: list
    elements: str
seealso:
  - module: sagequeue.batch.queue_recover
"""

EXAMPLES = r"""
- name: Retry whatever failed
  sagequeue.batch.queue_retry:
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
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.selection import select


def retry(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Retry what the options name."""
    names = select(queue, module.params["jobs"])
    return report(queue.retry(names, module.check_mode), "back to pending", module.check_mode)


def main() -> None:
    """Run the module."""
    change({"jobs": {"type": "list", "elements": "str"}}, retry)


if __name__ == "__main__":
    main()
