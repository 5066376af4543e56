# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a queue keeps what it promises. It looks, while workers run or not, and changes nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import batch, definitions
from .batch import Batch
from .errors import MalformedJob, QueueError, explain
from .job import SUFFIX
from .layout import PLACES, STATES, Layout, Refused, open_own
from .queue import Queue
from .recovery import STAGING_AGE
from .store import is_whole

# How many lines of a history are named.
_LINES = 10


class Problem(NamedTuple):
    """A promise that is not kept: what it is about, why, and the next step."""

    jobset: str
    what: str
    why: str
    next: str

    def __str__(self) -> str:
        return f"jobset {self.jobset}: {self.what} {self.why}; {self.next}"


def verify(root: str, names: list[str]) -> dict[str, Any]:
    """Look at the queues of some jobsets.

    Args:
        root: the batch user's sagequeue folder.
        names: the jobsets; none: all that are defined.
    Returns:
        problems, and for each jobset that could be looked at: counts, gate (in words).
    Raises:
        QueueError: none is defined, or one that is named is not.
    """
    if not names and not definitions.defined(root):
        raise QueueError("no jobset is defined on this host; run setup")
    problems: list[Problem] = []
    queues = []
    for name in names or definitions.defined(root):
        try:
            with Queue(Layout(root, name), definitions.load(root, name)) as queue:
                found = list(_problems(queue))
                gate = queue.gate()
                queues.append({"jobset": name, **queue.counts(), "gate": "closed" if gate.closed else "open", "problems": len(found)})
                problems += found
        except QueueError as exc:
            if names:
                raise
            problems.append(Problem(name, "can't be looked at", f"({explain(exc, root)})", "mend that first"))
    return {"queues": queues, "problems": problems}


def _problems(queue: Queue) -> Iterator[Problem]:
    name, layout = queue.jobset.name, queue.layout
    places: dict[str, list[str]] = {}
    with queue.lock():
        # Under the lock jobs move forward alone: against their way, none is met twice that is not there twice.
        for place in reversed(PLACES):
            for job in queue.entries(place):
                places.setdefault(job, []).append(place)
        for job in (job for job, found in places.items() if "running" in found):
            why = queue.why_orphan(job)
            # Its record goes after it.
            if why and queue.locate(job) == "running":
                yield Problem(name, f"job {job}", f"runs without a living owner ({why})", "requeue_running brings it back")
        for job in (job for job in queue.recorded() if job not in places or "running" not in places[job]):
            why = queue.why_orphan(job) if queue.owner_of(job) is not None else ""
            if why and queue.locate(job) != "running":
                yield Problem(name, f"job {job}", f"has the owner record of a dead claimer ({why})", "requeue_running removes it")
        for entry in sorted(entry for entry in os.listdir(layout.staging) if entry.startswith("redo.")):
            yield Problem(name, f"run/staging/{entry}", "lists jobs whose change was cut short", "requeue_running goes on with it")
    for job, found in sorted(places.items()):
        if len(found) > 1:
            paths = " or ".join(os.path.join(layout.queue, place, job + SUFFIX) for place in reversed(found))
            yield Problem(name, f"job {job}", f"is in {len(found)} states at once", f"remove the one that should not be, {paths}")
        yield from _unfit(queue, job, found[0])
    yield from _leftovers(queue)
    yield from _batches(queue)
    yield from _history(queue)
    queue.survey()
    for refused, why in sorted(queue.refused.items()):
        yield Problem(name, refused, f"is refused: {why}", "take it away, or make it a plain file of the batch user's")
    gate = queue.gate()
    if gate.text.startswith("(can't be read"):
        yield Problem(name, f"the gate {queue.jobset.gate}", f"is closed {gate.text}", "make it readable, or remove it")


def _unfit(queue: Queue, job: str, place: str) -> Iterator[Problem]:
    """Look into a job's file."""
    path = os.path.join(queue.layout.queue, place, job + SUFFIX)
    # Certain only under the lock: somebody may be about to redo it.
    for certain in (False, True):
        with queue.lock() if certain else contextlib.nullcontext():
            try:
                result = queue.read(place, job).get("RESULT", place)
            except FileNotFoundError:
                return
            except MalformedJob as exc:
                # The worker of one that runs has seen that, and is about to say so.
                if place != "running":
                    step = "purge_queue removes it" if place in ("done", "failed") else "as it is, a worker brings it to failed"
                    why = f"has a file that can't be understood ({exc})"
                    yield Problem(queue.jobset.name, f"job {job}", why, f"correct {path}; {step}")
                return
            if place not in ("done", "failed") or result == place:
                return
    yield Problem(queue.jobset.name, f"job {job}", f"is {place}, but its file says RESULT={result}", "read its log; reset brings it back")


def _leftovers(queue: Queue) -> Iterator[Problem]:
    oldest = time.time() - STAGING_AGE - 2 * queue.jobset.recover_every
    for entry in sorted(os.scandir(queue.layout.staging), key=lambda entry: entry.name):
        with contextlib.suppress(FileNotFoundError):
            since = entry.stat(follow_symlinks=False).st_ctime
            if since < oldest and not entry.name.startswith("redo."):
                why = f"was left there {(time.time() - since) / 3600:.0f} h ago, so nothing recovers this jobset"
                step = "start has it recovered again, requeue_running does it once"
                yield Problem(queue.jobset.name, f"run/staging/{entry.name}", why, step)


def _batches(queue: Queue) -> Iterator[Problem]:
    fd = os.open(queue.layout.batches, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for entry in sorted(entry for entry in os.listdir(fd) if entry.endswith(batch.SUFFIX)):
            # One that is no batch at all is refused.
            with contextlib.suppress(MalformedJob, FileNotFoundError), Batch(fd, entry[: -len(batch.SUFFIX)]) as one:
                lines = [line for _name, line in one.rest()] if one.left else []
                why = f"has {len(lines)} jobs left that can be read, of {one.left}" if len(lines) != one.left else ""
                try:
                    batch.listed("".join(f"{line}\n" for line in lines))
                except QueueError as exc:
                    why = f"can't be understood ({str(exc).partition('; nothing was')[0]})"
                if why:
                    step = f"move {os.path.join(queue.layout.batches, entry)} away, and enqueue again"
                    yield Problem(queue.jobset.name, f"batch {one.name}", why, step)
    finally:
        os.close(fd)


def _history(queue: Queue) -> Iterator[Problem]:
    path = queue.layout.history
    with contextlib.suppress(FileNotFoundError, Refused), open(path, "rb", opener=open_own) as file:
        odd = [(number, len(line), file.tell()) for number, line in enumerate(iter(file.readline, b""), 1) if not is_whole(line)]
        # Whoever is amid a line holds its lock.
        if odd:
            fcntl.flock(file, fcntl.LOCK_SH)
            fcntl.flock(file, fcntl.LOCK_UN)
        for number, length, end in odd[:_LINES]:
            file.seek(end - length)
            if not is_whole(file.readline()):
                step = f"once no worker runs, sed -i {number}d {path} takes it out: nothing else is lost"
                yield Problem(queue.jobset.name, "run/history.jsonl", f"has half a line, the {number}th", step)


def said(found: dict[str, Any]) -> list[str]:
    """Return what is true of the queues, a line each."""
    lines = []
    for one in (one for one in found["queues"] if not one["problems"]):
        jobs = ", ".join(f"{one[state]} {state}" for state in STATES)
        lines.append(f"jobset {one['jobset']} keeps what it promises: {jobs}; the gate is {one['gate']}")
    return lines
