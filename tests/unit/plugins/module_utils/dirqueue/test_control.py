# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What an operator decides for single jobs: hold, release, priority, kill, reset; and how they are named and listed."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import job, listing, owner, progress, progress_text, selection
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.kill import kill
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.unit.batch_host import claimed
from hypothesis import given
from hypothesis import strategies as st

MANY = 1200


@pytest.fixture
def queue(host: Any) -> Queue:
    host.define(stride=12)
    return host.queue()


def moved(changes: Any) -> list[tuple[str, Any, Any]]:
    return [(change.name, change.old_state, change.new_state) for change in changes]


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["off[0-3,7]"], ["t_off0", "t_off1", "t_off2", "t_off3", "t_off7"]),
        (["t_off1"], ["t_off1"]),
        (["off1", "off1", "by_hand"], ["t_off1", "by_hand"]),
        (["off1*"], ["t_off1", "t_off10", "t_off11"]),
        (["off?"], [f"t_off{number}" for number in range(10)]),
        (["*hand"], ["by_hand"]),
        (["x[08-11]"], ["x08", "x09", "x10", "x11"]),
        (["x[8-9]"], ["x8"]),
        (["off[9-11],by_hand"], ["t_off9", "t_off10", "t_off11", "by_hand"]),
        # As Ansible splits it.
        (["off[0", "2]", "by_hand"], ["t_off0", "t_off2", "by_hand"]),
    ],
)
def test_names(queue: Queue, patterns: list[str], names: list[str]) -> None:
    queue.enqueue([(name, {}) for name in (*(f"t_off{number}" for number in range(12)), "by_hand", "x8", "x08", "x09", "x10", "x11")])
    assert selection.select(queue, patterns) == names


