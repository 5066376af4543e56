# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Orphans: workers and claimers that are really killed, and what becomes of their jobs."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import owner, recovery
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import NotReady
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.base import Runner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.store import Change

# It runs for ever, as often as it is started, until the file go is there.
LONG = "touch started.$SAGEQUEUE_JOB\nwhile ! test -e go; do sleep 0.05; done\n"


def bring_back(queue: Queue, **more: Any) -> list[Change]:
    return recover(queue, make(queue.layout, queue.jobset), **more)


def test_a_worker_killed_in_mid_job(host: Any, wait_for: Any) -> None:
    host.script(LONG)
    host.define()
    queue = host.queue()
    queue.enqueue([("a", {"X": "1"})])
    worker = host.worker()
    wait_for(lambda: host.alive("a") and (host.work / "started.a").exists())
    assert queue.why_orphan("a") == "" and bring_back(queue) == []
    worker.kill()
    worker.wait()
    assert host.alive("a"), "the job outlives its worker"
    assert queue.why_orphan("a")
    predicted = bring_back(queue, check=True)
    assert host.states() == {"a": "running"} and host.alive("a")
    changes = bring_back(queue)
    assert [(c.name, c.new_state) for c in changes] == [(c.name, c.new_state) for c in predicted] == [("a", "pending")]
    assert host.alive("a") == [] and host.owners() == [] and os.listdir(queue.layout.workers) == []
    values = host.values("a")
    assert (values["REASON"], values["RECOVERIES"], values.get("ATTEMPTS", "0"), values["WORKER"]) == ("orphan", "1", "0", "t-1")
    (host.work / "go").touch()
    host.work_off("t-2")
    assert host.states() == {"a": "done"} and host.values("a")["RECOVERIES"] == "1"
    assert [line["reason"] for line in host.history()] == ["orphan", "ok"]


