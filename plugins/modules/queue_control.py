#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_control
short_description: Hold, release, kill, reset single jobs of a jobset, or change their priority
version_added: 0.1.0
description:
  - V(hold) keeps pending jobs from being claimed, V(release) lets them be claimed again, in their old places.
  - V(priority) gives pending jobs another priority, and the place in the queue that goes with it. Workers list the queue anew with
    their next claim.
  - V(kill) ends jobs now. A running one gets SIGTERM, and after the jobset's C(grace) SIGKILL; the module waits until it is gone. Pending
    and running jobs go to failed with the reason C(killed), and are not tried again by themselves. If a job's worker is dead,
    recovery ends what it has left.
  - V(reset) brings done and failed jobs back to pending as if they had never run; their logs stay.
  - Jobs that are no files yet are pending ones like others.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.queue.actions
options:
  action:
    description: What is to become of the jobs.
    type: str
    choices: [hold, release, priority, kill, reset]
    required: true
  jobs:
    description:
      - Which jobs. A job's full name, or what follows the jobset's name and an underscore in it.
      - V([0-3,7]) stands for numbers, with zeros in front if the first one has them; V(*) for any characters, V(?) for one.
      - Several are separated by commas, or are a list. One that no job matches is an error, and nothing is changed.
    type: list
    elements: str
    required: true
  priority:
    description: The priority, -100 to 100; higher goes first. Needed where O(action) is V(priority).
    type: int
  by:
    description: Who asks for it, for V(hold) and V(kill). By default the user that the module runs as.
    type: str
    default: ""
  wait:
    description: How many seconds V(kill) waits for running jobs to end. By default C(grace) of the jobset and 30 more.
    type: float
seealso:
  - module: sagequeue.batch.queue_list
  - module: sagequeue.batch.queue_retry
  - module: sagequeue.batch.queue_remove
"""

EXAMPLES = r"""
- name: Keep five jobs for later
  sagequeue.batch.queue_control:
    jobset: rook_r3
    action: hold
    jobs: off[0-3,7]

- name: Let one go first
  sagequeue.batch.queue_control:
    jobset: rook_r3
    action: priority
    jobs: rook_r3_off5
    priority: 10

- name: End it, wherever it is
  sagequeue.batch.queue_control:
    jobset: rook_r3
    action: kill
    jobs: off5
    by: anna
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
      description: The state it was in; V(held) for a pending job that was held.
      type: str
    new_state:
      description: The state it is in; V(held) for a pending job that is held.
      type: str
    changed:
      description: Whether anything has changed.
      type: bool
    reason:
      description: Why.
      type: str
    jobs:
      description: How many jobs the entry stands for, always 1 here.
      type: int
counts:
  description: How many jobs are in each state now; held ones are pending.
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
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.kill import kill
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.selection import select

DEEDS = {"hold": "held", "release": "released", "kill": "killed", "reset": "back to pending"}


def control(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Do what the options say with the jobs that they name."""
    options, check = module.params, module.check_mode
    action = options["action"]
    names = select(queue, options["jobs"]) or []
    if action == "hold":
        changes = queue.hold(names, options["by"], check)
    elif action == "priority":
        changes = queue.prioritize(names, str(options["priority"]), check)
    elif action == "kill":
        changes = kill(queue, names, options["by"], options["wait"], check)
    else:
        changes = queue.release(names, check) if action == "release" else queue.reset(names, check)
    result = report(changes, DEEDS.get(action, f"given priority {options['priority']}"), check)
    if action == "kill" and any(change.new_state == "running" for change in changes):
        result["failed"] = True
    return result


def main() -> None:
    """Run the module."""
    change(
        {
            "action": {"type": "str", "choices": ["hold", "release", "priority", "kill", "reset"], "required": True},
            "jobs": {"type": "list", "elements": "str", "required": True},
            "priority": {"type": "int"},
            "by": {"type": "str", "default": ""},
            "wait": {"type": "float"},
        },
        control,
        required_if=[("action", "priority", ["priority"])],
    )


if __name__ == "__main__":
    main()