def test_names_that_mean_nothing(queue: Queue) -> None:
    with pytest.raises(QueueError, match=r"jobset t: no job matches 'off\[8-9\]'; it has no jobs"):
        selection.select(queue, ["off[8-9]"])
    queue.enqueue(queue.jobset.offset_jobs())
    with pytest.raises(QueueError, match=r"no job matches 'off\[20-30\]'; there are 12 jobs: t_off0, t_off1, t_off2 ... t_off11"):
        selection.select(queue, ["off[20-30]"])
    with pytest.raises(QueueError, match="no jobs are named"):
        selection.select(queue, [" , "])
    with pytest.raises(QueueError, match="ends before"):
        selection.select(queue, ["off[3-1]"])
    for bad, where in (("off[0-3", "[0-3"), ("off[a-c]", "[a-c]"), ("../x", "/x"), ("a b", " b"), ("off[]", "[]")):
        why = f"{bad!r} names no jobs: at {where!r} a name, * or ?, or numbers in brackets such as [0-3,7] should stand"
        with pytest.raises(QueueError, match=re.escape(why)):
            selection.select(queue, [bad])
    assert selection.select(queue, ["gone", "x*"], strict=False) == ["gone"] and selection.select(queue, None) is None


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 5))
def test_a_range_matches_its_numbers_and_no_others(first: int, second: int, width: int) -> None:
    low, high = sorted((first, second))
    text = str(low).zfill(width)
    matches = re.compile(selection.expression(f"[{text}-{high}]", "t")).fullmatch
    least = len(text) if text.startswith("0") else 1
    for number in {0, low - 1, low, low + 1, (low + high) // 2, high - 1, high, high + 1, 10 * high} - {-1}:
        assert bool(matches(str(number).zfill(least))) == (low <= number <= high)
    assert not matches("") and not matches("0" * 9 + text)


# ---- hold, release, priority ------------------------------------------------------------------------------------


def test_a_held_job_waits_and_keeps_its_place(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue(queue.jobset.offset_jobs([0, 1, 2, 3]))
    queue.look()
    place = host.path("pending", "t_off1").stat().st_mtime_ns
    predicted = queue.hold(["t_off1", "t_off2"], "anna", check=True)
    assert host.states()["t_off1"] == "pending"
    assert moved(predicted) == moved(queue.hold(["t_off1", "t_off2"], "anna"))
    assert host.values("t_off1")["HELD_BY"] == "anna" and host.values("t_off1")["OFFSET"] == "1"
    assert (queue.counts()["pending"], progress.summary(queue)["held"]) == (4, 2)
    assert [c.reason for c in queue.hold(["t_off1", "none"])] == ["left alone: already held", "left alone: there is no such job"]
    assert queue.enqueue([("t_off1", {})])[0].reason == "left alone: already held"
    assert queue.claim(holder).name == "t_off0"
    assert queue.hold(["t_off0"])[0].reason == "left alone: running"
    # Somebody has listed t_off3 by now; what is released goes before it.
    assert moved(queue.release(["t_off1"])) == [("t_off1", "held", "pending")]
    assert host.path("pending", "t_off1").stat().st_mtime_ns == place and "HELD_AT" not in host.values("t_off1")
    assert claimed(queue, holder) == ["t_off1", "t_off3"] and host.states()["t_off2"] == "held"
    assert [entry for entry in os.listdir(queue.layout.staging) if not entry.startswith("owner.")] == []
    assert moved(queue.remove(None, ["pending"])) == [("t_off2", "held", None)]


def test_nothing_more_happens_by_itself_when_all_is_held(queue: Queue) -> None:
    queue.enqueue([("a", {})])
    assert not progress.settled(progress.summary(queue))
    queue.hold(["a"])
    found = progress.summary(queue)
    assert progress.settled(found) and "1 pending (1 held)" in progress_text.line(found) and found["counts"]["pending"] == 1


def test_a_priority_holds_at_once_and_again_later(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([(name, {}) for name in ("a", "b", "c", "d")])
    place = host.path("pending", "d").stat().st_mtime_ns
    assert queue.claim(holder).name == "a"
    changes = queue.prioritize(["d"], "5")
    assert changes[0].changed and (changes[0].before, changes[0].after) == (", priority 0", ", priority 5")
    assert queue.prioritize(["d"], "5")[0].reason == "left alone: its priority is 5 already"
    assert queue.claim(holder).name == "d"
    queue.finish(claim_of(queue, "d"), "pending", {"REASON": "gate"})
    queue.prioritize(["d"], "-1")
    queue.prioritize(["d"], "0")
    assert host.path("pending", "d").stat().st_mtime_ns == place
    queue.hold(["b"])
    queue.prioritize(["b"], "-100")
    assert host.states()["b"] == "held" and host.values("b")["HELD_BY"]
    queue.release(["b"])
    assert claimed(queue, holder) == ["c", "d", "b"]
    with pytest.raises(QueueError, match="PRIORITY=101 is not a whole number from -100 to 100"):
        queue.prioritize(["a"], "101")


def claim_of(queue: Queue, name: str) -> Any:
    from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Claim

    return Claim(name, queue.owner_of(name)["OWNER_CLAIM"], queue.read("running", name))


def test_jobs_of_a_batch(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([(f"j{number}", {"TEXT": "it's"}) for number in range(MANY)])
    names = selection.select(queue, ["j[1000-1099]"])
    assert moved(queue.hold(names)) == [(name, "pending", "held") for name in names]
    assert queue.counts()["pending"] == MANY and len(queue.entries("held")) == 100 and host.values("j1050")["TEXT"] == "it's"
    assert {c.reason for c in queue.prioritize(["j1000", "j1150", "j0"], "9")} == {"priority 9"}
    assert {c.reason for c in queue.prioritize(["j1150"], "9")} == {"left alone: its priority is 9 already"}
    assert [c.new_state for c in queue.kill(["j5", "j1001"], "anna")] == ["failed", "failed"]
    assert host.values("j5")["REASON"] == host.values("j1001")["REASON"] == "killed" and host.values("j5")["ENQUEUED_AT"]
    assert [queue.claim(holder).name for _job in range(8)] == ["j0", "j1150", "j1", "j2", "j3", "j4", "j6", "j7"]
    queue.release(names)
    assert len(claimed(queue, holder)) == MANY - 8 - 2 and queue.counts() == {"pending": 0, "running": MANY - 2, "done": 0, "failed": 2}
    assert os.listdir(queue.layout.batches) == []


def test_a_claimer_at_the_same_moment_loses_nothing(host: Any, queue: Queue) -> None:
    """Two threads claim what a third holds, releases and moves about: each job is run once."""
    names = [f"j{number}" for number in range(200)]
    queue.enqueue([(name, {}) for name in names])
    ran: list[str] = []
    over = threading.Event()

    def work(number: int) -> None:
        mine = host.queue()
        holder = owner.Holder(mine.layout.workers, f"t-{number}")
        while True:
            ending = over.is_set()
            claim = mine.claim(holder)
            if claim:
                mine.finish(claim, "done", {"REASON": "ok"})
                ran.append(claim.name)
            elif ending:
                break
        holder.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for start in range(200):
        some = names[start:] + names[:start]
        queue.hold(some[::50])
        queue.prioritize(some[1::50], str(start % 9))
        queue.release(some[::50])
    over.set()
    for thread in threads:
        thread.join()
    assert sorted(ran) == sorted(names) and set(host.states().values()) == {"done"}


def test_a_change_that_was_cut_short_is_undone(host: Any, queue: Queue, killed_at: Any) -> None:
    queue.enqueue([("a", {"X": "1"}), ("b", {"X": "1"})])
    number = 1
    while killed_at(lambda: queue.hold(["a"]) and None, number):
        recover(queue, make(queue.layout, queue.jobset))
        assert host.states() in ({"a": "pending", "b": "pending"}, {"a": "held", "b": "pending"})
        assert host.values("a")["X"] == "1" and ("HELD_AT" in host.values("a")) == (host.states()["a"] == "held")
        queue.release(["a"])
        number += 1
    assert number > 8


def test_a_queue_of_an_older_version_gets_the_folder(host: Any, queue: Queue) -> None:
    queue.enqueue([("a", {})])
    os.rmdir(queue.layout.held)
    assert moved(host.queue().hold(["a"])) == [("a", "pending", "held")]


def test_what_a_job_does_not_see(host: Any, queue: Queue) -> None:
    host.script("env | grep ^JOB_ > got\n")
    queue.enqueue([("a", {"X": "1"})])
    queue.hold(["a"])
    queue.release(["a"])
    host.work_off()
    assert (host.work / "got").read_text() == "JOB_X=1\n"
    with pytest.raises(QueueError, match="HELD_AT is written by the queue"):
        queue.enqueue([("b", {"HELD_AT": "now"})])


# ---- kill -------------------------------------------------------------------------------------------------------

STUBBORN = "trap '' TERM\nsetsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &\ntouch up\nwhile :; do sleep 0.1; done\n"


@pytest.mark.parametrize("script", ["touch up; exec sleep 600\n", STUBBORN], ids=["polite", "stubborn"])
def test_a_running_job_is_killed(host: Any, wait_for: Any, script: str) -> None:
    host.script(script)
    host.define(grace=0.3, attempts=3)
    queue = host.queue()
    queue.enqueue([("a", {}), ("b", {}), ("c", {})])
    worker = host.worker()
    wait_for(lambda: (host.work / "up").exists() and host.alive("a"))
    assert moved(kill(queue, ["a"], "anna", check=True)) == [("a", "running", "failed")] and host.alive("a")
    host.script("touch ran.$SAGEQUEUE_JOB\n")
    changes = kill(queue, ["a", "b"], "anna")
    assert moved(changes) == [("a", "running", "failed"), ("b", "pending", "failed")] and {c.reason for c in changes} == {"killed"}
    assert host.alive("a") == [] and "failed: killed: by anna at " in host.log("a")
    for name in ("a", "b"):
        assert host.values(name)["REASON"] == "killed" and host.values(name)["DETAIL"].startswith("by anna at 20")
    wait_for(lambda: host.states()["c"] == "done")
    worker.terminate()
    worker.wait()
    assert host.states() == {"a": "failed", "b": "failed", "c": "done"} and not (host.work / "ran.a").exists()
    assert [line["reason"] for line in host.history()] == ["killed", "ok"]
    assert not [entry for entry in os.listdir(queue.layout.run) if entry.startswith("kill.")]
    assert [c.reason for c in kill(queue, ["a", "c"])] == ["left alone: already failed", "left alone: done"]


def test_the_job_of_a_dead_worker_is_killed(host: Any, wait_for: Any) -> None:
    host.script("exec sleep 600\n")
    host.define()
    queue = host.queue()
    queue.enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: host.alive("a"))
    worker.kill()
    worker.wait()
    assert moved(kill(queue, ["a"], "anna")) == [("a", "running", "failed")]
    assert host.alive("a") == [] and host.values("a")["DETAIL"].startswith("by anna at") and host.owners() == []


def test_a_request_outlives_who_asked_and_who_was_asked(host: Any, wait_for: Any) -> None:
    host.script("exec sleep 600\n")
    host.define()
    queue = host.queue()
    queue.enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: host.alive("a"))
    worker.send_signal(signal.SIGSTOP)
    queue.kill(["a"], "anna")
    worker.kill()
    worker.wait()
    assert [change.new_state for change in recover(queue, make(queue.layout, queue.jobset))] == ["failed"]
    assert host.values("a")["DETAIL"].startswith("by anna at") and host.alive("a") == [] and not list(host.root.rglob("kill.*"))


def test_a_worker_that_does_not_answer_is_named_and_obeys_later(host: Any, wait_for: Any) -> None:
    host.script("exec sleep 600\n")
    host.define(grace=0.3)
    queue = host.queue()
    queue.enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: host.alive("a"))
    worker.send_signal(signal.SIGSTOP)
    (change,) = kill(queue, ["a"], "anna", wait=0.2)
    assert not change.changed and "still running; its worker was asked" in change.reason and host.states() == {"a": "running"}
    worker.send_signal(signal.SIGCONT)
    wait_for(lambda: host.states() == {"a": "failed"})
    recover(queue, make(queue.layout, queue.jobset))
    assert not [entry for entry in os.listdir(queue.layout.run) if entry.startswith("kill.")]


def test_killing_the_job_that_has_solved_the_jobset_loses_nothing(host: Any, wait_for: Any) -> None:
    host.script('echo "SAT off=1 stride=12" > new; mv new t_stop.txt; exec sleep 600\n')
    host.define(stride=12)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs([1]))
    host.worker()
    wait_for(lambda: (host.work / "t_stop.txt").exists() and host.alive("t_off1"))
    (change,) = kill(queue, ["t_off1"])
    assert (change.new_state, host.values("t_off1")["REASON"]) == ("done", "solved")


