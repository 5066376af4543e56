#!/usr/bin/env python3
# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Draws performance.svg from what bench.py has measured.

usage: plot.py FOLDER < VALUES
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sagequeue", "font.size": 9})
from matplotlib import pyplot  # noqa: E402

values = {label: statistics.median(found) for label, found in json.load(sys.stdin).items() if found}
OURS = {"enqueue 1,000,000": "sagequeue, 1,000,000 at once", "enqueue 100,000": "sagequeue, 100,000 at once"}
OURS |= {"enqueue one by one": "sagequeue, one by one", "drain": "sagequeue"}


def bars(axes: pyplot.Axes, title: str, scale: str, labels: list[str]) -> None:
    found = sorted((values[label], label) for label in labels if label in values)
    if not found:
        axes.set_axis_off()
        return
    names = [OURS.get(label, label.partition(":")[0]) for _value, label in found]
    colours = ["tab:orange" if label in OURS else "tab:blue" for _value, label in found]
    axes.bar_label(axes.barh(names, [value for value, _label in found], color=colours), fmt="{:,.0f}", padding=3)
    axes.set(title=title, xlabel="jobs per second", xscale=scale)
    axes.margins(x=0.2)


figure, (top, middle, bottom) = pyplot.subplots(3, figsize=(8, 11), height_ratios=[10, 9, 7], layout="constrained")
ends = {end: [label for label in values if label.endswith(f": {end}") and not label.startswith("before")] for end in ("put", "drain")}
bars(top, "Enqueue", "log", ["enqueue 1,000,000", "enqueue 100,000", "enqueue one by one", "one file per job", *ends["put"]])
bars(middle, "No-op jobs through, two at a time", "linear", ["drain", *ends["drain"]])
for processes, style in ((1, "-"), (16, "--")):
    for name, kind, depths in (("a batch", "batch of {}", (1000, 1_000_000)), ("files", "{} files", (1000, 100_000))):
        points = {depth: values.get(f"claim, {kind.format(f'{depth:,}')}, {processes} at a time") for depth in depths}
        if all(points.values()):
            bottom.plot(list(points), list(points.values()), style, marker="o", label=f"as {name}, {processes} at a time")
if bottom.lines:
    bottom.set(title="One claim and finish", xlabel="pending jobs", ylabel="microseconds", xscale="log", ylim=(0, None))
    bottom.legend()
figure.savefig(Path(sys.argv[1]) / "performance.svg", metadata={"Date": None})
