# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds a running job, and whether it still lives.

A holder is one process. For as long as it lives it holds a flock(2) on a file of its own in run/workers, which the
kernel lets go when the process ends, however it ends. Each owner record names that file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Callable

from . import engine, job
from .errors import MalformedJob
from .layout import why_odd

SUFFIX = ".owner"
_LOCK_SUFFIX = ".lock"
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?\Z")
_LOCK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,230}\.lock\Z")
# Seconds that a dead holder's child gets to reach its execve(2), see why_dead.
_EXEC_WAIT = 1.0


def now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return stamp(time.time())


def stamp(seconds: float) -> str:
    """Return a time, in seconds since 1970, as now() does."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"


def seconds_of(stamp: str) -> float:
    """Return what now() returned as seconds since 1970, 0 where it can't be understood."""
    # Slow to import, and a worker does without.
    import calendar

    with contextlib.suppress(ValueError):
        whole, _dot, rest = stamp.rstrip("Z").partition(".")
        return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{rest or 0}")
    return 0.0


def _read(path: str) -> str:
    """Return a file's text, empty where it is gone. Any other error is raised: it says nothing of who lives."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4)), empty where there is none."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def machine_id() -> str:
    """Return the id of this installation (machine-id(5)): two hosts of one name are not one host."""
    return _read("/etc/machine-id").strip()


def pid_namespace() -> str:
    """Return the pid namespace that this process's pids are valid in."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return when a process started, in clock ticks since boot (field 22 of proc(5)'s stat), empty if it is gone."""
    # The second field, the command's name, can hold blanks and parentheses: count from the last one.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in ("Z", "X") else ""


class Holder:
    """This process as a holder of jobs.

    Args:
        folder: the jobset's run/workers.
        label: who it is, for people (rook_r3-1, recover, ...).
        lease: seconds for which others must believe that it lives, see fence.py; 0: what its lock says is enough.
        started_by: what the engine that has started it calls it.
    """

    def __init__(self, folder: str, label: str, lease: float = 0, started_by: str = "") -> None:
        self.label = label
        while True:
            self.lock = f"{label}.{os.urandom(8).hex()}{_LOCK_SUFFIX}"
            path = os.path.join(folder, self.lock)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            # A clean-up may have seen the file before it was locked, and removed it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(self._fd)):
                    break
            os.close(self._fd)
        self._path = path
        record = {
            "OWNER_PID": str(os.getpid()),
            "OWNER_START": process_start(os.getpid()),
            "OWNER_PIDNS": pid_namespace(),
            "OWNER_HOST": socket.gethostname(),
            "OWNER_MACHINE": machine_id(),
            "OWNER_BOOT": boot_id(),
            "OWNER_WORKER_ID": label,
            "OWNER_LOCK": self.lock,
            **({"OWNER_LEASE": f"{lease:.3f}", "OWNER_ENGINE": started_by} if lease else {}),
        }
        self._record = job.render(record)

    def record(self, claim: str) -> bytes:
        """Return the text of an owner record for one claim."""
        return self._record + f"OWNER_CLAIM={claim}\nOWNER_TS={now()}\n".encode()

    def note(self, text: str) -> None:
        """Leave a line in the lock's file, in place of the one before, for whoever reads the records."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def touch(self) -> None:
        """Renew the lease: give the lock's file the file server's time."""
        os.utime(self._fd)
        os.fsync(self._fd)

    def release(self) -> None:
        """Stop being a holder; only when no record names this holder any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)


def parse(data: bytes | None) -> dict[str, str]:
    """Parse an owner record; empty where it is missing or can't be understood."""
    try:
        return job.parse(data) if data else {}
    except MalformedJob:
        return {}


