# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who keeps workers alive: one class for each supervisor, all with the same verbs; known.py says which. Private to the collection.

Another supervisor is one more file here: it says what should run (define), lets it run (start, stop), says whether it comes
back with the host (enable), and what runs where and what it said (status, journal).
"""

from __future__ import annotations

import math
import os

from .._host import Host
from ..dirqueue.errors import QueueError
from ..dirqueue.jobset import Jobset
from ..dirqueue.layout import write_whole


def instances(jobset: Jobset) -> list[str]:
    """Return the names of a jobset's workers."""
    return [f"{jobset.name}-{number}" for number in range(1, jobset.processes + 1)]


def stop_wait(jobset: Jobset, host: Host) -> int:
    """Return after how many seconds a worker that should stop is killed."""
    return math.ceil(jobset.grace + host.stop_margin)


class Supervisor:
    """What all supervisors share. Every verb does only what is missing; in check mode it says so and does nothing.

    Args:
        host: what setup has found out.
        jobsets: all that this supervisor looks after on the host.
        check: whether this is check mode.
    """

    name = ""

    def __init__(self, host: Host, jobsets: list[Jobset], check: bool) -> None:
        self.host = host
        self.jobsets = jobsets
        self.check = check
        # For --diff: of a file, its path and its text before and after; of workers, their states.
        self.diff: list[dict[str, str]] = []

    def prepare(self) -> None:
        """Make what all jobsets share."""
        raise NotImplementedError

    def define(self, jobsets: list[Jobset]) -> None:
        """Have as many workers as the jobsets want, known to the supervisor; those that run already are left alone.

        A jobset that runs gets the workers that it lacks, and surplus ones stop.
        """
        raise NotImplementedError

    def enable(self, jobsets: list[Jobset], on: bool) -> None:
        """Set whether the workers start with the host."""
        raise NotImplementedError

    def start(self, jobsets: list[Jobset]) -> None:
        """Start all workers that do not run."""
        raise NotImplementedError

    def wake(self, jobsets: list[Jobset]) -> None:
        """Have workers for jobs that are pending now, where workers leave when there are none, and the jobset is started."""

    def stop(self, jobsets: list[Jobset]) -> None:
        """Stop all workers, all at the same time; return when they have stopped."""
        raise NotImplementedError

    def forget(self, jobsets: list[Jobset]) -> None:
        """Stop the workers, and remove what define has made."""
        raise NotImplementedError

    def gone(self) -> None:
        """Remove what prepare has made."""
        raise NotImplementedError

    def running(self, jobsets: list[Jobset]) -> list[str]:
        """Return the names of those jobsets whose workers run."""
        raise NotImplementedError

    def status(self, jobsets: list[Jobset]) -> list[str]:
        """Return lines for people: whether each jobset comes back with the host, and its workers with their states."""
        raise NotImplementedError

    def journal(self, jobsets: list[Jobset], lines: int) -> list[str]:
        """Return the last lines that the workers said."""
        raise NotImplementedError

    # ---- for those who write one ------------------------------------------------------------------------------

    def needs(self, jobsets: list[Jobset], paths: list[str]) -> None:
        """Stop where define has not made its file for a jobset."""
        missing = [jobset.name for jobset, path in zip(jobsets, paths) if not os.path.exists(path)]
        if missing and not self.check:
            raise QueueError(f"jobset {missing[0]} has no workers under {self.name} yet: run setup, or enqueue its jobs, first")

    def acts(self, names: list[str], before: str, after: str) -> bool:
        """Note that something happens to some workers or jobsets; tell whether to do it now."""
        if names:
            states = {"before": before, "after": after}
            self.diff.append({side: "".join(f"{name}: {state}\n" for name in names) for side, state in states.items()})
        return bool(names) and not self.check

    def write(self, path: str, text: str, mode: int) -> bool:
        """Write a file, all or nothing; return whether that changes it."""
        try:
            with open(path, encoding="utf-8") as file:
                before = file.read()
            if before == text and os.stat(path).st_mode & 0o777 == mode:
                return False
        except FileNotFoundError:
            before = ""
        self.diff.append({"before_header": path, "after_header": path, "before": before, "after": text})
        if not self.check:
            write_whole(path, text, mode)
        return True

    def remove(self, path: str) -> bool:
        """Remove a file; return whether there was one."""
        if not os.path.lexists(path):
            return False
        self.diff.append({"before_header": path, "after_header": path, "before": "present\n", "after": "absent\n"})
        if not self.check:
            os.unlink(path)
        return True
