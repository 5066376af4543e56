# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What becomes of a job whose attempt has ended."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.gate import Gate
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.judge import Ended, attempts_after, because, judge, lost
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Claim
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.base import Outcome

JOBSET = Jobset("t", {"script": "s", "stride": 4, "timeout": 60})
MEMORY = "killed while the kernel was out of memory"
OPEN, STOP, SOLVED = Gate(False), Gate(True, "STOP requested by anna", True), Gate(True, "off=1 stride=4")
OK, FAILED, KILLED, REAL_TIME = Outcome(0, None, None), Outcome(2, None, None), Outcome(None, 9, None), Outcome(None, 40, None)


def unasked() -> str:
    raise AssertionError("this is asked only where it matters")


def judged(ended: Ended, gate: Gate = OPEN, earlier: int = 0, **answers: str) -> tuple[str, str, str]:
    asked: dict[str, Any] = {key: unasked for key in ("killed_by", "why_lost")}
    asked.update({key: lambda text=text: text for key, text in answers.items()})
    claim = Claim("t_off1", "0" * 32, {"OFFSET": "1", "ATTEMPTS": str(earlier)})
    state, more = judge(JOBSET, claim, ended, gate, "SIGTERM", asked["killed_by"], asked["why_lost"])
    return state, more["REASON"], more.get("DETAIL", "")


@pytest.mark.parametrize(
    ("ended", "gate", "answers", "verdict"),
    [
        (Ended(OK), OPEN, {}, ("done", "ok", "")),
        (Ended(OK), STOP, {}, ("pending", "gate", STOP.text)),
        (Ended(OK), SOLVED, {}, ("done", "solved", SOLVED.text)),
        (Ended(OK), SOLVED._replace(text="off=2 stride=4"), {}, ("pending", "gate", "off=2 stride=4")),
        (Ended(KILLED, "worker_stopped"), OPEN, {}, ("pending", "worker_stopped", "SIGTERM")),
        (Ended(OK, "worker_stopped"), OPEN, {}, ("pending", "worker_stopped", "SIGTERM")),
        (Ended(KILLED, "worker_stopped"), SOLVED, {}, ("done", "solved", SOLVED.text)),
        (Ended(KILLED, "killed"), OPEN, {"killed_by": "by anna"}, ("failed", "killed", "by anna")),
        (Ended(KILLED, "killed"), SOLVED, {}, ("done", "solved", SOLVED.text)),
        (Ended(KILLED, "timeout"), SOLVED, {}, ("pending", "timeout", "ran longer than 60 s, attempt 1 of 3")),
        (Ended(FAILED), STOP, {"why_lost": ""}, ("pending", "exit_status", "exit status 2, attempt 1 of 3")),
        (Ended(FAILED), SOLVED, {"why_lost": ""}, ("pending", "exit_status", "exit status 2, attempt 1 of 3")),
        (Ended(FAILED), OPEN, {"why_lost": "no container"}, ("pending", "runner_lost", "no container")),
        (Ended(KILLED), OPEN, {"why_lost": ""}, ("pending", "signal", "ended by SIGKILL, attempt 1 of 3")),
        (Ended(REAL_TIME), OPEN, {"why_lost": ""}, ("pending", "signal", "ended by signal 40, attempt 1 of 3")),
        (Ended(KILLED, "", True), OPEN, {"why_lost": ""}, ("pending", "out_of_memory", f"{MEMORY}, attempt 1 of 3")),
    ],
)
def test_the_verdict(ended: Ended, gate: Gate, answers: dict[str, str], verdict: tuple[str, str, str]) -> None:
    assert judged(ended, gate, **answers) == verdict


@pytest.mark.parametrize(("earlier", "state"), [(0, "pending"), (1, "pending"), (2, "failed"), (7, "failed")])
def test_the_last_attempt_fails_the_job(earlier: int, state: str) -> None:
    assert judged(Ended(FAILED), earlier=earlier, why_lost="") == (state, "exit_status", f"exit status 2, attempt {earlier + 1} of 3")


def test_a_runner_may_be_lost_so_often_and_no_more() -> None:
    claim = Claim("j", "0" * 32, {"RECOVERIES": "8"})
    assert lost(JOBSET, claim, "gone") == ("pending", {"REASON": "runner_lost", "DETAIL": "gone", "RECOVERIES": "9"})
    state, more = lost(JOBSET, claim._replace(values={"RECOVERIES": "9"}), "gone")
    assert (state, because(more), more["RECOVERIES"]) == ("failed", "too_many_recoveries: lost 10 times, lastly: gone", "10")


@pytest.mark.parametrize(("reason", "attempts"), [("ok", 3), ("exit_status", 3), ("killed", 3), ("gate", 2), ("runner_lost", 2)])
def test_what_is_not_the_jobs_doing_does_not_count(reason: str, attempts: int) -> None:
    assert attempts_after(Claim("j", "0" * 32, {"ATTEMPTS": "2"}), reason) == attempts
