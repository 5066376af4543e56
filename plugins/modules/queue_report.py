#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_report
short_description: Write a page about a jobset
version_added: 0.1.0
description:
  - Writes one HTML page that needs nothing beside it, on the host. It has a summary, the attempts of each worker over time, the throughput,
    the failures by reason with the last lines of their logs, and how run times and peak memory are distributed.
  - Values of secrets are not in it, neither in what it shows of the definition nor in the lines of logs.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
attributes:
  check_mode:
    description: Says where the page would be.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: Each run writes a new page, which says when.
    support: none
options:
  to:
    description: The page's file, or a folder for it. Without it, C(reports) below O(root).
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Write a page about a run
  sagequeue.batch.queue_report:
    jobset: rook_r3
  register: page
"""

RETURN = r"""
path:
  description: The page's file.
  returned: success
  type: str
  sample: /home/anna/sagequeue/reports/rook_r3.html
windows_path:
  description: How Windows names it, empty where the host is no WSL distribution.
  returned: success
  type: str
counts:
  description: How many jobs are in each state.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
msg:
  description: Where it is, in one line.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import run
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import report, wsl
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue


def write(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Write the page."""
    to = module.params["to"]
    path = report.where(queue, to) if module.check_mode else report.write(queue, to)
    said = f"The report would be {path}" if module.check_mode else report.said(path)
    return {"changed": True, "path": path, "windows_path": wsl.windows_path(path), "msg": said}


def main() -> None:
    """Run the module."""
    run({"to": {"type": "str", "default": ""}}, write)


if __name__ == "__main__":
    main()
