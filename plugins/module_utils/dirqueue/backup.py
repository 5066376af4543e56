# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One jobset as one file: queue, logs, history, gate and state files, and back.

An archive is a tar.gz. Its first member, archive.json, says what it is; its last, manifest.json, has the size, the SHA-256
and the mtime of each other. Without the last it is not whole.

A job that runs is in it as running, without an owner: an orphan, which recovery brings back. So recovery alone decides what
becomes of an attempt that was cut off: the job that its gate names as the solver is done, any other is pending again.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Optional

from . import __version__, job, owner
from .errors import MalformedJob, QueueError
from .job import SUFFIX
from .layout import PLACES, STATES, Refused, open_own, sync_file_system, sync_folder
from .queue import Queue

FORMAT = 1
_HEAD, _MANIFEST, _DEFINITION, _GATE = "archive.json", "manifest.json", "definition.json", "gate"
_FILE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}"
# What may be in an archive, in the order in which it is put in place, and how large it may be (0: as the disk allows). All that a job
# finds when it starts is there before the first job; who was done stays done, and what waits comes last.
_KINDS = (
    (re.compile(rf"({_HEAD})\Z"), 1 << 16),
    (re.compile(rf"({_DEFINITION})\Z"), 1 << 20),
    (re.compile(r"state/([^/\0]{1,250})\Z"), 0),
    (re.compile(rf"({_GATE})\Z"), job.MAX_BYTES),
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
# How many members there may be, and how much of the manifest each may take.
_MOST, _EACH = 5_000_000, 600
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.new\Z")
_CHUNK = 1 << 20
# A state file up to here is read until nobody writes it meanwhile.
_LARGE = 1 << 26
# What is left of the disk beside what an archive holds.
_SPARE = 16 << 20


# ---- making one -----------------------------------------------------------------------------------------------------


class _Hashed:
    """So many bytes of an open file, for tarfile to read, and their SHA-256."""

    def __init__(self, name: str, fd: int, size: int) -> None:
        self._name, self._fd, self._left = name, fd, size
        self.hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = os.read(self._fd, min(size, self._left))
        if not data and self._left:
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
                data = b"".join(iter(lambda: file.read(_CHUNK) or b"", b""))
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


def _plain(folder: str) -> list[str]:
    """Return the names of a folder's plain files."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    return []


def _clean_up(folder: str) -> None:
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


def _hidden(path: str) -> str:
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
    _clean_up(folder)
    staged = _hidden(path)
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
    add_json(_HEAD, {**about, "host": socket.gethostname(), "sagequeue": __version__})
    # Secrets come from the inventory, and stay there: their names will do.
    left_out = sorted(definition.secrets)
    add_json(_DEFINITION, {**definition.to_dict(), "secrets": dict.fromkeys(left_out, "(not in the archive)")})
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
        for entry in _plain(folder):
            _add_or_refuse(queue, archive, f"{prefix}/{entry}", os.path.join(folder, entry))
    for path in (layout.history, layout.gates):
        _add_or_refuse(queue, archive, f"run/{os.path.basename(path)}", path, lines=True)
    for entry in _plain(definition.workdir):
        if entry != definition.gate_file and any(fnmatch.fnmatchcase(entry, pattern) for pattern in state_files):
            _add_or_refuse(queue, archive, f"state/{entry}", os.path.join(definition.workdir, entry), steady=True)
    # Last: whoever solved the jobset is named in it, and is running or done in the archive.
    _add_or_refuse(queue, archive, _GATE, definition.gate)
    result = {"counts": counts, "refused": dict(queue.refused), "files": len(archive.files), "left_out": left_out}
    refused = dict(list(queue.refused.items())[:100])
    data = json.dumps({**about, **result, "refused": refused, "files": archive.files}, sort_keys=True).encode()
    archive.add(_MANIFEST, data, len(data), 0)
    return result


def _add_or_refuse(queue: Queue, archive: _Archive, name: str, path: str, lines: bool = False, steady: bool = False) -> None:
    """Add a file if it is there, and is one that restore would take."""
    try:
        if not _kind(name):
            raise Refused(0, "its name can't be in an archive")
        archive.add_path(name, path, lines, steady)
    except FileNotFoundError:
        pass
    except Refused as exc:
        queue.refused[name] = str(exc.strerror)


def _kind(name: str) -> Optional[tuple[int, str, int]]:
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


# ---- bringing one back ----------------------------------------------------------------------------------------------


class _Member(tarfile.TarInfo):
    """A member that is a plain file. Headers of other kinds are refused before they are followed."""

    # There the argument has the name of the module.
    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:  # pylint: disable=arguments-renamed
        long_name = self.type == tarfile.GNUTYPE_LONGNAME and self.size <= 1000
        if not long_name and self.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kinds = {tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a hard link", tarfile.DIRTYPE: "a folder", tarfile.FIFOTYPE: "a FIFO"}
            kinds.update({tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device"})
            raise QueueError(f"{self.name!r} is {kinds.get(self.type, 'of a kind that no backup writes')}, not a plain file")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def _members(file: Any) -> Iterator[tuple[tarfile.TarInfo, Any]]:
    """Yield each member and its content.

    Raises:
        QueueError: something in it is not what backup writes.
        OSError, tarfile.TarError, EOFError, zlib.error: it is no archive, or not whole.
    """
    with gzip.GzipFile(fileobj=file, mode="rb") as plain:
        # No links, no devices, no paths: nothing is unpacked by tarfile itself, whose own filters not every Python has.
        with tarfile.open(fileobj=plain, mode="r|", tarinfo=_Member) as tar:
            while True:
                member = tar.next()
                if member is None:
                    break
                if not member.isreg():
                    raise QueueError(f"{member.name!r} is not a plain file")
                yield member, tar.extractfile(member)
                tar.members.clear()  # type: ignore[attr-defined]
        # To its end, where its checksum is.
        if len(plain.read(_CHUNK)) == _CHUNK:
            raise QueueError("it goes on after its end")


def _unpack(queue: Queue, path: str, folder: str) -> dict[str, Any]:
    """Write what is in an archive into an empty folder, all checked; return what archive.json says.

    Raises:
        QueueError: names what is wrong with it.
    """
    seen: dict[str, list[Any]] = {}
    about: dict[str, Any] = {}
    manifest: Optional[dict[str, Any]] = None
    places: dict[str, str] = {}
    with open(path, "rb") as file:
        for member, content in _members(file):
            name, size = member.name, member.size
            if name == _MANIFEST:
                if manifest is not None or size > _EACH * (len(seen) + 1000):
                    raise QueueError(f"{name} is there twice, or too large")
                manifest = json.loads(content.read())
                continue
            kind = _kind(name)
            if manifest is not None or not kind:
                raise QueueError(f"{name!r} is nothing that a backup holds")
            if name in seen or len(seen) == _MOST:
                raise QueueError(f"{name} is in it twice, or is one of too many")
            _order, entry, largest = kind
            disk = os.statvfs(folder)
            free = max(0, disk.f_bavail * disk.f_frsize - _SPARE)
            if size > (largest or free):
                raise QueueError(f"{name} has {size} bytes; {'at most ' + str(largest) if largest else f'only {free} are free here'}")
            if name.startswith("queue/") and name.endswith(SUFFIX):
                if entry in places:
                    raise QueueError(f"the job {entry[: -len(SUFFIX)]} is in two states: {name} and {places[entry]}")
                places[entry] = name
            seen[name] = [size, _unpack_one(content, os.path.join(folder, name), member.mode)]
            if name == _HEAD:
                with open(os.path.join(folder, name), encoding="utf-8") as head:
                    about = _mapping(json.load(head), name)
                _check_head(queue, about)
            elif not about:
                raise QueueError(f"{_HEAD} does not come first")
    if manifest is None:
        raise QueueError(f"it has no {_MANIFEST}, so it was cut short")
    listed = _mapping(_mapping(manifest, _MANIFEST).get("files"), _MANIFEST)
    for name in sorted({*seen, *listed}):
        said = listed.get(name)
        if name not in seen:
            raise QueueError(f"{name} is missing, which {_MANIFEST} names")
        if not isinstance(said, list) or len(said) != 3 or said[:2] != seen[name]:
            raise QueueError(f"{name} is not as {_MANIFEST} says")
        when = said[2]
        if not isinstance(when, int) or not -(2**62) < when < 2**62:
            raise QueueError(f"{name} has no time")
        os.utime(os.path.join(folder, name), ns=(when, when))
    return about


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise QueueError(f"{where} is not what a backup writes")
    return value


def _check_head(queue: Queue, about: dict[str, Any]) -> None:
    if about.get("format") != FORMAT:
        raise QueueError(f"it has the format {about.get('format')!r}, and this release knows {FORMAT}: use the release that made it")
    if not re.match(r"[0-9a-f]{32}\Z", str(about.get("id"))):
        raise QueueError(f"{_HEAD} has no id")
    if about.get("jobset") != queue.jobset.name:
        raise QueueError(f"it is of the jobset {about.get('jobset')!r}, not of {queue.jobset.name}")


def _unpack_one(content: Any, path: str, mode: int) -> str:
    """Write one new file, in a folder that is private; return its SHA-256."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    digest = hashlib.sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        # Gate and state files may be for the eyes of a container's user, too.
        os.fchmod(fd, mode & 0o666 | 0o600)
        while True:
            data = content.read(_CHUNK)
            if not data:
                return digest.hexdigest()
            digest.update(data)
            file.write(data)


def restore(queue: Queue, path: str, keep_state_files: bool = False, check: bool = False) -> dict[str, Any]:
    """Put what is in an archive into a jobset's queue that has no jobs.

    All of it is unpacked and checked beside the queue first. Then it gets the name run/restore: from there on it is going to
    be put in place, by this call or, if that is killed, by the next one.

    Args:
        queue: the jobset's queue.
        path: the archive.
        keep_state_files: let state files that are there already, and differ, stay as they are.
        check: only say whether it can be restored.
    Returns:
        changed, msg, kept (what was there already and stays), aside (what was there already, and got another name).
    Raises:
        QueueError: the archive is not sound, or the jobset has jobs; then nothing was changed.
    """
    layout = queue.layout
    ready = os.path.join(layout.run, "restore")
    path = os.path.abspath(os.path.expanduser(path))
    if not check and os.path.isdir(ready):
        with queue.lock():
            if os.path.isdir(ready):
                about = _read_json(os.path.join(ready, _HEAD))
                result = _place(queue, ready)
                return {**result, "msg": f"went on with a restore that was cut short: {_described(about)}"}
    if not check:
        _clean_up(layout.run)
    staged = _hidden(ready)
    os.mkdir(staged, 0o700)
    lock = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            about = _unpack(queue, path, staged)
        except QueueError as exc:
            raise QueueError(f"{path} can't be restored: {exc}; nothing was changed") from exc
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, RecursionError) as exc:
            raise QueueError(f"{path} is no whole archive of a jobset ({exc}); nothing was changed; fetch it anew") from exc
        if _read_json(os.path.join(layout.run, "restored.json")).get("id") == about["id"] and any(queue.counts().values()):
            return {"changed": False, "msg": f"restored already: {_described(about)}", "kept": [], "aside": []}
        sync_file_system(lock)
        with queue.lock():
            _refuse_jobs(queue)
            _refuse_state_files(queue, staged, keep_state_files)
            if check:
                return {"changed": True, "msg": f"would be restored: {_described(about)}", "kept": [], "aside": []}
            os.rename(staged, ready)
            sync_folder(layout.run)
            return {**_place(queue, ready), "msg": f"restored: {_described(about)}"}
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        os.close(lock)