@contextlib.contextmanager
def _free_lock(path: str, gone: bool = False) -> Iterator[bool]:
    """Hold a holder's lock if nobody has it; yields whether it was free (or gone).

    Args:
        path: the lock's file.
        gone: whether its holder's process is known to be gone; then it is waited for.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        # Gone, or a link or a socket, which no holder makes. Other errors (too many open files) say nothing of who lives.
        if exc.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES):
            raise
        # Somebody took the permissions away: its holder may live.
        yield gone or exc.errno != errno.EACCES
        return
    try:
        free = False
        deadline = time.monotonic() + _EXEC_WAIT
        while not free:
            try:
                # Shared, so that two who only look don't take each other for the owner.
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                free = True
            except BlockingIOError:
                if not gone or time.monotonic() >= deadline:
                    break
                time.sleep(0.005)
        yield free
    finally:
        os.close(fd)


def _is_older_worker(pid: int) -> bool:
    return "sagequeue-worker.sh" in _read(f"/proc/{pid}/cmdline").replace("\0", " ")


def why_dead(record: dict[str, str], folder: str) -> str:
    """Return why the owner of a record is dead, or an empty text when it lives.

    Args:
        record: a parsed owner record.
        folder: the jobset's run/workers.
    """
    if not record:
        return "no readable owner record"
    pid = job.number(record, "OWNER_PID")
    if not pid:
        return "the owner record is incomplete"
    if "OWNER_LOCK" not in record:
        # A record of the older shell scripts: a pid and nothing else to go by.
        return "" if _is_older_worker(pid) else f"process {pid} is gone or is no longer a sagequeue-worker.sh"
    lock = record["OWNER_LOCK"]
    lease = record.get("OWNER_LEASE", "0")
    if not _LOCK.match(lock) or "OWNER_CLAIM" not in record or not _SECONDS.match(lease):
        return "the owner record is incomplete"
    why = ""
    here = (record.get("OWNER_HOST"), record.get("OWNER_MACHINE")) == (socket.gethostname(), machine_id())
    if here:
        if record.get("OWNER_BOOT") != boot_id():
            return "the host has started anew since"
        if record.get("OWNER_PIDNS") == pid_namespace():
            start = process_start(pid)
            if not start:
                why = f"process {pid} is gone"
            elif start != record.get("OWNER_START"):
                why = f"process {pid} is now another program"
    # Whoever was killed while it started a job leaves a child that is about to run it. Until its execve(2) that child can't
    # be told by what it carries, so nobody could end it; but for as long it has the lock, too.
    with _free_lock(os.path.join(folder, lock), gone=bool(why)) as free:
        if not free or why or "OWNER_LEASE" not in record or here:
            return (why or "its lock is free") if free else ""
        silent = _silent(folder, lock)
    # Its host may be cut off, and not know yet that it has lost its lock.
    if silent < believed(float(lease)) or engine.runs(record.get("OWNER_ENGINE", "")):
        return ""
    return f"nothing was heard of {record.get('OWNER_HOST')} for {min(silent, 86400):.0f} s, and its lock is free"


def believed(lease: float) -> float:
    """Return after how many seconds of silence a worker with such a lease is dead: it ends itself after the lease, which takes a while."""
    return lease * 1.25 + 15


def _silent(folder: str, lock: str) -> float:
    """Return for how many seconds a holder has not renewed its lease, by the clock of whoever keeps the files."""
    path = os.path.join(folder, f".clock.{os.urandom(8).hex()}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.utime(fd)
        now = os.fstat(fd).st_mtime
    finally:
        os.close(fd)
        os.unlink(path)
    try:
        # To open it is to ask for its time anew.
        fd = os.open(os.path.join(folder, lock), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return float("inf")
    try:
        return now - os.fstat(fd).st_mtime
    finally:
        os.close(fd)


def living(folder: str) -> list[str]:
    """Return the labels of the holders that live.

    Args:
        folder: the jobset's run/workers.
    """
    found = []
    for lock in sorted(os.listdir(folder)):
        if _LOCK.match(lock):
            with _free_lock(os.path.join(folder, lock)) as free:
                found += [] if free else [lock[: -len(_LOCK_SUFFIX)].rpartition(".")[0]]
    return found


def clean(folder: str, named: set[str], log: Callable[[str], None]) -> None:
    """Remove the lock files of dead holders that no owner record names any more.

    Args:
        folder: the jobset's run/workers.
        named: lock files that records name.
        log: told about each that is removed.
    """
    for lock in os.listdir(folder):
        path = os.path.join(folder, lock)
        if not _LOCK.match(lock) or lock in named:
            continue
        # Removed while locked: a holder that waits for this lock finds its file gone, and makes another.
        with contextlib.suppress(FileNotFoundError):
            if not why_odd(os.stat(path, follow_symlinks=False)):
                with _free_lock(path) as free:
                    if free:
                        os.unlink(path)
                        log(f"removed the lock of a dead worker, {lock}")
