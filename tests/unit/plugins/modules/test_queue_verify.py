# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""queue_verify: a queue that is sound is never called unsound, and each way to be unsound is found."""

from __future__ import annotations

import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import verify
from ansible_collections.sagequeue.batch.tests.unit.plugins.modules.test_queue_modules import call  # noqa: F401

JOBS = [(f"t_off{number}", {"OFFSET": str(number)}) for number in range(4)]


def looked(host: Any, *names: str) -> list[str]:
    return [str(one) for one in verify.verify(str(host.root), list(names))["problems"]]


def orphan(host: Any) -> None:
    host.dead_claimer()


def stale(host: Any) -> None:
    name = host.dead_claimer()
    host.path("running", name).rename(host.path("pending", name))


def twice(host: Any) -> None:
    shutil.copy(host.path("pending", "t_off1"), host.path("done", "t_off1"))


def malformed(host: Any) -> None:
    host.put("pending", "t_off1", "no job's file")


def other_result(host: Any) -> None:
    host.work_off()
    path = host.path("done", "t_off1")
    path.write_text(path.read_text().replace("RESULT=done", "RESULT=failed"))


def cut_short(host: Any) -> None:
    (host.root / "var/t/run/staging/redo.x").write_text("t_off1\n")


def half_a_batch(host: Any) -> None:
    host.queue().enqueue([(f"more{number}", {}) for number in range(2000)])
    (path,) = (host.root / "var/t/queue/batches").glob("*.batch")
    os.truncate(path, 15000)


def odd_batch(host: Any) -> None:
    host.queue().enqueue([(f"more{number}", {}) for number in range(2000)])
    (path,) = (host.root / "var/t/queue/batches").glob("*.batch")
    path.write_text(path.read_text().replace("more1234\n", "more1234 x\n"))


def half_a_line(host: Any) -> None:
    host.work_off()
    with open(host.root / "var/t/run/history.jsonl", "a") as file:
        file.write('{"job":"t_o\n')


def link(host: Any) -> None:
    host.path("pending", "evil").symlink_to("/etc/passwd")


def gate(host: Any) -> None:
    (host.work / "t_stop.txt").mkdir()


# What is done to a queue, and what is said of it.
BROKEN: dict[Callable[[Any], None], str] = {
    orphan: r"job t_off0 runs without a living owner \(process \d+ is gone\); requeue_running brings it back",
    stale: r"job t_off0 has the owner record of a dead claimer \(process \d+ is gone\); requeue_running removes it",
    twice: r"job t_off1 is in 2 states at once; remove the one that should not be, .*/pending/t_off1.env or .*/done/t_off1.env",
    malformed: r"job t_off1 has a file that can't be understood \(.*\); correct .*/pending/t_off1.env; as it is, a worker brings",
    other_result: r"job t_off1 is done, but its file says RESULT=failed; read its log; reset brings it back",
    cut_short: r"run/staging/redo.x lists jobs whose change was cut short; requeue_running goes on with it",
    half_a_batch: r"batch \S+ has \d+ jobs left that can be read, of 2000; move .*\.batch away, and enqueue again",
    odd_batch: r"batch \S+ can't be understood \(line 1235 of .*: 'x' is not KEY=VALUE.*\); move .*\.batch away, and enqueue again",
    half_a_line: r"run/history.jsonl has half a line, the 5th; once no worker runs, sed -i 5d .*/history.jsonl takes it out",
    link: r"pending/evil.env is refused: not a regular file; take it away, or make it a plain file of the batch user's",
    gate: r"the gate .*/t_stop.txt is closed \(can't be read: .*\); make it readable, or remove it",
}


@pytest.fixture
def four(host: Any) -> Any:
    host.script("exit 0")
    host.define(stride=4)
    host.queue().enqueue(JOBS)
    return host


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda one: one.__name__)
def test_what_is_wrong_is_found_and_nothing_else_and_nothing_is_changed(four: Any, breaks: Callable[[Any], None]) -> None:
    assert looked(four) == []
    breaks(four)

    def files() -> dict[str, Any]:
        var = four.root / "var"
        return {str(path): path.lstat().st_mtime_ns for path in var.rglob("*") if not path.name.startswith((".clock", "owner."))}

    before = files()
    (said,) = looked(four, "t")
    assert re.match(f"jobset t: {BROKEN[breaks]}", said), said
    assert files() == before


