# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a jobset is: counts, owners, the gate, the rate, the time left; and its jobs, and what is done inside them."""

from __future__ import annotations

import contextlib
import heapq
import json
import math
import os
import re
import time
from typing import Any, Optional

from . import cases, job, owner
from .carriers import memory_of_claims
from .errors import MalformedJob
from .layout import PLACES, Refused, open_own
from .queue import Queue

# How much of the history's end the rate is taken from (bytes).
_TAIL = 512 * 1024
# From how many jobs the rate is taken.
_LATEST = 50
# How much of a log's end its last line is looked for in (bytes).
_LOG_TAIL = 8 * 1024
# The lines that a worker writes into a job's log.
_WORKERS_OWN = re.compile(r"\[[0-9-]{10}T[0-9:.]{12}Z\] (attempt [0-9]+ of |(done|failed|pending): |[0-9]+ bytes of this log)")
# A time that a program puts before its lines: a table has no room for it.
_STAMP = re.compile(r"^\s*\[[0-9T:.,+Z -]{10,35}\]\s*")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f-\x9f]+")


def history(queue: Queue, tail: int = _TAIL) -> list[dict[str, Any]]:
    """Return the latest attempts, oldest first, one per claim."""
    attempts: dict[str, dict[str, Any]] = {}
    # One that is refused is named by Queue.survey.
    with contextlib.suppress(FileNotFoundError, Refused), open(queue.layout.history, "rb", opener=open_own) as file:
        start = max(0, os.fstat(file.fileno()).st_size - tail)
        file.seek(start)
        # Cut in the middle, the first line is left out.
        for line in file.read().split(b"\n")[1 if start else 0 :]:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                attempt = json.loads(line)
                attempts[attempt["claim"]] = attempt
    return list(attempts.values())


def running(queue: Queue) -> list[dict[str, Any]]:
    """Return the running jobs: owner, since when, and why it would be an orphan."""
    found = []
    for name in sorted(queue.entries("running")):
        record = queue.owner_of(name) or {}
        why = owner.why_dead(record, queue.layout.workers)
        found.append(
            {
                "name": name,
                "alive": not why,
                "why_orphan": why,
                "worker": record.get("OWNER_WORKER_ID", ""),
                "host": record.get("OWNER_HOST", ""),
                "pid": record.get("OWNER_PID", ""),
                "since": record.get("OWNER_TS", ""),
                "claim": record.get("OWNER_CLAIM", ""),
            }
        )
    return found


def summary(queue: Queue) -> dict[str, Any]:
    """Return how far a jobset is.

    Returns:
        counts, held (how many of the pending ones are), running, gate (closed, by, text, solved, solved_by, log), refused
        (entry -> reason), rate (jobs done per hour, None if unknown), seconds_left (None if unknown), cases (see
        cases.look), workers (how many live), settled and ended (see settled and outcome).
    """
    counts = queue.survey()
    gate = queue.gate()
    held = len(queue.entries("held"))
    left = counts["pending"] - held + counts["running"]
    attempts = history(queue)
    rate = _rate(queue, attempts, min(max(1, counts["running"]), max(1, left)))
    inside = cases.look(queue, attempts)
    found = {
        "jobset": queue.jobset.name,
        "counts": counts,
        "held": held,
        "running": running(queue),
        "gate": {
            "closed": gate.closed,
            "by": "" if not gate.closed else "request" if gate.requested else "program",
            "text": gate.text,
            "file": queue.jobset.gate,
            "solved": bool(gate.solved_by),
            "solved_by": gate.solved_by,
            "log": os.path.join(queue.layout.log, f"{gate.solved_by}.log") if gate.solved_by else "",
        },
        "refused": dict(queue.refused),
        "rate": rate,
        "seconds_left": round(left / rate * 3600) if rate and not gate.closed else None,
        "cases": inside,
        "workers": len(workers(queue)),
    }
    if inside and gate.closed:
        inside.update(seconds_left=None, why="the gate is closed")
    elif inside and inside["seconds_left"]:
        found["seconds_left"] = round(math.sqrt(inside["seconds_left"][0] * inside["seconds_left"][1]))
    found.update(settled=settled(found), ended=outcome(found))
    return found


def workers(queue: Queue) -> list[str]:
    """Return the workers that live, running a job or not."""
    label = re.compile(re.escape(queue.jobset.name) + r"-[0-9]+\Z")
    return [name for name in owner.living(queue.layout.workers) if label.match(name)]


def _rate(queue: Queue, attempts: list[dict[str, Any]], at_a_time: int) -> Optional[float]:
    """Return jobs done per hour while so many run: from how long the latest that are done now have taken."""
    seconds = []
    for attempt in attempts:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if attempt["result"] == "done" and job.is_name(attempt["job"]) and queue.locate(attempt["job"]) == "done":
                seconds.append(float(attempt["duration_s"]))
    latest = [taken for taken in seconds if math.isfinite(taken)][-_LATEST:]
    return round(at_a_time * 3600 * len(latest) / max(sum(latest), 0.001), 1) if latest else None


