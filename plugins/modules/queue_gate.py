#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_gate
short_description: Close or open the gate of a jobset
version_added: 0.1.0
description:
  - While the gate is closed no job is claimed, and a job that exits 0 goes back to pending, to resume later.
  - The gate is a file. Closing writes it with a line that says who and when; a gate that a job's own program has closed
    stays as it is.
  - Opening removes it; its text is kept in C(run/gates.jsonl) of the jobset.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
  - sagequeue.batch.queue.actions
options:
  state:
    description: How the gate shall stand.
    type: str
    choices: [closed, open]
    required: true
  by:
    description: Who asks for it. By default the user that the module runs as.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Stop a jobset softly
  sagequeue.batch.queue_gate:
    jobset: rook_r3
    state: closed
    by: anna

- name: Let it go on
  sagequeue.batch.queue_gate:
    jobset: rook_r3
    state: open
"""

RETURN = r"""
gate:
  description: The gate as it stands now.
  returned: success
  type: dict
  contains:
    closed:
      description: Whether it is closed.
      type: bool
    text:
      description: What the gate file says.
      type: str
    file:
      description: The gate file.
      type: str
counts:
  description: How many jobs are in each state now.
  returned: success
  type: dict
msg:
  description: The same in one line.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_change import change
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def turn(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Bring the gate into the state that is asked for."""
    before = queue.gate()
    close = module.params["state"] == "closed"
    changed = queue.close_gate(module.params["by"], module.check_mode) if close else queue.open_gate(module.check_mode)
    after = queue.gate()
    words = {True: "closed", False: "open"}
    verb = "would be" if module.check_mode and changed else "is"
    text = f": {after.text}." if close and after.text else "."
    return {
        "changed": changed,
        "gate": {"closed": close, "text": after.text if close else "", "file": queue.jobset.gate},
        "msg": f"The gate of jobset {queue.jobset.name} {verb} {module.params['state']}{text}",
        "diff": {"before": f"gate: {words[before.closed]}\n", "after": f"gate: {module.params['state']}\n"},
    }


def main() -> None:
    """Run the module."""
    change(
        {
            "state": {"type": "str", "choices": ["closed", "open"], "required": True},
            "by": {"type": "str", "default": ""},
        },
        turn,
    )


if __name__ == "__main__":
    main()
