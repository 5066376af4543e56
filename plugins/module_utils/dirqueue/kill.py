# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ending jobs now: pending ones at once, running ones by their workers, those of dead workers by recovery."""

from __future__ import annotations

import time
from typing import Callable, Optional

from .errors import QueueError
from .queue import Queue
from .recovery import recover
from .runners.known import make
from .store import Change

# Seconds between two looks at jobs that are being ended; and how long a worker may take for it, beside the jobset's grace.
_LOOK = 0.1
_SLACK = 30.0


def kill(
    queue: Queue,
    names: list[str],
    by: str = "",
    wait: Optional[float] = None,
    check: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> list[Change]:
    """Bring pending and running jobs to failed, with the reason killed, and wait until it is so. Finished jobs are left alone.

    Args:
        queue: the jobset's queue.
        names: which.
        by: who asks for it.
        wait: seconds; None: as long as the jobset's workers should need. A job that still runs then stays in running, and its
            worker, or whoever recovers the job, ends it all the same when it can.
        check: only say what would become of each.
        log: told what is done.
    """
    deadline = time.monotonic() + (queue.jobset.grace + _SLACK if wait is None else wait)
    changes = {change.name: change for change in queue.kill(names, by, check)}
    left = [change.name for change in changes.values() if change.new_state == "running"]
    while left:
        if any(queue.why_orphan(name) for name in left if queue.locate(name) == "running"):
            recover(queue, make(queue.layout, queue.jobset), log=log)
        # Put back by a worker that was just stopping, or claimed anew: asked once more.
        for change in queue.kill([name for name in left if queue.locate(name) != "running"], by):
            reason = change.reason
            if change.old_state == "failed":
                reason = "killed" if _killed(queue, change.name) else "failed by itself meanwhile"
            elif change.old_state == change.new_state:
                reason = f"left alone: {change.new_state or 'removed'} meanwhile"
            changes[change.name] = Change(change.name, "running", change.new_state, reason)
            if change.new_state != "running":
                left.remove(change.name)
        if left and time.monotonic() > deadline:
            break
        time.sleep(_LOOK if left else 0)
    for name in left:
        changes[name] = Change(name, "running", "running", "still running; its worker was asked to end it, and will when it can")
    if not check:
        with queue.lock():
            queue.clear_kill_requests()
    return list(changes.values())


def _killed(queue: Queue, name: str) -> bool:
    try:
        return queue.read("failed", name).get("REASON") == "killed"
    except (OSError, QueueError):
        return False