def jobs(queue: Queue) -> list[dict[str, Any]]:
    """Return every job: its name, its state, and what its file says (keys in lower case under values)."""
    found: list[tuple[str, str, dict[str, str]]] = []
    for place in PLACES:
        state = "pending" if place == "held" else place
        for name in sorted(queue.entries(place)):
            with contextlib.suppress(FileNotFoundError):
                try:
                    values = queue.read(place, name)
                except MalformedJob as exc:
                    values = {"REASON": "malformed_job", "DETAIL": str(exc)}
                found.append((name, state, values))
        if place == "pending":
            found += [(name, state, values) for name, values in queue.batched()]
    return [
        {"name": name, "state": state, "values": {key.lower(): value for key, value in values.items()}} for name, state, values in found
    ]


def rows(queue: Queue, most: int) -> list[dict[str, Any]]:
    """Return what there is to say of some jobs: those that run, that failed, that ended last, that wait, in this order.

    Args:
        queue: the jobset's.
        most: how many.
    """
    # The latest that ended come first.
    order = {str(attempt.get("job", "")): -number for number, attempt in enumerate(history(queue))}
    found: list[dict[str, Any]] = []
    for state in ("running", "failed", "done", "pending", "held"):
        names = queue.entries(state)
        ended, few = state in ("failed", "done"), len(names) < 10_000
        # To sort a million names as a person would takes seconds.
        keys = {name: (order.get(name, 1) if ended else 0, job.natural(name) if few else []) for name in names}
        for name in heapq.nsmallest(most - len(found), names, key=keys.__getitem__):
            with contextlib.suppress(FileNotFoundError):
                found.append(_row(queue, state, name))
    for name, values in queue.batched() if len(found) < most else ():
        if len(found) == most:
            break
        found.append({"name": name, "state": "pending", "attempts": job.number(values, "ATTEMPTS"), **_NO_ROW})
    memory = memory_of_claims({row["claim"] for row in found if row["state"] == "running" and row["claim"]})
    for row in found:
        row["peak_memory_kib"] = memory.get(row.pop("claim"), 0) or row["peak_memory_kib"]
    return found


_NO_ROW: dict[str, Any] = {"reason": "", "worker": "", "seconds": None, "peak_memory_kib": None, "last_line": "", "claim": ""}


def _row(queue: Queue, state: str, name: str) -> dict[str, Any]:
    try:
        values = queue.read(state, name)
    except MalformedJob as exc:
        values = {"REASON": "malformed_job", "DETAIL": str(exc)}
    row = {**_NO_ROW, "name": name, "state": state, "attempts": job.number(values, "ATTEMPTS"), "reason": values.get("REASON", "")}
    row.update(worker=values.get("WORKER", ""), peak_memory_kib=job.number(values, "PEAK_MEMORY_KIB") or None)
    with contextlib.suppress(ValueError, KeyError):
        row["seconds"] = float(values["DURATION_S"])
    if state == "running":
        record = queue.owner_of(name) or {}
        since = owner.seconds_of(record.get("OWNER_TS", ""))
        why = owner.why_dead(record, queue.layout.workers)
        # This attempt is the one that runs.
        row.update(attempts=row["attempts"] + 1, reason=f"orphan: {why}" if why else "", worker=record.get("OWNER_WORKER_ID", ""))
        row.update(seconds=max(time.time() - since, 0.0) if since else None, claim=record.get("OWNER_CLAIM", ""), peak_memory_kib=None)
    if state != "pending" or values.get("REASON"):
        row["last_line"] = last_line(os.path.join(queue.layout.log, f"{name}.log"))
    return row


def last_line(path: str) -> str:
    """Return what a job has printed last, empty where there is nothing; what its worker wrote does not count."""
    with contextlib.suppress(FileNotFoundError, Refused), open(path, "rb", opener=open_own) as file:
        start = max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL)
        file.seek(start)
        for printed in reversed(file.read(_LOG_TAIL).decode("utf-8", "replace").split("\n")):
            if printed.strip() and not _WORKERS_OWN.match(printed):
                return " ".join(_STAMP.sub("", _CONTROL.sub(" ", printed)).split())
    return ""


def look(queue: Queue, depth: str = "", most: int = 20) -> dict[str, Any]:
    """Return how far a jobset is, as summary does, to a depth.

    Args:
        queue: the jobset's.
        depth: one of progress_text.DEPTHS; empty: cases, where the jobset has a state file, else jobs.
        most: how many jobs are shown one by one.
    """
    found = summary(queue)
    found.update(depth=depth or ("cases" if found["cases"] else "jobs"), most=max(most, 0))
    if found["depth"] == "jobs":
        found["table"] = rows(queue, found["most"])
    return found


def outcome(found: dict[str, Any]) -> str:
    """Return how a jobset has ended: done, solved, failed (nothing is left, but a job has failed), stopped, held; empty: it has not."""
    if not settled(found):
        return ""
    if found["gate"]["solved"]:
        return "solved"
    if found["counts"]["pending"]:
        return "stopped" if found["gate"]["closed"] else "held"
    return "failed" if found["counts"]["failed"] else "done"


def settled(found: dict[str, Any]) -> bool:
    """Tell whether nothing more will happen by itself: all jobs finished or held, or the gate closed and nothing running."""
    counts = found["counts"]
    return not counts["running"] and (found["gate"]["closed"] or counts["pending"] == found["held"])
