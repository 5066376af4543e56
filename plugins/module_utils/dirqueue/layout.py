# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a jobset's files live, and whether the file system below them can hold a queue."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import stat
from typing import Optional

from .errors import QueueError, explain

STATES = ("pending", "running", "done", "failed")
# Where a job's file may lie: a pending one that an operator holds back lies in held, where no worker looks.
PLACES = ("pending", "held", "running", "done", "failed")
# What a person may ask for: a state, or held, which is a part of pending.
CHOICES = (*STATES, "held")

# File systems whose renames or locks are known not to hold (WSL's view of Windows drives, first of all).
_REFUSED = {
    "9p": "a Windows drive or a 9p share",
    "drvfs": "a Windows drive",
    "vboxsf": "a shared folder of a virtual machine",
    "cifs": "a Windows share",
    "smb3": "a Windows share",
    "vfat": "FAT",
    "exfat": "FAT",
}


class Refused(OSError):
    """What is found where a file of the queue's own should be can't be one."""


class Layout:
    """The paths of one jobset below the root.

    Args:
        root: the batch user's sagequeue folder.
        jobset: the jobset's name.
    """

    def __init__(self, root: str, jobset: str) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        self.jobset = jobset
        self.base = os.path.join(self.root, "var", jobset)
        self.queue = os.path.join(self.base, "queue")
        self.batches = os.path.join(self.queue, "batches")
        self.held = os.path.join(self.queue, "held")
        self.log = os.path.join(self.base, "log")
        self.run = os.path.join(self.base, "run")
        self.staging = os.path.join(self.run, "staging")
        self.workers = os.path.join(self.run, "workers")
        self.malformed = os.path.join(self.run, "malformed")
        # Of the runner condor_job: a folder for each claim.
        self.condor = os.path.join(self.run, "condor")
        self.lock = os.path.join(self.run, "queue.lock")
        self.history = os.path.join(self.run, "history.jsonl")
        self.gates = os.path.join(self.run, "gates.jsonl")
        self.program = os.path.join(self.root, "bin", "sagequeue")

    def folders(self) -> list[str]:
        """Return every folder of the jobset, outermost first."""
        states = [os.path.join(self.queue, place) for place in PLACES]
        return [self.base, self.queue, *states, self.batches, self.log, self.run, self.staging, self.workers, self.malformed]

    def missing(self) -> list[str]:
        """Return the folders that create would make."""
        return [folder for folder in self.folders() if not os.path.isdir(folder)]

    def create(self) -> bool:
        """Make the folders that are missing, private to the user; return whether any was.

        Raises:
            QueueError: a folder can't be made.
        """
        missing = self.missing()
        try:
            os.makedirs(os.path.dirname(self.base), mode=0o700, exist_ok=True)
            for folder in missing:
                os.mkdir(folder, 0o700)
                sync_folder(os.path.dirname(folder))
        except OSError as exc:
            raise QueueError(f"can't make {explain(exc, self.base)}") from exc
        return bool(missing)


