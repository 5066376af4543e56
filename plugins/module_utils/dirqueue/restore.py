# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A jobset that backup.py has made one file of, back in its place: checked as a whole, and only then put there."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Optional

from . import owner
from .backup import CHUNK, DEFINITION, FORMAT, GATE, HEAD, MANIFEST, clean_up, hidden, kind_of, plain
from .errors import QueueError
from .job import SUFFIX
from .layout import PLACES, open_own, sync_file_system, sync_folder, write_whole
from .queue import Queue

# How many members there may be, and how much of the manifest each may take.
_MOST, _EACH = 5_000_000, 600
# What is left of the disk beside what an archive holds.
_SPARE = 16 << 20


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
    with gzip.GzipFile(fileobj=file, mode="rb") as unzipped:
        # No links, no devices, no paths: nothing is unpacked by tarfile itself, whose own filters not every Python has.
        with tarfile.open(fileobj=unzipped, mode="r|", tarinfo=_Member) as tar:
            while True:
                member = tar.next()
                if member is None:
                    break
                yield member, tar.extractfile(member)
                tar.members.clear()  # type: ignore[attr-defined]
        # To its end, where its checksum is.
        if len(unzipped.read(CHUNK)) == CHUNK:
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
            if name == MANIFEST:
                if manifest is not None or size > _EACH * (len(seen) + 1000):
                    raise QueueError(f"{name} is there twice, or too large")
                manifest = json.loads(content.read())
                continue
            kind = kind_of(name)
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
            if name == HEAD:
                with open(os.path.join(folder, name), encoding="utf-8") as head:
                    about = _mapping(json.load(head), name)
                _check_head(queue, about)
            elif not about:
                raise QueueError(f"{HEAD} does not come first")
    if manifest is None:
        raise QueueError(f"it has no {MANIFEST}, so it was cut short")
    listed = _mapping(_mapping(manifest, MANIFEST).get("files"), MANIFEST)
    for name in sorted({*seen, *listed}):
        said = listed.get(name)
        if name not in seen:
            raise QueueError(f"{name} is missing, which {MANIFEST} names")
        if not isinstance(said, list) or len(said) != 3 or said[:2] != seen[name]:
            raise QueueError(f"{name} is not as {MANIFEST} says")
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
        raise QueueError(f"{HEAD} has no id")
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
            data = content.read(CHUNK)
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
                about = _read_json(os.path.join(ready, HEAD))
                result = _place(queue, ready)
                return {**result, "msg": f"went on with a restore that was cut short: {_described(about)}"}
    if not check:
        clean_up(layout.run)
    staged = hidden(ready)
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
        for name in plain(folder)
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
                data = one.read(CHUNK)
                if not data:
                    return only_begins or not other.read(1)
                if other.read(len(data)) != data:
                    return False
    except OSError:
        return False


def _place(queue: Queue, ready: str) -> dict[str, Any]:
    """Put what was unpacked in place, as far as it is not; the caller holds the lock."""
    layout, workdir = queue.layout, queue.jobset.workdir
    about = _read_json(os.path.join(ready, HEAD))
    mark = f".before-restore-{str(about.get('id'))[:8]}"
    kept: list[str] = []
    aside: list[str] = []
    found = [os.path.relpath(os.path.join(folder, entry), ready) for folder, _folders, files in os.walk(ready) for entry in files]
    known = {name for place in PLACES for name in queue.entries(place)}
    for _order, name in sorted((kind[0], path) for path in found for kind in [kind_of(path)] if kind):
        source, (folder, _slash, entry) = os.path.join(ready, name), name.rpartition("/")
        if name in (HEAD, DEFINITION):
            continue
        if name == GATE or folder == "state":
            target = queue.jobset.gate if name == GATE else os.path.join(workdir, entry)
            if not copy_to(source, target) and not _same(source, target):
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
    write_whole(os.path.join(layout.run, "restored.json"), json.dumps({**about, "restored": owner.now()}))
    done = hidden(ready)
    os.rename(ready, done)
    sync_folder(layout.run)
    shutil.rmtree(done)
    return {"changed": True, "kept": kept, "aside": aside}


def copy_to(source: str, target: str) -> bool:
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
            shutil.copyfileobj(file, copy, CHUNK)
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
