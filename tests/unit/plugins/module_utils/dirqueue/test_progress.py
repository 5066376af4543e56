# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""How far a jobset is, as a person reads it and as a program does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import owner, progress


def attempt(claim: str, minute: int, result: str = "done") -> str:
    line = {"job": claim, "result": result, "claim": claim}
    line.update(duration_s="60.000", started_at=f"2026-01-01T10:{minute:02d}:00.000Z", ended_at=f"2026-01-01T10:{minute + 1:02d}:00.000Z")
    return json.dumps(line) + "\n"


def test_the_rate_and_what_is_left(host: Any) -> None:
    host.define()
    queue = host.queue()
    assert progress.summary(queue)["rate"] is None
    queue.enqueue([("a", {}), ("b", {})])
    for name in ("c1", "c2"):
        host.put("done", name)
    # c4 was removed, or is to be redone: what it took then says nothing of what is left.
    Path(queue.layout.history).write_text(
        attempt("c4", 0) + attempt("c1", 0) + attempt("c2", 1) + attempt("c3", 2, "pending") + "half a li", encoding="utf-8"
    )
    found = progress.summary(queue)
    assert (found["rate"], found["seconds_left"]) == (60.0, 120)
    assert "about 2 min left" in progress.line(found)
    host.dead_claimer()
    host.dead_claimer()
    assert progress.summary(queue)["rate"] == 120.0, "two at a time"


def test_history_is_read_from_its_end_once_per_claim(host: Any) -> None:
    host.define()
    queue = host.queue()
    Path(queue.layout.history).write_text("[]\nnull\n" + attempt("c0", 0) + attempt("c1", 1) * 2 + attempt("c2", 2), encoding="utf-8")
    assert [line["claim"] for line in progress.history(queue)] == ["c0", "c1", "c2"]
    assert [line["claim"] for line in progress.history(queue, 200)] == ["c2"]


@pytest.mark.parametrize(
    ("counts", "shown"),
    [((0, 0, 0, 0), "-" * 10), ((3, 0, 0, 0), "-" * 10), ((1, 0, 1, 0), "#" * 5 + "-" * 5), ((0, 0, 1, 1), "#" * 10)],
)
def test_the_bar(counts: tuple[int, ...], shown: str) -> None:
    assert progress.bar(dict(zip(("pending", "running", "done", "failed"), counts)), 10) == f"[{shown}]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (12_000, "3 h 20 min"), (446_400, "5 d 4 h")],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_what_a_person_reads(host: Any) -> None:
    host.define(stride=3)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    holder = owner.Holder(queue.layout.workers, "t-1")
    queue.finish(queue.claim(holder), "failed", {"REASON": "timeout"})
    queue.claim(holder)
    host.dead_claimer()
    found = progress.summary(queue)
    assert found["counts"] == {"pending": 0, "running": 2, "done": 0, "failed": 1} and not progress.settled(found)
    text = progress.text(found)
    assert "0/3 done, 1 failed, 2 running, 1 without a living worker" in text
    assert "t_off1: t-1 (pid " in text and "t_off2: t-dead (pid " in text and "; orphan: process " in text
    assert [(job["name"], job["alive"]) for job in found["running"]] == [("t_off1", True), ("t_off2", False)]
    json.dumps(found)


def test_solved_and_stopped(host: Any) -> None:
    host.define(stride=2)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    queue.close_gate("anna")
    found = progress.summary(queue)
    assert progress.settled(found) and found["gate"]["by"] == "request" and not found["gate"]["solved"]
    assert "the gate is closed (STOP requested by anna" in progress.line(found)
    queue.open_gate()
    assert not progress.settled(progress.summary(queue))
    Path(queue.jobset.gate).write_text("SAT gidx=1 off=1 stride=2\n", encoding="utf-8")
    found = progress.summary(queue)
    assert (found["gate"]["by"], found["gate"]["solved_by"]) == ("program", "t_off1") and progress.settled(found)
    assert found["gate"]["log"].endswith("var/t/log/t_off1.log")
    assert "solved by t_off1" in progress.line(found) and f"the witness is in {found['gate']['log']}" in progress.text(found)


def test_what_is_refused_is_named_and_does_not_count(host: Any) -> None:
    host.define()
    host.path("pending", "link").symlink_to("/etc/passwd")
    host.put("done", "a")
    found = progress.summary(host.queue())
    assert found["refused"] == {"pending/link.env": "not a regular file"}
    assert found["counts"] == {"pending": 0, "running": 0, "done": 1, "failed": 0} and progress.settled(found)
    assert "refused: pending/link.env: not a regular file" in progress.text(found)


def test_every_job(host: Any) -> None:
    host.define()
    host.put("pending", "b", "X=1\n")
    host.put("failed", "a", "nonsense\n")
    found = progress.jobs(host.queue())
    assert [(job["name"], job["state"]) for job in found] == [("b", "pending"), ("a", "failed")]
    assert found[0]["values"] == {"x": "1"} and found[1]["values"]["reason"] == "malformed_job"
