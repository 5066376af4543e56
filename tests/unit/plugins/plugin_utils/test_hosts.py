# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What is known of the hosts of a spread jobset, and what an operator reads of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ansible")
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.plugin_utils.hosts import Hosts, few, jobs
from ansible_collections.sagequeue.batch.plugins.plugin_utils.spread import PLACED, Record


def answer(left: float | None = None, solved_by: str = "", workers: int = 2, **states: list[str]) -> dict[str, Any]:
    return {"workers": workers, "states": states, "info": {"gate": {"solved_by": solved_by}, "seconds_left": left, "settled": False}}


def known(tmp_path: Path, **variables: dict[str, Any]) -> Hosts:
    record = Record(str(tmp_path / "record"), "t")
    hosts = Hosts(record, list(variables), ["_first", "_then"], variables)
    record.note(hosts.held)
    return hosts


def test_the_first_answer_that_is_one_counts(tmp_path: Path) -> None:
    a, b = answer(pending=["j1"]), {"counts": {}, "msg": "it was put"}
    d = {"drained": "yes", "max_jobs_allowed": "3"}
    hosts = known(tmp_path, a={"_first": {"skipped": True}, "_then": a}, b={"_first": b}, c={}, d=d)
    assert hosts.held == {"a": {"j1": "pending"}} and hosts.reached == ["b"] and hosts.drained == ["d"] and hosts.limits == {"d": 3}
    assert hosts.silent["b"] == "it was put" and hosts.silent["c"] == "it is not among the hosts of this run"
    with pytest.raises(QueueError, match="d: max_jobs_allowed is 'x', and should be"):
        known(tmp_path, d={"max_jobs_allowed": "x"})


def test_a_host_of_the_record_is_a_member_and_why_it_is_silent_is_short(tmp_path: Path) -> None:
    record = Record(str(tmp_path / "record"), "t")
    record.hosts["gone"] = {"seen": "2026-01-01T00:00:00Z"}
    told = "Task failed: Failed to connect to the host via ssh: ssh: connect to host gone: No route to host.\n"
    hosts = Hosts(record, ["a"], ["_it"], {"a": {"_it": answer()}, "gone": {"_it": {"msg": told}}})
    assert hosts.members == ["a", "gone"] and hosts.silent == {"gone": "connect to host gone: No route to host"}
    assert hosts.note("gone") == "can't be asked; seen last 2026-01-01T00:00:00Z"
    assert hosts.odd(looks=False) == ["gone can't be asked: connect to host gone: No route to host"]


def test_who_may_take_jobs(tmp_path: Path) -> None:
    hosts = known(tmp_path, a={"_first": answer()}, b={"_first": answer(workers=0)}, c={"_first": answer(), "drained": True})
    assert hosts.workers() == {"a": 2}
    with pytest.raises(QueueError, match="t: no host may take jobs: a its jobs are to move; b has no workers; c drained"):
        hosts.workers("a")


def test_how_far_all_are_together(tmp_path: Path) -> None:
    a, b = answer(60, done=["j1"], pending=["j2"]), answer(120, running=["j3"], failed=["j4"])
    hosts = known(tmp_path, a={"_first": a}, b={"_first": b})
    assert hosts.how_far()[0].endswith(" 1/4 done, 1 failed, 1 running, 1 pending; about 2 min left")
    assert known(tmp_path, a={"_first": a}, b={}).how_far()[0].endswith(" 1/2 done, 1 pending")
    solved = known(tmp_path, a={"_first": answer(60, "j1", done=["j1"], pending=["j2"])})
    assert solved.how_far()[0].endswith("; solved by j1 on a")
    assert solved.odd(looks=True) == ["the other hosts go on; to end that: ansible-playbook playbooks/request_stop.yml -e jobset=t"]
    assert solved.odd(looks=False) == []


def test_what_two_hosts_hold(tmp_path: Path) -> None:
    hosts = known(tmp_path, a={"_first": answer(pending=["j1"])}, b={"_first": answer(running=["j1"])})
    assert hosts.twice() == {"j1": ["a", "b"]} and hosts.note("b") == "1 of these belong to other hosts"
    assert hosts.odd(looks=False) == ["TWICE: j1 pending on a, and running on b, too"]


def test_what_was_placed_and_is_in_no_queue_is_named(tmp_path: Path) -> None:
    hosts = known(tmp_path, a={"_first": answer(pending=[])})
    hosts.record.jobs["j1"] = ["a", PLACED, "j1"]
    assert hosts.odd(looks=True) == ["1 job placed and not in a queue yet: a command was cut short; run it again"]


def test_numbers_in_words() -> None:
    assert (jobs(0), jobs(1), jobs(2)) == ("0 jobs", "1 job", "2 jobs")
    assert few(["j10", "j9"]) == "j9, j10" and few([f"j{n}" for n in range(12)]) == "j0, j1, j2 ... j11 (12 jobs)"
