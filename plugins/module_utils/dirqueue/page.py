# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A jobset's report as one HTML page: no script, no picture, nothing from a network."""

from __future__ import annotations

import base64
import hashlib
import time
from html import escape

from .charts import WORKERS, distribution, gantt, legend, rect, throughput
from .markup import STYLE, bytes_of, folded, span, table, tag, when
from .progress_text import duration
from .report import REASONS, Report

# So many running jobs are listed.
_RUNNING = 50


def failures(report: Report) -> str:
    """Return the failures, grouped by reason, with the ends of logs."""
    groups = report.groups()
    if not groups:
        return tag("p", "No attempt has failed.")
    rows = []
    for reason, cause, attempts in groups:
        jobs = {one.job for one in attempts}
        rows.append([cause or reason or "(no reason)", len(attempts), len(jobs), len(jobs & report.failed_now)])
    parts = [table("Failed attempts by reason", ["reason", "attempts", "jobs", "of these failed now"], rows, " nnn")]
    for (reason, _cause, attempts), row in zip(groups, rows):
        meaning, step = REASONS.get(reason, ("", ""))
        parts.append(tag("h3", escape(f"{row[0]}: {row[1]} attempt{'s' if row[1] != 1 else ''}")))
        parts.append(tag("p", escape(f"{meaning} {step}".strip()), class_="soft") if meaning else "")
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
            note = tag("p", escape(log.note), class_="soft")
            text = tag("pre", escape("\n".join(log.lines)), tabindex=0, aria_label=f"Log of {one.job}", role="region") if log.lines else ""
            about = tag("p", escape("; ".join(fact for fact in facts if fact)))
            parts.append(folded(title, about, note, text, open="open" if one is shown[0] else ""))
        others = len({one.job for one in attempts}) - len(shown)
        parts.append(tag("p", f"{others} more job{'s' if others > 1 else ''} with this reason are not shown.") if others > 0 else "")
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
        whole.append(rect(x, 100 * count / total, state, f"{count} {state}"))
        x += 100 * count / total
    label = "Jobs: " + ", ".join(f"{count} {state}" for state, count in states)
    drawn = tag("svg", *whole, class_="whole", role="img", aria_label=label) if total else ""
    said = ["There are no jobs." if not total else f"{counts['done']:,} of {total:,} jobs are done."]
    if gate["solved"]:
        said.append(f"It is solved by {gate['solved_by']}: {report.plain(gate['text'])}. The witness is in {report.plain(gate['log'])}.")
    elif gate["closed"]:
        said.append(f"The gate is closed ({report.plain(gate['text']) or 'no text'}): no job is claimed. To open it: clear_stop.")
    if counts["failed"]:
        said.append(f"To try the failed ones again: ansible-playbook playbooks/retry_failed.yml -e jobset={report.jobset.name}")
    said += [f"Refused: {report.plain(entry)}: {report.plain(reason)}." for entry, reason in list(found["refused"].items())[:10]]
    parts = [tag("p", escape(text)) for text in said] + [drawn, legend(state for state, _count in states) if states else ""]
    parts.append(tag("dl", *(tag("div", tag("dt", escape(name)), tag("dd", escape(text))) for name, text in cards), class_="cards"))
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
        "Run time and memory": tag(
            "div",
            distribution(report, "Run time of attempts", lambda one: one.seconds, span),
            distribution(report, "Peak memory of attempts", lambda one: one.peak, bytes_of),
            class_="pair",
        ),
    }
    ids = {title: title.lower().replace(" ", "-") for title in sections}
    nav = tag("nav", tag("ul", *(tag("li", tag("a", title, href=f"#{ids[title]}")) for title in sections)), aria_label="Sections")
    body = [tag("section", tag("h2", title, id=ids[title]), inner, aria_labelledby=ids[title]) for title, inner in sections.items()]
    notes = [report.left_out] if report.left_out else []
    notes += [f"{report.unreadable} lines of the history could not be read, and are left out."] if report.unreadable else []
    notes += ['All times are UTC. "Put back" are attempts that count for nothing: the worker was stopped, or the gate was closed.']
    size = {"width": "6", "height": "6"}
    patterns = [
        tag(
            "pattern",
            tag("rect", class_=f"{kind}-ground", **size),
            tag("path", d=d, class_="stripe"),
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
        + tag("header", tag("h1", f"Jobset {name}"), tag("p", f"On {escape(report.host)}, as of {when(now)} UTC", class_="soft"), nav)
        + tag("svg", tag("defs", *patterns), class_="none", aria_hidden="true")
        + "\n" + tag("main", "\n".join(body), id="content", tabindex="-1") + "\n"
        + tag("footer", *(tag("p", escape(note), class_="soft") for note in notes))
        + "\n</body>\n</html>\n"
    )  # fmt: skip