def test_killed_is_retried_only_when_asked_for(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {"X": "1"})])
    queue.kill(["a"])
    assert claimed(queue, holder) == []
    assert moved(queue.retry(["a"])) == [("a", "failed", "pending")] and claimed(queue, holder) == ["a"]


# ---- reset ------------------------------------------------------------------------------------------------------


def test_reset(host: Any, queue: Queue, holder: owner.Holder) -> None:
    names = ["d", "f", "r", "p"]
    queue.enqueue([(name, {"X": name, "PRIORITY": "3"}) for name in names])
    for state in ("done", "failed"):
        queue.finish(queue.claim(holder), state, {"REASON": "ok", "ATTEMPTS": "3", "EXIT_STATUS": "0"})
    queue.claim(holder)
    host.put("failed", "broken", "nonsense\n")
    predicted = queue.reset([*names, "broken", "none"], check=True)
    changes = queue.reset([*names, "broken", "none"])
    assert predicted == changes
    assert moved(changes)[:4] == [
        ("d", "done", "pending"),
        ("f", "failed", "pending"),
        ("r", "running", "running"),
        ("p", "pending", "pending"),
    ]
    assert [c.reason.partition(":")[2][:20] for c in changes[2:]] == [
        " running; kill it fi",
        " already pending",
        " line 1 is not KEY=V",
        " there is no such jo",
    ]
    values = host.values("d")
    assert (values["X"], values["PRIORITY"]) == ("d", "3") and not {"ATTEMPTS", "REASON", "EXIT_STATUS", "STARTED_AT"} & set(values)
    assert claimed(queue, holder) == ["p", "d", "f"]


