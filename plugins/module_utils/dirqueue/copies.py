# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs as a backup takes them, all at one moment while others work, and as a restore brings them."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from . import batch, job
from .errors import MalformedJob
from .intake import Intake
from .job import SUFFIX
from .layout import PLACES, open_own


class Snapshot(NamedTuple):
    """Where every job is at one moment: the state of each that is a file, how many wait in batches, and the batches' open files."""

    states: dict[str, str]
    batched: int
    batches: dict[str, int]

    def close(self) -> None:
        """Give the files' descriptors back."""
        while self.batches:
            os.close(self.batches.popitem()[1])


class Copies(Intake):
    """A queue of which copies are made, and that takes jobs as they were elsewhere."""

    def snapshot(self) -> Snapshot:
        """Return where every job is at one moment. The caller closes the files of the batches."""
        with self.lock():
            # A job that is about to be redone lies in done or failed, but only until here.
            self.carry_on()
            # Rule 3: in this order none is missed, and of a job that was seen twice the later state is the newer one.
            states = {name: state for state in PLACES for name in self.entries(state)}
            found = Snapshot(states, 0, {})
            try:
                for one in self._batches():
                    with one:
                        batched = found.batched + one.left - sum(1 for name in one.names() if name in states)
                    for entry in (one.name + batch.CURSOR, one.name + batch.SUFFIX):
                        with contextlib.suppress(FileNotFoundError):
                            found.batches[entry] = open_own(entry, os.O_RDONLY, self._fds["batches"])
                    found = found._replace(batched=batched)
            except BaseException:
                found.close()
                raise
        return found

    def copy(self, name: str, state: str) -> tuple[str, int, bytes] | None:
        """Return a job's state, its place in the queue and its file's bytes, all of one moment; None if it was removed.

        Args:
            name: the job.
            state: where it was last seen.
        Raises:
            MalformedJob: what is there can't be a job's file.
        """
        for certain in (False, True):
            with self.lock() if certain else contextlib.nullcontext():
                if certain:
                    self.carry_on()
                for place in (state, *PLACES):
                    with contextlib.suppress(FileNotFoundError):
                        reason = self.why_refused(place, name)
                        if reason:
                            raise MalformedJob(reason)
                        fd = os.open(name + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fds[place])
                        with open(fd, "rb") as file:
                            data = file.read(job.MAX_BYTES + 1)
                            if len(data) > job.MAX_BYTES:
                                raise MalformedJob(f"larger than {job.MAX_BYTES} bytes")
                            redone = place in ("done", "failed") and b"RESULT=pending\n" in data
                            if not certain and (redone or (place == "held" and b"HELD_AT=" not in data)):
                                # Somebody is about to redo it, or to change it.
                                break
                            return place, os.fstat(fd).st_mtime_ns, data
        return None

    def receive(self, path: str, folder: str) -> None:
        """Give a file that was written and synced elsewhere in this file system its place. The caller holds the lock.

        Args:
            path: the file of a job that is in no state, or of a batch; its name stays.
            folder: the state, or "batches".
        """
        os.rename(path, os.path.basename(path), dst_dir_fd=self._fds[folder])
        if folder == "batches":
            # Idle workers look at this folder's time.
            os.utime(os.path.join(self.layout.queue, "pending"))

    def sync(self) -> None:
        """Make the names of all jobs and batches durable."""
        for folder in (*PLACES, "batches"):
            os.fsync(self._fds[folder])
