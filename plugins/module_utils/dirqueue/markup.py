# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTML elements, and how a page's texts, tables and colours look."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Optional

from .progress_text import duration

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


def tag(name: str, *inner: str, **attributes: Any) -> str:
    """Return an element. What is in it must be escaped already; attributes must not."""
    return f"<{name}{_attributes(attributes)}>{''.join(inner)}</{name}>"


def percent(number: float) -> str:
    """Return a place in a chart."""
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
    return re.sub(r"( 0 h)?( 0 min)?\Z", "", text)


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
    head = tag("tr", *(tag("th", escape(text), scope="col", **one) for text, one in zip(heads, look)))
    body = []
    for row in rows:
        first, *rest = (escape(str(cell)) for cell in row)
        body.append(tag("tr", tag("th", first, scope="row"), *(tag("td", cell, **one) for cell, one in zip(rest, look[1:]))))
    whole = tag("table", tag("caption", escape(caption)), tag("thead", head), tag("tbody", *body))
    return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex=0)


def folded(title: str, *inner: str, **attributes: Any) -> str:
    """Return what can be opened."""
    return tag("details", tag("summary", escape(title)), *inner, **attributes)
