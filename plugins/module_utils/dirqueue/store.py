# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A queue's folders and what lies in them: how it is read and written. No job changes its state here."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Optional, TypeVar

from . import batch, job, owner
from .batch import Batch
from .errors import MalformedJob, QueueError, is_shortage
from .job import SUFFIX
from .jobset import Jobset
from .layout import PLACES, STATES, Layout, open_own, why_odd, write_all

_Self = TypeVar("_Self", bound="Store")

CLAIM = re.compile(r"[0-9a-f]{32}\Z")
# One step of PRIORITY in a pending job's place in the queue, in seconds: see ahead.
PRIORITY_STEP = 10_000_000
# How many files of one state are looked at closely: a stat takes four times as long as all else that counting takes.
CLOSELY = 100_000


class Change(NamedTuple):
    """What became of one job, or of several alike: the first, its states before and after (None: not there), why, how many.

    before and after: what else has changed, in words.
    """

    name: str
    old_state: Optional[str]
    new_state: Optional[str]
    reason: str = ""
    jobs: int = 1
    before: str = ""
    after: str = ""

    @property
    def changed(self) -> bool:
        """Whether anything has."""
        return (self.old_state, self.before) != (self.new_state, self.after)


def ahead(values: dict[str, str]) -> int:
    """Return how far a job's PRIORITY brings it forward, in nanoseconds.

    A pending job's place in the queue is its file's mtime, oldest first: when it was enqueued, less this.
    """
    return int(values.get("PRIORITY", "0")) * PRIORITY_STEP * 10**9


