#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_list
short_description: List jobs of a jobset
version_added: 0.1.0
description:
  - Lists jobs, chosen by name and state, in the natural order of their names.
  - Only those that are returned are read, so a queue may be large.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.looking
options:
  jobs:
    description: Which jobs, named as in M(sagequeue.batch.queue_control). Without it, all.
    type: list
    elements: str
  states:
    description: Only those in one of these states. V(held) means the pending jobs that are held. Without it, all.
    type: list
    elements: str
    choices: [pending, running, done, failed, held]
  limit:
    description: How many jobs at most; 0 for all.
    type: int
    default: 100
seealso:
  - module: sagequeue.batch.queue_info
"""

EXAMPLES = r"""
- name: Look at what failed or is held
  sagequeue.batch.queue_list:
    jobset: rook_r3
    states: [failed, held]
  register: queue

- name: Show it
  ansible.builtin.debug:
    msg: "{{ queue.text | split('\n') }}"
"""

RETURN = r"""
jobs:
  description: The jobs.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The job.
      type: str
    state:
      description: The state it is in.
      type: str
    held:
      description: Whether it is a pending job that is held.
      type: bool
    held_by:
      description: Who holds it.
      type: str
    held_at:
      description: Since when it is held, UTC.
      type: str
    priority:
      description: Its priority.
      type: int
    attempts:
      description: How many attempts have counted so far.
      type: int
    worker:
      description: The worker that runs it, or has run it last.
      type: str
    since:
      description: When it was enqueued (pending), claimed (running), or ended, UTC.
      type: str
    seconds:
      description: How long it has been pending or running; how long its last attempt took where it is done or failed.
      type: float
    reason:
      description: Why it is where it is.
      type: str
    detail:
      description: The same in more words.
      type: str
total:
  description: How many jobs there are of these, shown or not.
  returned: success
  type: int
counts:
  description: How many jobs are in each state.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
text:
  description: The jobs as a table of 80 columns.
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import run
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.listing import CHOICES, listing, table
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def look(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """List the jobs that the options name."""
    found = listing(queue, module.params["jobs"], module.params["states"], module.params["limit"])
    return {**found, "changed": False, "text": table(found)}


def main() -> None:
    """Run the module."""
    run(
        {
            "jobs": {"type": "list", "elements": "str"},
            "states": {"type": "list", "elements": "str", "choices": list(CHOICES)},
            "limit": {"type": "int", "default": 100},
        },
        look,
    )


if __name__ == "__main__":
    main()
