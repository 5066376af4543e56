# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a jobset is: counts, owners, the gate, the rate, the time left."""

from __future__ import annotations

import contextlib
import json
import math
import os
from typing import Any, Optional

from . import job, owner
from .errors import MalformedJob
from .layout import PLACES, Refused, open_own
from .queue import Queue

# How much of the history's end the rate is taken from (bytes).
_TAIL = 512 * 1024
# From how many jobs the rate is taken.
_LATEST = 50


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
        (entry -> reason), rate (jobs done per hour, None if unknown), seconds_left (None if unknown).
    """
    counts = queue.survey()
    gate = queue.gate()
    held = len(queue.entries("held"))
    left = counts["pending"] - held + counts["running"]
    rate = _rate(queue, min(max(1, counts["running"]), max(1, left)))
    return {
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
    }


def _rate(queue: Queue, at_a_time: int) -> Optional[float]:
    """Return jobs done per hour while so many run: from how long the latest that are done now have taken."""
    seconds = []
    for attempt in history(queue):
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


def duration(seconds: float) -> str:
    """Return a span of time as a person would say it: 45 s, 12 min, 3 h 20 min, 5 d 4 h."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 1:
        return f"{int(seconds)} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 1 else f"{days} d {hours % 24} h"


def bar(counts: dict[str, int], width: int = 30) -> str:
    """Return a bar of the finished part."""
    total = sum(counts.values())
    filled = width * (counts["done"] + counts["failed"]) // total if total else 0
    return "[" + "#" * filled + "-" * (width - filled) + "]"


def line(found: dict[str, Any]) -> str:
    """Return a jobset's progress in one line."""
    counts = found["counts"]
    total = sum(counts.values())
    text = f"{found['jobset']} {bar(counts)} {counts['done']}/{total} done"
    text += "".join(f", {counts[state]} {state}" for state in ("failed", "running", "pending") if counts[state])
    text += f" ({found['held']} held)" if found["held"] else ""
    orphans = sum(1 for job in found["running"] if not job["alive"])
    if orphans:
        text += f", {orphans} without a living worker"
    gate = found["gate"]
    if gate["solved"]:
        text += f"; solved by {gate['solved_by']}"
    elif gate["closed"]:
        text += f"; the gate is closed ({gate['text'] or 'no text'})"
    elif found["seconds_left"] and not settled(found):
        text += f"; about {duration(found['seconds_left'])} left"
    return text


def text(found: dict[str, Any]) -> str:
    """Return a jobset's progress for a person."""
    lines = [line(found)]
    for held in found["running"]:
        who = f"{held['worker']} (pid {held['pid']} on {held['host']}) since {held['since']}" if held["worker"] else "nobody"
        lines.append(f"  {held['name']}: {who}" + ("" if held["alive"] else f"; orphan: {held['why_orphan']}"))
    gate = found["gate"]
    if gate["solved"]:
        lines.append(f"  solved: {gate['text']}")
        lines.append(f"  the witness is in {gate['log']}")
    for entry, reason in found["refused"].items():
        lines.append(f"  refused: {entry}: {reason}")
    return "\n".join(lines)


def settled(found: dict[str, Any]) -> bool:
    """Tell whether nothing more will happen by itself: all jobs finished or held, or the gate closed and nothing running."""
    counts = found["counts"]
    return not counts["running"] and (found["gate"]["closed"] or counts["pending"] == found["held"])
