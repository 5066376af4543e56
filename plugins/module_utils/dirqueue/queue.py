# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every transition of a job, and nothing else.

    enqueue -> pending -> claim -> running -> finish -> done, failed, or back to pending
    recover: running -> pending (or failed)    retry: failed -> pending    remove: away

    hold: pending -> held    release: back    kill: pending, held -> failed; a running one by its worker    reset: done, failed -> pending

A large enqueue is one file, a batch, whose jobs are pending and become files a few at a time: see batch.py. A held job is
pending, too, but lies in a folder where no claimer looks.

The rules that make it safe:

1. A job is the file NAME.env in exactly one of five folders. A transition is one rename(2); what must be written is
   written beside it, synced, and renamed over it first.
2. The owner record running/NAME.env.owner is the right to touch a job that is running or about to be. It comes into
   being whole and only once, by link(2), BEFORE the job is renamed into running; its holder removes it AFTER the job
   has left. A record whose holder is dead is taken over only under the jobset's lock.
3. Moves towards the end (claim, done, failed) take no lock. Moves to pending, removals and enqueue hold the jobset's
   lock: under it a job moves forward only, so whoever looks through pending, running, done, failed in that
   order sees every job. A pending job is changed only when it has been moved to held, which takes it from all claimers.
4. How a job ended is first noted beside it (RESULT and the CLAIM it belongs to, in staging), which SIGKILL does not
   undo; synced, it becomes the job's file, and then it is carried out. Several that have ended share the syncs.
   Recovery that finds the RESULT of a dead owner's claim carries it out, instead of running the job again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import getpass
import itertools
import json
import os
import re
import stat
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any, Callable, NamedTuple, Optional

from . import batch, job, joblog, owner
from .batch import Batch, Lines
from .errors import LostClaim, MalformedJob, QueueError, explain, is_shortage
from .job import SUFFIX
from .jobset import Jobset
from .layout import PLACES, STATES, Layout, Refused, open_own, sync_folder, why_odd

_REQUESTED = "STOP requested by "
VANISHED = "job {} has vanished from running; its result is not recorded"
# What the note of a job's end is called in staging, before its claim.
_NOTE = "result."
_CLAIM = re.compile(r"[0-9a-f]{32}\Z")
# So many files are synced one by one, more by one call.
_FEW = 4
# One step of PRIORITY in a pending job's place in the queue, in seconds: see _place.
_PRIORITY_STEP = 10_000_000
# How many files of one state are looked at closely: a stat takes four times as long as all else that counting takes.
_CLOSELY = 100_000
# Seconds after which a folder that looks unchanged is listed again.
_LOOK_AGAIN = 2.0


class Claim(NamedTuple):
    """A job that this process holds."""

    name: str
    id: str
    values: dict[str, str]


class _Ended:
    """A job that has ended, on its way out of running."""

    def __init__(self, name: str, values: dict[str, str], place: int = 0, written: bool = True) -> None:
        self.name = name
        self.values = values
        self.place = place
        # How far it is: its note is synced, is the job's file, is in the history; it has left running, or has vanished from there.
        self.synced = self.written = written
        self.logged = self.moved = self.vanished = False

    def line(self) -> dict[str, str]:
        """Return the attempt's line in the history."""
        keys = ("RESULT", *(key for key in job.RESULT_KEYS if key in self.values and key not in ("RESULT", "ORIGINAL")))
        return {"job": self.name, **{key.lower(): self.values[key] for key in keys}}


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


class Snapshot(NamedTuple):
    """Where every job is at one moment: the state of each that is a file, how many wait in batches, and the batches' open files."""

    states: dict[str, str]
    batched: int
    batches: dict[str, int]

    def close(self) -> None:
        """Give the files' descriptors back."""
        while self.batches:
            os.close(self.batches.popitem()[1])


class Gate(NamedTuple):
    """The gate: closed or not, its text, whether it was an operator's request, and the job that its text names."""

    closed: bool
    text: str = ""
    requested: bool = False
    solved_by: str = ""


def natural(name: str) -> list[Any]:
    """Return what names are sorted by: numbers in them as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part]


def _ahead(values: dict[str, str]) -> int:
    """Return how far a job's PRIORITY brings it forward in the queue, in nanoseconds."""
    return int(values.get("PRIORITY", "0")) * _PRIORITY_STEP * 10**9


