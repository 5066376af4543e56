# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Telling others that a jobset has ended (on_done) or that a job has failed for good (on_failed).

A worker that has finished a job starts the program once more, as `sagequeue hooks JOBSET`, and does not wait for it: so no
hook holds up or breaks a worker. What such a process has to tell it takes from the history: a line whose result is
failed is one on_failed; and when nothing runs, and nothing is pending (or the jobset is solved), the latest line is one
on_done. run/hooks.json says how far that was told. One process at a time tells; one more may wait, and sees what
happened until its turn comes.

So each is told once, however many workers finish at the same time. A process that is killed between the telling and its
note tells it again: the recovery, every recover_every seconds, goes on with what is left. Each has an id (of the claim)
by which a receiver knows it again.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Callable

from .errors import explain
from .queue import Queue

_started: list[subprocess.Popen[bytes]] = []


def poke(queue: Queue, failed: bool, log: Callable[[str], None]) -> None:
    """Start a process that tells what is to be told, if there may be something; wait for nothing.

    Args:
        queue: the jobset's.
        failed: whether a job has failed for good just now.
        log: told when it can't be started.
    """
    jobset = queue.jobset
    if not (jobset.on_done or jobset.on_failed):
        return
    _started[:] = [process for process in _started if process.poll() is None]
    try:
        if (jobset.on_failed and failed) or (jobset.on_done and queue.ended()):
            layout = queue.layout
            words = [sys.executable, layout.program, "--root", layout.root, "hooks", layout.jobset]
            _started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True))
    except (OSError, MemoryError) as exc:
        # The recovery will tell it.
        log(f"on_done and on_failed wait for the next recovery: {explain(exc, queue.layout.program)}")