def test_what_requeue_running_is_said_to_mend_it_mends(four: Any) -> None:
    for breaks in (orphan, stale, cut_short):
        breaks(four)
        assert "requeue_running" in looked(four)[0]
        four.sagequeue("recover", "t")
        assert looked(four) == []


def test_what_nobody_has_taken_away_for_hours(four: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (four.root / "var/t/run/staging/t_off1.0123").write_text("")
    assert looked(four) == []
    now = time.time()
    monkeypatch.setattr(verify.time, "time", lambda: now + 7300)
    (said,) = looked(four)
    assert "run/staging/t_off1.0123 was left there 2 h ago, so nothing recovers this jobset; start has it recovered again" in said


def test_a_queue_that_is_at_work_is_sound(host: Any) -> None:
    """Workers, an operator and recovery are at it all the while."""
    host.script("exit $((JOB_OFFSET % 2))")
    host.define(stride=300, attempts=2)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    workers = [host.worker(f"t-{number}", "--until-idle") for number in (1, 2)]
    looks = 0
    while any(worker.poll() is None for worker in workers) and looks < 40:
        assert looked(host) == []
        assert host.sagequeue("recover", "t").returncode == 0 if looks % 10 == 0 else True
        queue.reset(["t_off0", "t_off1"]), queue.hold([f"t_off{250 + looks}"]), queue.release([f"t_off{250 + looks}"])
        looks += 1
    assert looks > 3


def test_what_somebody_is_amid_is_not_wrong(four: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    four.work_off()
    with ThreadPoolExecutor() as threads, four.queue() as queue:
        with queue.lock():
            cut_short(four)
            looks = threads.submit(looked, four)
            wait([looks], 0.5)
            (four.root / "var/t/run/staging/redo.x").unlink()
        assert looks.result() == []
        path = four.path("done", "t_off1")
        with queue.lock():
            path.write_text(path.read_text().replace("RESULT=done", "RESULT=pending"))
            looks = threads.submit(lambda: list(verify._unfit(four.queue(), "t_off1", "done")))
            wait([looks], 0.5)
            path.rename(four.path("pending", "t_off1"))
        assert looks.result() == []
    name = four.dead_claimer()
    why_orphan = verify.Queue.why_orphan

    def ends(queue: Any, job: str) -> str:
        four.path("running", name).rename(four.path("pending", name))
        four.path("running", name).with_suffix(".env.owner").unlink()
        return why_orphan(queue, job)

    monkeypatch.setattr(verify.Queue, "why_orphan", ends)
    assert looked(four) == []


def test_the_module(call: Any, four: Any) -> None:  # noqa: F811
    four.define("u")
    for check in (False, True):
        done = call("queue_verify", check)
        assert not done["changed"] and done["problems"] == [] and [one["jobset"] for one in done["queues"]] == ["t", "u"]
        assert done["lines"][0] == "jobset t keeps what it promises: 4 pending, 0 running, 0 done, 0 failed; the gate is open"
    twice(four)
    shutil.rmtree(four.root / "var/u")
    failed = call("queue_verify")
    assert failed["msg"].startswith("2 of what the queue promises does not hold:\njobset t: job t_off1 is in 2 states at once; remove")
    assert "jobset u: can't be looked at (jobset u has no usable queue" in failed["msg"] and "); mend that first" in failed["msg"]
    assert [one["what"] for one in failed["problems"]] == ["job t_off1", "can't be looked at"]
    assert not call("queue_verify", jobset="u")["msg"].startswith("2 of")
    assert "jobset x is not defined on this host" in call("queue_verify", jobset="x")["msg"]
    assert call("queue_verify", root=str(four.base))["msg"] == "no jobset is defined on this host; run setup"
