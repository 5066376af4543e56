# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The charts of a jobset's report.

Bars are SVG rectangles whose places are percentages, so that they follow the width of the page and their texts don't.
Beside each chart stands a table that says the same.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable
from html import escape
from typing import Any, Callable, Optional

from .markup import folded, percent, span, table, tag, when
from .report import KINDS, Attempt, Report

# So many workers have a row in the chart, and so many attempts of one a bar each; of more, a bar stands for several.
WORKERS = 40
BARS = 200
# So many of the longest attempts are listed.
_LONGEST = 10
# So many columns a chart has at most.
_COLUMNS = 48

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800, 2592000, 31536000)
_WORDS = {"done": "done", "failed": "failed", "back": "put back", "running": "running", "pending": "pending"}


def rect(x: float, width: float, kind: str, title: str = "", y: float = 0, height: float = 100) -> str:
    """Return a bar; x, y, width and height are percentages."""
    places = {key: percent(value) for key, value in (("x", x), ("width", width), ("y", y), ("height", height))}
    return tag("rect", tag("title", escape(title)) if title else "", **places, class_=kind)


def legend(kinds: Iterable[str]) -> str:
    """Return what the colours and patterns mean."""
    swatch = {kind: tag("svg", rect(0, 100, kind), aria_hidden="true") for kind in _WORDS}
    return tag("ul", *(tag("li", swatch[kind], _WORDS[kind]) for kind in kinds), class_="legend")


def _counted(kinds: Counter[str]) -> str:
    """Return how many there are of each kind, in words."""
    return ", ".join(f"{kinds[kind]} {_WORDS[kind]}" for kind in KINDS if kinds[kind])


def _step(length: float, parts: int) -> float:
    """Return the smallest handy number of seconds that divides a span into so few parts."""
    tenth = next((10.0**power for power in (-3, -2, -1) if length <= parts * 10.0**power), None)
    return tenth or next((step for step in _STEPS if length <= parts * step), math.ceil(length / parts))


def _ticks(first: float, last: float, parts: int = 4) -> list[tuple[float, str]]:
    """Return times to name on an axis, as percentage and text."""
    step = _step(last - first, parts)
    style = "%H:%M:%S" if step < 60 else "%m-%d %H:%M" if last - first > 86400 and step < 86400 else "%H:%M" if step < 86400 else "%Y-%m-%d"
    ticks: list[tuple[float, str]] = []
    at = math.ceil(first / step) * step
    while at <= last and len(ticks) < 2 * parts:
        text = when(at, style) + (f"{at % 1:.3f}"[1:].rstrip("0").rstrip(".") if step < 1 else "")
        ticks.append((100 * (at - first) / (last - first), text))
        at += step
    return ticks


def _labels(ticks: list[tuple[float, str]], **attributes: Any) -> str:
    """Return the texts below an axis; those at its ends stay within the page."""
    return "".join(
        tag("text", escape(text), x=percent(x), text_anchor="start" if x < 8 else "end" if x > 92 else "middle", **attributes)
        for x, text in ticks
    )


def gantt(report: Report, running: list[tuple[str, str, float]], now: float) -> str:
    """Return the chart of attempts per worker, and its table."""
    per_worker: dict[str, list[Attempt]] = {worker: [] for _name, worker, _since in running}
    for one in report.attempts:
        if one.worker or one.start is not None:
            per_worker.setdefault(one.worker, []).append(one)
    if not per_worker or report.first is None and not running:
        return tag("p", "No attempt has been made yet.")
    moments = [since for _name, _worker, since in running]
    first = min([*moments, *([report.first] if report.first is not None else [])])
    last = max([now] if running else [first + 1], default=now) if report.last is None else max(report.last, now if running else report.last)
    last = max(last, first + 0.001)
    scale = 100 / (last - first)
    chosen = sorted(sorted(per_worker, key=lambda worker: -len(per_worker[worker]))[:WORKERS], key=_natural)
    ticks = _ticks(first, last)
    lines = "".join(tag("line", x1=percent(x), x2=percent(x), y1="0", y2="100%", class_="grid") for x, _text in ticks)
    rows, several = [], False
    for worker in chosen:
        attempts = per_worker[worker]
        bars = _several(attempts, first, scale) if len(attempts) > BARS else [_one(one, first, scale) for one in attempts]
        several |= len(attempts) > BARS
        for name, whose, since in running:
            if whose == worker:
                bars.append(
                    rect((since - first) * scale, max(0.3, (last - since) * scale), "running", f"{name}, running since {when(since)}")
                )
        rows.append(tag("span", escape(worker or "(no worker)")) + tag("svg", lines, *bars, class_="lane", aria_hidden="true"))
    axis = tag("span", class_="corner") + tag("svg", _labels(ticks, y="1rem"), class_="axis", aria_hidden="true")
    said = [f"From {when(first)} to {when(last)} UTC."]
    if several:
        said.append(
            f"Where a worker made more than {BARS} attempts, a bar stands for all those of its stretch of time, divided by how they ended."
        )
    if len(per_worker) > len(chosen):
        said.append(f"{len(per_worker) - len(chosen)} workers with fewer attempts are left out.")
    label = "Attempts of each worker over time. The table below says the same in numbers."
    kinds = [*KINDS, *(["running"] if running else [])]
    return (
        tag("p", " ".join(said)) + legend(kinds) + tag("div", *rows, axis, class_="lanes", role="img", aria_label=label)
        + folded("As a table", table(
            "Attempts of each worker", ["worker", "attempts", *(_WORDS[kind] for kind in KINDS), "busy", "first", "last"],
            (_of_worker(worker, per_worker[worker]) for worker in chosen), " nnnnn",
        ))
    )  # fmt: skip


