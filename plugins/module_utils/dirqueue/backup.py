# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One jobset as one file: queue, logs, history, gate and state files. restore.py brings it back.

An archive is a tar.gz. Its first member, archive.json, says what it is; its last, manifest.json, has the size, the SHA-256
and the mtime of each other. Without the last it is not whole.

A job that runs is in it as running, without an owner: an orphan, which recovery brings back. So recovery alone decides what
becomes of an attempt that was cut off: the job that its gate names as the solver is done, any other is pending again.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import tarfile
from typing import Any, Optional

from . import __version__, job, owner
from .errors import MalformedJob, QueueError
from .job import SUFFIX
from .layout import STATES, Refused, open_own, sync_folder
from .queue import Queue

FORMAT = 1
HEAD, MANIFEST, DEFINITION, GATE = "archive.json", "manifest.json", "definition.json", "gate"
_FILE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}"
# What may be in an archive, in the order in which it is put in place, and how large it may be (0: as the disk allows). All that a job
# finds when it starts is there before the first job; who was done stays done, and what waits comes last.
_KINDS = (
    (re.compile(rf"({HEAD})\Z"), 1 << 16),
    (re.compile(rf"({DEFINITION})\Z"), 1 << 20),
    (re.compile(r"state/([^/\0]{1,250})\Z"), 0),
    (re.compile(rf"({GATE})\Z"), job.MAX_BYTES),
    (re.compile(rf"run/malformed/({_FILE})\Z"), 0),
    (re.compile(r"run/(gates\.jsonl|history\.jsonl)\Z"), 0),
    (re.compile(rf"log/({_FILE})\Z"), 0),
    (re.compile(r"queue/failed/([^/]+)\Z"), job.MAX_BYTES),
    (re.compile(r"queue/done/([^/]+)\Z"), job.MAX_BYTES),
    (re.compile(r"queue/running/([^/]+)\Z"), job.MAX_BYTES),
    (re.compile(r"queue/held/([^/]+)\Z"), job.MAX_BYTES),
    (re.compile(r"queue/pending/([^/]+)\Z"), job.MAX_BYTES),
    (re.compile(r"queue/batches/([^/]+\.cursor)\Z"), 100),
    (re.compile(r"queue/batches/([^/]+\.batch)\Z"), 0),
)
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.new\Z")
CHUNK = 1 << 20
# A state file up to here is read until nobody writes it meanwhile.
_LARGE = 1 << 26


class _Hashed:
    """So many bytes of an open file, for tarfile to read, and their SHA-256."""

    def __init__(self, name: str, fd: int, size: int) -> None:
        self._name, self._fd, self._left = name, fd, size
        self.hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        data = os.read(self._fd, wanted)
        # tarfile would say of it that there is an unexpected end, and not of what.
        if len(data) < wanted:
            raise QueueError(f"{self._name} became shorter while it was read; nothing was written; run the backup again")
        self._left -= len(data)
        self.hash.update(data)
        return data


class _Archive:
    """An archive that is being written."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.files: dict[str, list[Any]] = {}

    def add(self, name: str, source: bytes | int, size: int, mtime: int, mode: int = 0o600) -> None:
        """Add bytes, or what an open file holds from here on."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = size, mtime // 10**9, stat.S_IMODE(mode)
        if isinstance(source, bytes):
            self._tar.addfile(info, io.BytesIO(source))
            digest = hashlib.sha256(source).hexdigest()
        else:
            reader = _Hashed(name, source, size)
            self._tar.addfile(info, reader)  # type: ignore[arg-type]
            digest = reader.hash.hexdigest()
        self.files[name] = [size, digest, mtime]
        # tarfile remembers every member.
        self._tar.members.clear()  # type: ignore[attr-defined]

    def add_path(self, name: str, path: str, lines: bool = False, steady: bool = False) -> None:
        """Add a file as far as it is written now.

        Args:
            name: of the member.
            path: the file.
            lines: only whole lines of it.
            steady: it may be written anew meanwhile: look again until it is the same before and after.
        """
        for _look in range(10 if steady else 1):
            with contextlib.closing(os.fdopen(open_own(path, os.O_RDONLY), "rb", buffering=0)) as file:
                found = os.fstat(file.fileno())
                if not steady or found.st_size > _LARGE:
                    size = _whole_lines(file.fileno(), found.st_size) if lines else found.st_size
                    self.add(name, file.fileno(), size, found.st_mtime_ns, found.st_mode)
                    return
                data = b"".join(iter(lambda: file.read(CHUNK) or b"", b""))
                after = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) == (len(data), after.st_mtime_ns):
                break
        self.add(name, data, len(data), found.st_mtime_ns, found.st_mode)


def _whole_lines(fd: int, size: int) -> int:
    """Return how much of a file's first bytes are whole lines."""
    end = size
    while end:
        start = max(0, end - job.MAX_BYTES)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def plain(folder: str) -> list[str]:
    """Return the names of a folder's plain files."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    return []


def clean_up(folder: str) -> None:
    """Remove the unfinished archives, or copies, of those who were killed while they made one."""
    for entry in os.listdir(folder):
        path = os.path.join(folder, entry)
        if not _UNFINISHED.match(entry) or os.path.islink(path):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            finally:
                os.close(fd)


def hidden(path: str) -> str:
    """Return the name that something has until it is whole."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.{os.urandom(8).hex()}.new")


