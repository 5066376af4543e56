#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_verify
short_description: Say whether queues keep what they promise
version_added: 0.1.0
description:
  - Looks whether each job is in exactly one state and can be read, who holds the running ones, what was left half done, whether batches
    and history are whole, whether the gate can be read, and what is refused.
  - Fails with all that is wrong, and the next step for each. Workers may run meanwhile.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.looking
options:
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
  jobset:
    description: The jobset to look at. Without it, all that are defined on the host.
    type: str
    default: ''
notes:
  - Run it as the batch user. The queue is private to that user.
requirements:
  - Python 3.8 or newer on the host
"""

EXAMPLES = r"""
- name: Be sure of a queue after the disk was full
  sagequeue.batch.queue_verify:
    jobset: rook_r3
"""

RETURN = r"""
problems:
  description: What is wrong, empty where nothing is.
  returned: always
  type: list
  elements: dict
  contains:
    jobset:
      description: The jobset.
      type: str
    what:
      description: The job, file or gate that it is about.
      type: str
    why:
      description: What is wrong with it.
      type: str
    next:
      description: The next step.
      type: str
queues:
  description: How many jobs each jobset has in each state, how its gate stands, and how many problems it has.
  returned: always
  type: list
  elements: dict
  sample: [{jobset: rook_r3, pending: 6, running: 2, done: 0, failed: 0, gate: open, problems: 0}]
lines:
  description: The jobsets that are as they should be, a line each.
  returned: success
  type: list
  elements: str
msg:
  description: All problems, a line each.
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import root_of
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import verify
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain


def main() -> None:
    """Run the module."""
    options = {"root": {"type": "path", "default": "~/sagequeue"}, "jobset": {"type": "str", "default": ""}}
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    root, name = root_of(module.params["root"]), module.params["jobset"]
    try:
        found = verify.verify(root, [name] if name else [])
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    problems = [one._asdict() for one in found["problems"]]
    if problems:
        shown = "\n".join(map(str, found["problems"]))
        more = {"problems": problems, "queues": found["queues"]}
        module.fail_json(msg=f"{len(problems)} of what the queue promises does not hold:\n{shown}", **more)
    module.exit_json(changed=False, problems=[], queues=found["queues"], lines=verify.said(found))


if __name__ == "__main__":
    main()