def _natural(name: str) -> list[tuple[int, Any]]:
    from itertools import groupby

    parts = ("".join(part) for _digit, part in groupby(name, lambda one: one.isascii() and one.isdigit()))
    return [(0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in parts]


def _times(attempt: Attempt) -> tuple[float, float]:
    """Return when an attempt began and ended; one whose beginning nobody knows is a point."""
    end = attempt.end if attempt.end is not None else attempt.start if attempt.start is not None else 0.0
    return (attempt.start if attempt.start is not None else end, end)


def _one(one: Attempt, first: float, scale: float) -> str:
    start, end = _times(one)
    text = f"{one.job}, {_WORDS[one.kind]} ({one.reason or 'no reason'}{', ' + one.cause if one.cause else ''})"
    text += f", {when(start, '%H:%M:%S')} to {when(end, '%H:%M:%S')}" + (f", {span(one.seconds)}" if one.seconds is not None else "")
    return rect(min(99.7, (start - first) * scale), max(0.3, (end - start) * scale), one.kind, text)


def _several(attempts: list[Attempt], first: float, scale: float) -> list[str]:
    """Return bars that each stand for all attempts of one stretch of time."""
    # How many more there are of a kind than in the stretch before.
    steps: list[Counter[str]] = [Counter() for _bin in range(BARS + 1)]
    for one in attempts:
        begun, ended = (min(BARS - 1, int((time - first) * scale * BARS / 100)) for time in _times(one))
        steps[begun][one.kind] += 1
        steps[ended + 1][one.kind] -= 1
    kinds: Counter[str] = Counter()
    bars = []
    for place, step in enumerate(steps[:-1]):
        kinds.update(step)
        total, y = sum(kinds.values()), 0.0
        title = f"from {when(first + place * 100 / BARS / scale, '%H:%M:%S')}: {_counted(kinds)}"
        for kind in KINDS:
            if kinds[kind]:
                # One failure among many is seen all the same.
                height = min(100 - y, max(12, 100 * kinds[kind] / total))
                bars.append(rect(place * 100 / BARS, 100 / BARS, kind, title, y, height))
                y += height
    return bars


def _of_worker(worker: str, attempts: list[Attempt]) -> list[object]:
    kinds = Counter(one.kind for one in attempts)
    times = [time for one in attempts for time in (one.start, one.end) if time is not None]
    ends = [when(min(times)), when(max(times))] if times else ["–", "–"]
    return [
        worker or "(no worker)",
        len(attempts),
        *(kinds[kind] for kind in KINDS),
        span(sum(one.seconds or 0 for one in attempts)),
        *ends,
    ]


def columns(bins: list[tuple[str, Counter[str]]], label: str, names: list[tuple[float, str]]) -> str:
    """Return a chart of columns, one above the other by kind.

    Args:
        bins: what each column stands for, and how many there are of each kind.
        label: what the chart shows.
        names: the texts below it, with their places as percentages.
    """
    most = max(sum(kinds.values()) for _text, kinds in bins)
    step = next(k * 10**power for power in range(12) for k in (1, 2, 5) if most <= 4 * k * 10**power)
    top = step * math.ceil(most / step)
    parts, scale = [], []
    for count in range(step, top + 1, step):
        y = percent(100 - 100 * count / top)
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        scale.append(tag("text", f"{count:,}", x="100%", y=y, dy="0.35em", text_anchor="end"))
    width = 100 / len(bins)
    for place, (text, kinds) in enumerate(bins):
        foot = 100.0
        for kind in KINDS:
            if kinds[kind]:
                height = 100 * kinds[kind] / top
                foot -= height
                parts.append(rect((place + 0.06) * width, width * 0.88, kind, f"{text}: {_counted(kinds)}", foot, height))
    chart = tag("svg", *parts, _labels(names, y="100%", dy="1.3em"), class_="columns", role="img", aria_label=label)
    return tag("div", tag("svg", *scale, class_="scale", aria_hidden="true"), chart, class_="chart")


def throughput(report: Report) -> str:
    """Return the chart of what ended when, and its table."""
    if report.first is None or report.last is None:
        return tag("p", "No attempt has ended yet.")
    step = _step(max(report.last - report.first, 0.001), _COLUMNS - 1)
    start = math.floor(report.first / step) * step
    # A clock that was years off must not make a chart without end.
    counts: list[Counter[str]] = [Counter() for _bin in range(min(_COLUMNS, int((report.last - start) / step) + 1))]
    for one in report.attempts:
        if one.end is not None:
            counts[max(0, min(len(counts) - 1, int((one.end - start) / step)))][one.kind] += 1
    style = "%H:%M:%S" if report.last - report.first < 86400 else "%Y-%m-%d %H:%M"
    bins = [(when(start + place * step, style), kinds) for place, kinds in enumerate(counts)]
    text = f"Attempts that ended in each {span(step)}"
    return (
        tag("p", f"{text}.")
        + legend(KINDS)
        + columns(bins, f"{text}. The table below says the same.", _ticks(start, start + len(bins) * step))
        + folded("As a table", table(
            f"{text}, by its beginning (UTC)", ["from", *(_WORDS[kind] for kind in KINDS)],
            ([when(start + place * step), *(kinds[kind] for kind in KINDS)] for place, (_text, kinds) in enumerate(bins)), " nnn",
        ))
    )  # fmt: skip


def distribution(report: Report, title: str, value: Callable[[Attempt], Optional[float]], say: Callable[[float], str]) -> str:
    """Return a histogram of what attempts took of something, and the table with its middle and its ends."""
    found = [(number, one) for one in report.attempts for number in (value(one),) if number is not None]
    head = tag("h3", title)
    if not found:
        return tag("section", head, tag("p", "Nothing is known of it yet."))
    # Powers of 1.26 or of 2, as many as the columns have room for: what takes long and what takes little are seen side by side.
    low, high = max(min(found)[0], 1e-3), max(max(number for number, _one in found), 1e-3)
    per_decade = next(count for count in (10, 5, 3, 2, 1) if (math.log10(high) - math.log10(low)) * count <= _COLUMNS // 2)
    place_of: Callable[[float], int] = lambda number: math.floor(math.log10(max(number, low)) * per_decade + 1e-9)  # noqa: E731
    start, end = place_of(low), place_of(high)
    counts: list[Counter[str]] = [Counter() for _bin in range(end - start + 1)]
    for number, one in found:
        counts[place_of(number) - start][one.kind] += 1
    edges = [10 ** ((start + place) / per_decade) for place in range(len(counts) + 1)]
    bins = [(f"{say(edges[place])} to {say(edges[place + 1])}", kinds) for place, kinds in enumerate(counts)]
    some = max(1, math.ceil(len(bins) / 4))
    names = [(100 * place / len(bins), say(edges[place])) for place in range(0, len(bins) + 1, some)]
    rows = []
    for kind in KINDS:
        values = sorted(number for number, one in found if one.kind == kind)
        if values:
            rank = [values[min(len(values) - 1, math.ceil(part * len(values)) - 1)] for part in (0.5, 0.9, 0.99)]
            rows.append([_WORDS[kind], len(values), *(say(number) for number in (values[0], *rank, values[-1]))])
    most = heapq.nlargest(_LONGEST, enumerate(found), key=lambda item: item[1][0])
    return tag(
        "section", head, columns(bins, f"{title}: how many have which. The table below has the least, the middle and the most.", names),
        table(title, ["attempts", "number", "least", "median", "90 %", "99 %", "most"], rows, " nnnnnn"),
        folded(f"The {len(most)} with the most" if len(most) > 1 else "The one with the most", table(
            f"{title}: the most", ["job", "how much", "ended", "worker", "when (UTC)"],
            ([one.job, say(number), _WORDS[one.kind], one.worker, when(one.end)] for _place, (number, one) in most), " n",
        )),
    )  # fmt: skip
