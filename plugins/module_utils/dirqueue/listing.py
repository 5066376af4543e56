# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A table of a jobset's jobs, of which only those that are shown are read."""

from __future__ import annotations

import calendar
import contextlib
import heapq
import itertools
import re
import time
from collections.abc import Iterable
from typing import Any, Optional

from . import job
from .errors import MalformedJob, QueueError
from .layout import CHOICES, PLACES, STATES
from .progress_text import duration
from .queue import Queue
from .selection import expression, select, split


def listing(queue: Queue, patterns: Optional[Iterable[str]] = None, states: Optional[list[str]] = None, limit: int = 100) -> dict[str, Any]:
    """Return the jobs in the natural order of their names; of a batch's jobs, the first.

    Args:
        queue: the jobset's queue.
        patterns: of which names, see selection.py; None: all.
        states: in which states; held alone means the pending jobs that are held.
        limit: how many at most; 0: all.
    Returns:
        jobs, and how many there are of these in all (total).
    Raises:
        QueueError: a pattern that means nothing, or that no job matches.
    """
    wanted = set(states or STATES)
    if wanted - set(CHOICES):
        raise QueueError(f"there is no state {', '.join(sorted(wanted - set(CHOICES)))}; there are {', '.join(CHOICES)}")
    texts = None if patterns is None else split(patterns)
    like = "|".join(expression(text, queue.jobset.name) for text in texts) if texts else "[A-Za-z0-9._-]+"
    matches = re.compile(like).fullmatch
    # A job that moves on meanwhile stays where it was seen first.
    filed: dict[str, str] = {}
    for place in PLACES:
        for name in queue.entries(place):
            if matches(name):
                filed.setdefault(name, place)
    inside = wanted | ({"held"} if "pending" in wanted else set())
    chosen = [name for name, place in filed.items() if place in inside]
    files = heapq.nsmallest(limit, chosen, key=job.natural) if limit else chosen
    lines = (name for name in queue.waiting(f"(?:{like})") if name not in filed) if "pending" in wanted else iter(())
    waiting = list(itertools.islice(lines, limit or None))
    total = len(chosen) + len(waiting) + sum(1 for _name in lines)
    if not total and texts is not None:
        # Names what does not exist; what exists in other states only is no error.
        select(queue, texts)
    names = sorted(files + waiting, key=job.natural)[: limit or None]
    batched = queue.batch_lines({name for name in names if name not in filed})
    jobs = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            jobs.append(_job(queue, name, filed.get(name, "pending"), batched.get(name)))
    return {"jobs": jobs, "total": total}


def _job(queue: Queue, name: str, place: str, line: Optional[tuple[dict[str, str], int]]) -> dict[str, Any]:
    """Return what is to be said of one job."""
    try:
        values = line[0] if line else queue.read(place, name)
    except MalformedJob as exc:
        values = {"REASON": "malformed_job", "DETAIL": str(exc)}
    record = (queue.owner_of(name) or {}) if place == "running" else {}
    running = place == "running"
    since = record.get("OWNER_TS", "") if running else values.get("ENQUEUED_AT" if place in ("pending", "held") else "ENDED_AT", "")
    seconds: Optional[float] = None
    with contextlib.suppress(ValueError):
        if place in ("done", "failed"):
            seconds = float(values["DURATION_S"]) if "DURATION_S" in values else None
        elif since:
            seconds = max(0.0, round(time.time() - calendar.timegm(time.strptime(since[:19], "%Y-%m-%dT%H:%M:%S")), 3))
    return {
        "name": name,
        "state": "pending" if place == "held" else place,
        "held": place == "held",
        "held_by": values.get("HELD_BY", "") if place == "held" else "",
        "held_at": values.get("HELD_AT", "") if place == "held" else "",
        "priority": job.number(values, "PRIORITY") or -job.number({"PRIORITY": values.get("PRIORITY", "0")[1:]}, "PRIORITY"),
        "attempts": job.number(values, "ATTEMPTS"),
        "worker": record.get("OWNER_WORKER_ID", "") if running else values.get("WORKER", ""),
        "since": since,
        "seconds": seconds,
        "reason": "" if running else values.get("REASON", ""),
        "detail": "" if running else values.get("DETAIL", ""),
    }


def table(found: dict[str, Any], width: int = 80) -> str:
    """Return the jobs as a table for a person; the names are whole, and what does not fit is cut at the end of a line."""
    rows = [("NAME", "STATE", "TRIES", "PRIO", "TIME", "WHY")]
    for one in found["jobs"]:
        why = f"held by {one['held_by']}" if one["held"] else one["worker"] if one["state"] == "running" else one["reason"]
        if one["detail"] and one["reason"] not in ("", "ok") and not one["held"]:
            why += f": {one['detail']}"
        taken = "-" if one["seconds"] is None else duration(one["seconds"])
        rows.append((one["name"], "held" if one["held"] else one["state"], str(one["attempts"]), str(one["priority"]), taken, why))
    wide = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for name, state, tries, priority, taken, why in rows:
        line = f"{name:{wide[0]}} {state:{wide[1]}} {tries:>5} {priority:>4} {taken:>{wide[4]}} {why}".rstrip()
        lines.append(line if len(line) <= width else line[: max(width, len(line) - len(why)) - 3] + "...")
    more = found["total"] - len(found["jobs"])
    lines.append(f"{len(found['jobs'])} of {found['total']} jobs are shown; limit=0 shows all" if more > 0 else f"{found['total']} jobs")
    return "\n".join(lines if found["jobs"] else lines[1:])
