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
from .errors import MalformedJob
from .layout import PLACES, Refused, open_own
from .queue import Queue
from .runners.base import memory_of_claims

# How much of the history's end the rate is taken from (bytes).
_TAIL = 512 * 1024
# From how many jobs the rate is taken.
_LATEST = 50
# How far one may look into a jobset.
DEPTHS = ("queue", "jobs", "cases")
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


def duration(seconds: float) -> str:
    """Return a span of time as a person would say it: 45 s, 12 min, 3 h 20 min, 5 d 4 h."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 1:
        return f"{int(seconds)} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 1 else f"{days} d {hours % 24} h"


def between(low: float, high: float) -> str:
    """Return a range of times in one unit: 40 to 90 s, 3 to 5 h."""
    unit, size = next(((unit, size) for unit, size in (("s", 1), ("min", 60), ("h", 3600)) if high < 100 * size), ("d", 86400))
    first, last = (f"{value / size:.0f}" if value >= 9.95 * size else f"{value / size:.1f}".replace(".0", "") for value in (low, high))
    return f"{first} {unit}" if first == last else f"{first} to {last} {unit}"


def memory(kib: int) -> str:
    """Return a size as a person would say it."""
    return f"{kib / 1048576:.1f} GiB" if kib >= 1048576 else f"{kib / 1024:.0f} MiB"


def bar_of(counts: dict[str, int], width: int = 30) -> str:
    """Return a bar of the finished part."""
    return _bar(counts["done"] + counts["failed"], sum(counts.values()), width)


def _bar(done: int, total: int, width: int) -> str:
    filled = width * min(done, total) // total if total else 0
    return "[" + "#" * filled + "-" * (width - filled) + "]"


def table(lines: list[list[str]], width: int) -> list[str]:
    """Return rows with their columns aligned, in so many columns of a terminal; what is too long is cut."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    # The last column should have room; a long name gives it some of its own.
    widths[0] = min(widths[0], max(width - sum(widths[1:-1]) - 2 * len(widths) - 22, 14))
    widths[-1] = width
    return ["  ".join(_cut(cell, size).ljust(size) for cell, size in zip(line, widths)).rstrip()[:width].rstrip() for line in lines]


