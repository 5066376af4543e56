#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_workers_info
short_description: Say which workers run, what they said, and how many jobs there are
version_added: 0.1.0
description:
  - Looks at any number of jobsets at once.
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
    description: The jobset. Without it, all that are defined on the host.
    type: str
    default: ""
  one:
    description: Whether O(jobset) must be given.
    type: bool
    default: false
  lines:
    description: How many of the last lines that the workers said to read, too.
    type: int
    default: 0
notes:
  - Run it as the batch user.
seealso:
  - module: sagequeue.batch.queue_workers
"""

EXAMPLES = r"""
- name: See which workers run
  sagequeue.batch.queue_workers_info:
  register: host
"""

RETURN = r"""
workers:
  description: Whether each jobset comes back with the host, and its workers with their states, a line each.
  returned: success
  type: list
  elements: str
queues:
  description: Each jobset's progress in one line.
  returned: success
  type: list
  elements: str
messages:
  description: What the workers said.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils import _host
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import named, root_of
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.known import make
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions, progress, progress_text
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def look(root: str, name: str, lines: int) -> dict[str, list[str]]:
    """Return what there is to say of one jobset, or of all."""
    host = _host.of(root)
    said: dict[str, list[str]] = {"workers": [], "queues": [], "messages": []}
    found = []
    for one in [name] if name else definitions.defined(root):
        try:
            found.append(definitions.load(root, one))
            with Queue(Layout(root, one), found[-1]) as queue:
                said["queues"].append(progress_text.line(progress.summary(queue)))
        except (QueueError, OSError) as exc:
            if name:
                raise
            # The others are looked at all the same.
            said["queues"].append(f"{one}: {explain(exc, root)}")
    for kind in sorted({one.supervisor for one in found}):
        supervisor = make(kind, host, found, False)
        try:
            said["messages"] += supervisor.journal(supervisor.jobsets, lines) if lines > 0 else []
            said["workers"] += supervisor.status(supervisor.jobsets)
        except QueueError as exc:
            # That it does not answer is what there is to say.
            said["workers"].append(str(exc))
    return said


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "~/sagequeue"},
            "jobset": {"type": "str", "default": ""},
            "one": {"type": "bool", "default": False},
            "lines": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    root = root_of(module.params["root"])
    try:
        if module.params["one"]:
            named(root, module.params["jobset"])
        result = look(root, module.params["jobset"], module.params["lines"])
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
