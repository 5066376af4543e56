#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_holdings
short_description: Say which jobs of a jobset that is spread a host holds, and take some off it
version_added: 0.1.0
description:
  - Answers what M(sagequeue.batch.queue_spread) must know of each host.
  - Takes pending jobs out of the queue first, where that is asked for. They are to be put into another host's queue then.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.queue.actions
options:
  definition:
    description:
      - The jobset's keys, without C(secrets). It is defined like that first, if it is not yet.
      - Needs a host where setup has been. Without it, the jobset must be defined.
    type: dict
  secrets:
    description: More environment variables of the job, whose values nothing shows. Only with O(definition).
    type: dict
    default: {}
  take:
    description: The full names of jobs that are taken out of the queue if they are pending.
    type: list
    elements: str
    default: []
  lines:
    description: Return the lines of the pending jobs, too, which needs all of them to be read.
    type: bool
    default: false
seealso:
  - module: sagequeue.batch.queue_spread
"""

EXAMPLES = r"""
- name: Ask each host what it holds
  sagequeue.batch.queue_holdings:
    jobset: rook_r3
  register: held
"""

RETURN = r"""
states:
  description: The names of the jobs in each state; held ones are not among the pending ones.
  returned: success
  type: dict
  sample: {pending: [rook_r3_off7], held: [], running: [rook_r3_off6], done: [], failed: []}
lines:
  description: For each pending job its line of a list of jobs, where asked for.
  returned: success
  type: dict
  sample: {rook_r3_off7: rook_r3_off7 OFFSET=7}
workers:
  description: How many workers the jobset has here.
  returned: success
  type: int
stride:
  description: The jobset's stride.
  returned: success
  type: int
jobs:
  description: What became of each job that was to be taken.
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
info:
  description: What M(sagequeue.batch.queue_info) returns.
  returned: success
  type: dict
seconds_left:
  description: About how many seconds it goes on here, null where that is not known.
  returned: success
  type: int
counts:
  description: How many jobs are in each state now.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
settled:
  description: Whether nothing more will happen here by itself.
  returned: success
  type: bool
msg:
  description: What was taken, in one line.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_change import DEFINITION, change, define, report
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, job, progress, progress_text
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import MalformedJob
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import PLACES
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def hold(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Take what is to be taken, and say what is left."""
    take = module.params["take"]
    if take:
        # What is held by now stays: its hold would be lost.
        held = {name for name, state in queue.states().items() if state == "held"}
        take = [name for name in take if name not in held]
    changes = queue.remove(take, ["pending"], False, module.check_mode) if take else []
    states: dict[str, list[str]] = {place: [] for place in PLACES}
    for name, state in queue.states().items():
        states[state].append(name)
    lines = {}
    if module.params["lines"]:
        batched = queue.batch_lines(set(states["pending"]))
        for name in states["pending"]:
            try:
                values = batched[name][0] if name in batched else queue.read("pending", name)
            except (FileNotFoundError, MalformedJob):
                continue
            own = {key: value for key, value in values.items() if key == "PRIORITY"}
            lines[name] = batch.line(name, {**job.own_values(values), **own})
    found = progress.summary(queue)
    return {
        **report(changes, "taken", module.check_mode),
        "states": states,
        "lines": lines,
        "workers": queue.jobset.workers,
        "stride": queue.jobset.stride,
        "info": {**found, "line": progress_text.line(found)},
        "seconds_left": found["seconds_left"],
        "counts": found["counts"],
        "settled": found["settled"],
    }


def main() -> None:
    """Run the module."""
    options: dict[str, dict[str, Any]] = {
        **DEFINITION,
        "take": {"type": "list", "elements": "str", "default": []},
        "lines": {"type": "bool", "default": False},
    }
    change(options, hold, define)


if __name__ == "__main__":
    main()