@pytest.mark.parametrize("at_once", [1, 1000])
def test_all_that_several_dead_workers_left_is_ended(host: Any, wait_for: Any, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(recovery, "_AT_ONCE", at_once)
    host.script(LONG)
    host.define()
    queue = host.queue()
    queue.enqueue([(name, {}) for name in "abc"])
    workers = [host.worker(f"t-{number}") for number in range(3)]
    wait_for(lambda: all(host.alive(name) for name in "abc"))
    for worker in workers:
        worker.kill()
        worker.wait()
    runner = make(queue.layout, queue.jobset)
    really_end = runner.end

    def end(*carries: dict[str, str]) -> None:
        # Nobody is held up meanwhile.
        with open(queue.layout.lock) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        really_end(*carries)

    monkeypatch.setattr(runner, "end", end)
    assert [(change.name, change.new_state) for change in recover(queue, runner)] == [(name, "pending") for name in "abc"]
    assert not any(host.alive(name) for name in "abc")


def test_what_recovery_says(host: Any) -> None:
    host.define()
    queue = host.queue()
    queue.enqueue([("alive", {})])
    holder = owner.Holder(queue.layout.workers, "t-1")
    assert queue.claim(holder)
    host.put("running", "odd")
    os.link(host.path("running", "odd"), host.base / "second")
    host.put("running", "orphan")
    queue.enqueue([("pends", {})])
    # Its claimer died just before the rename.
    host.path("running", host.dead_claimer()).rename(host.path("pending", "pends"))
    (lock,) = {*os.listdir(queue.layout.workers)} - {holder.lock}
    said: list[str] = []
    assert len(bring_back(queue, check=True, log=said.append)) == 2 and said == []
    assert [(change.name, change.new_state) for change in bring_back(queue, log=said.append)] == [("odd", "running"), ("orphan", "pending")]
    assert said == [
        "job orphan: running -> pending (orphan: no readable owner record)",
        "job pends: removed the owner record of a worker that died while claiming it",
        f"removed the lock of a dead worker, {lock}",
    ]
    assert host.owners() == ["alive.env.owner"] and [change.name for change in bring_back(queue, log=said.append)] == ["odd"]
    assert len(said) == 3 and host.states()["alive"] == "running"
    holder.release()


def test_a_new_worker_recovers_at_its_start(host: Any, wait_for: Any) -> None:
    host.script(LONG)
    host.define()
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    first = wait_for(lambda: host.alive("a"))
    worker.kill()
    worker.wait()
    (host.work / "go").touch()
    assert "running -> pending" in host.work_off("t-2")
    assert host.states() == {"a": "done"} and not any(owner.process_start(pid) for pid in first)


def test_a_result_that_was_written_is_carried_out(host: Any, wait_for: Any, killed_at: Any) -> None:
    host.define()
    queue = host.queue()

    def finish() -> None:
        holder = owner.Holder(queue.layout.workers, "t-1")
        claim = queue.claim(holder)
        # What finish does first; then the worker dies.
        values = {**claim.values, "REASON": "ok", "EXIT_STATUS": "0", "CLAIM": claim.id, "RESULT": "done", "ATTEMPTS": "1"}
        queue._overwrite("running", claim.name, values)

    queue.enqueue([("a", {"X": "1"})])
    assert not killed_at(finish, 10_000)
    assert host.states() == {"a": "running"}
    predicted = bring_back(queue, check=True)
    assert [c.new_state for c in predicted] == ["done"]
    assert [c.new_state for c in bring_back(queue)] == ["done"]
    assert host.values("a")["EXIT_STATUS"] == "0" and "RECOVERIES" not in host.values("a")
    assert [line["reason"] for line in host.history()] == ["ok"]


def test_a_poison_job_fails_after_so_many_workers(host: Any) -> None:
    host.define(recoveries=3)
    queue = host.queue()
    queue.enqueue([("a", {})])
    for state in ("pending", "pending", "failed"):
        queue._names.clear()
        host.dead_claimer()
        assert [c.new_state for c in bring_back(queue, check=True)] == [state]
        assert [c.new_state for c in bring_back(queue)] == [state]
    assert host.values("a")["REASON"] == "too_many_recoveries" and "3 times" in host.values("a")["DETAIL"]
    assert queue.retry()[0].new_state == "pending" and host.values("a")["RECOVERIES"] == "0"


def test_a_job_that_was_recovered_more_often_than_is_allowed_now_fails(host: Any) -> None:
    host.define(recoveries=3)
    host.put("running", "a", "RECOVERIES=7\n")
    assert [change.new_state for change in bring_back(host.queue())] == ["failed"]
    assert host.values("a")["REASON"] == "too_many_recoveries" and "8 times" in host.values("a")["DETAIL"]


def test_a_job_that_solved_before_its_worker_died_is_done(host: Any) -> None:
    host.define(stride=2)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    assert {host.dead_claimer(), host.dead_claimer()} == {"t_off0", "t_off1"}
    Path(queue.jobset.gate).write_text("SAT gidx=1 off=1 stride=2\n", encoding="utf-8")
    assert {c.name: c.new_state for c in bring_back(queue)} == {"t_off0": "pending", "t_off1": "done"}
    assert host.values("t_off1")["REASON"] == "solved"


@pytest.mark.parametrize("record", [None, "", "OWNER_PID", "OWNER_TS=x\n", "OWNER_PID=x\n", "OWNER_PID=1\n", "\0\0\0"])
def test_a_record_that_says_nothing_makes_an_orphan(host: Any, record: str | None) -> None:
    host.define()
    queue = host.queue()
    host.put("running", "a", "X=1\n")
    if record is not None:
        (host.root / "var/t/queue/running/a.env.owner").write_text(record, encoding="utf-8")
    assert [(c.name, c.new_state) for c in bring_back(queue)] == [("a", "pending")]
    assert host.owners() == [] and host.values("a")["X"] == "1"


def test_a_malformed_orphan_fails(host: Any) -> None:
    host.define()
    host.put("running", "a", "nonsense\n")
    host.put("running", "b", "X=1\n")
    assert {c.name: c.new_state for c in bring_back(host.queue(), check=True)} == {"a": "failed", "b": "pending"}
    assert {c.name: c.new_state for c in bring_back(host.queue())} == {"a": "failed", "b": "pending"}


def test_a_malformed_orphan_is_in_the_history_once(host: Any) -> None:
    """A power cut has kept the line of the history, but not what the job's file had become."""
    host.define()
    queue = host.queue()
    queue.enqueue([("a", {})])
    host.dead_claimer()
    host.put("running", "a", "nonsense\n")
    record = Path(queue.layout.queue, "running", "a.env.owner")
    held = record.read_bytes()
    bring_back(queue)
    host.path("failed", "a").unlink()
    host.put("running", "a", "nonsense\n")
    record.write_bytes(held)
    assert [(c.name, c.new_state) for c in bring_back(queue)] == [("a", "failed")]
    assert [line["reason"] for line in host.history()] == ["malformed_job"]


def test_a_live_job_is_never_touched_however_many_recover(host: Any, wait_for: Any) -> None:
    host.script(LONG)
    host.define()
    host.queue().enqueue([(f"job{number}", {}) for number in range(3)])
    workers = [host.worker(f"t-{number}") for number in range(3)]
    wait_for(lambda: all(host.alive(f"job{number}") for number in range(3)))
    before = {name: host.alive(name) for name in host.states()}
    recoverers = [host.python("import sys\nfrom dirqueue.cli import main\n"
                              "for _ in range(10):\n    main(['--root', sys.argv[1], 'recover', 't'])\n", str(host.root))
                  for _ in range(2)]  # fmt: skip
    assert [recoverer.wait(60) for recoverer in recoverers] == [0, 0]
    assert set(host.states().values()) == {"running"}
    assert all(set(host.alive(name)) & set(pids) for name, pids in before.items())
    (host.work / "go").touch()
    wait_for(lambda: set(host.states().values()) == {"done"})
    assert all(values["reason"] == "ok" for values in host.history())
    for worker in workers:
        worker.terminate()
        assert worker.wait(30) == 0


def test_many_recover_at_once_after_a_crash(host: Any, wait_for: Any) -> None:
    """As after a reboot: every worker finds all orphans, and the first takes them up while the others still recover."""
    host.script("sleep 0.2\n")
    host.define(attempts=1)
    queue = host.queue()
    queue.enqueue([(f"job{number}", {}) for number in range(8)])
    for _number in range(8):
        host.dead_claimer()
    workers = [host.worker(f"t-{number}", "--until-idle") for number in range(4)]
    for worker in workers:
        worker.wait(60)
    host.work_off("t-9")
    assert set(host.states().values()) == {"done"}, [host.values(name) for name in host.states()]
    assert {host.values(name)["RECOVERIES"] for name in host.states()} == {"1"}


def test_what_another_recovered_and_lost_again_is_ended_too(host: Any, wait_for: Any) -> None:
    """Between the look and the lock the job gets a second owner, which dies as well and leaves its process behind."""
    host.script(LONG)
    host.define()
    queue = host.queue()
    queue.enqueue([("a", {})])
    host.dead_claimer()
    runner = make(queue.layout, queue.jobset)
    really_end = runner.end

    def end(carries: dict[str, str]) -> None:
        runner.end = really_end  # type: ignore[method-assign]
        really_end(carries)

    second: list[Any] = []
    plain_lock = queue.lock

    def late_lock() -> Any:
        queue.lock = plain_lock  # type: ignore[method-assign]
        other = host.queue()
        bring_back(other)
        worker = host.worker()
        wait_for(lambda: host.alive("a"))
        worker.kill()
        worker.wait()
        second.extend(host.alive("a"))
        return plain_lock()

    runner.end = end  # type: ignore[method-assign]
    queue.lock = late_lock  # type: ignore[method-assign]
    recover(queue, runner)
    assert second
    assert host.states() == {"a": "running"} or host.alive("a") == [], "in pending, nothing of it may run"


def test_old_leftovers_in_staging_are_removed(host: Any, killed_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host.define()
    queue = host.queue()
    assert killed_at(lambda: queue.enqueue([("a", {})]), 4)
    left = os.listdir(queue.layout.staging)
    bring_back(queue)
    assert os.listdir(queue.layout.staging) == left, "what is young may belong to somebody"
    # An hour later it belongs to nobody, but for what the queue has never made.
    (Path(queue.layout.staging) / "link").symlink_to("/etc/passwd")
    real = time.time
    monkeypatch.setattr(recovery.time, "time", lambda: real() + 3700)
    bring_back(queue)
    assert left and os.listdir(queue.layout.staging) == ["link"]


@pytest.mark.parametrize(("age", "stays"), [(3599.5, True), (3600.5, False)])
def test_an_hour_is_the_age_of_a_leftover(host: Any, monkeypatch: pytest.MonkeyPatch, age: float, stays: bool) -> None:
    host.define()
    queue = host.queue()
    left = Path(queue.layout.staging, "left")
    left.touch()
    monkeypatch.setattr(recovery.time, "time", lambda: left.lstat().st_ctime + age)
    bring_back(queue)
    assert left.exists() == stays


def test_an_orphan_that_is_taken_away_meanwhile_is_not_counted(host: Any) -> None:
    host.define()
    queue = host.queue()
    for name in "abc":
        host.put("running", name)
    runner = make(queue.layout, queue.jobset)

    def end(carries: dict[str, str]) -> None:
        # By hand, while the first is being recovered.
        host.path("running", "b").unlink(missing_ok=True)
        if host.path("running", "c").exists():
            host.path("running", "c").rename(host.path("done", "c"))

    runner.end = end  # type: ignore[assignment, method-assign]
    said: list[str] = []
    assert [(change.name, change.new_state) for change in recover(queue, runner, log=said.append)] == [("a", "pending")]
    assert host.states() == {"a": "pending", "c": "done"} and said == ["job a: running -> pending (orphan: no readable owner record)"]


def test_the_lock_of_a_worker_that_may_live_on_another_host_stays(host: Any) -> None:
    host.define()
    queue = host.queue()
    queue.enqueue([("a", {})])
    holder = owner.Holder(queue.layout.workers, "t-1", lease=60)
    # It was cut off a moment ago: the file server has let its lock go, and it may not know yet.
    holder._record = holder._record.replace(b"OWNER_HOST=", b"OWNER_HOST=not-")
    assert queue.claim(holder)
    os.close(holder._fd)
    for _look in range(2):
        assert bring_back(queue) == [] and host.states() == {"a": "running"}
        assert os.listdir(queue.layout.workers) == [holder.lock]


# ---- what goes on without its worker -------------------------------------------------------------------------------


class Lasting(Runner):
    """A runner whose commands need no worker to go on. It runs none: a test says which claims go on, and which have ended so."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue.layout, queue.jobset)
        self.going: set[str] = set()
        self.over: set[str] = set()
        self.told_to_end: list[str] = []

    def lasting(self, *wanted: dict[str, str], ended: bool = True) -> set[str]:
        return {one["SAGEQUEUE_CLAIM"] for one in wanted} & (self.going | (self.over if ended else set()))

    def end(self, *wanted: dict[str, str]) -> None:
        if not wanted:
            raise NotReady("it does not answer")
        self.told_to_end += [one["SAGEQUEUE_CLAIM"] for one in wanted]


@pytest.fixture
def left(host: Any) -> Any:
    """A queue, its runner, and the claims of three jobs a, b, c whose workers are dead."""
    host.define()
    queue = host.queue()
    for name in "abc":
        host.put("pending", name, "ATTEMPTS=2\n")
        assert host.dead_claimer() == name
    return queue, Lasting(queue), {name: queue.owner_of(name)["OWNER_CLAIM"] for name in "abc"}


def test_what_goes_on_is_left_to_the_next_worker_unless_somebody_wants_it_ended(host: Any, left: Any) -> None:
    queue, runner, claims = left
    runner.going = {claims["a"], claims["c"]}
    queue.kill(["c"], "anna")
    said: list[str] = []
    became = {"a": "running", "b": "pending", "c": "failed"}
    for check in (True, False):
        changes = recover(queue, runner, check=check, log=said.append)
        assert {change.name: change.new_state for change in changes} == became
        assert "left alone: it goes on" in changes[0].reason
        assert sorted(runner.told_to_end) == ([] if check else sorted([claims["b"], claims["c"]]))
    assert host.states() == became and host.values("c")["REASON"] == "killed"
    assert [line.partition(":")[0] for line in said if line.startswith("job")] == ["job b", "job c"]
    assert recovery.lasting(queue, runner, ended=True) == {claims["a"]: "a"}


def test_what_goes_on_although_its_end_was_recorded_is_brought_to_that_end(host: Any, left: Any) -> None:
    queue, runner, claims = left
    runner.going = set(claims.values())
    queue._overwrite("running", "b", {"CLAIM": claims["b"], "RESULT": "failed", "REASON": "timeout"})
    host.put("running", "c", "nonsense\n")
    assert {change.name: change.new_state for change in recover(queue, runner)} == {"a": "running", "b": "failed", "c": "failed"}


def test_an_operator_who_stops_ends_what_goes_on_and_leaves_what_has_ended(host: Any, left: Any) -> None:
    queue, runner, claims = left
    runner.going, runner.over = {claims["a"]}, {claims["b"]}
    assert recovery.put_back(queue, runner) == ["a"] and runner.told_to_end == [claims["a"]]
    values = host.values("a")
    assert (values["REASON"], values["ATTEMPTS"], "RECOVERIES" in values) == ("worker_stopped", "2", False)
    assert host.states() == {"a": "pending", "b": "running", "c": "running"}
    # For whoever works next, to record how it ended.
    assert recovery.lasting(queue, runner, ended=True) == {claims["b"]: "b"} and queue.why_orphan("c")
    runner.going.clear()
    # Nothing has to be ended any more, so it need not answer.
    assert recovery.put_back(queue, runner) == [] and len(os.listdir(queue.layout.workers)) == 3
