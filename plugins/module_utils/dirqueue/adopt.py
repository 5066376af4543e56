# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking over what the older shell scripts have left: var/JOBSET with its jobs and logs, and their environment file.

Nothing of theirs is deleted. A job is written anew, durably, and only then its old file goes to var/JOBSET/adopted. What
can't be taken over stays where it is, and is named.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
from collections import Counter
from typing import Any, NamedTuple, Optional

from . import job, owner
from .backup import plain
from .errors import MalformedJob, QueueError
from .job import SUFFIX
from .layout import STATES, Refused, open_own, sync_folder
from .queue import Queue
from .restore import copy_to

ASIDE = "adopted"
# How much of one of their files is read, other than a job's.
MAX_BYTES = 1 << 20
# What of their environment file has a meaning here.
_USED = (
    "PROJECT_ROOT", "JOBSET", "SCRIPT", "STRIDE", "STOP_FILE_HOST", "STOP_FILE_CONT", "SAGE_BIN", "SAGE_BASE_ARGS", "CONTAINER_WORKDIR",
    "SERVICE", "LOG_PREFIX",
)  # fmt: skip
_OFFSET_LOG = re.compile(r"(.+)(_off[0-9]+\.log)\Z")


class Older(NamedTuple):
    """One jobset of theirs: its name, and its folder below var."""

    name: str
    base: str

    def folder(self, state: str) -> str:
        return os.path.join(self.base, "queue", state)


def find(source: str) -> list[Older]:
    """Return the jobsets of the older scripts below a folder: their project, its var, or one jobset's folder.

    Raises:
        QueueError: there is none.
    """
    source = os.path.realpath(os.path.expanduser(source))
    if os.path.isdir(os.path.join(source, "queue", "pending")):
        bases = [source]
    else:
        var = os.path.join(source, "var") if os.path.isdir(os.path.join(source, "var")) else source
        entries = sorted(os.listdir(var)) if os.path.isdir(var) else []
        bases = [os.path.join(var, entry) for entry in entries if os.path.isdir(os.path.join(var, entry, "queue", "pending"))]
    found = [Older(os.path.basename(base), base) for base in bases if job.is_name(os.path.basename(base))]
    if not found:
        raise QueueError(f"{source} has no var/JOBSET/queue/pending, nor is it such a var: name the folder of the older scripts")
    return found


# ---- their definition -----------------------------------------------------------------------------------------------


