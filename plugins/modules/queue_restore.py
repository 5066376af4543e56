#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_restore
short_description: Put what is in an archive into a jobset's queue that has no jobs
version_added: 0.1.0
description:
  - Unpacks and checks an archive of M(sagequeue.batch.queue_backup) beside the queue, and then puts all of it in place. If it is killed
    meanwhile, the next run goes on where it was.
  - Refuses a jobset that has jobs, and an archive that is damaged or holds anything but what a backup writes. Then nothing is changed.
  - Jobs that ran when the backup was made are brought back to pending, or to done where the gate says that they have solved the jobset.
  - An older log or history that is in the way gets another name. A gate that is there stays.
author:
  - the sagequeue.batch authors (@sagequeue)
extends_documentation_fragment:
  - sagequeue.batch.queue
attributes:
  check_mode:
    description: Checks the archive, beside the queue, and says whether it can be restored.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: A second run with the same archive changes nothing, as long as the jobset has jobs.
    support: full
options:
  path:
    description: The archive on the host.
    type: path
    required: true
  keep_state_files:
    description:
      - Whether state files that are in the workdir already, and differ from those in the archive, stay as they are.
      - If not, they are a reason to refuse.
    type: bool
    default: false
seealso:
  - module: sagequeue.batch.queue_backup
"""

EXAMPLES = r"""
- name: Bring a jobset back
  sagequeue.batch.queue_restore:
    jobset: rook_r3
    path: ~/rook_r3.tar.gz
"""

RETURN = r"""
kept:
  description: Files that were there already, differ, and stay.
  returned: success
  type: list
  elements: str
aside:
  description: Files that were there already and have another name now.
  returned: success
  type: list
  elements: str
counts:
  description: How many jobs are in each state now.
  returned: success
  type: dict
  sample: {pending: 6, running: 2, done: 0, failed: 0}
waiting:
  description: Why jobs that ran could not be brought back now, empty if they were. The next worker that starts does so.
  returned: success
  type: str
msg:
  description: What was done, in a few lines.
  returned: always
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_change import change
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import NotReady, QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.restore import restore, told
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make


def bring_back(module: AnsibleModule, queue: Queue) -> dict[str, Any]:
    """Restore the archive, and recover what ran."""
    if not module.params["path"]:
        raise QueueError("Name the archive: -e file=PATH on the host, or -e send=PATH on this machine")
    done = restore(queue, module.params["path"], module.params["keep_state_files"], module.check_mode)
    lines, waiting = [told(done)], ""
    if done["changed"] and not module.check_mode:
        try:
            recovered = recover(queue, make(queue.layout, queue.jobset))
            lines += [f"ran when it was backed up: {change.name}, now {change.new_state}" for change in recovered]
        except NotReady as exc:
            waiting = str(exc)
            lines.append(f"what ran when it was backed up comes back to pending when a worker starts; not now: {waiting}")
    return {**done, "waiting": waiting, "msg": "\n".join(lines)}


def main() -> None:
    """Run the module."""
    change({"path": {"type": "path", "required": True}, "keep_state_files": {"type": "bool", "default": False}}, bring_back)


if __name__ == "__main__":
    main()