# ---- list -------------------------------------------------------------------------------------------------------


def test_list(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue(queue.jobset.offset_jobs())
    queue.finish(
        queue.claim(holder), "failed", {"REASON": "exit_status", "DETAIL": "exit status 3, " * 9, "ATTEMPTS": "3", "DURATION_S": "75.2"}
    )
    queue.claim(holder)
    queue.hold(["t_off10"], "anna")
    queue.prioritize(["t_off11"], "-7")
    found = listing.listing(queue)
    assert [one["name"] for one in found["jobs"]] == [f"t_off{number}" for number in range(12)] and found["total"] == 12
    one = found["jobs"][0]
    assert (one["state"], one["attempts"], one["seconds"], one["reason"]) == ("failed", 3, 75.2, "exit_status")
    assert (found["jobs"][1]["state"], found["jobs"][1]["worker"], found["jobs"][10]["held_by"]) == ("running", "t-1", "anna")
    assert found["jobs"][11]["priority"] == -7 and 0 <= found["jobs"][2]["seconds"] < 600
    lines = listing.table(found).splitlines()
    assert lines[0].split() == ["NAME", "STATE", "TRIES", "PRIO", "TIME", "WHY"] and lines[-1] == "12 jobs"
    assert max(map(len, lines)) == 80 and lines[1].endswith("...") and lines[1].split()[:5] == ["t_off0", "failed", "3", "0", "1"]
    assert lines[11].endswith("held by anna")
    for states, names, total in (
        (["failed", "running"], ["t_off0", "t_off1"], 2),
        (["held"], ["t_off10"], 1),
        (["pending"], ["t_off2", "t_off3"], 10),
        (["done"], [], 0),
    ):
        found = listing.listing(queue, states=states, limit=2)
        assert ([one["name"] for one in found["jobs"]], found["total"]) == (names, total)
    assert listing.table(found) == "0 jobs"
    assert "2 of 10 jobs are shown; limit=0 shows all" in listing.table(listing.listing(queue, states=["pending"], limit=2))
    assert [one["name"] for one in listing.listing(queue, ["off[0,11]"], limit=0)["jobs"]] == ["t_off0", "t_off11"]
    assert listing.listing(queue, ["off0"], ["pending"])["total"] == 0
    with pytest.raises(QueueError, match="no job matches 'nix'"):
        listing.listing(queue, ["nix"])


def test_a_batch_is_listed_with_what_has_left_it(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([(f"t_j{number}", {"PRIORITY": "2"}) for number in range(MANY)])
    queue.finish(queue.claim(holder), "done", {"REASON": "ok"})
    found = listing.listing(queue, limit=3)
    assert [(one["name"], one["state"], one["priority"]) for one in found["jobs"]] == [
        ("t_j0", "done", 2), ("t_j1", "pending", 2), ("t_j2", "pending", 2)
    ] and found["total"] == MANY  # fmt: skip
    found = listing.listing(queue, ["j[1190-2000],j0"], limit=0)
    assert [one["name"] for one in found["jobs"]] == ["t_j0", *(f"t_j{number}" for number in range(1190, MANY))] and found["total"] == 11
    assert found["jobs"][-1]["since"].endswith("Z")
    assert listing.listing(queue, limit=0)["total"] == len(listing.listing(queue, limit=0)["jobs"]) == MANY
    assert job.is_name(found["jobs"][0]["name"])


def test_the_program(host: Any) -> None:
    host.define(stride=4)
    host.queue().enqueue(host.queue().jobset.offset_jobs())
    assert host.sagequeue("hold", "t", "off[1-2]").stdout == "t_off1: held (held)\nt_off2: held (held)\n"
    assert host.sagequeue("priority", "t", "5", "off3").stdout == "t_off3: pending (priority 5)\n"
    assert host.sagequeue("release", "t", "off2").returncode == 0
    assert host.sagequeue("kill", "t", "off0").stdout == "t_off0: failed (killed)\n"
    ran = host.sagequeue("list", "t", "--state", "held", "--state", "failed")
    assert [line.split()[:2] for line in ran.stdout.splitlines()] == [
        ["NAME", "STATE"],
        ["t_off0", "failed"],
        ["t_off1", "held"],
        ["2", "jobs"],
    ]
    assert host.sagequeue("reset", "t", "off0").stdout == "t_off0: pending (was killed)\n"
    ran = host.sagequeue("kill", "t", "of7")
    assert ran.returncode == 1 and "no job matches 'of7'; there are t_off0, t_off1, t_off2, t_off3" in ran.stderr


def test_what_was_malformed_is_not_reset_and_what_is_malformed_is_listed(host: Any, queue: Queue, holder: owner.Holder) -> None:
    host.put("pending", "bad", "nonsense\n")
    assert queue.claim(holder) is None and host.states() == {"bad": "failed"}
    (change,) = queue.reset(["bad"])
    assert change.new_state == "failed" and "malformed" in change.reason and "remove it and enqueue it anew" in change.reason
    host.put("done", "odd", "nonsense\n")
    host.put("pending", "plain", "X=1\n")
    found = {one["name"]: one for one in listing.listing(queue)["jobs"]}
    assert found["odd"]["reason"] == "malformed_job" and found["plain"]["seconds"] is None
    with pytest.raises(QueueError, match="there is no state asleep; there are "):
        listing.listing(queue, None, ["asleep"])