def environment(path: str) -> dict[str, str]:
    """Read their environment file, which no shell reads here; empty if there is none.

    Raises:
        QueueError: a line is not KEY=VALUE, or a shell would put something else in the place of a value.
    """
    try:
        with open(path, "rb", opener=open_own) as file:
            text = file.read(MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return {}
    except (Refused, UnicodeDecodeError) as exc:
        raise QueueError(f"{path} can't be read: {getattr(exc, 'strerror', None) or 'not UTF-8'}") from exc
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        key, equals, value = line.partition("=")
        key = key[7:].strip() if key.startswith("export ") else key
        where = f"line {number} of {path}"
        if not equals or not re.match(r"[A-Za-z_][A-Za-z0-9_]*\Z", key):
            raise QueueError(f"{where} is not KEY=VALUE")
        try:
            words = shlex.split(value)
        except ValueError as exc:
            raise QueueError(f"{where}: the value of {key} has no end ({exc})") from exc
        if key in _USED and re.search(r"[$`]", value):
            raise QueueError(f"{where}: a shell would put something else in the place of $ or ` in {key}; write it out, and adopt again")
        # Without quotes a value goes to the end of its line, as systemd reads it.
        values[key] = words[0] if len(words) == 1 else value.strip() if words else ""
    return values


def definition(values: dict[str, str], workers: int) -> dict[str, Any]:
    """Return what their environment file says as a jobset's keys.

    Args:
        values: as environment has read them.
        workers: how many units of theirs there were, 0 if that is not known.
    Raises:
        QueueError: something is missing, or has no counterpart.
    """
    missing = [key for key in ("JOBSET", "SCRIPT", "STRIDE", "STOP_FILE_HOST") if not values.get(key)]
    if missing:
        raise QueueError(f"the environment file of the older scripts says nothing of {', '.join(missing)}")
    workdir, gate_file = os.path.split(values["STOP_FILE_HOST"])
    inside, script = os.path.dirname(values.get("STOP_FILE_CONT", "")), values["SCRIPT"]
    if inside and script.startswith(inside + "/"):
        script = script[len(inside) + 1 :]
    sage = values.get("SAGE_BIN", "./sage")
    args = [
        "{gate_file}" if word and word == values.get("STOP_FILE_CONT") else word for word in shlex.split(values.get("SAGE_BASE_ARGS", ""))
    ]
    wanted: dict[str, Any] = {
        "script": script,
        "args": args,
        "stride": int(values["STRIDE"]) if values["STRIDE"].isdigit() else values["STRIDE"],
        "workers": workers or (int(values["STRIDE"]) if values["STRIDE"].isdigit() else 1),
        "runner": "podman_exec",
        "command": [os.path.normpath(os.path.join(values.get("CONTAINER_WORKDIR", "/sage"), sage))],
        "container": values.get("SERVICE", "sagemath"),
        "workdir": workdir,
        "gate_file": gate_file,
    }
    if inside:
        wanted["container_workdir"] = inside
    return wanted


def inventory(name: str, wanted: dict[str, Any]) -> str:
    """Return a definition as YAML for an inventory."""
    lines = [f"    {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in wanted.items()]
    return f"---\n# Read from the environment file of the older scripts.\nsagequeue_jobsets:\n  {name}:\n{''.join(lines)}"


# ---- their jobs -----------------------------------------------------------------------------------------------------


def take_over(queue: Queue, older: Older, log_prefix: str = "", cut_off: Optional[set[str]] = None, check: bool = False) -> dict[str, Any]:
    """Take the jobs and logs of a jobset of theirs over into a queue, which may lie in the same folder.

    Their workers must be gone. A job that ran stays running, without an owner, until it is recovered.

    Args:
        queue: the jobset's queue.
        older: what is taken over.
        log_prefix: of their logs; PREFIX_off3.log becomes the log of the job JOBSET_off3.
        cut_off: jobs that ran when their workers were stopped. Of these a worker may have said that they failed.
        check: only say what would be done.
    Returns:
        jobs (how many by the state that they are in now), in_place, logs, refused (what stays where it is -> why).
    """
    base = queue.layout.base
    in_place = os.path.isdir(base) and os.path.samefile(older.base, base)
    jobs: Counter[str] = Counter()
    refused: dict[str, str] = {}
    with queue.lock():
        for state in STATES:
            for entry in _entries(older.folder(state), state, refused):
                name = entry[: -len(SUFFIX)]
                path = os.path.join(older.folder(state), entry)
                target = "pending" if state == "failed" and name in (cut_off or ()) else state
                try:
                    taken = _take_one(queue, path, name, target, in_place, check)
                except (MalformedJob, Refused) as exc:
                    refused[f"queue/{state}/{entry}"] = str(getattr(exc, "strerror", None) or exc)
                    continue
                except FileExistsError:
                    refused[f"queue/{state}/{entry}"] = f"the jobset has another job of this name, {queue.locate(name)}"
                    continue
                jobs[target] += taken
                if not check and not in_place:
                    _put_aside(older, path, state)
        if not check:
            queue.sync()
    logs = 0 if in_place and log_prefix in ("", older.name) else _take_logs(queue, older, log_prefix, refused, check)
    return {"jobs": {state: jobs[state] for state in STATES}, "in_place": in_place, "logs": logs, "refused": refused}


def _entries(folder: str, state: str, refused: dict[str, str]) -> list[str]:
    """Return what can be a job's file by its name; anything else is refused."""
    found = []
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if state == "running" and entry.endswith(SUFFIX + owner.SUFFIX):
            continue
        if entry.endswith(SUFFIX) and job.is_name(entry[: -len(SUFFIX)]):
            found.append(entry)
        else:
            refused[f"queue/{state}/{entry}"] = "not a job's name"
    return found


def _take_one(queue: Queue, path: str, name: str, state: str, in_place: bool, check: bool) -> int:
    """Take one job over; return whether something had to be done for that."""
    with open(path, "rb", opener=open_own) as file:
        data, place = file.read(job.MAX_BYTES + 1), os.fstat(file.fileno()).st_mtime_ns
    # Their worker read a file with the line ends of Windows, too.
    text = data.replace(b"\r\n", b"\n")
    values = job.parse(text)
    job.check_room(values)
    there = queue.locate(name)
    if in_place:
        if text == data and os.path.basename(os.path.dirname(path)) == state:
            return 0
    elif there:
        if job.own_values(queue.read(there, name)) != job.own_values(values):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        # Who was killed between the two steps comes by once more.
        return 0
    if check:
        return 1
    staged = os.path.join(queue.layout.staging, name + SUFFIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(text)
        file.flush()
        os.utime(file.fileno(), ns=(place, place))
        os.fsync(file.fileno())
    if in_place:
        os.rename(staged, path)
        staged = path
    if not in_place or os.path.basename(os.path.dirname(path)) != state:
        queue.receive(staged, state)
    queue.sync()
    return 1


def _put_aside(older: Older, path: str, state: str) -> None:
    """Move a file that was taken over, and its owner record, to where their scripts find it no more."""
    aside = os.path.join(older.base, ASIDE, state)
    os.makedirs(aside, mode=0o700, exist_ok=True)
    for one in (path, path + owner.SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            os.rename(one, os.path.join(aside, os.path.basename(one)))
    sync_folder(aside)


def _take_logs(queue: Queue, older: Older, prefix: str, refused: dict[str, str], check: bool) -> int:
    taken = 0
    for entry in plain(os.path.join(older.base, "log")):
        parts = _OFFSET_LOG.match(entry)
        name = older.name + parts[2] if parts and parts[1] == prefix else entry
        source, target = os.path.join(older.base, "log", entry), os.path.join(queue.layout.log, name)
        if os.path.lexists(target):
            if not os.path.samefile(source, target) and os.stat(source).st_size != os.stat(target).st_size:
                refused[f"log/{entry}"] = f"there is a log {name} already"
            continue
        taken += 1
        if not check:
            try:
                os.rename(source, target)
            except OSError as exc:
                if exc.errno != errno.EXDEV:
                    raise
                # On another file system: theirs stays.
                copy_to(source, target)
    if taken and not check:
        sync_folder(queue.layout.log)
    return taken


def foresee(older: Older, in_place: bool) -> dict[str, Any]:
    """Return what take_over would, where there is no queue yet."""
    jobs: Counter[str] = Counter()
    refused: dict[str, str] = {}
    for state in STATES:
        for entry in _entries(older.folder(state), state, refused):
            try:
                with open(os.path.join(older.folder(state), entry), "rb", opener=open_own) as file:
                    job.check_room(job.parse(file.read(job.MAX_BYTES + 1).replace(b"\r\n", b"\n")))
                jobs[state] += 1
            except (MalformedJob, Refused) as exc:
                refused[f"queue/{state}/{entry}"] = str(getattr(exc, "strerror", None) or exc)
    counts = {state: jobs[state] for state in STATES}
    logs = 0 if in_place else len(plain(os.path.join(older.base, "log")))
    taken = dict.fromkeys(STATES, 0) if in_place else counts
    return {"jobs": taken, "counts": counts, "in_place": in_place, "logs": logs, "refused": refused}
