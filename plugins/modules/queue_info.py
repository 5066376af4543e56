#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_info
short_description: Look at the queue of a jobset
version_added: 0.1.0
description:
  - Says how many jobs are in each state, who holds each running job and whether that owner lives, how the gate stands,
    and whether the jobset is solved.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
attributes:
  check_mode:
    description: It changes nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: It changes nothing.
    support: full
options:
  jobs:
    description: List every job with its state and values, too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Look at a queue
  sagequeue.batch.queue_info:
    jobset: rook_r3
  register: queue

- name: Say which jobs have lost their worker
  ansible.builtin.debug:
    msg: "{{ queue.running | rejectattr('alive') | map(attribute='name') }}"
"""

RETURN = r"""
counts:
  description: How many jobs are in each state.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
held:
  description: How many of the pending jobs are held.
  returned: success
  type: int
running:
  description: The running jobs.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The job.
      type: str
    alive:
      description: Whether its owner lives.
      type: bool
    why_orphan:
      description: Why the job is an orphan, empty where its owner lives.
      type: str
    worker:
      description: The worker that holds it.
      type: str
    host:
      description: The worker's host.
      type: str
    pid:
      description: The worker's process id.
      type: str
    since:
      description: When it was claimed, UTC.
      type: str
    claim:
      description: The id of the claim, which the job's processes carry as E(SAGEQUEUE_CLAIM).
      type: str
gate:
  description: How the gate stands.
  returned: success
  type: dict
  contains:
    closed:
      description: Whether it is closed.
      type: bool
    by:
      description: Who closed it, V(request) for an operator, V(program) for a job's own program.
      type: str
    text:
      description: What the gate file says.
      type: str
    file:
      description: The gate file.
      type: str
    solved:
      description: Whether the gate's text names the job that solved the jobset.
      type: bool
    solved_by:
      description: That job.
      type: str
    log:
      description: The log of that job, which holds the witness.
      type: str
refused:
  description: What lies in the queue and can't be a job, with the reason.
  returned: success
  type: dict
rate:
  description: Jobs done per hour, null where nothing is known.
  returned: success
  type: float
seconds_left:
  description: The time that the rest will take at that rate, null where nothing is known.
  returned: success
  type: int
jobs:
  description: Every job with name, state and values (keys in lower case).
  returned: when O(jobs) is true
  type: list
  elements: dict
line:
  description: The progress in one line.
  returned: success
  type: str
text:
  description: The progress for a person, in several lines.
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import run
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import progress
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def look(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Return how the queue stands."""
    found = progress.summary(queue)
    result = {**found, "changed": False, "line": progress.line(found), "text": progress.text(found)}
    if module.params["jobs"]:
        result["jobs"] = progress.jobs(queue)
    return result


def main() -> None:
    """Run the module."""
    run({"jobs": {"type": "bool", "default": False}}, look)


if __name__ == "__main__":
    main()