def backup(queue: Queue, path: str, state_files: Optional[list[str]] = None, check: bool = False) -> dict[str, Any]:
    """Write a jobset into an archive, while its workers run.

    Each job is in it once, in a state that it had meanwhile, as its file was at one moment. The lock is held only while
    the folders are listed. What else there is (logs, history, gate, state files) is read after the jobs, so that it is not
    older than they are.

    Args:
        queue: the jobset's queue.
        path: the archive. It is there whole, or not at all; none is replaced.
        state_files: patterns of names in the jobset's workdir.
        check: only say what would be in it.
    Returns:
        path, size, counts, refused, files (how many), left_out (names of secrets).
    Raises:
        QueueError: there is such a file already, or a pattern is none.
    """
    path = os.path.abspath(os.path.expanduser(path))
    for pattern in state_files or []:
        if "/" in pattern or not pattern.strip("."):
            raise QueueError(f"state_files: {pattern!r} is not a pattern of names in the jobset's workdir, {queue.jobset.workdir}")
    if os.path.lexists(path):
        raise QueueError(f"{path} is there already; name another file, or move it away")
    if check:
        return {"path": path, "size": 0, "counts": queue.survey(), "refused": dict(queue.refused), "files": 0, "left_out": []}
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    clean_up(folder)
    staged = hidden(path)
    fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.GNU_FORMAT, compresslevel=6) as tar:
                result = _write(queue, _Archive(tar), state_files or [])
            file.flush()
            os.fsync(fd)
            size = os.fstat(fd).st_size
        try:
            # link, not rename: it replaces nothing.
            os.link(staged, path)
        except FileExistsError as exc:
            raise QueueError(f"{path} is there already; name another file, or move it away") from exc
        except OSError:
            # A file system without links, such as a Windows drive.
            os.rename(staged, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)
    sync_folder(folder)
    return {"path": path, "size": size, **result}


def described(made: dict[str, Any]) -> str:
    """Return what backup made in one line, for people."""
    said = ", ".join(f"{count} {state}" for state, count in made["counts"].items())
    if made["refused"]:
        said += f"; {len(made['refused'])} refused: " + "; ".join(f"{name}: {why}" for name, why in list(made["refused"].items())[:5])
    if made["left_out"]:
        said += f"; without the values of the secrets {', '.join(made['left_out'])}"
    return said


def _write(queue: Queue, archive: _Archive, state_files: list[str]) -> dict[str, Any]:
    layout, definition = queue.layout, queue.jobset

    def add_json(name: str, value: dict[str, Any]) -> None:
        data = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
        archive.add(name, data, len(data), 0)

    about = {"format": FORMAT, "id": os.urandom(16).hex(), "jobset": definition.name, "created": owner.now()}
    add_json(HEAD, {**about, "host": socket.gethostname(), "sagequeue": __version__})
    # Secrets come from the inventory, and stay there: their names will do.
    left_out = sorted(definition.secrets)
    add_json(DEFINITION, {**definition.to_dict(), "secrets": dict.fromkeys(left_out, "(not in the archive)")})
    counts = dict.fromkeys(STATES, 0)
    found = queue.snapshot()
    try:
        for entry, fd in found.batches.items():
            seen = os.fstat(fd)
            archive.add(f"queue/batches/{entry}", fd, seen.st_size, seen.st_mtime_ns)
    finally:
        found.close()
    for name, state in found.states.items():
        try:
            copied = queue.copy(name, state)
        except MalformedJob as exc:
            queue.refused[f"{state}/{name}{SUFFIX}"] = str(exc)
            continue
        if copied:
            state, place, data = copied
            archive.add(f"queue/{state}/{name}{SUFFIX}", data, len(data), place)
            counts["pending" if state == "held" else state] += 1
    counts["pending"] += found.batched
    for folder, prefix in ((layout.log, "log"), (layout.malformed, "run/malformed")):
        for entry in plain(folder):
            _add_or_refuse(queue, archive, f"{prefix}/{entry}", os.path.join(folder, entry))
    for path in (layout.history, layout.gates):
        _add_or_refuse(queue, archive, f"run/{os.path.basename(path)}", path, lines=True)
    for entry in plain(definition.workdir):
        if entry != definition.gate_file and any(fnmatch.fnmatchcase(entry, pattern) for pattern in state_files):
            _add_or_refuse(queue, archive, f"state/{entry}", os.path.join(definition.workdir, entry), steady=True)
    # Last: whoever solved the jobset is named in it, and is running or done in the archive.
    _add_or_refuse(queue, archive, GATE, definition.gate)
    result = {"counts": counts, "refused": dict(queue.refused), "files": len(archive.files), "left_out": left_out}
    refused = dict(list(queue.refused.items())[:100])
    data = json.dumps({**about, **result, "refused": refused, "files": archive.files}, sort_keys=True).encode()
    archive.add(MANIFEST, data, len(data), 0)
    return result


def _add_or_refuse(queue: Queue, archive: _Archive, name: str, path: str, lines: bool = False, steady: bool = False) -> None:
    """Add a file if it is there, and is one that restore would take."""
    try:
        if not kind_of(name):
            raise Refused(0, "its name can't be in an archive")
        archive.add_path(name, path, lines, steady)
    except FileNotFoundError:
        pass
    except Refused as exc:
        queue.refused[name] = str(exc.strerror)


def kind_of(name: str) -> Optional[tuple[int, str, int]]:
    """Return what a member is: the how many-th kind, the file's own name, and how large it may be; None: nothing of ours."""
    for order, (pattern, largest) in enumerate(_KINDS):
        found = pattern.match(name)
        if found and found[1] not in (".", ".."):
            entry = found[1]
            if name.startswith("queue/batches/"):
                return (order, entry, largest) if job.is_name(entry) else None
            if name.startswith("queue/"):
                return (order, entry, largest) if entry.endswith(SUFFIX) and job.is_name(entry[: -len(SUFFIX)]) else None
            return order, entry, largest
    return None