class Store:
    """The folders of one jobset's queue. Close it, or use it in a with statement.

    Args:
        layout: where it is; the folders must exist.
        jobset: its definition.
    Raises:
        QueueError: the folders are missing or not usable.
    """

    def __init__(self, layout: Layout, jobset: Jobset) -> None:
        self.layout = layout
        self.jobset = jobset
        self.refused: dict[str, str] = {}
        self._fds: dict[str, int] = {}
        folders = {**{place: os.path.join(layout.queue, place) for place in PLACES}, "staging": layout.staging, "batches": layout.batches}
        try:
            # A queue that an older version has made lacks them.
            if os.path.isdir(layout.queue) and not (os.path.isdir(layout.batches) and os.path.isdir(layout.held)):
                layout.create()
            for name, path in folders.items():
                self._fds[name] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            self.close()
            if is_shortage(exc):
                raise
            raise QueueError(f"jobset {layout.jobset} has no usable queue: {exc.filename}: {exc.strerror}; run setup, or enqueue") from exc

    def close(self) -> None:
        """Give the folders' descriptors back."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def lock(self, wait: bool = True) -> Iterator[bool]:
        """Hold the jobset's lock, waiting for it; or, without waiting, say whether it was free."""
        fd = open_own(self.layout.lock, os.O_RDWR | os.O_CREAT)
        try:
            free = True
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                free = False
            yield free
        finally:
            os.close(fd)

    # ---- looking ------------------------------------------------------------------------------------------------

    def _listed(self, folder: str) -> int:
        """Return a folder's descriptor, to list it by."""
        # A btrfs lists only what was there when the folder was opened, or last wound back (since Linux 6.5).
        os.lseek(self._fds[folder], 0, os.SEEK_SET)
        return self._fds[folder]

    def entries(self, state: str) -> list[str]:
        """Return the names of the jobs in a state, in no order. What can't be a job's file is kept in refused."""
        return list(self._each(state))

    def _each(self, state: str, closely: bool = False) -> Iterator[str]:
        """Yield the names of the jobs in a state; closely: look at each file as why_refused does, too."""
        with os.scandir(self._listed(state)) as found:
            for number, entry in enumerate(found):
                if not job.FILE.match(entry.name):
                    # The second: a file that was removed over NFS while somebody had it open.
                    if not (state == "running" and entry.name.endswith(SUFFIX + owner.SUFFIX)) and not entry.name.startswith(".nfs"):
                        self.refused[f"{state}/{entry.name!r}"] = "not a job's name"
                elif not entry.is_file(follow_symlinks=False):
                    self.refused[f"{state}/{entry.name}"] = "not a regular file"
                else:
                    name = entry.name[: -len(SUFFIX)]
                    yield name
                    with contextlib.suppress(FileNotFoundError):
                        if closely and number < CLOSELY and why_odd(entry.stat(follow_symlinks=False)):
                            self.why_refused(state, name)

    def counts(self, closely: bool = False) -> dict[str, int]:
        """Return how many jobs are in each state; those that are held are pending."""
        counts = {state: sum(1 for _name in self._each(state, closely)) for state in STATES}
        counts["pending"] += sum(1 for _name in self._each("held", closely))
        for one in self._batches():
            with one:
                # Those that have become files since its cursor was written are counted as such.
                counts["pending"] += one.left - sum(1 for name in one.names() if self._filed(name))
        return counts

    def _any_in(self, *folders: str) -> bool:
        """Tell whether a job is in one of these folders, or in a batch."""
        files = any(True for folder in folders for _name in self._each(folder))
        return files or any(one.left for one in self._closing(self._batches()))

    @staticmethod
    def _closing(batches: Iterable[Batch]) -> Iterator[Batch]:
        for one in batches:
            with one:
                yield one

    def _batches(self) -> Iterator[Batch]:
        """Open one batch after another, in the order of their enqueues; the caller closes each. Others are kept in refused."""
        for entry in sorted(os.listdir(self._listed("batches"))):
            if entry.endswith(batch.CURSOR):
                continue
            try:
                if not entry.endswith(batch.SUFFIX) or not job.is_name(entry):
                    raise MalformedJob("not a batch's name")
                one = Batch(self._fds["batches"], entry[: -len(batch.SUFFIX)])
            except MalformedJob as exc:
                self.refused[f"batches/{entry!r}"] = str(exc)
                continue
            except FileNotFoundError:
                continue
            yield one

    def batched(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Return names and values of the pending jobs that are not files yet."""
        for one in self._batches():
            with one:
                for name, line in one.rest():
                    with contextlib.suppress(QueueError):
                        if not self._filed(name):
                            yield from job.parse_list([line])

    def matching(self, expression: str) -> Iterator[str]:
        """Yield the name of each job that matches a regular expression, those of batches last."""
        like = re.compile(expression)
        filed = {name for place in PLACES for name in self._each(place) if like.fullmatch(name)}
        yield from filed
        yield from (name for name in self.waiting(expression) if name not in filed)

    def waiting(self, expression: str) -> Iterator[str]:
        """Yield the name of each job in a batch that matches a regular expression; some may have files by now."""
        for one in self._batches():
            with one:
                yield from one.matching(expression)

    def batch_lines(self, names: set[str]) -> dict[str, tuple[dict[str, str], int]]:
        """Return values and place in the queue of those jobs that are lines of batches."""
        found = {}
        for one in self._batches():
            with one:
                for order, name, line in one.find(names):
                    with contextlib.suppress(QueueError):
                        ((_name, values),) = job.parse_list([line])
                        found[name] = {**values, "ENQUEUED_AT": one.stamp}, one.place + order * 1000 - ahead(values)
        return found

    def why_refused(self, state: str, name: str) -> str:
        """Return why an entry can't be taken for a job's file, or an empty text.

        Raises:
            FileNotFoundError: it is not in that state (any more).
        """
        return self._why_odd(state, name, os.stat(name + SUFFIX, dir_fd=self._fds[state], follow_symlinks=False))

    def _why_odd(self, state: str, name: str, found: os.stat_result) -> str:
        reason = why_odd(found, links=found.st_nlink == 2 and self._is_kept(name, found))
        if reason:
            self.refused[f"{state}/{name}{SUFFIX}"] = reason
        return reason

    def _kept(self, name: str, found: os.stat_result) -> str:
        """Return where reject keeps a job's file as it was."""
        return os.path.join(self.layout.malformed, f"{name}.{found.st_ino}{SUFFIX}")

    def _is_kept(self, name: str, found: os.stat_result) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(found, os.stat(self._kept(name, found), follow_symlinks=False))
        return False

    def _is_in(self, state: str, name: str) -> bool:
        return os.access(name + SUFFIX, os.F_OK, dir_fd=self._fds[state], follow_symlinks=False)

    def locate(self, name: str) -> str | None:
        """Return the state that a job is in, or held, or None if it is in none. Certain only under the lock (rule 3)."""
        state = self._filed(name)
        for one in self._batches() if state is None else []:
            with one:
                if state is None and one.holds(name):
                    state = "pending"
        return state

    def _filed(self, name: str) -> str | None:
        """Return the folder that a job's file is in: a pending job of a batch has none yet."""
        return next((state for state in PLACES if self._is_in(state, name)), None)

    def _read_file(self, state: str, entry: str) -> bytes:
        # O_NONBLOCK: a FIFO must not hold us up. One byte more than allowed is enough to refuse a huge file.
        fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fds[state])
        try:
            # A regular file's: all of it at once.
            return os.read(fd, job.MAX_BYTES + 1)
        finally:
            os.close(fd)

    def read(self, state: str, name: str) -> dict[str, str]:
        """Return a job's values.

        Raises:
            FileNotFoundError: it is not in that state (any more).
            MalformedJob: its file can't be understood.
        """
        reason = self.why_refused(state, name)
        if reason:
            raise MalformedJob(reason)
        return job.parse(self._read_file(state, name + SUFFIX))

    # ---- writing ------------------------------------------------------------------------------------------------

    def _stage(self, entry: str, data: bytes, sync: bool = True) -> None:
        fd = os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fds["staging"])
        try:
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        except BaseException:
            os.unlink(entry, dir_fd=self._fds["staging"])
            raise
        finally:
            os.close(fd)

    def _rename(self, name: str, source: str, target: str, sync: bool = True) -> None:
        os.rename(name + SUFFIX, name + SUFFIX, src_dir_fd=self._fds[source], dst_dir_fd=self._fds[target])
        if sync:
            # The new entry first: a job that a power cut shows twice is better than one it shows nowhere.
            os.fsync(self._fds[target])
            os.fsync(self._fds[source])

    def _overwrite(self, state: str, name: str, values: dict[str, str]) -> None:
        # The file's mtime is the job's place in the queue, see ahead: it stays.
        place = os.stat(name + SUFFIX, dir_fd=self._fds[state], follow_symlinks=False).st_mtime_ns
        staged = f"{name}.{os.urandom(8).hex()}"
        self._stage(staged, job.render(values))
        try:
            os.utime(staged, ns=(place, place), dir_fd=self._fds["staging"])
            os.rename(staged, name + SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds[state])
        except FileNotFoundError as exc:
            # To a clean-up whose clock was set forward it was an old one. The job itself is still there: try again.
            raise OSError(errno.ESTALE, "its new file was cleaned away", os.path.join(self.layout.staging, staged)) from exc

    def _append(self, path: str, *lines: dict[str, Any]) -> None:
        """Append lines to the history, or to what is kept of gates."""
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines).encode("utf-8", "replace")
        fd = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            # Over NFS, the end of a file is where the host has last seen it, until it holds a lock.
            fcntl.flock(fd, fcntl.LOCK_EX)
            for _look in range(5):
                end = os.fstat(fd).st_size
                if not end or os.pread(fd, 1, end - 1) == b"\n":
                    break
                # Somebody amid a line that crosses a page looks the same as what follows: a worker of an earlier version takes no lock.
                time.sleep(0.01)
            else:
                # Whoever was cut short, by a full disk or SIGKILL, left half a line.
                text = b"\n" + text
            write_all(fd, text)
        finally:
            os.close(fd)

    def _in_history(self, claim: str) -> bool:
        """Tell whether an attempt is among the latest lines of the history."""
        try:
            with open(self.layout.history, "rb", opener=open_own) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 256 * 1024))
                # Half a line, that of a writer who was cut short, counts for nothing.
                return any(claim.encode() in line and is_whole(line) for line in file.readlines())
        except FileNotFoundError:
            return False


def is_whole(line: bytes) -> bool:
    """Tell whether a line of the history is one."""
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False
