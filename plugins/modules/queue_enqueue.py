#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_enqueue
short_description: Put jobs of a jobset into its queue
version_added: 0.1.0
description:
  - Enqueues the jobs of the whole stride, of some offsets, or of a list of names and keys, all of them or none.
  - A job that exists in any state is left alone and reported.
  - When the module returns, the jobs survive a power cut.
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
  offsets:
    description: The offsets to enqueue. Without it, O(jobs), O(jobs_file) and O(jobs_list), the whole stride is enqueued.
    type: list
    elements: int
  jobs:
    description: Jobs with values of their own.
    type: list
    elements: dict
    suboptions:
      name:
        description: The job's name.
        type: str
        required: true
      values:
        description: Its keys (capitals, digits and underscores) and values.
        type: dict
        default: {}
  jobs_file:
    description:
      - A file on the host with one job a line, C(NAME KEY=VALUE ...), words quoted as in a shell.
      - What follows C(#) is a comment. A name may have ranges of numbers in brackets, such as V(part[01-16,20]), and is as many jobs then.
    type: path
  jobs_list:
    description: What would stand in O(jobs_file).
    type: str
  force:
    description: Enqueue those that are done or failed again.
    type: bool
    default: false
  start:
    description: Let the jobset's workers start then, now and with the host. Needs a host where setup has been.
    type: bool
    default: false
seealso:
  - module: sagequeue.batch.queue_workers
  - module: sagequeue.batch.queue_retry
  - module: sagequeue.batch.queue_info
"""

EXAMPLES = r"""
- name: Enqueue the whole stride
  sagequeue.batch.queue_enqueue:
    jobset: rook_r3

- name: Enqueue two offsets, also when they are done already
  sagequeue.batch.queue_enqueue:
    jobset: rook_r3
    offsets: [3, 5]
    force: true

- name: Enqueue jobs with keys of their own
  sagequeue.batch.queue_enqueue:
    jobset: template
    jobs:
      - name: first
        values:
          TITLE: any text at all
"""

RETURN = r"""
jobs:
  description: What became of each job; for a large enqueue, one entry for all that are alike.
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
from ansible_collections.sagequeue.batch.plugins.module_utils import _host
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_change import DEFINITION, change, define, report
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.known import start
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def enqueue(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Enqueue what the options name."""
    options = module.params
    jobs: batch.Lines | list[tuple[str, dict[str, str]]]
    if options["jobs_file"]:
        try:
            with open(options["jobs_file"], encoding="utf-8", newline="\n") as file:
                jobs = batch.listed(file.read())
        except UnicodeDecodeError as exc:
            raise QueueError(f"{options['jobs_file']} is not UTF-8; nothing was enqueued") from exc
    elif options["jobs_list"] is not None:
        jobs = batch.listed(options["jobs_list"])
    elif options["jobs"] is not None:
        jobs = [(job["name"], {key: str(value) for key, value in job["values"].items()}) for job in options["jobs"]]
    else:
        jobs = queue.jobset.offset_jobs(options["offsets"])
    result = report(queue.enqueue(jobs, options["force"], module.check_mode), "enqueued", module.check_mode)
    if options["start"]:
        differences = start(_host.of(queue.layout.root), queue.jobset, module.check_mode)
        result.update(changed=result["changed"] or bool(differences), diff=[result["diff"], *differences])
    return result


def main() -> None:
    """Run the module."""
    change(
        {
            **DEFINITION,
            "offsets": {"type": "list", "elements": "int"},
            "jobs": {
                "type": "list",
                "elements": "dict",
                "options": {"name": {"type": "str", "required": True}, "values": {"type": "dict", "default": {}}},
            },
            "jobs_file": {"type": "path"},
            "jobs_list": {"type": "str"},
            "force": {"type": "bool", "default": False},
            "start": {"type": "bool", "default": False},
        },
        enqueue,
        define,
        mutually_exclusive=[("offsets", "jobs", "jobs_file", "jobs_list")],
    )


if __name__ == "__main__":
    main()