class Queue:
    """The queue of one jobset. Close it, or use it in a with statement.

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
        self._names: deque[str] = deque()
        self._bad_batches: set[str] = set()
        self._seen = (-1, 0.0)
        self._order = -1
        # By claim.
        self._ended: dict[str, _Ended] = {}
        # The names that owner records have in staging, too: of those in use, by job, and of those to be used again.
        self._records: dict[str, str] = {}
        self._spare: list[str] = []
        self._stuck: Claim | None = None
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
        for staged in [*self._spare, *self._records.values()]:
            with contextlib.suppress(OSError):
                os.unlink(staged, dir_fd=self._fds["staging"])
        self._spare.clear()
        self._records.clear()
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the jobset's lock, waiting for it."""
        fd = open_own(self.layout.lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # ---- looking ----------------------------------------------------------------------------------------------

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
                        if closely and number < _CLOSELY and why_odd(entry.stat(follow_symlinks=False)):
                            self.why_refused(state, name)

    def survey(self) -> dict[str, int]:
        """Return what counts does, and keep in refused, too, every file of the queue that can't be its own."""
        run = self.layout.run
        for folder in (run, self.layout.staging, self.layout.workers, self.layout.malformed):
            for entry in os.scandir(folder):
                with contextlib.suppress(FileNotFoundError):
                    reason = why_odd(entry.stat(follow_symlinks=False), links=folder != run)
                    if reason and entry.path not in (self.layout.staging, self.layout.workers, self.layout.malformed):
                        self.refused[os.path.relpath(entry.path, self.layout.base)] = reason
        for name in self.recorded():
            self._odd_owner(name)
        return self.counts(closely=True)

    def counts(self, closely: bool = False) -> dict[str, int]:
        """Return how many jobs are in each state; those that are held are pending."""
        counts = {state: sum(1 for _name in self._each(state, closely)) for state in STATES}
        counts["pending"] += sum(1 for _name in self._each("held", closely))
        for one in self._batches():
            with one:
                # Those that have become files since its cursor was written are counted as such.
                counts["pending"] += one.left - sum(1 for name in one.names() if self._filed(name))
        return counts

    def ended(self) -> bool:
        """Tell whether no job runs, and none is pending (or held), or the gate is closed. Certain only under the lock (rule 3)."""
        return (self._is_shut() or not self._any_in("pending", "held")) and not any(True for _name in self._each("running"))

    def waits(self) -> bool:
        """Tell whether there is something to claim, without changing what is listed. Certain only under the lock (rule 3)."""
        return self._any_in("pending") and not self._is_shut()

    def _any_in(self, *folders: str) -> bool:
        """Tell whether a job is in one of these folders, or in a batch."""
        files = any(True for folder in folders for _name in self._each(folder))
        return files or any(one.left for one in self._closing(self._batches()))

    def oldest_pending(self) -> float | None:
        """Return when the job that has been pending longest was enqueued, in seconds since 1970; None if none is."""
        found = [owner.seconds_of(one.stamp) for one in self._closing(self._batches())]
        now = time.time()
        for name in itertools.islice(self._each("pending"), _CLOSELY):
            with contextlib.suppress(FileNotFoundError, MalformedJob):
                place = os.stat(name + SUFFIX, dir_fd=self._fds["pending"], follow_symlinks=False).st_mtime
                if not now - _PRIORITY_STEP < place <= now:
                    # PRIORITY puts it elsewhere, see _place: then only its text says.
                    place = owner.seconds_of(self.read("pending", name).get("ENQUEUED_AT", ""))
                found.append(place)
        return min((at for at in found if at), default=None)

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

    def _kept(self, name: str, found: os.stat_result) -> str:
        """Return where reject keeps a job's file as it was."""
        return os.path.join(self.layout.malformed, f"{name}.{found.st_ino}{SUFFIX}")

    def _is_kept(self, name: str, found: os.stat_result) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(found, os.stat(self._kept(name, found), follow_symlinks=False))
        return False

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

    # ---- writing ----------------------------------------------------------------------------------------------

    def _stage(self, entry: str, data: bytes, sync: bool = True) -> None:
        fd = os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fds["staging"])
        try:
            # It may be short, on a disk that is filling up.
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
        # The file's mtime is the job's place in the queue, see _place: it stays.
        place = os.stat(name + SUFFIX, dir_fd=self._fds[state], follow_symlinks=False).st_mtime_ns
        staged = f"{name}.{os.urandom(8).hex()}"
        self._stage(staged, job.render(values))
        try:
            os.utime(staged, ns=(place, place), dir_fd=self._fds["staging"])
            os.rename(staged, name + SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds[state])
        except FileNotFoundError as exc:
            # To a clean-up whose clock was set forward it was an old one. The job itself is still there: try again.
            raise OSError(errno.ESTALE, "its new file was cleaned away", os.path.join(self.layout.staging, staged)) from exc

    def _place(self, staged: str, values: dict[str, str], enqueued: int) -> None:
        """Set a new job's place in pending: its file's mtime, oldest first, PRIORITY before age."""
        place = enqueued - _ahead(values)
        os.utime(staged, ns=(place, place), dir_fd=self._fds["staging"])

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
            if os.write(fd, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)

    def _in_history(self, claim: str) -> bool:
        """Tell whether an attempt is among the latest lines of the history."""
        try:
            with open(self.layout.history, "rb", opener=open_own) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 256 * 1024))
                # Half a line, that of a writer who was cut short, counts for nothing.
                return any(claim.encode() in line and _is_whole(line) for line in file.readlines())
        except FileNotFoundError:
            return False

    # ---- enqueue, claim, finish -------------------------------------------------------------------------------

    def enqueue(self, jobs: Iterable[tuple[str, dict[str, str]]] | Lines, force: bool = False, check: bool = False) -> list[Change]:
        """Put jobs into pending, all or none; durable on return. A job that exists in any state is left alone.

        Args:
            jobs: names and values, or many as lines.
            force: redo those that are done or failed.
            check: only say what would become of each.
        Returns:
            one change per job; of many jobs, one for all alike.
        Raises:
            QueueError: a bad name or value, or no room; then nothing was enqueued.
        """
        if isinstance(jobs, Lines) and len(jobs.names) < batch.LEAST:
            jobs = job.parse_list(jobs.lines)
        if not isinstance(jobs, Lines):
            wanted = self._checked(jobs)
            if len(wanted) < batch.LEAST:
                return self._enqueue_few(wanted, force, check)
            jobs = Lines(list(wanted), [batch.line(name, values) for name, values in wanted.items()])
        elif len(set(jobs.names)) != len(jobs.names):
            twice = next(name for name, count in Counter(jobs.names).items() if count > 1)
            raise QueueError(f"job {twice} is named twice; nothing was enqueued")
        return self._enqueue_many(jobs, force, check)

    def _checked(self, jobs: Iterable[tuple[str, dict[str, str]]]) -> dict[str, dict[str, str]]:
        wanted: dict[str, dict[str, str]] = {}
        for name, values in jobs:
            if job.check_name(name) in wanted:
                raise QueueError(f"job {name} is named twice; nothing was enqueued")
            try:
                wanted[name] = job.check_own_values(values)
            except MalformedJob as exc:
                raise QueueError(f"job {name}: {exc}; nothing was enqueued") from exc
        return wanted

    def _enqueue_few(self, wanted: dict[str, dict[str, str]], force: bool, check: bool) -> list[Change]:
        """Make a file of each job at once."""
        with self.lock():
            changes = [self._enqueued(name, state, force) for name, state in self._locate_all(list(wanted))]
            if not check:
                self._make([(change, wanted[change.name]) for change in changes if change.old_state != change.new_state])
        return changes

    def _make(self, jobs: list[tuple[Change, dict[str, str]]]) -> None:
        """Make the files of enqueued jobs. The caller holds the lock."""
        stamp = owner.now()
        self._publish([(c.name, c.old_state, {**values, "ENQUEUED_AT": stamp, **self._kept_of(c)}) for c, values in jobs])

    def _enqueue_many(self, jobs: Lines, force: bool, check: bool) -> list[Change]:
        """Make one batch of the new jobs, and files of those that are redone."""
        with self.lock():
            known = self._known(jobs.names)
            fresh = [line for name, line in zip(jobs.names, jobs.lines) if name not in known] if known else jobs.lines
            redone = (
                [line for name, line in zip(jobs.names, jobs.lines) if force and known.get(name) in ("done", "failed")] if known else []
            )
            again = [(self._enqueued(name, known[name], force), values) for name, values in job.parse_list(redone)]
            if not check:
                name = f"{owner.now()}.{os.urandom(4).hex()}".replace(":", "")
                try:
                    if fresh:
                        self._publish_batch(name, fresh, time.time_ns())
                    self._make(again)
                except BaseException as exc:
                    with contextlib.suppress(OSError):
                        self._drop_batch(name)
                    if isinstance(exc, (OSError, MemoryError)):
                        raise QueueError(self._not_enqueued(exc, "nothing was enqueued")) from exc
                    raise
        changes = [change for change, _values in again]
        if fresh:
            changes.insert(0, Change(fresh[0].partition(" ")[0], None, "pending", "enqueued", len(fresh)))
        alone: dict[str, list[str]] = {}
        for name in known.keys() - {change.name for change in changes}:
            alone.setdefault(known[name], []).append(name)
        return changes + [Change(min(names), state, state, f"left alone: already {state}", len(names)) for state, names in alone.items()]

    def _known(self, names: list[str]) -> dict[str, str]:
        """Return the state of those of many jobs that exist. The caller holds the lock."""
        found: dict[str, str] = {}
        for one in self._batches():
            with one:
                found.update((name, "pending") for name, _line in one.rest())
        for state in PLACES:
            found.update((entry[: -len(SUFFIX)], state) for entry in os.listdir(self._listed(state)) if entry.endswith(SUFFIX))
        return {name: found[name] for name in names if name in found} if found else {}

    def _publish_batch(self, name: str, lines: list[str], place: int) -> None:
        """Write a batch, or what is left of it. The caller holds the lock."""
        identity = os.urandom(8).hex()
        head = batch.head(identity, len(lines), place, owner.now())
        self._stage(identity, (head + "\n".join(lines) + "\n").encode("utf-8"))
        os.rename(identity, name + batch.SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds["batches"])
        os.fsync(self._fds["batches"])
        # Idle workers look at this folder's time.
        os.utime(os.path.join(self.layout.queue, "pending"))

    def _drop_batch(self, name: str) -> None:
        """Remove a batch, and only then its cursor: without one it would begin anew. The caller holds the lock."""
        for entry in (name + batch.SUFFIX, name + batch.CURSOR):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=self._fds["batches"])
            os.fsync(self._fds["batches"])

    def _issue(self, one: Batch) -> None:
        """Turn the next jobs of a batch into files. The caller holds the lock."""
        jobs, cursor = one.next()
        # Who was killed before the cursor was written has made some of them.
        fresh = [(name, values) for name, values in dict(jobs).items() if not self._filed(name)]
        try:
            self._publish([(name, None, {**values, "ENQUEUED_AT": one.stamp}) for name, values in fresh], one.place + one.issued * 1000)
        except QueueError as exc:
            why = explain(exc.__cause__ or exc, self.layout.base)
            raise QueueError(f"jobset {self.jobset.name}: no files can be made of the next {len(fresh)} jobs of a batch: {why}") from exc
        if len(jobs) == one.left:
            self._drop_batch(one.name)
            return
        staged = f"{one.id}.{os.urandom(8).hex()}"
        self._stage(staged, cursor)
        os.rename(staged, one.name + batch.CURSOR, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds["batches"])
        os.fsync(self._fds["batches"])

    def _kept_of(self, change: Change) -> dict[str, str]:
        """Return what the new file of a job that is to be redone says besides: see carry_on."""
        if not change.old_state:
            return {}
        kept = {"RESULT": "pending"}
        with contextlib.suppress(FileNotFoundError, MalformedJob, KeyError):
            # What its latest claim left behind must end before it runs again.
            kept["CLAIM"] = self.read(change.old_state, change.name)["CLAIM"]
        return kept

    def carry_on(self) -> list[Change]:
        """Carry out the redoing, or undo the change of a pending job, that was cut short half way. The caller holds the lock."""
        changes = []
        for entry in os.listdir(self._listed("staging")):
            if not entry.startswith("redo."):
                continue
            try:
                with open(os.path.join(self.layout.staging, entry), encoding="utf-8", errors="replace", opener=open_own) as file:
                    # No further than it is a list of names: what is none of ours may be a gigabyte.
                    lines = iter(functools.partial(file.readline, 1000), "")
                    names = list(itertools.takewhile(job.is_name, (line.rstrip("\n") for line in lines)))
            except Refused:
                continue
            for name, state in itertools.product(names, ("held", "done", "failed")):
                with contextlib.suppress(FileNotFoundError, MalformedJob):
                    values = self.read(state, name)
                    if state == "held" and "HELD_AT" not in values:
                        killed = ".failed." in entry and values.get("REASON") == "killed"
                        changes.append(Change(name, state, "failed" if killed else "pending", "its change was cut short"))
                    elif state != "held" and values.get("RESULT") == "pending":
                        changes.append(Change(name, state, "pending", "enqueued again"))
                    else:
                        continue
                    self._rename(name, state, changes[-1].new_state or "")
            os.unlink(entry, dir_fd=self._fds["staging"])
        return changes

    def _locate_all(self, names: list[str]) -> list[tuple[str, str | None]]:
        if len(names) < 64:
            return [(name, self.locate(name)) for name in names]
        known = self._known(names)
        return [(name, known.get(name)) for name in names]

    def _enqueued(self, name: str, state: str | None, force: bool) -> Change:
        if state is None:
            return Change(name, None, "pending", "enqueued")
        if force and state in ("done", "failed"):
            reason = self.why_refused(state, name)
            return Change(name, state, state, f"left alone: {reason}") if reason else Change(name, state, "pending", "enqueued again")
        return Change(name, state, state, f"left alone: already {state}")

    def _publish(self, jobs: list[tuple[str, str | None, dict[str, str]]], place: int | None = None) -> None:
        """Write jobs into staging, sync, and rename each into pending; undo it on an error. The caller holds the lock.

        Args:
            jobs: names, states (None: new; done or failed: to be redone), values.
            place: of the first in the queue; None: now.
        """
        first_place = time.time_ns() if place is None else place
        prefix = os.urandom(8).hex()
        rendered = [job.render(values) for _name, _state, values in jobs]
        redone = [name for name, state, _values in jobs if state]
        staged: list[str] = []
        published: list[str] = []
        try:
            for order, (name, _state, values) in enumerate(jobs):
                self._stage(f"{prefix}.{name}", rendered[order], sync=len(jobs) < 20)
                staged.append(name)
                self._place(f"{prefix}.{name}", values, first_place + order * 1000)
            if redone:
                # A new file is in done or failed for a moment, where it would pass for finished: this list brings it on.
                self._stage(f"redo.{prefix}", "\n".join(redone).encode(), sync=len(jobs) < 20)
            if len(jobs) >= 20:
                _sync_file_system(self._fds["staging"])
            elif redone:
                os.fsync(self._fds["staging"])
            for name, state, _values in jobs:
                first = state or "pending"
                os.rename(f"{prefix}.{name}", name + SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds[first])
                published.append(name)
                if state:
                    self._rename(name, state, "pending", sync=False)
            for state in sorted({"pending", *(state for _name, state, _values in jobs if state)}):
                os.fsync(self._fds[state])
        except BaseException as exc:
            what = self._unpublish(prefix, staged, published, set(redone))
            if isinstance(exc, (OSError, MemoryError)):
                raise QueueError(self._not_enqueued(exc, what)) from exc
            raise
        if redone:
            with contextlib.suppress(OSError):
                os.unlink(f"redo.{prefix}", dir_fd=self._fds["staging"])

    def _not_enqueued(self, error: BaseException, what: str) -> str:
        return f"jobset {self.jobset.name}: can't enqueue, {what}: {explain(error, self.layout.base)}"

    def _unpublish(self, prefix: str, staged: list[str], published: list[str], redone: set[str]) -> str:
        """Undo a publishing as far as it came; return what is left of it, in words."""
        left = []
        for name in published:
            # A job that existed before is not removed again; a new one may be claimed already.
            if name in redone:
                left.append(name)
                continue
            try:
                os.unlink(name + SUFFIX, dir_fd=self._fds["pending"])
            except OSError:
                left.append(name)
        for name in staged[len(published) :]:
            # What stays there, recovery cleans up.
            with contextlib.suppress(OSError):
                os.unlink(f"{prefix}.{name}", dir_fd=self._fds["staging"])
        if not redone.intersection(published):
            with contextlib.suppress(OSError):
                os.unlink(f"redo.{prefix}", dir_fd=self._fds["staging"])
        return f"only {', '.join(left)} could not be called back" if left else "nothing was enqueued"

    def _next_names(self) -> None:
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
            places.sort(key=(lambda entry: (entry[0], natural(entry[1]))) if equal else None)
            first = self._first_batch()
            self._names.extend(name for place, name in places if not first or place < first[0])
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

    def _first_batch(self) -> tuple[int, str] | None:
        """Return the place in the queue of the first job that waits in a batch, and that batch's name."""
        places = []
        for one in self._batches():
            with one:
                try:
                    jobs, _cursor = one.next(1)
                except MalformedJob as exc:
                    self.refused[f"batches/{one.name}{batch.SUFFIX}"] = str(exc)
                    continue
                if one.id not in self._bad_batches:
                    places.append((one.place + one.issued * 1000 - (_ahead(jobs[0][1]) if jobs else 0), one.name))
        return min(places, default=None)

    def look(self) -> bool:
        """Tell whether there may be something to claim: a job was listed as pending, or is found so now, with an open gate."""
        if not self._names and not self._stuck and not self._is_shut():
            self._next_names()
        return bool(self._names or self._stuck)

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

    def claim(self, holder: owner.Holder) -> Claim | None:
        """Take the next job, pending -> running; None if the gate is closed or nothing is pending.

        Args:
            holder: this process.
        """
        if self._stuck:
            self._let_go(self._stuck)
        if self._names and os.fstat(self._fds["held"]).st_mtime_ns != self._order:
            # Jobs were released, or have got another priority: what was listed is in the wrong order.
            self._names.clear()
            self._seen = (-1, 0.0)
        lost = not self._names
        while not self._is_shut():
            if not self._names and lost:
                # All that was listed has gone to others: there may be more.
                lost = False
                self._next_names()
            if not self._names:
                return None
            name = self._names.popleft()
            if not self._is_in("pending", name):
                # Somebody else was faster.
                lost = True
                continue
            claim = os.urandom(16).hex()
            # Whatever goes wrong from here on, this job must not stay with a worker that has forgotten it.
            self._stuck = Claim(name, claim, {})
            if not self._own(name, holder.record(claim), claim):
                lost = not self._odd_owner(name) or lost
                continue
            if self._is_twice(name):
                self._disown(name)
                continue
            try:
                self._rename(name, "pending", "running", sync=False)
            except OSError as exc:
                self._disown(name)
                if isinstance(exc, FileNotFoundError):
                    lost = True
                    continue
                raise
            claimed = self._accept(self._stuck)
            if claimed and self._is_shut():
                self.finish(claimed, "pending", {"REASON": "gate", "DETAIL": "the gate was closed while it was claimed"})
                claimed = None
            self._stuck = None
            if claimed:
                return claimed
        # What is listed is old when the gate opens.
        self._names.clear()
        self._seen = (-1, 0.0)
        return None

    def _is_in(self, state: str, name: str) -> bool:
        return os.access(name + SUFFIX, os.F_OK, dir_fd=self._fds[state], follow_symlinks=False)

    def _is_twice(self, name: str) -> bool:
        """Tell whether a pending job is in another state, too. The caller has its owner record."""
        others = [state for state in PLACES[1:] if self._is_in(state, name)]
        if others and self._is_in("pending", name):
            self.refused[f"pending/{name}{SUFFIX}"] = f"is in {others[0]}, too: remove the one that should not be"
            return True
        return False

    def _accept(self, claim: Claim) -> Claim | None:
        """Read a job that was just claimed; None if it is malformed, and failed now."""
        try:
            values = self.read("running", claim.name)
            # A short one has room, and takes a while to be weighed.
            if sum(map(len, values)) + sum(map(len, values.values())) > 1000:
                job.check_room(values)
        except MalformedJob as exc:
            self.reject(claim, str(exc))
            return None
        return claim._replace(values=values)

    def _let_go(self, claim: Claim) -> None:
        """Give back a job whose claim failed half way, or carry out what its file says already."""
        if (self.owner_of(claim.name) or {}).get("OWNER_CLAIM") == claim.id:
            values: dict[str, str] = {}
            with contextlib.suppress(FileNotFoundError, MalformedJob):
                values = self.read("running", claim.name)
            with contextlib.suppress(FileNotFoundError):
                if values.get("CLAIM") == claim.id:
                    self._carry_out([_Ended(claim.name, values)])
                else:
                    with self.lock():
                        self._rename(claim.name, "running", "pending")
            self._disown(claim.name)
        self._stuck = None

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

    def finish(self, claim: Claim, state: str, result: dict[str, str]) -> None:
        """Bring a claimed job to done, failed, or back to pending; durable on return. See end and commit."""
        self.end(claim, state, result)
        if claim.name in self.commit():
            raise LostClaim(VANISHED.format(claim.name))

    def end(self, claim: Claim, state: str, result: dict[str, str]) -> None:
        """Note how a claimed job ended. It is still owned and running; commit, which must follow, brings it to its state.

        Args:
            claim: as claim returned it.
            state: where it goes.
            result: what its file is to say besides (RESULT_KEYS).
        Raises:
            LostClaim: the job is no longer this claim's.
            OSError: it can't be written; try again.
        """
        if claim.id in self._ended:
            # It was noted, and then could not be committed.
            return
        try:
            held = claim.id.encode() in self._read_file("running", claim.name + SUFFIX + owner.SUFFIX)
        except FileNotFoundError:
            held = False
        if not held:
            raise LostClaim(f"job {claim.name} is no longer held by claim {claim.id}; its result is not recorded")
        try:
            # The file's mtime is the job's place in the queue, see _place: it stays.
            place = os.stat(claim.name + SUFFIX, dir_fd=self._fds["running"], follow_symlinks=False).st_mtime_ns
        except FileNotFoundError as exc:
            self._disown(claim.name)
            raise LostClaim(VANISHED.format(claim.name)) from exc
        # RESULT is last: what lacks it is not whole.
        values = {**job.before_attempt(claim.values), **job.tidy(result), "CLAIM": claim.id, "RESULT": state}
        ended = _Ended(claim.name, values, place, written=False)
        self._note(ended)
        self._ended[claim.id] = ended

    def _note(self, ended: _Ended) -> None:
        entry = _NOTE + ended.values["CLAIM"]
        with contextlib.suppress(FileExistsError):
            self._stage(entry, job.render(ended.values), sync=False)
        os.utime(entry, ns=(ended.place, ended.place), dir_fd=self._fds["staging"])

    def _noted(self, record: dict[str, str]) -> dict[str, str] | None:
        """Return how a dead owner's job ended, if that was noted. Not what a power cut may have spoiled."""
        claim = record.get("OWNER_CLAIM", "")
        if not _CLAIM.match(claim) or record.get("OWNER_BOOT") != owner.boot_id():
            return None
        with contextlib.suppress(FileNotFoundError, Refused, MalformedJob):
            with open(os.path.join(self.layout.staging, _NOTE + claim), "rb", opener=open_own) as file:
                values = job.parse(file.read(job.MAX_BYTES + 1))
            return values if values.get("CLAIM") == claim and values.get("RESULT") in STATES else None
        return None

    def commit(self) -> list[str]:
        """Bring all jobs whose end was noted to their states, by the same few syncs; durable on return.

        Returns:
            those that have vanished from running meanwhile.
        Raises:
            OSError: it could not be recorded; those jobs are still owned, try again.
        """
        ended = list(self._ended.values())
        self._sync_notes([one for one in ended if not one.synced])
        for one in ended:
            if not one.written:
                entry = _NOTE + one.values["CLAIM"]
                try:
                    os.rename(entry, one.name + SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds["running"])
                except FileNotFoundError as exc:
                    # To a clean-up whose clock was set forward it was an old one. The job itself is still there: try again.
                    self._note(one)
                    one.synced = False
                    raise OSError(errno.ESTALE, "its new file was cleaned away", os.path.join(self.layout.staging, entry)) from exc
                one.written = True
        self._carry_out(ended)
        for one in ended:
            self._disown(one.name)
        self._ended.clear()
        return [one.name for one in ended if one.vanished]

    def _sync_notes(self, ended: list[_Ended]) -> None:
        if len(ended) < _FEW:
            for one in ended:
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(_NOTE + one.values["CLAIM"], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fds["staging"])
                    try:
                        os.fsync(fd)
                    finally:
                        os.close(fd)
        else:
            _sync_file_system(self._fds["staging"])
        for one in ended:
            one.synced = True

    def _carry_out(self, ended: list[_Ended], locked: bool = False) -> None:
        """Do what the RESULT of running jobs says (rule 4). The caller has their owner records, and the lock if it says so."""
        unlogged = [one for one in ended if not one.logged and not (locked and self._in_history(one.values["CLAIM"]))]
        if unlogged:
            self._append(self.layout.history, *(one.line() for one in unlogged))
        for one in ended:
            one.logged = True
        states = sorted({one.values["RESULT"] for one in ended})
        with self.lock() if "pending" in states and not locked else contextlib.nullcontext():
            for one in ended:
                if not one.moved:
                    try:
                        self._rename(one.name, "running", one.values["RESULT"], sync=False)
                    except FileNotFoundError:
                        one.vanished = True
                    one.moved = True
            # The new entries first: a job that a power cut shows twice is better than one it shows nowhere.
            for state in (*states, "running") if states else ():
                os.fsync(self._fds[state])

    def reject(self, claim: Claim, reason: str, locked: bool = False) -> None:
        """Bring a running job whose file is malformed to failed; the file as it was is kept in run/malformed."""
        entry = claim.name + SUFFIX
        kept = self._kept(claim.name, os.stat(entry, dir_fd=self._fds["running"], follow_symlinks=False))
        try:
            os.link(entry, kept, src_dir_fd=self._fds["running"], follow_symlinks=False)
        except FileExistsError:
            # It is there already when a first try was cut short; what else is there stays.
            if not self._is_kept(claim.name, os.stat(entry, dir_fd=self._fds["running"], follow_symlinks=False)):
                kept += f".{claim.id}"
                os.link(entry, kept, src_dir_fd=self._fds["running"], follow_symlinks=False)
        sync_folder(self.layout.malformed)
        values = job.tidy({"REASON": "malformed_job", "DETAIL": reason, "ENDED_AT": owner.now()})
        values.update(ORIGINAL=kept, CLAIM=claim.id, RESULT="failed")
        self._overwrite("running", claim.name, values)
        self._carry_out([_Ended(claim.name, values)], locked)
        self._disown(claim.name)

    # ---- backward moves ---------------------------------------------------------------------------------------

    def recover(self, name: str, holder: owner.Holder, end: Callable[[str, str], None], check: bool = False) -> Change:
        """Bring one orphan where it belongs. The caller holds the lock.

        Args:
            name: a job in running.
            holder: this process, which owns the job meanwhile if nobody else does.
            end: called with the job's name and the dead claim's id (empty if unknown) to end what that claim left running.
            check: only say what would become of it.
        """
        # The record first, the job's file second: its owner removes them in the other order (rule 2).
        record = self.owner_of(name)
        why = owner.why_dead(record or {}, self.layout.workers)
        if not why:
            return Change(name, "running", "running", "left alone: its owner lives")
        try:
            reason = self.why_refused("running", name)
        except FileNotFoundError:
            state = self.locate(name)
            return Change(name, state, state, "left alone: no longer running")
        odd = self._odd_owner(name)
        if reason or odd:
            return Change(name, "running", "running", f"refused: {reason or 'its owner record: ' + odd}")
        dead = record or {}
        claim = dead.get("OWNER_CLAIM", "")
        if not check:
            end(name, claim)
        if not claim:
            claim = os.urandom(16).hex()
            # Somebody must own it until it is back in pending: a claimer with an old list may try this name.
            if not check and not self._take_over(name, holder.record(claim), claim):
                return Change(name, "running", "running", "left alone: somebody is trying to claim it")
        try:
            noted = self._noted(dead)
            values = noted or self.read("running", name)
            # A power cut may have left nothing of the record. What was rejected has no values of its own any more: it must not run.
            rejected = values.get("REASON") == "malformed_job" and "CLAIM" in values
            unknown = (values.get("CLAIM") != claim and not rejected) or values.get("RESULT") not in STATES
            if unknown:
                job.check_room(values)
                values = self._recovered(name, values, claim, dead.get("OWNER_WORKER_ID", ""), why)
            if not check:
                if noted or unknown:
                    self._overwrite("running", name, values)
                self._carry_out([_Ended(name, values)], locked=True)
                self._disown(name)
                if noted:
                    os.unlink(_NOTE + claim, dir_fd=self._fds["staging"])
        except MalformedJob as exc:
            if not check:
                self.reject(Claim(name, claim, {}), str(exc), locked=True)
            return Change(name, "running", "failed", f"malformed_job: {exc}")
        return Change(name, "running", values["RESULT"], f"{values['REASON']}: {values.get('DETAIL', '')}")

    def _take_over(self, name: str, record: bytes, claim: str) -> bool:
        """Own an orphan whose record is missing or names no claim. The caller holds the lock."""
        self._disown(name)
        return self._own(name, record, claim, locked=True)

    def _recovered(self, name: str, values: dict[str, str], claim: str, worker: str, why: str) -> dict[str, str]:
        recoveries = job.number(values, "RECOVERIES") + 1
        values = {"ATTEMPTS": "0", **job.before_attempt(values), "RECOVERIES": str(recoveries)}
        values.update(ENDED_AT=owner.now(), CLAIM=claim, WORKER=worker)
        result, reason, detail = "pending", "orphan", why
        if self.gate().solved_by == name:
            result, reason, detail = "done", "solved", f"its worker died after it had solved the jobset ({why})"
        elif by := self.kill_request(claim):
            result, reason, detail = "failed", "killed", by
        elif recoveries >= self.jobset.recoveries:
            result, reason, detail = "failed", "too_many_recoveries", f"its worker died {recoveries} times, lastly: {why}"
        return {**values, **job.tidy({"RESULT": result, "REASON": reason, "DETAIL": detail})}

    def clear_stale_owners(self) -> list[str]:
        """Remove the owner records of dead holders whose job is not running; return the jobs. The caller holds the lock."""
        cleared = [name for name in self.recorded() if self._stale(name)]
        for name in cleared:
            self._disown(name)
        return cleared

    def clear_stale_cursors(self) -> None:
        """Remove the cursors of batches that are gone. The caller holds the lock."""
        entries = set(os.listdir(self._listed("batches")))
        left = [entry for entry in entries if entry.endswith(batch.CURSOR) and entry[: -len(batch.CURSOR)] + batch.SUFFIX not in entries]
        for entry in left:
            if not why_odd(os.stat(entry, dir_fd=self._fds["batches"], follow_symlinks=False)):
                os.unlink(entry, dir_fd=self._fds["batches"])

    def retry(self, names: list[str] | None = None, check: bool = False) -> list[Change]:
        """Move failed jobs back to pending with their attempts set to zero.

        Args:
            names: which; None: all that failed.
            check: only say what would become of each.
        """
        changes = []
        with self.lock():
            for name in sorted(self.entries("failed"), key=natural) if names is None else names:
                state = self.locate(job.check_name(name))
                if state != "failed":
                    changes.append(Change(name, state, state, f"left alone: {state or 'there is no such job'}"))
                    continue
                try:
                    values = self.read("failed", name)
                    job.check_room(values)
                except MalformedJob as exc:
                    changes.append(Change(name, "failed", "failed", f"left alone: {exc}"))
                    continue
                if values.get("REASON") == "malformed_job":
                    reason = f"left alone: malformed ({values.get('DETAIL', '')}); remove it and enqueue it anew"
                    changes.append(Change(name, "failed", "failed", reason))
                    continue
                changes.append(Change(name, "failed", "pending", f"was {values.get('REASON', 'failed')}"))
                if not check:
                    # Why it failed stays in it: whoever is killed before the move leaves a job that failed.
                    self._overwrite("failed", name, {**values, "ATTEMPTS": "0", "RECOVERIES": "0"})
                    self._rename(name, "failed", "pending")
        return changes

    def remove(self, names: list[str] | None, states: Iterable[str] = STATES, logs: bool = False, check: bool = False) -> list[Change]:
        """Delete jobs; a running one is left alone.

        Args:
            names: which; None: all in the states.
            states: in which states.
            logs: their logs, too.
            check: only say what would become of each.
        """
        states = [*states, "held"] if "pending" in states else list(states)
        changes = []
        with self.lock():
            if names is None:
                names = sorted({name for state in states for name in self.entries(state)}, key=natural)
                changes += self._remove_from_batches(None if "pending" in states else set(names), check)
            else:
                filed = {job.check_name(name): self._filed(name) for name in names}
                # Also from a batch that has made a file of it already: else it would do so again, once that is gone.
                changes += self._remove_from_batches({n for n, state in filed.items() if (state or "pending") in states}, check)
                gone = {change.name for change in changes}
                names = [name for name in names if filed[name] or name not in gone]
            for name in names:
                state = self.locate(name)
                if state is None or state not in states:
                    changes.append(Change(name, state, state, f"left alone: {state or 'there is no such job'}"))
                elif state == "running":
                    left = "recover it first" if self.why_orphan(name) else "its owner lives; stop the jobset first"
                    changes.append(Change(name, state, state, f"left alone: {left}"))
                else:
                    changes.append(self._removed(name, state, logs, check))
            for state in states:
                os.fsync(self._fds[state])
        return changes

    def _remove_from_batches(self, names: set[str] | None, check: bool) -> list[Change]:
        """Take pending jobs that are no files yet out of their batches; None: all. The caller holds the lock."""
        changes = []
        for one in self._batches() if names is None or names else []:
            with one:
                if names is None:
                    lag = sum(1 for name in one.names() if self._filed(name))
                    changes.append(Change(f"batch {one.name}", "pending", None, "removed, as jobs of a batch", one.left - lag))
                    kept = []
                else:
                    lines = list(one.rest())
                    kept = [line for name, line in lines if name not in names]
                    if len(kept) == len(lines):
                        continue
                    taken = [name for name, _line in lines if name in names and not self._filed(name)]
                    changes += [Change(name, "pending", None, "removed") for name in taken]
                if not check and kept:
                    self._publish_batch(one.name, kept, one.place + one.issued * 1000)
                elif not check:
                    self._drop_batch(one.name)
        return changes

    def _removed(self, name: str, state: str, logs: bool, check: bool) -> Change:
        try:
            reason = self.why_refused(state, name)
            if reason or check:
                return Change(name, state, state if reason else None, f"refused: {reason}" if reason else "removed")
            os.unlink(name + SUFFIX, dir_fd=self._fds[state])
        except FileNotFoundError:
            now = self.locate(name)
            return Change(name, now, now, f"left alone: {now} in the meantime")
        if self._stale(name):
            self._disown(name)
        if logs:
            joblog.remove(os.path.join(self.layout.log, f"{name}.log"))
        return Change(name, state, None, "removed")

    # ---- what an operator decides for single jobs ---------------------------------------------------------------

    def hold(self, names: list[str], by: str = "", check: bool = False) -> list[Change]:
        """Keep pending jobs from being claimed until they are released; durable on return.

        Args:
            names: which.
            by: who asks for it.
            check: only say what would become of each.
        """
        held = job.tidy({"HELD_AT": owner.now(), "HELD_BY": (by or _me())[:100]})
        with self.lock():
            return self._amend(names, ("pending",), "held", "held", lambda values: {**values, **held}, check)

    def release(self, names: list[str], check: bool = False) -> list[Change]:
        """Let held jobs be claimed again, each in its old place; durable on return."""
        with self.lock():
            return self._amend(names, ("held",), "pending", "released", _not_held, check)

    def prioritize(self, names: list[str], priority: str, check: bool = False) -> list[Change]:
        """Give pending jobs another priority, and the place in the queue that goes with it; durable on return."""
        job.check_priority(priority)

        def edit(values: dict[str, str]) -> dict[str, str]:
            if int(job.check_priority(values.get("PRIORITY", "0"))) == int(priority):
                raise QueueError(f"its priority is {int(priority)} already")
            return {**values, "PRIORITY": str(int(priority))}

        with self.lock():
            return self._amend(names, ("pending", "held"), None, f"priority {int(priority)}", edit, check)

    def kill(self, names: list[str], by: str = "", check: bool = False) -> list[Change]:
        """Bring pending jobs to failed, and ask the workers of running ones to end them; see kill.py, which waits for those."""
        asked = job.tidy({"DETAIL": f"by {by or _me()} at {owner.now()}", "ENDED_AT": owner.now()})

        def edit(values: dict[str, str]) -> dict[str, str]:
            kept = {"ATTEMPTS": "0", **job.before_attempt(_not_held(values)), **{key: values[key] for key in ("CLAIM",) if key in values}}
            return {**kept, **asked, "REASON": "killed", "RESULT": "failed"}

        with self.lock():
            changes = self._amend(names, ("pending", "held"), "failed", "killed", edit, check)
            for number, change in enumerate(changes):
                if change.new_state == "running":
                    changes[number] = change._replace(new_state="failed", reason="killed") if check else change
                    claim = (self.owner_of(change.name) or {}).get("OWNER_CLAIM", "")
                    if _CLAIM.match(claim) and not check and not self.kill_request(claim):
                        staged = f"kill.{os.urandom(8).hex()}"
                        self._stage(staged, asked["DETAIL"].encode("utf-8", "replace"))
                        os.rename(staged, os.path.join(self.layout.run, f"kill.{claim}"), src_dir_fd=self._fds["staging"])
        return changes

    def kill_request(self, claim: str) -> str:
        """Return who has asked for the end of a running job's claim, and when; an empty text if nobody has."""
        path = os.path.join(self.layout.run, f"kill.{claim}")
        with contextlib.suppress(FileNotFoundError, Refused), open(path, encoding="utf-8", errors="replace", opener=open_own) as file:
            return file.read(1000) or "nobody knows who asked for it"
        return ""

    def clear_kill_requests(self) -> None:
        """Remove the requests to end claims that hold no job any more. The caller holds the lock."""
        asked = {entry for entry in os.listdir(self.layout.run) if re.fullmatch("kill[.][0-9a-f]{32}", entry)}
        if asked:
            running = (name for name in self.recorded() if self._filed(name) == "running")
            asked -= {f"kill.{(self.owner_of(name) or {}).get('OWNER_CLAIM')}" for name in running}
        for path in (os.path.join(self.layout.run, entry) for entry in asked):
            if not why_odd(os.stat(path, follow_symlinks=False)):
                os.unlink(path)

    def reset(self, names: list[str], check: bool = False) -> list[Change]:
        """Bring done and failed jobs back to pending as if they had never run; durable on return."""
        changes, again = [], []
        with self.lock():
            for name, state in self._locate_all([job.check_name(name) for name in names]):
                if state not in ("done", "failed"):
                    reason = "running; kill it first" if state == "running" else f"already {state}" if state else "there is no such job"
                    changes.append(Change(name, state, state, f"left alone: {reason}"))
                    continue
                try:
                    values = self.read(state, name)
                    if values.get("REASON") == "malformed_job":
                        raise MalformedJob(f"malformed ({values.get('DETAIL', '')}); remove it and enqueue it anew")
                    job.check_room(values)
                except MalformedJob as exc:
                    changes.append(Change(name, state, state, f"left alone: {exc}"))
                    continue
                kept = {"PRIORITY": values["PRIORITY"]} if "PRIORITY" in values else {}
                changes.append(Change(name, state, "pending", f"was {values.get('REASON', state)}"))
                again.append((changes[-1], {**job.own_values(values), **kept}))
            if again and not check:
                self._make(again)
        return changes

    def _amend(
        self,
        names: list[str],
        sources: tuple[str, ...],
        target: str | None,
        reason: str,
        edit: Callable[[dict[str, str]], dict[str, str]],
        check: bool,
    ) -> list[Change]:
        """Write pending and held jobs anew, and bring them somewhere; durable on return. The caller holds the lock.

        Args:
            names: which.
            sources: where they may be, pending or held; others are left alone.
            target: where they go; None: they stay where they are.
            reason: what became of them.
            edit: returns the new values of a job; a QueueError says why it is left alone.
            check: only say what would become of each.
        """
        lines = self.batch_lines({job.check_name(name) for name in names})
        changes: dict[str, Change] = {}
        todo = []
        for name in dict.fromkeys(names):
            filed = self._filed(name)
            state = filed or ("pending" if name in lines else None)
            try:
                if state not in sources:
                    raise QueueError(f"already {state}" if state == target else state or "there is no such job")
                if filed:
                    values = self.read(filed, name)
                    place = os.stat(name + SUFFIX, dir_fd=self._fds[filed], follow_symlinks=False).st_mtime_ns
                else:
                    values, place = lines[name]
                new = edit(values)
                job.check_room(new)
            except FileNotFoundError:
                changes[name] = self._claimed_now(name)
            except QueueError as exc:
                changes[name] = Change(name, state, state, f"left alone: {exc}")
            else:
                if values.get("PRIORITY") != new.get("PRIORITY"):
                    place += _ahead(values) - _ahead(new)
                words = [f", priority {int(v.get('PRIORITY', '0'))}" if target is None else "" for v in (values, new)]
                changes[name] = Change(name, state, target or state, reason, 1, *words)
                todo.append((name, filed, target or state or "", new, place))
        if check or not todo:
            return list(changes.values())
        prefix = os.urandom(8).hex()
        staged = {name: f"{prefix}.{name}" for name, *_rest in todo}
        try:
            for name, _filed, _target, new, place in todo:
                self._stage(staged[name], job.render(new), sync=len(todo) < 20)
                os.utime(staged[name], ns=(place, place), dir_fd=self._fds["staging"])
            # A job is in held for a moment, where nobody would claim it: by this list recovery brings it back.
            self._stage(f"redo.{target}.{prefix}", "\n".join(staged).encode(), sync=len(todo) < 20)
            if len(todo) >= 20:
                _sync_file_system(self._fds["staging"])
            else:
                os.fsync(self._fds["staging"])
            for name, filed, last, _new, _place in todo:
                entry = name + SUFFIX
                if filed == "pending":
                    try:
                        # Either a claimer gets it, or we do.
                        os.rename(entry, entry, src_dir_fd=self._fds["pending"], dst_dir_fd=self._fds["held"])
                    except FileNotFoundError:
                        changes[name] = self._claimed_now(name)
                        continue
                first = "held" if filed else last
                os.rename(staged.pop(name), entry, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds[first])
                if first != last:
                    os.rename(entry, entry, src_dir_fd=self._fds[first], dst_dir_fd=self._fds[last])
        finally:
            for entry in staged.values():
                with contextlib.suppress(OSError):
                    os.unlink(entry, dir_fd=self._fds["staging"])
        for folder in dict.fromkeys([*(last for _name, _filed, last, _new, _place in todo), "held", "pending"]):
            os.fsync(self._fds[folder])
        # Their files are there for sure: now their lines may go.
        self._remove_from_batches({name for name, *_rest in todo if name in lines}, False)
        os.unlink(f"redo.{target}.{prefix}", dir_fd=self._fds["staging"])
        # Whoever has listed names looks at this folder's time.
        os.utime(self.layout.held)
        return list(changes.values())

    def _claimed_now(self, name: str) -> Change:
        state = self._filed(name)
        return Change(name, state, state, f"left alone: {state}, it was claimed just now")

    def batch_lines(self, names: set[str]) -> dict[str, tuple[dict[str, str], int]]:
        """Return values and place in the queue of those jobs that are lines of batches."""
        found = {}
        for one in self._batches():
            with one:
                for order, name, line in one.find(names):
                    with contextlib.suppress(QueueError):
                        ((_name, values),) = job.parse_list([line])
                        found[name] = {**values, "ENQUEUED_AT": one.stamp}, one.place + order * 1000 - _ahead(values)
        return found

    # ---- copies, and jobs from elsewhere ----------------------------------------------------------------------

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

    # ---- the gate ---------------------------------------------------------------------------------------------

    def _is_shut(self) -> bool:
        return os.access(self.jobset.gate, os.F_OK, follow_symlinks=False)

    def gate(self) -> Gate:
        """Return how the gate stands.

        Raises:
            OSError: too many open files, or the like: it can't be told.
        """
        try:
            fd = os.open(self.jobset.gate, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return Gate(False)
        except OSError as exc:
            if is_shortage(exc):
                raise
            return Gate(True, f"(can't be read: {exc.strerror})")
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return Gate(True, "(can't be read: not a regular file)")
            text = os.read(fd, job.MAX_BYTES).decode("utf-8", "replace").strip()
        finally:
            os.close(fd)
        requested = text.startswith(_REQUESTED)
        return Gate(True, text, requested, "" if requested else self._named_by(text))

    def _named_by(self, text: str) -> str:
        """Return the job that a gate's text names, or an empty text."""
        numbers = [int(number) for number in re.findall(r"(?<!\w)[0-9]{1,9}(?!\w)", text)[:64]]
        candidates = [self.jobset.job_name(number) for number in numbers]
        # Jobs with names of their own, and patterns without an offset.
        candidates += itertools.islice((name for state in PLACES for name in self._each(state)), 1000)
        for name in dict.fromkeys(candidates):
            with contextlib.suppress(FileNotFoundError, QueueError):
                state = self.locate(name)
                if state and self.jobset.names_job(text, name, self.read(state, name)):
                    return name
        return ""

    def close_gate(self, by: str = "", check: bool = False) -> bool:
        """Close the gate with a line that says who and when; return whether it was open.

        Raises:
            QueueError: the gate file can't be made.
        """
        if self._is_shut():
            return False
        if not check:
            text = f"{_REQUESTED}{by or _me()} at {owner.now()}\n"
            staged = f"{self.jobset.gate}.{os.urandom(8).hex()}"
            try:
                try:
                    with open(staged, "x", encoding="utf-8") as file:
                        # Whoever a container runs its programs as may read it, whatever the umask is.
                        os.fchmod(file.fileno(), 0o644)
                        file.write(text)
                        file.flush()
                        os.fsync(file.fileno())
                    # link, not rename: a solver's gate that appears now must stay as it is.
                    os.link(staged, self.jobset.gate)
                    sync_folder(os.path.dirname(self.jobset.gate))
                except FileExistsError:
                    return False
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(staged)
            except OSError as exc:
                raise QueueError(f"jobset {self.jobset.name}: can't make the gate: {explain(exc, self.jobset.gate)}") from exc
        return True

    def open_gate(self, check: bool = False) -> bool:
        """Open the gate; return whether it was closed. Its text is kept in run/gates.jsonl.

        Raises:
            QueueError: the gate file can't be removed.
        """
        gate = self.gate()
        if gate.closed and not check:
            try:
                self._append(self.layout.gates, {"opened_at": owner.now(), "text": gate.text, "solved_by": gate.solved_by})
                os.unlink(self.jobset.gate)
                sync_folder(os.path.dirname(self.jobset.gate))
            except FileNotFoundError:
                return False
            except OSError as exc:
                raise QueueError(f"jobset {self.jobset.name}: can't open the gate: {explain(exc, self.jobset.gate)}") from exc
        return gate.closed


def _not_held(values: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if key not in ("HELD_AT", "HELD_BY")}


def _is_whole(line: bytes) -> bool:
    """Tell whether a line of the history is one."""
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False


def _me() -> str:
    """Return this user's name, or the number where it has none (in a container, say)."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return f"uid {os.geteuid()}"


def _sync_file_system(fd: int) -> None:
    """syncfs(2): one call for a whole batch, where syncing each file would cost more."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "syncfs failed")
