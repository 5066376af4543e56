#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_logs
short_description: Read the last lines of jobs' logs
version_added: 0.1.0
description:
  - Reads the ends of the logs of a jobset's jobs that were written to last.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.looking
options:
  job:
    description: The job, or a pattern as a shell knows them. Without it, any.
    type: str
    default: ""
  lines:
    description: How many lines of each log.
    type: int
    default: 10
  logs:
    description: How many logs.
    type: int
    default: 8
"""

EXAMPLES = r"""
- name: Read the end of a job's log
  sagequeue.batch.queue_logs:
    jobset: rook_r3
    job: rook_r3_off7
  register: logs
"""

RETURN = r"""
lines:
  description: The lines, those of each log below a line with its path.
  returned: success
  type: list
  elements: str
counts:
  description: How many jobs are in each state.
  returned: success
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import run
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import joblog
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def read(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Read the logs that the options name."""
    options = module.params
    name = f"{options['job'] or '*'}.log"
    if "/" in name:
        raise QueueError(f"{options['job']!r} is no job's name")
    lines = joblog.ends(queue.layout.log, [name], options["lines"], max(1, options["logs"]))
    if not lines and options["job"]:
        raise QueueError(f"There is no {queue.layout.log}/{name}: no such job has run yet.")
    return {"changed": False, "lines": lines or [f"No job of {queue.jobset.name} has run yet."]}


def main() -> None:
    """Run the module."""
    run(
        {"job": {"type": "str", "default": ""}, "lines": {"type": "int", "default": 10}, "logs": {"type": "int", "default": 8}},
        read,
    )


if __name__ == "__main__":
    main()