def told(done: dict[str, Any]) -> str:
    """Return what restore did, for people."""
    lines = [f"left as it was: {path}" for path in done["kept"]] + [f"moved aside: {path}" for path in done["aside"]]
    return "\n".join([done["msg"], *lines])


def _described(about: dict[str, Any]) -> str:
    return f"{about.get('jobset')} as it was at {about.get('created')} on {about.get('host')}"


def _read_json(path: str) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError), open(path, "rb", opener=open_own) as file:
        value = json.load(file)
        return value if isinstance(value, dict) else {}
    return {}


def _refuse_jobs(queue: Queue) -> None:
    counts = queue.counts()
    if sum(counts.values()):
        has = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        raise QueueError(
            f"jobset {queue.jobset.name} has jobs here already ({has}), and a restore does not mix them with others: back them up and "
            "remove them (purge_queue) first; nothing was changed"
        )


def _refuse_state_files(queue: Queue, staged: str, keep: bool) -> None:
    folder = os.path.join(staged, "state")
    others = [
        name
        for name in _plain(folder)
        if os.path.lexists(os.path.join(queue.jobset.workdir, name))
        and not _same(os.path.join(folder, name), os.path.join(queue.jobset.workdir, name))
    ]
    if others and not keep:
        raise QueueError(
            f"{queue.jobset.workdir} has {len(others)} state files that differ from those in the archive ({', '.join(others[:5])}"
            f"{', ...' if len(others) > 5 else ''}): move them away, or keep them with keep_state_files=true; nothing was changed"
        )


