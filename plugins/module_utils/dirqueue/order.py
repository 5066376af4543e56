# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pending job is next: the oldest, by its place in the queue (see store.ahead), whether it is a file or a line of a batch.

A worker lists pending once and keeps the names, so that a claim doesn't cost more where more jobs wait. What it keeps is a hint and no
more: that a job is still there, the rename of its claim finds out.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time
from collections import deque

from . import batch, job, owner
from .batch import Batch
from .control import Control
from .errors import MalformedJob, QueueError
from .job import SUFFIX
from .jobset import Jobset
from .layout import Layout
from .store import CLOSELY, PRIORITY_STEP, ahead

# Seconds after which a folder that looks unchanged is listed again.
_LOOK_AGAIN = 2.0


class Order(Control):
    """A queue that knows in which order its pending jobs are to be claimed."""

    def __init__(self, layout: Layout, jobset: Jobset) -> None:
        super().__init__(layout, jobset)
        # What was listed and is not claimed yet, the next first.
        self._names: deque[str] = deque()
        self._bad_batches: set[str] = set()
        # The time of pending when it was listed, -1 if that can't be trusted, and until when that holds; the time of held then.
        self._seen = (-1, 0.0)
        self._order = -1
        # The batch that comes after what was listed, how many of its jobs were files then, and how few names are left when it is time
        # to make more.
        self._ahead: tuple[str, int, int] | None = None

    def look(self) -> bool:
        """Tell whether there may be something to claim: a job was listed as pending, or is found so now, with an open gate."""
        if not self._names and not self._is_shut():
            self._next_names()
        elif self._ahead and len(self._names) <= self._ahead[2]:
            self._issue_ahead(*self._ahead[:2])
        return bool(self._names)

    def oldest_pending(self) -> float | None:
        """Return when the job that has been pending longest was enqueued, in seconds since 1970; None if none is."""
        found = [owner.seconds_of(one.stamp) for one in self._closing(self._batches())]
        now = time.time()
        for name in itertools.islice(self._each("pending"), CLOSELY):
            with contextlib.suppress(FileNotFoundError, MalformedJob):
                place = os.stat(name + SUFFIX, dir_fd=self._fds["pending"], follow_symlinks=False).st_mtime
                if not now - PRIORITY_STEP < place <= now:
                    # PRIORITY puts it elsewhere, see ahead: then only its text says.
                    place = owner.seconds_of(self.read("pending", name).get("ENQUEUED_AT", ""))
                found.append(place)
        return min((at for at in found if at), default=None)

    def arm(self) -> bool:
        """Have the kernel send one SIGIO when look may have another answer; return whether it will (F_NOTIFY of fcntl(2))."""
        folder, events = os.path.join(self.layout.queue, "pending"), fcntl.DN_CREATE | fcntl.DN_RENAME | fcntl.DN_ATTRIB
        if self._is_shut():
            folder, events = os.path.dirname(self.jobset.gate), fcntl.DN_DELETE | fcntl.DN_RENAME
        try:
            # A descriptor of its own: to close any duplicate of it, as listing a folder does, would end the watch.
            if folder not in self._fds:
                self._fds[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.fcntl(self._fds[folder], fcntl.F_NOTIFY, events)
        except OSError:
            return False
        return True

    def _check_order(self) -> None:
        """Forget what was listed if jobs were released since, or have got another priority: it is in the wrong order."""
        if self._names and os.fstat(self._fds["held"]).st_mtime_ns != self._order:
            self._forget_names()

    def _forget_names(self) -> None:
        self._names.clear()
        self._seen = (-1, 0.0)

    def _next_names(self) -> None:
        """List pending anew, where it may have changed; of a batch whose turn it is, make files of the next jobs first."""
        while True:
            mtime, order = os.fstat(self._fds["pending"]).st_mtime_ns, os.fstat(self._fds["held"]).st_mtime_ns
            # Unchanged, it is still read now and then: the claimer of a job that was passed over may have died since.
            if mtime == self._seen[0] and time.monotonic() < self._seen[1]:
                return
            places = []
            for name in self.entries("pending"):
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(name + SUFFIX, dir_fd=self._fds["pending"], follow_symlinks=False)
                    if not self._why_odd("pending", name, found):
                        places.append((found.st_mtime_ns, name))
            # Names matter only where places are equal, and take long to compare.
            equal = len({place for place, _name in places}) < len(places)
            places.sort(key=(lambda entry: (entry[0], job.natural(entry[1]))) if equal else None)
            first = self._first_batch()
            self._names.extend(name for place, name in places if not first or place < first[0])
            self._ahead = (first[1], first[2], len(self._names) // 2) if first else None
            if self._names or not first:
                break
            with self.lock():
                # Somebody else may have been faster.
                if os.fstat(self._fds["pending"]).st_mtime_ns == mtime:
                    try:
                        one = Batch(self._fds["batches"], first[1])
                    except FileNotFoundError:
                        continue
                    with one:
                        try:
                            self._issue(one)
                        except MalformedJob as exc:
                            self.refused[f"batches/{one.name}{batch.SUFFIX}"] = str(exc)
                            self._bad_batches.add(one.id)
        # A folder changed twice within one tick of its clock looks unchanged: trust only a time that has passed.
        self._seen = (mtime if time.time_ns() - mtime > 50_000_000 else -1, time.monotonic() + _LOOK_AGAIN)
        self._order = order if abs(time.time_ns() - order) > 50_000_000 else -1

    def _issue_ahead(self, name: str, issued: int) -> None:
        """Make files of a batch's next jobs, if nobody has, while some are still listed: later all workers would wait for it."""
        self._ahead = None
        # What goes wrong here goes wrong again when there is nothing left to claim, and is said then.
        with contextlib.suppress(QueueError, OSError), self.lock(wait=False) as locked:
            if locked:
                with Batch(self._fds["batches"], name) as one:
                    if one.issued == issued and one.left:
                        self._issue(one)

    def _first_batch(self) -> tuple[int, str, int] | None:
        """Return the place in the queue of the first job that waits in a batch, that batch's name, and how many of its jobs are files."""
        places = []
        for one in self._batches():
            with one:
                try:
                    jobs, _cursor = one.next(1)
                except MalformedJob as exc:
                    self.refused[f"batches/{one.name}{batch.SUFFIX}"] = str(exc)
                    continue
                if one.id not in self._bad_batches:
                    places.append((one.place + one.issued * 1000 - (ahead(jobs[0][1]) if jobs else 0), one.name, one.issued))
        return min(places, default=None)
