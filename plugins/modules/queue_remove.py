#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_remove
short_description: Delete jobs of a jobset
version_added: 0.1.0
description:
  - Deletes job files, the only thing in the collection that does, and says which.
  - A running job whose owner lives is left alone and reported; orphans are recovered first, and then removed.
  - Notebooks and state files are never touched.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.queue.actions
options:
  jobs:
    description: The jobs to remove, named as in M(sagequeue.batch.queue_control). Without it, all that are in O(states).
    type: list
    elements: str
  states:
    description: Remove only what is in these states. Held jobs are pending.
    type: list
    elements: str
    choices: [pending, running, done, failed]
    default: [pending, running, done, failed]
  confirm:
    description: The jobset's name once more. Needed where O(jobs) is not given.
    type: str
  logs:
    description: Remove the jobs' logs, too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Empty a queue
  sagequeue.batch.queue_remove:
    jobset: template
    confirm: template

- name: Remove one job that has not run yet
  sagequeue.batch.queue_remove:
    jobset: rook_r3
    jobs: [rook_r3_off7]
    states: [pending]
"""

RETURN = r"""
jobs:
  description: What became of each job; for a batch of jobs that were no files yet, one entry.
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
      description: How many jobs the entry stands for; name is the first of them.
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
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import STATES
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.selection import select


def remove(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Remove what the options name."""
    options = module.params
    name = queue.jobset.name
    if options["jobs"] is None and options["confirm"] != name:
        raise QueueError(f"removing all jobs of jobset {name} needs confirm={name}; nothing was removed")
    if "running" in options["states"] and not module.check_mode:
        # Orphans can be removed once what they left running has been ended.
        recover(queue, make(queue.layout, queue.jobset))
    # What is gone already is removed.
    names = select(queue, options["jobs"], strict=False)
    changes = queue.remove(names, options["states"], options["logs"], module.check_mode)
    return report(changes, "removed", module.check_mode)


def main() -> None:
    """Run the module."""
    change(
        {
            "jobs": {"type": "list", "elements": "str"},
            "states": {"type": "list", "elements": "str", "choices": list(STATES), "default": list(STATES)},
            "confirm": {"type": "str"},
            "logs": {"type": "bool", "default": False},
        },
        remove,
    )


if __name__ == "__main__":
    main()
