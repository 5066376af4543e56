# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a jobset is, as a person reads it: a line, tables of jobs and cases, what its end means; and spans of time and sizes in words."""

from __future__ import annotations

from typing import Any

# How far one may look into a jobset.
DEPTHS = ("queue", "jobs", "cases")


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
        text += f"; {between(*inside['seconds_left'])} left" if not found["settled"] else ""
    elif inside and inside["why"]:
        text += f"; the time left is not known yet: {inside['why']}"
    elif found["seconds_left"] and not found["settled"]:
        text += f"; about {duration(found['seconds_left'])} left"
    if not found["workers"] and not found["settled"]:
        text += "; no worker runs"
    return text


def text(found: dict[str, Any], width: int = 80) -> str:
    """Return a jobset's progress for a person: in one line, its jobs or cases where they were looked at, what is odd.

    Args:
        found: as progress.summary returned it; its table, if there, as progress.rows returned it.
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


def bar_of(counts: dict[str, int], width: int = 30) -> str:
    """Return a bar of the finished part."""
    return _bar(counts["done"] + counts["failed"], sum(counts.values()), width)


def _bar(done: int, total: int, width: int) -> str:
    filled = width * min(done, total) // total if total else 0
    return "[" + "#" * filled + "-" * (width - filled) + "]"


def _rounded(rate: float) -> str:
    """Return a number with the three digits that it is good for."""
    return f"{float(f'{rate:.3g}'):g}"


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
