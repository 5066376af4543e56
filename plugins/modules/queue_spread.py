# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_spread
short_description: Decide which host gets which job of a jobset that is spread over several
version_added: 0.1.0
description:
  - Works on the machine that runs Ansible, once for all hosts, with what M(sagequeue.batch.queue_holdings) has found on each of
    them, and with a record of where each job was placed. It puts nothing into a queue; that is for M(sagequeue.batch.queue_enqueue).
  - The record is written first. As long as the C(ansible-playbook) lives that has called it, no other one can work on the record.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  action:
    description: It is an action plugin.
    support: full
  check_mode:
    description: Says what would be placed where, and writes no record.
    support: full
  diff_mode:
    description: The record is no configuration; where jobs go to is shown by M(sagequeue.batch.queue_enqueue).
    support: none
  idempotent:
    description: What is placed stays where it is.
    support: full
options:
  step:
    description:
      - V(enqueue) places jobs that are nowhere yet. V(move) places the pending jobs of a host elsewhere, V(moved) goes on when they
        were taken off it. V(back) lets a host that was given up take part again. V(put) notes which hosts have
        got what was placed there. V(look) places nothing.
    type: str
    choices: [enqueue, move, moved, back, look, put]
    required: true
  jobset:
    description: The jobset's name.
    type: str
    required: true
  record:
    description: The file that says where the jobs are.
    type: path
    required: true
  hosts:
    description: The names of all hosts over which the jobset is spread, in order.
    type: list
    elements: str
    required: true
  answers:
    description: The names of variables in which the answers of the hosts are registered. Of those that a host has the first counts.
    type: list
    elements: str
    required: true
  policy:
    description:
      - Which host gets the next job. V(sequential) is each in turn, V(random) any, V(smart) the one with most free slots, V(frugal)
        the one with fewest, but one at least. Slots are workers without a job that is running or pending.
      - By default the one that was taken the last time.
    type: str
    choices: [sequential, random, smart, frugal]
  offsets:
    description: The offsets to enqueue. Without it and O(jobs_file), the whole stride.
    type: list
    elements: int
  jobs_file:
    description: A file on the machine that runs Ansible, as for M(sagequeue.batch.queue_enqueue).
    type: path
  force:
    description: Enqueue those that are done or failed again, on the hosts on which they are.
    type: bool
    default: false
  source:
    description: The host whose jobs move, or which is back.
    type: str
  jobs:
    description: Move only these, named as in M(sagequeue.batch.queue_control).
    type: list
    elements: str
  lost:
    description: Give the host up if it can't be asked, and move what was pending there when it was asked last.
    type: bool
    default: false
  running:
    description: Then also move what was running there.
    type: bool
    default: false
seealso:
  - module: sagequeue.batch.queue_holdings
  - module: sagequeue.batch.queue_enqueue
"""

EXAMPLES = r"""
- name: Place the jobs of the whole stride
  sagequeue.batch.queue_spread:
    step: enqueue
    jobset: rook_r3
    record: /home/anna/batch/.spread/rook_r3.json
    hosts: "{{ groups['sagequeue'] }}"
    answers: [held]
    policy: smart
  run_once: true
  register: placement
"""

RETURN = r"""
put:
  description: For each host that is to get jobs their list, as O(jobs_file) would have it.
  returned: success
  type: dict
  sample: {h1: "rook_r3_off0 OFFSET=0\n"}
take:
  description: Which jobs must be taken off O(source) first.
  returned: success
  type: list
  elements: str
placed:
  description: How many jobs have got a host, or another one, by this step.
  returned: success
  type: int
hosts:
  description: Of each host, how many jobs it has in each state, its workers, how many of them are free, and what else is to be said.
  returned: success
  type: list
  elements: dict
counts:
  description: How many jobs are in each state on all hosts together, each job once.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
left:
  description: For each job that could not be placed the reason.
  returned: success
  type: dict
twice:
  description: For each job that more than one host holds these hosts, the one that it belongs to first.
  returned: success
  type: dict
said:
  description: What is to be said of all that, a line each.
  returned: success
  type: list
  elements: str
msg:
  description: The first of these lines.
  returned: always
  type: str
"""