def _cut(text: str, width: int) -> str:
    # The end of a job's name says more than its middle.
    return text if len(text) <= width else text[: width // 2] + ".." + text[len(text) - (width - width // 2 - 2) :]


def line(found: dict[str, Any]) -> str:
    """Return a jobset's progress in one line."""
    counts = found["counts"]
    total = sum(counts.values())
    text = f"{found['jobset']} {bar_of(counts)} {counts['done']}/{total} done"
    text += "".join(f", {counts[state]} {state}" for state in ("failed", "running", "pending") if counts[state])
    text += f" ({found['held']} held)" if found["held"] else ""
    orphans = sum(1 for job in found["running"] if not job["alive"])
    if orphans:
        text += f", {orphans} without a living worker"
    gate, inside = found["gate"], found["cases"]
    if inside:
        text += f"; {inside['done']}" + (f"/{inside['total']}" if inside["total"] else "") + " cases"
        text += f", {_rounded(inside['rate'])} an hour" if inside["rate"] else ""
    if gate["solved"]:
        text += f"; solved by {gate['solved_by']}"
    elif gate["closed"]:
        text += f"; the gate is closed ({gate['text'] or 'no text'})"
    elif inside and inside["seconds_left"]:
        text += f"; {between(*inside['seconds_left'])} left" if not settled(found) else ""
    elif inside and inside["why"]:
        text += f"; the time left is not known yet: {inside['why']}"
    elif found["seconds_left"] and not settled(found):
        text += f"; about {duration(found['seconds_left'])} left"
    if not found["workers"] and not settled(found):
        text += "; no worker runs"
    return text


def text(found: dict[str, Any], width: int = 80) -> str:
    """Return a jobset's progress for a person: in one line, its jobs or cases where they were looked at, what is odd.

    Args:
        found: as summary returned it; its table, if there, as rows returned it.
        width: of the terminal.
    """
    lines = [line(found)]
    if found.get("depth", "queue") != "queue" and len(lines[0]) > width:
        from textwrap import wrap

        lines = wrap(lines[0], width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    if "table" in found:
        lines += _jobs_table(found, width)
    elif found.get("depth") == "cases" and found["cases"]:
        lines += _cases_table(found["cases"], width, found.get("most", 40))
    for held in found["running"]:
        who = f"{held['worker']} (pid {held['pid']} on {held['host']}) since {held['since']}" if held["worker"] else "nobody"
        if found.get("depth", "queue") == "queue" or not held["alive"]:
            lines.append(f"  {held['name']}: {who}" + ("" if held["alive"] else f"; orphan: {held['why_orphan']}"))
    gate = found["gate"]
    if gate["solved"]:
        lines.append(f"  solved: {gate['text']}")
        lines.append(f"  the witness is in {gate['log']}")
    for entry, reason in found["refused"].items():
        lines.append(f"  refused: {entry}: {reason}")
    return "\n".join(lines)


def _jobs_table(found: dict[str, Any], width: int) -> list[str]:
    lines = [["job", "state", "tries", "worker", "time", "memory", "last line"]]
    for row in found["table"]:
        # Why it failed, or came back, says more than what it printed before.
        reason = row["reason"] if row["state"] != "done" or row["reason"] != "ok" else ""
        said = f"{reason}: {row['last_line']}" if reason and row["last_line"] else reason or row["last_line"]
        time_taken = "" if row["seconds"] is None else duration(row["seconds"])
        peak = memory(row["peak_memory_kib"]) if row["peak_memory_kib"] else ""
        lines.append([row["name"], row["state"], str(row["attempts"]), row["worker"], time_taken, peak, said])
    return _whole(lines, width, sum(found["counts"].values()))


def _rounded(rate: float) -> str:
    """Return a number with the three digits that it is good for."""
    return f"{float(f'{rate:.3g}'):g}"


def _cases_table(inside: dict[str, Any], width: int, most: int) -> list[str]:
    lines = [["job", "state", "cases", "", "an hour", "left", "last case"]]
    order = {"running": 0, "failed": 1, "pending": 2, "held": 3, "done": 4}
    chosen = sorted(inside["parts"], key=lambda one: order[one["state"]])[:most]
    for one in inside["parts"]:
        if any(one is other for other in chosen):
            count = "?" if one["done"] is None else str(one["done"])
            count += f"/{one['total']}" if one["total"] is not None else ""
            ago = "" if one["seconds_since"] is None else f"{duration(one['seconds_since'])} ago"
            left = between(*one["seconds_left"]) if one["seconds_left"] and any(one["seconds_left"]) else ""
            shown = _bar(one["done"] or 0, one["total"] or 0, 8)
            lines.append([one["job"], one["state"], shown, count, _rounded(one["rate"]) if one["rate"] else "", left, one["why"] or ago])
    return _whole(lines, width, len(inside["parts"]))


def _whole(lines: list[list[str]], width: int, count: int) -> list[str]:
    more = count - len(lines) + 1
    return (table(lines, width) if len(lines) > 1 else []) + ([f"... and {more} more (rows={count} shows all)"] if more > 0 else [])


def look(queue: Queue, depth: str = "", most: int = 20) -> dict[str, Any]:
    """Return how far a jobset is, as summary does, to a depth.

    Args:
        queue: the jobset's.
        depth: one of DEPTHS; empty: cases, where the jobset has a state file, else jobs.
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


def verdict(found: dict[str, Any]) -> str:
    """Return what a jobset's end means, and the next step where there is one."""
    name, counts = found["jobset"], found["counts"]
    return {
        "": f"jobset {name} goes on",
        "done": f"jobset {name} has ended: all {counts['done']} jobs are done",
        "solved": f"jobset {name} is solved by {found['gate']['solved_by']}: the witness is in {found['gate']['log']}",
        "failed": f"jobset {name} has ended: {counts['failed']} of {sum(counts.values())} jobs failed; see logs, then retry_failed",
        "stopped": f"jobset {name} waits with {counts['pending']} jobs pending: the gate is closed ({found['gate']['text'] or 'no text'});"
        " clear_stop opens it",
        "held": f"jobset {name} waits with {found['held']} jobs held; release lets them go",
    }[found["ended"]]


def settled(found: dict[str, Any]) -> bool:
    """Tell whether nothing more will happen by itself: all jobs finished or held, or the gate closed and nothing running."""
    counts = found["counts"]
    return not counts["running"] and (found["gate"]["closed"] or counts["pending"] == found["held"])