def _same(first: str, second: str, only_begins: bool = False) -> bool:
    """Tell whether a file has the bytes of another; only_begins: whether the second begins with those of the first."""
    try:
        with open(first, "rb") as one, open(second, "rb", opener=open_own) as other:
            while True:
                data = one.read(_CHUNK)
                if not data:
                    return only_begins or not other.read(1)
                if other.read(len(data)) != data:
                    return False
    except OSError:
        return False


def _place(queue: Queue, ready: str) -> dict[str, Any]:
    """Put what was unpacked in place, as far as it is not; the caller holds the lock."""
    layout, workdir = queue.layout, queue.jobset.workdir
    about = _read_json(os.path.join(ready, _HEAD))
    mark = f".before-restore-{str(about.get('id'))[:8]}"
    kept: list[str] = []
    aside: list[str] = []
    found = [os.path.relpath(os.path.join(folder, entry), ready) for folder, _folders, files in os.walk(ready) for entry in files]
    known = {name for place in PLACES for name in queue.entries(place)}
    for _order, name in sorted((kind[0], path) for path in found for kind in [_kind(path)] if kind):
        source, (folder, _slash, entry) = os.path.join(ready, name), name.rpartition("/")
        if name in (_HEAD, _DEFINITION):
            continue
        if name == _GATE or folder == "state":
            target = queue.jobset.gate if name == _GATE else os.path.join(workdir, entry)
            if not _copy_to(source, target) and not _same(source, target):
                kept.append(target)
            continue
        if folder.startswith("queue/"):
            if entry.endswith(SUFFIX) and entry[: -len(SUFFIX)] in known:
                # Somebody enqueued a job of this name since the restore was cut short.
                kept.append(name)
            else:
                queue.receive(source, os.path.basename(folder))
            continue
        target = os.path.join(layout.base, name)
        if os.path.lexists(target):
            if _same(source, target, only_begins=True):
                continue
            os.rename(target, target + mark)
            aside.append(target + mark)
        os.rename(source, target)
    queue.sync()
    for folder in (layout.log, layout.malformed, layout.run):
        sync_folder(folder)
    _write_json(os.path.join(layout.run, "restored.json"), {**about, "restored": owner.now()})
    done = _hidden(ready)
    os.rename(ready, done)
    sync_folder(layout.run)
    shutil.rmtree(done)
    return {"changed": True, "kept": kept, "aside": aside}


def _copy_to(source: str, target: str) -> bool:
    """Copy a file to another file system, with its mode and time, whole and durable; False if there is one already."""
    # The same name each time: the lock is held, and who was killed here leaves nothing that stays.
    staged = os.path.join(os.path.dirname(target), f".{os.path.basename(target)[:200]}.being-restored")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)
    if os.path.lexists(target):
        return False
    try:
        with open(source, "rb") as file, open(staged, "xb") as copy:
            found = os.fstat(file.fileno())
            os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode))
            shutil.copyfileobj(file, copy, _CHUNK)
            copy.flush()
            os.utime(copy.fileno(), ns=(found.st_mtime_ns, found.st_mtime_ns))
            os.fsync(copy.fileno())
        os.link(staged, target)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)
    sync_folder(os.path.dirname(target))
    return True


def _write_json(path: str, value: dict[str, Any]) -> None:
    staged = _hidden(path)
    with open(staged, "x", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(staged, path)
