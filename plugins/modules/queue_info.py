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
  - Looks into the jobs, too, where that is asked for, and into what their programs have done so far, where the jobset names a state file.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.looking
options:
  jobs:
    description: List every job with its state and values, too.
    type: bool
    default: false
  depth:
    description:
      - How far RV(text) goes into the jobset.
      - V(queue) says how many jobs are in each state, and who holds those that run. V(jobs) is a table of jobs with attempts, worker, time,
        memory, and the last line of the log. V(cases) is a table of the cases that jobs have done, where the jobset has a C(state_file).
      - V(auto) is V(cases) where there is a state file, and V(jobs) elsewhere.
    type: str
    choices: [auto, queue, jobs, cases]
    default: queue
  rows:
    description: How many jobs are shown one by one.
    type: int
    default: 20
  width:
    description: For how many columns of a terminal RV(text) is laid out.
    type: int
    default: 80
"""

EXAMPLES = r"""
- name: Look at a queue
  sagequeue.batch.queue_info:
    jobset: rook_r3
  register: queue

- name: Wait until nothing more happens by itself
  sagequeue.batch.queue_info:
    jobset: rook_r3
  register: queue
  until: queue.settled
  retries: 1000
  delay: 60

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
  description: The time that the rest will take at that rate, or the middle of the range that RV(cases) has, null where nothing is known.
  returned: success
  type: int
workers:
  description: How many workers of the jobset live.
  returned: success
  type: int
settled:
  description: Whether nothing more will happen by itself, because all jobs have ended, or the gate is closed and none runs.
  returned: success
  type: bool
ended:
  description: How it has ended, V(done), V(solved), V(failed), or V(held) or V(stopped) where jobs are pending; else empty.
  returned: success
  type: str
verdict:
  description: The same in one sentence, with the next step.
  returned: success
  type: str
cases:
  description: How far the jobs' programs say that they are, null where the jobset has no state file.
  returned: success
  type: dict
  contains:
    done:
      description: Cases done.
      type: int
    total:
      description: Cases in all, null where the jobset does not say.
      type: int
    rate:
      description: Cases done per hour, while as many jobs run as now, null where nothing is known.
      type: float
    known_from:
      description: From how many cases the rate is known.
      type: int
    seconds_left:
      description: Between how many seconds the rest should take, in 8 of 10 such cases, null where nothing is known.
      type: list
      elements: int
    why:
      description: Why nothing is known of the time left.
      type: str
    parts:
      description: The same for each job, with what is wrong with its state file under C(why).
      type: list
      elements: dict
table:
  description: What the table of jobs shows of each.
  returned: where RV(text) has that table
  type: list
  elements: dict
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
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import progress, progress_text
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def look(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Return how the queue stands."""
    options = module.params
    found = progress.look(queue, "" if options["depth"] == "auto" else options["depth"], options["rows"])
    text = {"line": progress_text.line(found), "text": progress_text.text(found, options["width"]), "verdict": progress_text.verdict(found)}
    result = {**found, **text, "changed": False}
    if module.params["jobs"]:
        result["jobs"] = progress.jobs(queue)
    return result


def main() -> None:
    """Run the module."""
    options: dict[str, dict[str, Any]] = {
        "jobs": {"type": "bool", "default": False},
        "depth": {"type": "str", "choices": ["auto", *progress_text.DEPTHS], "default": "queue"},
        "rows": {"type": "int", "default": 20},
        "width": {"type": "int", "default": 80},
    }
    run(options, look)


if __name__ == "__main__":
    main()
