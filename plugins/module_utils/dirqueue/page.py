# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A jobset's report as one HTML page: no script, no picture, nothing from a network.

Bars are SVG rectangles whose places are percentages, so that they follow the width of the page and their texts don't.
Beside each chart stands a table that says the same.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Callable, Optional

from .progress import duration
from .report import KINDS, REASONS, Attempt, Report

# So many workers have a row in the chart, and so many attempts of one a bar each; of more, a bar stands for several.
WORKERS = 40
BARS = 200
# So many running jobs, and longest attempts, are listed.
_RUNNING = 50
_LONGEST = 10
# So many columns a chart has at most.
_COLUMNS = 48

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800, 2592000, 31536000)
_WORDS = {"done": "done", "failed": "failed", "back": "put back", "running": "running", "pending": "pending"}

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #57606a; --line: #c5ccd3; --card: #f4f6f8; --link: #0550ae;
  --done: #2f855a; --failed: #c2410c; --back: #8b6f1f; --running: #1d63c4; --pending: #8a939c; --stripe: #fff; }
@media (prefers-color-scheme: dark) { :root { --page: #14181d; --text: #e6eaee; --soft: #a3adb8; --line: #3d454e; --card: #1e242b;
  --link: #79b8ff; --done: #4cb782; --failed: #f0763f; --back: #d2ab3c; --running: #5b9df5; --pending: #8a939c; --stripe: #14181d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.4rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .4rem 0; max-width: 60rem; overflow-wrap: anywhere; }
.soft, caption, dt { color: var(--soft); }
a, summary { color: var(--link); }
:focus-visible { outline: 3px solid var(--running); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -100vw; background: var(--page); padding: .5rem 1rem; }
.skip:focus { left: 1rem; top: .5rem; z-index: 1; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; margin: .8rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.8rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.cards div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.cards dt { font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dl { margin: 0; }
svg { display: block; width: 100%; overflow: visible; }
.whole { height: 1.4rem; }
.lanes { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: .25rem .8rem; align-items: center; }
.lanes span { font-size: .875rem; overflow-wrap: anywhere; max-width: 14rem; text-align: right; }
.lane { height: 20px; background: var(--card); }
.axis { height: 1.3rem; }
.chart { display: grid; grid-template-columns: 3rem 1fr; gap: .4rem; margin: .8rem 0 1.6rem; }
.columns, .scale { height: 12rem; } .columns { border-bottom: 1px solid var(--line); }
text { fill: var(--soft); font-size: .75rem; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; stroke-dasharray: 2 3; }
.done { fill: var(--done); } .failed { fill: url(#failed); } .back { fill: url(#back); } .running { fill: var(--running); }
.pending { fill: var(--pending); }
.failed-ground { fill: var(--failed); } .back-ground { fill: var(--back); } .stripe { stroke: var(--stripe); stroke-width: 1.1; }
.lane rect { stroke: var(--card); stroke-width: 1.2; paint-order: stroke; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; margin: .5rem 0; font-size: .9rem; }
.legend svg { display: inline-block; width: 1rem; height: 1rem; vertical-align: -.15rem; margin-right: .35rem; }
.none { width: 0; height: 0; position: absolute; }
.scroll { overflow-x: auto; max-height: 32rem; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); overflow-wrap: break-word;
  max-width: 44rem; }
td.n, th.n { text-align: right; white-space: nowrap; }
th { font-weight: 600; } tbody th { min-width: 6.5rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .15rem 0; }
pre { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; margin: .4rem 0; font-size: .825rem; line-height: 1.45; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
footer { margin-top: 2.5rem; padding-bottom: 2.5rem; font-size: .875rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2.5rem; }
@media (max-width: 36rem) {
  .lanes { grid-template-columns: 1fr; gap: .1rem; } .lanes span { text-align: left; max-width: none; margin-top: .4rem; } .lanes .corner { display: none; }
}
@media print {
  :root { --page: #fff; --text: #000; --soft: #444; --line: #bbb; --card: #f2f2f2; --stripe: #fff; }
  body { font-size: 10pt; } nav, .skip { display: none; } .scroll { max-height: none; overflow: visible; }
  svg, .cards div, pre { print-color-adjust: exact; break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""  # noqa: E501


def _attributes(pairs: dict[str, Any]) -> str:
    return "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for name, value in pairs.items() if value != "")


def _tag(name: str, *inner: str, **attributes: Any) -> str:
    """Return an element. What is in it must be escaped already; attributes must not."""
    return f"<{name}{_attributes(attributes)}>{''.join(inner)}</{name}>"


def _at(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".") + "%"


def bytes_of(number: float) -> str:
    """Return a size as a person would say it."""
    unit = min(int(math.log(number, 1024)), 5) if number >= 1 else 0
    value = number / 1024**unit
    return f"{value:.0f} B" if not unit else f"{value:.{1 if value < 9.95 else 0}f} {'KMGTP'[unit - 1]}iB"


def span(seconds: float) -> str:
    """Return a span of time as a person would say it, short ones closely."""
    if 0 < seconds < 0.9995:
        return f"{max(1, round(seconds * 1000))} ms"
    text = f"{seconds:.1f} s" if seconds < 9.95 and seconds != int(seconds) else duration(seconds)
    return text.removesuffix(" 0 min").removesuffix(" 0 h")


def when(seconds: Optional[float], style: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time in UTC, or a dash."""
    return "–" if seconds is None else time.strftime(style, time.gmtime(seconds))


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], numbers: str = "") -> str:
    """Return a table, in a part of the page that scrolls by itself and can be reached by keyboard.

    Args:
        caption: what it says.
        heads: the columns' names.
        rows: their texts, escaped here.
        numbers: a letter for each column; n for those that are numbers.
    """
    look = [{"class_": "n"} if kind == "n" else {} for kind in numbers.ljust(len(heads))]
    head = _tag("tr", *(_tag("th", escape(text), scope="col", **one) for text, one in zip(heads, look)))
    body = []
    for row in rows:
        first, *rest = (escape(str(cell)) for cell in row)
        body.append(_tag("tr", _tag("th", first, scope="row"), *(_tag("td", cell, **one) for cell, one in zip(rest, look[1:]))))
    whole = _tag("table", _tag("caption", escape(caption)), _tag("thead", head), _tag("tbody", *body))
    return _tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def folded(title: str, *inner: str, **attributes: Any) -> str:
    """Return what can be opened."""
    return _tag("details", _tag("summary", escape(title)), *inner, **attributes)


def _rect(x: float, width: float, kind: str, title: str = "", y: float = 0, height: float = 100) -> str:
    return _tag(
        "rect", _tag("title", escape(title)) if title else "", x=_at(x), width=_at(width), y=_at(y), height=_at(height), class_=kind
    )  # fmt: skip


def legend(kinds: Iterable[str]) -> str:
    """Return what the colours and patterns mean."""
    swatch = {kind: _tag("svg", _rect(0, 100, kind), aria_hidden="true") for kind in _WORDS}
    return _tag("ul", *(_tag("li", swatch[kind], _WORDS[kind]) for kind in kinds), class_="legend")


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
        _tag("text", escape(text), x=_at(x), text_anchor="start" if x < 8 else "end" if x > 92 else "middle", **attributes)
        for x, text in ticks
    )


def gantt(report: Report, running: list[tuple[str, str, float]], now: float) -> str:
    """Return the chart of attempts per worker, and its table."""
    per_worker: dict[str, list[Attempt]] = {worker: [] for _name, worker, _since in running}
    for one in report.attempts:
        if one.worker or one.start is not None:
            per_worker.setdefault(one.worker, []).append(one)
    if not per_worker or report.first is None and not running:
        return _tag("p", "No attempt has been made yet.")
    moments = [since for _name, _worker, since in running]
    first = min([*moments, *([report.first] if report.first is not None else [])])
    last = max([now] if running else [first + 1], default=now) if report.last is None else max(report.last, now if running else report.last)
    last = max(last, first + 0.001)
    scale = 100 / (last - first)
    chosen = sorted(sorted(per_worker, key=lambda worker: -len(per_worker[worker]))[:WORKERS], key=_natural)
    ticks = _ticks(first, last)
    lines = "".join(_tag("line", x1=_at(x), x2=_at(x), y1="0", y2="100%", class_="grid") for x, _text in ticks)
    rows, several = [], False
    for worker in chosen:
        attempts = per_worker[worker]
        bars = _several(attempts, first, scale) if len(attempts) > BARS else [_one(one, first, scale) for one in attempts]
        several |= len(attempts) > BARS
        for name, whose, since in running:
            if whose == worker:
                bars.append(
                    _rect((since - first) * scale, max(0.3, (last - since) * scale), "running", f"{name}, running since {when(since)}")
                )
        rows.append(_tag("span", escape(worker or "(no worker)")) + _tag("svg", lines, *bars, class_="lane", aria_hidden="true"))
    axis = _tag("span", class_="corner") + _tag("svg", _labels(ticks, y="1rem"), class_="axis", aria_hidden="true")
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
        _tag("p", " ".join(said)) + legend(kinds) + _tag("div", *rows, axis, class_="lanes", role="img", aria_label=label)
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
    return _rect(min(99.7, (start - first) * scale), max(0.3, (end - start) * scale), one.kind, text)


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
                bars.append(_rect(place * 100 / BARS, 100 / BARS, kind, title, y, height))
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
        y = _at(100 - 100 * count / top)
        parts.append(_tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid"))
        scale.append(_tag("text", f"{count:,}", x="100%", y=y, dy="0.35em", text_anchor="end"))
    width = 100 / len(bins)
    for place, (text, kinds) in enumerate(bins):
        foot = 100.0
        for kind in KINDS:
            if kinds[kind]:
                height = 100 * kinds[kind] / top
                foot -= height
                parts.append(_rect((place + 0.06) * width, width * 0.88, kind, f"{text}: {_counted(kinds)}", foot, height))
    chart = _tag("svg", *parts, _labels(names, y="100%", dy="1.3em"), class_="columns", role="img", aria_label=label)
    return _tag("div", _tag("svg", *scale, class_="scale", aria_hidden="true"), chart, class_="chart")


def throughput(report: Report) -> str:
    """Return the chart of what ended when, and its table."""
    if report.first is None or report.last is None:
        return _tag("p", "No attempt has ended yet.")
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
        _tag("p", f"{text}.")
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
    head = _tag("h3", title)
    if not found:
        return _tag("section", head, _tag("p", "Nothing is known of it yet."))
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
    return _tag(
        "section", head, columns(bins, f"{title}: how many have which. The table below has the least, the middle and the most.", names),
        table(title, ["attempts", "number", "least", "median", "90 %", "99 %", "most"], rows, " nnnnnn"),
        folded(f"The {len(most)} with the most" if len(most) > 1 else "The one with the most", table(
            f"{title}: the most", ["job", "how much", "ended", "worker", "when (UTC)"],
            ([one.job, say(number), _WORDS[one.kind], one.worker, when(one.end)] for _place, (number, one) in most), " n",
        )),
    )  # fmt: skip


def failures(report: Report) -> str:
    """Return the failures, grouped by reason, with the ends of logs."""
    groups = report.groups()
    if not groups:
        return _tag("p", "No attempt has failed.")
    rows = []
    for reason, cause, attempts in groups:
        jobs = {one.job for one in attempts}
        rows.append([cause or reason or "(no reason)", len(attempts), len(jobs), len(jobs & report.failed_now)])
    parts = [table("Failed attempts by reason", ["reason", "attempts", "jobs", "of these failed now"], rows, " nnn")]
    for (reason, _cause, attempts), row in zip(groups, rows):
        meaning, step = REASONS.get(reason, ("", ""))
        parts.append(_tag("h3", escape(f"{row[0]}: {row[1]} attempt{'s' if row[1] != 1 else ''}")))
        parts.append(_tag("p", escape(f"{meaning} {step}".strip()), class_="soft") if meaning else "")
        shown = report.examples(attempts)
        for one in shown:
            log = report.log(one.job)
            state = "failed now" if one.job in report.failed_now else "tried again since"
            facts = [
                f"attempt {one.number}" if one.number else "",
                one.worker and f"worker {one.worker}",
                when(one.end) + " UTC",
                one.detail,
            ]
            title = f"{one.job}: {state}"
            note = _tag("p", escape(log.note), class_="soft")
            text = _tag("pre", escape("\n".join(log.lines)), tabindex=0, aria_label=f"Log of {one.job}", role="region") if log.lines else ""
            about = _tag("p", escape("; ".join(fact for fact in facts if fact)))
            parts.append(folded(title, about, note, text, open="open" if one is shown[0] else ""))
        others = len({one.job for one in attempts}) - len(shown)
        parts.append(_tag("p", f"{others} more job{'s' if others > 1 else ''} with this reason are not shown.") if others > 0 else "")
    return "".join(parts)


def overview(report: Report, running: list[tuple[str, str, float]]) -> str:
    """Return the summary."""
    found, counts = report.summary, report.summary["counts"]
    total = sum(counts.values())
    took = (report.last or 0) - (report.first or 0)
    done, gate = report.kinds["done"], found["gate"]
    cards = [(f"jobs {state}", f"{counts[state]:,}") for state in ("done", "failed", "running", "pending")]
    cards += [("of these held", f"{found['held']:,}")] if found["held"] else []
    cards += [("attempts", f"{len(report.attempts):,}"), ("of these failed", f"{report.kinds['failed']:,}")]
    if report.first is not None:
        cards += [("first attempt, UTC", when(report.first, "%Y-%m-%d %H:%M")), ("from first to last", span(took))]
        cards += [("done per hour", f"{done * 3600 / took:,.{1 if done * 360 < took else 0}f}" if took >= 1 else "–")]
        cards += [("worked, all together", span(sum(one.seconds or 0 for one in report.attempts)))]
    left = found["seconds_left"]
    if left and counts["pending"] + counts["running"]:
        cards += [("time left, about", duration(left))]
    states = [(state, counts[state]) for state in ("done", "failed", "running", "pending") if counts[state]]
    whole, x = [], 0.0
    for state, count in states:
        whole.append(_rect(x, 100 * count / total, state, f"{count} {state}"))
        x += 100 * count / total
    label = "Jobs: " + ", ".join(f"{count} {state}" for state, count in states)
    drawn = _tag("svg", *whole, class_="whole", role="img", aria_label=label) if total else ""
    said = ["There are no jobs." if not total else f"{counts['done']:,} of {total:,} jobs are done."]
    if gate["solved"]:
        said.append(f"It is solved by {gate['solved_by']}: {report.plain(gate['text'])}. The witness is in {report.plain(gate['log'])}.")
    elif gate["closed"]:
        said.append(f"The gate is closed ({report.plain(gate['text']) or 'no text'}): no job is claimed. To open it: clear_stop.")
    if counts["failed"]:
        said.append(f"To try the failed ones again: ansible-playbook playbooks/retry_failed.yml -e jobset={report.jobset.name}")
    said += [f"Refused: {report.plain(entry)}: {report.plain(reason)}." for entry, reason in list(found["refused"].items())[:10]]
    parts = [_tag("p", escape(text)) for text in said] + [drawn, legend(state for state, _count in states) if states else ""]
    parts.append(_tag("dl", *(_tag("div", _tag("dt", escape(name)), _tag("dd", escape(text))) for name, text in cards), class_="cards"))
    if found["running"]:
        rows = [
            [held["name"], *(report.plain(text, 200) for text in (held["worker"], held["since"], held["why_orphan"] or "yes"))]
            for held in found["running"][:_RUNNING]
        ]
        more = len(found["running"]) - len(rows)
        caption = "Running jobs" + (f" ({more} more are left out)" if more else "")
        parts.append(folded(f"{len(found['running'])} running", table(caption, ["job", "worker", "since (UTC)", "its worker lives"], rows)))
    if report.gates:
        rows = [list(gate) for gate in report.gates]
        parts.append(folded("Earlier gates", table("Gates that were opened again", ["opened (UTC)", "text", "solved by"], rows)))
    rows = [[key, value] for key, value in report.definition().items() if value != ""]
    parts.append(folded("The jobset's definition", table("Definition, without secrets", ["key", "value"], rows)))
    return "".join(parts)


def page(report: Report) -> str:
    """Return the page."""
    from .report import seconds_of

    name = escape(report.jobset.name)
    now = seconds_of(report.made) or time.time()
    since = [
        (held["name"], report.plain(held["worker"], 60), seconds_of(held["since"])) for held in report.summary["running"][: WORKERS * 4]
    ]
    running = [(job, worker, begun) for job, worker, begun in since if begun is not None and begun <= now]
    sections = {
        "Summary": overview(report, running),
        "Attempts per worker": gantt(report, running, now),
        "Throughput": throughput(report),
        "Failures": failures(report),
        "Run time and memory": _tag(
            "div",
            distribution(report, "Run time of attempts", lambda one: one.seconds, span),
            distribution(report, "Peak memory of attempts", lambda one: one.peak, bytes_of),
            class_="pair",
        ),
    }
    ids = {title: title.lower().replace(" ", "-") for title in sections}
    nav = _tag("nav", _tag("ul", *(_tag("li", _tag("a", title, href=f"#{ids[title]}")) for title in sections)), aria_label="Sections")
    body = [_tag("section", _tag("h2", title, id=ids[title]), inner, aria_labelledby=ids[title]) for title, inner in sections.items()]
    notes = [report.left_out] if report.left_out else []
    notes += [f"{report.unreadable} lines of the history could not be read, and are left out."] if report.unreadable else []
    notes += ['All times are UTC. "Put back" are attempts that count for nothing: the worker was stopped, or the gate was closed.']
    size = {"width": "6", "height": "6"}
    patterns = [
        _tag(
            "pattern",
            _tag("rect", class_=f"{kind}-ground", **size),
            _tag("path", d=d, class_="stripe"),
            id=kind,
            patternUnits="userSpaceOnUse",
            **size,
        )
        for kind, d in (("failed", "M-1 7 7 -1M-1 1 1 -1M5 7 7 5"), ("back", "M0 3H6"))
    ]
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=False)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{name}: report of a jobset</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        '<a class="skip" href="#content">Skip to the content</a>\n'
        + _tag("header", _tag("h1", f"Jobset {name}"),
               _tag("p", f"On {escape(report.host)}, as of {when(now)} UTC", class_="soft"), nav)
        + _tag("svg", _tag("defs", *patterns), class_="none", aria_hidden="true")
        + "\n" + _tag("main", "\n".join(body), id="content", tabindex="-1") + "\n"
        + _tag("footer", *(_tag("p", escape(note), class_="soft") for note in notes))
        + "\n</body>\n</html>\n"
    )  # fmt: skip