def sync_folder(path: str) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(fd: int) -> None:
    """syncfs(2): one call for a whole batch, where syncing each file would cost more."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        raise OSError(ctypes.get_errno(), "syncfs failed")


def write_all(fd: int, data: bytes) -> None:
    """Write to a descriptor. What a full disk or a quota cuts short says nothing of why: the next try does."""
    while data:
        data = data[os.write(fd, data) :]


def write_whole(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file, in the place of what is there: whole or not at all, durable on return.

    Until it is whole it lies beside that under a hidden name, which ends with .new.

    Args:
        path: the file; its folder must exist.
        text: what it is to hold.
        mode: its permissions, whatever the umask is.
    Raises:
        OSError: it can't be written; names the path. What was there is still there, and nothing is left beside it.
    """
    folder, name = os.path.split(path)
    staged = os.path.join(folder, f".{name[:200]}.{os.urandom(8).hex()}.new")
    try:
        try:
            fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, mode)
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.rename(staged, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(staged)
            raise
        sync_folder(folder)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc


def why_odd(found: os.stat_result, links: bool = False) -> str:
    """Return why something can't be a file of the queue's own, or an empty text.

    Args:
        found: what stat(2) says of it, without following a link.
        links: whether it may have a second name.
    """
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file"
    if found.st_uid != os.geteuid():
        return f"belongs to another user (uid {found.st_uid})"
    if found.st_nlink != 1 and not links:
        return "has a second name (a hard link)"
    return "" if found.st_mode & stat.S_IRUSR else "its permissions keep its owner from reading it"


def open_own(path: str, flags: int, dir_fd: Optional[int] = None) -> int:
    """Open a file of the queue's own; one that is made is private. Follows no link, and waits for no FIFO.

    Raises:
        Refused: it can't be a file of the queue's own.
        OSError: it can't be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except OSError as exc:
        # A link, a folder, a socket, a FIFO that nobody reads, or what belongs to somebody else.
        if exc.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.EPERM):
            reason = why_odd(os.stat(path, dir_fd=dir_fd, follow_symlinks=False))
            if reason:
                raise Refused(exc.errno, f"refused, {reason}", path) from exc
        raise
    reason = why_odd(os.fstat(fd))
    if reason:
        os.close(fd)
        raise Refused(errno.EPERM, f"refused, {reason}", path)
    return fd


def mount_of(path: str, mountinfo: str = "/proc/self/mountinfo") -> tuple[str, str, str]:
    """Return mount point, file system type and options of the mount that holds a path.

    The format of mountinfo is that of proc(5).
    """
    path = os.path.realpath(path)
    found = ("/", "", "")
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _dash, right = line.partition(" - ")
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), left.split()[4])
            kind, _source, options = right.split(" ", 2)
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(found[0]):
                found = (point, kind, options.strip())
    return found


def probe(root: str, mountinfo: str = "/proc/self/mountinfo") -> None:
    """Prove that the file system below the root can hold a queue: hard links, renames, locks.

    Args:
        root: the folder; the nearest one that exists is tried.
        mountinfo: the kernel's list of mounts.
    Raises:
        QueueError: it can't, with the reason and the next step.
    """
    folder = os.path.abspath(os.path.expanduser(root))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    advice = "put sagequeue_root on a local Linux file system, such as a folder in the user's home"
    point, kind, options = mount_of(folder, mountinfo)
    if kind in _REFUSED:
        raise QueueError(f"{root} lies on {point} ({kind}, {_REFUSED[kind]}), which can't hold a queue: {advice}")
    if kind.startswith("nfs") and {"nolock", "local_lock=all", "local_lock=flock"} & set(options.split(",")):
        raise QueueError(f"{root} lies on {point} ({kind}) mounted without locks between hosts (nolock): {advice}")
    first = os.path.join(folder, f".sagequeue-probe-{os.getpid()}")
    second = first + ".linked"
    step = "a file can be made"
    fds = []
    try:
        fds.append(os.open(first, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        step = "a file can be locked"
        fcntl.flock(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        fds.append(os.open(first, os.O_RDWR | os.O_CLOEXEC))
        step = "a lock keeps others out"
        try:
            fcntl.flock(fds[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno != errno.EWOULDBLOCK:
                raise
        else:
            raise OSError(errno.ENOLCK, "two holders had one lock")
        step = "a file can have a second name"
        os.link(first, second)
        os.unlink(second)
        step = "a file can be renamed over another"
        fds.append(os.open(second, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.rename(second, first)
    except OSError as exc:
        raise QueueError(f"{folder} ({kind}) can't hold a queue: that {step} failed ({exc.strerror}): {advice}") from exc
    finally:
        for fd in fds:
            os.close(fd)
        for path in (first, second):
            if os.path.lexists(path):
                os.unlink(path)
