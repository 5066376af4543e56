# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What bench.py has measured, as docs/performance.md and docs/performance.json."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- the figures begin -->\n", "<!-- the figures end -->\n"


def machine(folder: Path) -> dict[str, str]:
    """Describe the machine, as it is before anything is measured."""

    def said(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
        return " ".join(done.stdout.split())

    system = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(encoding="utf-8"), re.MULTILINE))
    models = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"))
    changed = " and changes" if said("git", "status", "--porcelain", "--untracked-files=no") else ""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": (said("git", "rev-parse", "--short", "HEAD") or "unknown") + changed,
        "cores": f"{len(os.sched_getaffinity(0))} ({models[0] if models else platform.machine()})",
        "memory": f"{int(memory[0]) / 1024**2:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}, {system.get('PRETTY_NAME', '')}",
        "file system": said("findmnt", "--noheadings", "--output", "FSTYPE,OPTIONS", "--target", str(folder)),
        "Python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table that reads well as text, too; the first column is text, a column of numbers stands right."""
    right = [bool(column) and all(re.fullmatch(r"-?[0-9.,]*", row[column]) for row in rows) for column in range(len(head))]
    widths = [max(3, *(len(row[column]) for row in [head, *rows])) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right)) + " |"

    rule = "| " + " | ".join("-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right)) + " |"
    return "\n".join([line(head), rule, *map(line, rows)]) + "\n"


def number(value: float) -> str:
    """Return a number with three digits, thousands apart."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def page(
    about: dict[str, str], figures: list[dict[str, Any]], missing: dict[str, str], trouble: dict[str, str], values: dict[str, list[float]]
) -> str:
    """Return the part of the page that a run makes."""
    ratios = [
        [f["name"], f["unit"], number(f["ours"]), number(f["reference"]), f["reference_name"], number(f["ratio"]), f["wanted"]]
        + ["yes" if (f["ratio"] >= float(f["wanted"].split()[-1])) == f["wanted"].startswith("at least") else "**no**"]
        for f in figures
    ]
    parts = [
        "### The machine\n",
        table(["what", ""], [[key, value] for key, value in about.items()]),
        "### Ratios\n",
        table(["name", "unit", "ours", "reference", "which is", "ratio", "wanted", "reached"], ratios) if figures else "None.\n",
        "![Jobs per second, and a claim's time by the depth of the queue](performance.svg)\n",
    ]
    spent = {tree: {k[len(tree) + 2 :]: v for k, v in values.items() if k.startswith(f"{tree}: ")} for tree in ("phases before", "phases")}
    if spent["phases"]:
        means = {tree: {phase: statistics.median(v) for phase, v in found.items()} for tree, found in spent.items()}
        names = sorted({*means["phases"], *means["phases before"]}, key=lambda phase: -means["phases"].get(phase, 0))
        rows = [[phase, *(number(means[tree][phase]) if phase in means[tree] else "" for tree in means)] for phase in names]
        rows.append(["all", *(number(sum(found.values())) if found else "" for found in means.values())])
        parts += [
            "### Where the time of one job goes\n",
            "Microseconds per no-op job, one worker, its clocks around these calls; each phase without those that it calls.\n",
            table(["phase", "before", "now"], rows),
        ]
    others = {name: reason for name, reason in trouble.items() if reason not in missing.values()}
    left = [[f"`{name}`", " ".join(reason.split()).replace("|", "\\|")] for name, reason in {**missing, **others}.items()]
    if left:
        parts += ["### Left out\n", "What could not be measured in this run, and why.\n", table(["what", "why"], left)]
    rows = [
        [label, number(statistics.median(found)), number(min(found)), number(max(found)), str(len(found))]
        for label, found in values.items()
        if found and not label.startswith("phases")
    ]
    parts += [
        "### All that was measured\n",
        "Jobs per second unless the name says otherwise; claims in microseconds, playbooks in seconds.\n",
        table(["what", "median", "least", "most", "times"], rows),
    ]
    return "\n".join(parts)


def write(
    folder: Path,
    template: Path,
    about: dict[str, str],
    figures: list[dict[str, Any]],
    missing: dict[str, str],
    trouble: dict[str, str],
    values: dict[str, list[float]],
) -> None:
    """Write both files; what a person wrote around the figures stays."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("name", "unit", "ours", "reference", "reference_name", "ratio")
    records = [{key: figure[key] for key in keys} for figure in figures]
    (folder / "performance.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    before, _, rest = template.read_text(encoding="utf-8").partition(BEGIN)
    text = page(about, figures, missing, trouble, values)
    (folder / "performance.md").write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(f"\n{text}")
