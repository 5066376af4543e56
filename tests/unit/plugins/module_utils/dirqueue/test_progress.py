# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""How far a jobset is, as a person reads it and as a program does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, owner, progress, progress_text
from ansible_collections.sagequeue.batch.tests.unit.batch_host import wait_for


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
    assert "about 2 min left" in progress_text.line(found)
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
    assert progress_text.bar_of(dict(zip(("pending", "running", "done", "failed"), counts)), 10) == f"[{shown}]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (12_000, "3 h 20 min"), (446_400, "5 d 4 h")],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert progress_text.duration(seconds) == text


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
    text = progress_text.text(found)
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
    assert "the gate is closed (STOP requested by anna" in progress_text.line(found)
    queue.open_gate()
    assert not progress.settled(progress.summary(queue))
    Path(queue.jobset.gate).write_text("SAT gidx=1 off=1 stride=2\n", encoding="utf-8")
    found = progress.summary(queue)
    assert (found["gate"]["by"], found["gate"]["solved_by"]) == ("program", "t_off1") and progress.settled(found)
    assert found["gate"]["log"].endswith("var/t/log/t_off1.log")
    assert "solved by t_off1" in progress_text.line(found) and f"the witness is in {found['gate']['log']}" in progress_text.text(found)


def test_what_is_refused_is_named_and_does_not_count(host: Any) -> None:
    host.define()
    host.path("pending", "link").symlink_to("/etc/passwd")
    host.put("done", "a")
    found = progress.summary(host.queue())
    assert found["refused"] == {"pending/link.env": "not a regular file"}
    assert found["counts"] == {"pending": 0, "running": 0, "done": 1, "failed": 0} and progress.settled(found)
    assert "refused: pending/link.env: not a regular file" in progress_text.text(found)


def test_every_job(host: Any) -> None:
    host.define()
    host.put("pending", "b", "X=1\n")
    host.put("failed", "a", "nonsense\n")
    found = progress.jobs(host.queue())
    assert [(job["name"], job["state"]) for job in found] == [("b", "pending"), ("a", "failed")]
    assert found[0]["values"] == {"x": "1"} and found[1]["values"]["reason"] == "malformed_job"


def test_the_jobs_in_a_table(host: Any) -> None:
    """Of each: attempts, owner, time, memory, and what it printed last; those that run first, and no more than asked for."""
    host.define(stride=30, attempts=1)
    says = 'echo "part $JOB_OFFSET"; printf "[2026-11-21T11:42:26+00:00] \\033[31mred\\007 end\\n\\n"\n'
    host.script(says + "[ $JOB_OFFSET != 1 ] || exit 3; [ $JOB_OFFSET != 2 ] || sleep 600\n")
    long = "a-job-with-a-name-that-is-longer-than-any-table-has-room-for"
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs([0, 1, 2, 10]))
    queue.enqueue([(long, {"OFFSET": "4"})])
    host.worker("t-1")
    wait_for(lambda: (host.states()["t_off2"], host.states()["t_off1"]) == ("running", "failed") and "end" in host.log("t_off2"))
    found = progress.look(queue, most=4)
    assert [row["name"] for row in found["table"]] == ["t_off2", "t_off1", "t_off0", long]
    ran, failed, done, waits = found["table"]
    assert (ran["worker"], ran["attempts"], ran["last_line"]) == ("t-1", 1, "red end")
    assert ran["peak_memory_kib"] > 100 and ran["seconds"] >= 0
    assert (failed["reason"], failed["attempts"], failed["last_line"]) == ("exit_status", 1, "red end")
    assert (done["state"], done["reason"], waits["last_line"]) == ("done", "ok", "")
    lines = progress_text.text(found).split("\n")
    assert "1/5 done, 1 failed, 1 running, 2 pending" in lines[0]
    assert lines[1].split() == ["job", "state", "tries", "worker", "time", "memory", "last", "line"]
    assert lines[3].endswith("exit_status: red end") and lines[6] == "... and 1 more (rows=5 shows all)"
    assert lines[5].startswith("a-job-wi") and "for  pending" in lines[5]
    assert max(map(len, lines)) <= 80 and all(text.isprintable() for text in lines)
    assert "t_off2: t-1 (pid " in progress_text.text(progress.look(queue, "queue"))
    json.dumps(found)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0, 0, "0 s"),
        (4, 90, "4 to 90 s"),
        (40, 400, "0.7 to 6.7 min"),
        (7200, 36_000, "2 to 10 h"),
        (1e5, 1e6, "1.2 to 12 d"),
        (600, 601, "10 min"),
    ],
)
def test_ranges_of_time(low: float, high: float, text: str) -> None:
    assert progress_text.between(low, high) == text


def test_how_following_ends(host: Any) -> None:
    """0: all done, or solved. 1: a job has failed. 3: the gate is closed by a request."""
    host.define(stride=2)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    queue.close_gate("anna")
    stopped = "waits with 2 jobs pending: the gate is closed (STOP requested by anna"
    for status, words in ((3, stopped), (0, "is solved by t_off1"), (1, "1 of 2 jobs failed")):
        if status == 0:
            Path(queue.jobset.gate).write_text("SAT off=1 stride=2\n", encoding="utf-8")
        if status == 1:
            queue.open_gate()
            holder = owner.Holder(queue.layout.workers, "t-1")
            for state in ("failed", "done"):
                queue.finish(queue.claim(holder), state, {"REASON": "ok"})
        ran = host.sagequeue("progress", "t", "--follow", "--interval", "0.1")
        assert ran.returncode == status and words in ran.stdout.splitlines()[-1], ran.stdout + ran.stderr


def test_a_batch_and_a_malformed_job_in_the_table(host: Any) -> None:
    host.define(stride=batch.LEAST)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    host.put("failed", "odd", "nonsense\n")
    found = progress.look(queue, most=4)["table"]
    assert [(row["name"], row["reason"]) for row in found] == [("odd", "malformed_job"), *((f"t_off{n}", "") for n in range(3))]
