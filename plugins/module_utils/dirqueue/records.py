# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A queue's owner records: how they are read, made, and removed. owner.py says whose they are, queue.py what they are for (rule 2)."""

from __future__ import annotations

import contextlib
import errno
import os

from . import job, owner
from .gate import Gated
from .job import SUFFIX
from .jobset import Jobset
from .layout import Layout, why_odd


class Records(Gated):
    """The owner records of one jobset's queue. What it needs and raises: see Store."""

    def __init__(self, layout: Layout, jobset: Jobset) -> None:
        # The names that owner records have in staging, too: of those in use, by job, and of those to be used again.
        self._records: dict[str, str] = {}
        self._spare: list[str] = []
        super().__init__(layout, jobset)

    def close(self) -> None:
        """Give the folders' descriptors back."""
        for staged in [*self._spare, *self._records.values()]:
            with contextlib.suppress(OSError):
                os.unlink(staged, dir_fd=self._fds["staging"])
        self._spare.clear()
        self._records.clear()
        super().close()

    # ---- looking ------------------------------------------------------------------------------------------------

    def _odd_owner(self, name: str) -> str:
        """Return why an owner record can't be one of the queue's own, or an empty text. Such a one is left where it is."""
        entry = name + SUFFIX + owner.SUFFIX
        with contextlib.suppress(FileNotFoundError):
            # Its maker may be about to remove the name that it had in staging.
            reason = why_odd(os.stat(entry, dir_fd=self._fds["running"], follow_symlinks=False), links=True)
            if reason:
                self.refused[f"running/{entry}"] = reason
            return reason
        return ""

    def owner_of(self, name: str) -> dict[str, str] | None:
        """Return the owner record of a job: None if there is none, empty if it can't be understood."""
        try:
            if self._odd_owner(name):
                return {}
            return owner.parse(self._read_file("running", name + SUFFIX + owner.SUFFIX))
        except FileNotFoundError:
            return None
        except OSError as exc:
            # A link, a folder, a socket: no record of ours. Anything else says nothing of the record.
            if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                return {}
            raise

    def recorded(self) -> list[str]:
        """Return the jobs that have an owner record, in no order."""
        ending = SUFFIX + owner.SUFFIX
        entries = [entry for entry in os.listdir(self._listed("running")) if entry.endswith(ending)]
        self.refused.update((f"running/{entry!r}", "not a job's name") for entry in entries if not job.is_name(entry[: -len(ending)]))
        return [entry[: -len(ending)] for entry in entries if job.is_name(entry[: -len(ending)])]

    def why_orphan(self, name: str) -> str:
        """Return why a running job is an orphan, or an empty text when its owner lives."""
        return owner.why_dead(self.owner_of(name) or {}, self.layout.workers)

    def survey(self) -> dict[str, int]:
        """Return what counts does, and keep in refused, too, every file of the queue that can't be its own."""
        run = self.layout.run
        folders = (run, self.layout.staging, self.layout.workers, self.layout.malformed)
        for folder in folders:
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    reason = why_odd(entry.stat(follow_symlinks=False), links=folder != run)
                    if reason and entry.path not in (*folders, self.layout.condor):
                        self.refused[os.path.relpath(entry.path, self.layout.base)] = reason
        for name in self.recorded():
            self._odd_owner(name)
        return self.counts(closely=True)

    # ---- taking and letting go ----------------------------------------------------------------------------------

    def _own(self, name: str, record: bytes, claim: str, locked: bool = False) -> bool:
        """Make the owner record of a pending job; False if somebody else has it."""
        entry = name + SUFFIX + owner.SUFFIX
        staged = self._stage_owner(record, claim)
        try:
            for _attempt in range(2):
                try:
                    os.link(staged, entry, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds["running"])
                    self._records[name] = staged
                    return True
                except FileExistsError:
                    if not self._clear_stale_owner(name, locked):
                        return False
            return False
        finally:
            if self._records.get(name) != staged:
                self._spare.append(staged)

    def _replace_owner(self, name: str, record: bytes) -> None:
        """Put another record in the place of a dead holder's. The caller holds the lock."""
        staged = f"owner.{os.urandom(8).hex()}"
        self._stage(staged, record, sync=False)
        os.rename(staged, name + SUFFIX + owner.SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds["running"])

    def _stage_owner(self, record: bytes, claim: str) -> str:
        """Write an owner record into staging, if possible into a file that was one; return its name there."""
        while self._spare:
            staged = self._spare.pop()
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(staged, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fds["staging"])
                try:
                    # Of this holder, that is, and not of one before.
                    if os.fstat(fd).st_size == len(record) == os.write(fd, record):
                        return staged
                finally:
                    os.close(fd)
                os.unlink(staged, dir_fd=self._fds["staging"])
        self._stage(f"owner.{claim}", record, sync=False)
        return f"owner.{claim}"

    def _disown(self, name: str) -> None:
        """Remove an owner record. The file of one of our own is kept for the next: to make and delete one each time takes long.

        Whoever is reading it sees this holder, who lives, and perhaps its next claim; of the job, that it is not running.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name + SUFFIX + owner.SUFFIX, dir_fd=self._fds["running"])
        if name in self._records:
            self._spare.append(self._records.pop(name))

    def _clear_stale_owner(self, name: str, locked: bool) -> bool:
        """Remove the record of a claimer that died before its job was running."""
        if not self._stale(name):
            return False
        with contextlib.nullcontext() if locked else self.lock():
            # Rule 2: under the lock nobody else takes a dead record over, so what is true now stays true.
            if self._stale(name):
                self._disown(name)
                return True
        return False

    def _stale(self, name: str) -> bool:
        """Tell whether there is an owner record of a dead holder, and the job is not running."""
        record = self.owner_of(name)
        # No record is not a stale one: a claimer may be making its own just now.
        if record is None or self._odd_owner(name):
            return False
        return owner.why_dead(record, self.layout.workers) != "" and self.locate(name) != "running"
