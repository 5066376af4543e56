# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the older shell scripts still runs: their workers, how these are ended, and the programs of their jobs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Optional

from . import job, owner
from .adopt import ASIDE, MAX_BYTES, Older
from .backup import plain
from .errors import MalformedJob
from .job import SUFFIX
from .layout import open_own, write_whole


def workers(older: Older) -> dict[int, list[str]]:
    """Return the living workers of theirs: the pid of each, and the jobs that it runs."""
    running = older.folder("running")
    found: dict[int, list[str]] = {}
    for entry in plain(running):
        if entry.endswith(SUFFIX + owner.SUFFIX):
            with contextlib.suppress(OSError), open(os.path.join(running, entry), "rb", opener=open_own) as file:
                record = owner.parse(file.read(job.MAX_BYTES))
                if "OWNER_LOCK" not in record and not owner.why_dead(record, ""):
                    found.setdefault(job.number(record, "OWNER_PID"), []).append(entry[: -len(SUFFIX + owner.SUFFIX)])
    # Those without a job, too: they tell by their environment whose queue they work on.
    for pid, words in _processes():
        if any(word.endswith("sagequeue-worker.sh") for word in words[:3]):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
                where = [entry[len(b"RUNNING_DIR=") :] for entry in file.read().split(b"\0") if entry.startswith(b"RUNNING_DIR=")]
                if where and os.path.realpath(os.fsdecode(where[0])) == os.path.realpath(running):
                    found.setdefault(pid, [])
    return found


def interrupted(older: Older, names: Optional[set[str]] = None) -> set[str]:
    """Return the jobs that ran when their workers were stopped, by this call or by one that was cut short.

    Args:
        older: their jobset.
        names: more of them, to be remembered.
    """
    path = os.path.join(older.base, ASIDE, "interrupted")
    known: set[str] = set()
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", opener=open_own) as file:
        known = {name for name in file.read(MAX_BYTES).split() if job.is_name(name)}
    if names is not None and not names <= known:
        known |= names
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_whole(path, "\n".join(sorted(known)))
    return known


def all_done(older: Older) -> None:
    """Forget which jobs were interrupted."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(older.base, ASIDE, "interrupted"))


def end_workers(older: Older, wait: float) -> list[int]:
    """End the workers of theirs that still live; return their pids.

    A worker obeys SIGTERM only between two jobs. One that has not ended in time is killed, as its unit would do it, and
    before what it started, so that it takes that end for no result: the job stays in running.
    """
    ended = set(workers(older))
    for pid in ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + wait
    while workers(older) and time.monotonic() < deadline:
        time.sleep(0.1)
    told: list[int] = []
    for pid in workers(older):
        below = _descendants(pid)
        for one, number in [(pid, signal.SIGKILL), *((child, signal.SIGTERM) for child in below)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)
        ended.add(pid)
        told += [pid, *below]
    # Programs need a moment for their end, too.
    deadline = time.monotonic() + wait
    while any(map(owner.process_start, told)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return sorted(ended)


def programs(older: Older, values: dict[str, str]) -> dict[int, str]:
    """Return what still runs of their jobs, also in a container, whose processes outlive the worker: pid and job."""
    if values.get("JOBSET") != older.name or not values.get("SCRIPT"):
        return {}
    offsets = {}
    ran = {entry[: -len(SUFFIX)] for entry in plain(older.folder("running")) if entry.endswith(SUFFIX)} | interrupted(older)
    for name in ran:
        for state in ("running", "failed", "pending"):
            path = os.path.join(older.folder(state), name + SUFFIX)
            with contextlib.suppress(OSError, MalformedJob), open(path, "rb", opener=open_own) as file:
                offsets[job.parse(file.read(job.MAX_BYTES)).get("OFFSET", "").strip()] = name
    script = os.path.basename(values["SCRIPT"])
    found = {}
    for pid, words in _processes():
        said = re.search(r"--offset[ =]'?([0-9]+)", " ".join(words))
        if said and said[1] in offsets and script in " ".join(words) and pid != os.getpid():
            found[pid] = offsets[said[1]]
    return found


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield pid and words of every process."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="replace") as file:
                yield int(entry), file.read().split("\0")


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for child, _words in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
            parents.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(child)
    found = list(parents.get(pid, []))
    for child in found:
        found += parents.get(child, [])
    return found
