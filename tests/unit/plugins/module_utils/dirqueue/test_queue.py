# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Transitions: each alone, in races, on a full disk, and killed at every point."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, job, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import LostClaim, MalformedJob, QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.unit.batch_host import claimed


@pytest.fixture
def queue(host: Any) -> Queue:
    host.define(stride=4)
    return host.queue()


def recovered(queue: Queue) -> dict[str, str | None]:
    return {change.name: change.new_state for change in recover(queue, make(queue.layout, queue.jobset))}


# ---- enqueue ----------------------------------------------------------------------------------------------------


def test_jobs_are_enqueued_once(host: Any, queue: Queue) -> None:
    changes = queue.enqueue(queue.jobset.offset_jobs())
    assert [(c.name, c.old_state, c.new_state) for c in changes] == [(f"t_off{k}", None, "pending") for k in range(4)]
    before = host.path("pending", "t_off1").stat()
    again = queue.enqueue(queue.jobset.offset_jobs(), force=True)
    assert {(c.old_state, c.new_state, c.reason) for c in again} == {("pending", "pending", "left alone: already pending")}
    assert host.path("pending", "t_off1").stat() == before
    assert host.values("t_off1")["OFFSET"] == "1" and host.values("t_off1")["ENQUEUED_AT"]
    assert os.listdir(queue.layout.staging) == []


def test_checking_changes_nothing(host: Any, queue: Queue) -> None:
    predicted = queue.enqueue([("a", {}), ("b", {})], check=True)
    assert host.states() == {}
    assert queue.enqueue([("a", {}), ("b", {})]) == predicted


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([("good", {}), ("../bad", {})], "can't be a name"),
        ([("good", {}), ("good", {})], "job good is named twice"),
        ([("good", {}), ("x", {"RESULT": "done"})], "job x: RESULT is written by the queue"),
        ([("good", {}), ("x", {"A": "1\n2"})], "job x: the value of A has a line break"),
        ([("good", {}), ("x", {"low": "1"})], "job x: 'low' is not a key"),
        ([("good", {}), ("x", {"A": "x" * 70_000})], "larger than"),
    ],
)
def test_one_bad_job_and_nothing_is_enqueued(host: Any, queue: Queue, jobs: Any, message: str) -> None:
    with pytest.raises(QueueError) as caught:
        queue.enqueue(jobs)
    assert message in str(caught.value)
    assert host.states() == {} and os.listdir(queue.layout.staging) == []


def test_force_redoes_what_is_finished(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {"X": "1"})])
    queue.finish(queue.claim(holder), "done", {"REASON": "ok", "ATTEMPTS": "3"})
    assert queue.enqueue([("a", {"X": "2"})])[0].new_state == "done"
    change = queue.enqueue([("a", {"X": "2"}), ("b", {})], force=True)[0]
    assert (change.old_state, change.new_state) == ("done", "pending")
    assert host.states() == {"a": "pending", "b": "pending"}
    assert host.values("a")["X"] == "2" and "REASON" not in host.values("a") and "ATTEMPTS" not in host.values("a")


def test_force_leaves_a_running_job_alone(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    queue.claim(holder)
    assert queue.enqueue([("a", {})], force=True)[0].reason == "left alone: already running"


def many(count: int) -> list[tuple[str, dict[str, str]]]:
    return [(f"job{number}", {"TEXT": "x" * 3000}) for number in range(count)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("count", [19, 20, 200])
def test_a_full_disk_and_nothing_is_enqueued(small_disk: Any, count: int) -> None:
    small_disk.define()
    queue = small_disk.queue()
    if count < 100:
        (small_disk.root / "var" / "ballast").write_bytes(b"x" * 200 * 1024)
    queue.enqueue([("before", {})])
    with pytest.raises(QueueError, match="can't enqueue, nothing was enqueued: /.*/var/t: No space left on device; free some space"):
        queue.enqueue(many(count))
    assert small_disk.states() == {"before": "pending"}
    assert os.listdir(queue.layout.staging) == []
    queue.enqueue([("after", {})])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_and_nothing_is_enqueued_by_force_either(small_disk: Any) -> None:
    small_disk.define()
    queue = small_disk.queue()
    finished = [(f"old{number}", {}) for number in range(3)]
    queue.enqueue(finished)
    holder = owner.Holder(queue.layout.workers, "t-1")
    for _job in finished:
        queue.finish(queue.claim(holder), "done", {"REASON": "ok"})
    (small_disk.root / "var" / "ballast").write_bytes(b"x" * 200 * 1024)
    before = small_disk.states()
    with pytest.raises(QueueError, match="nothing was enqueued"):
        queue.enqueue([(name, {"TEXT": "x" * 30_000}) for name, _values in [("fresh", {}), *finished]], force=True)
    assert small_disk.states() == before
    assert small_disk.values("old0")["REASON"] == "ok"
    # But for the file of an owner record, to be used again.
    assert [entry for entry in os.listdir(queue.layout.staging) if not entry.startswith("owner.")] == []


def test_a_limit_on_file_sizes_and_nothing_is_enqueued(host: Any, queue: Queue) -> None:
    limited = host.python(
        "import resource, sys\nfrom dirqueue import definitions\nfrom dirqueue.layout import Layout\nfrom dirqueue.queue import Queue\n"
        "queue = Queue(Layout(sys.argv[1], 't'), definitions.load(sys.argv[1], 't'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    queue.enqueue([('small', {}), ('large', {'A': 'x' * 9000})])\n"
        "except Exception as exc:\n    print(type(exc).__name__, exc)\n",
        str(host.root),
    )
    assert "QueueError jobset t: can't enqueue" in limited.stdout.read()
    assert host.states() == {} and os.listdir(queue.layout.staging) == []


# ---- claim ------------------------------------------------------------------------------------------------------


def test_a_job_put_back_keeps_its_place(queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {}), ("b", {})])
    queue.finish(queue.claim(holder), "pending", {"REASON": "gate"})
    queue._names.clear()
    assert queue.claim(holder).name == "a"


def test_the_owner_record_of_a_claim(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {"X": "1"})])
    claim = queue.claim(holder)
    assert claim.values["X"] == "1" and host.states() == {"a": "running"}
    record = queue.owner_of("a")
    assert (record["OWNER_CLAIM"], record["OWNER_PID"], record["OWNER_WORKER_ID"]) == (claim.id, str(os.getpid()), "t-1")
    assert queue.why_orphan("a") == ""
    assert queue.claim(holder) is None


def test_a_closed_gate_lets_nothing_through(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    assert queue.close_gate("anna") and not queue.close_gate("bert")
    assert "STOP requested by anna at 2" in queue.gate().text and queue.gate().requested
    assert queue.claim(holder) is None
    assert queue.open_gate() and not queue.open_gate()
    assert "STOP requested by anna" in Path(queue.layout.gates).read_text(encoding="utf-8")
    assert queue.claim(holder).name == "a"
    assert os.listdir(host.work) == []


def test_checking_the_gate_does_not_move_it(queue: Queue) -> None:
    assert queue.close_gate("x", check=True) and not queue.gate().closed
    queue.close_gate("x")
    assert queue.open_gate(check=True) and queue.gate().closed


def test_a_gate_that_a_program_closed_stays_as_it_is(queue: Queue) -> None:
    Path(queue.jobset.gate).write_text("SAT gidx=3 off=1 stride=4\n", encoding="utf-8")
    assert not queue.close_gate("anna")
    queue.enqueue(queue.jobset.offset_jobs())
    assert queue.gate().solved_by == "t_off1" and not queue.gate().requested


@pytest.mark.skipif(not shutil.which("setfacl"), reason="setfacl is not installed")
@pytest.mark.parametrize(("acl", "rights"), [("", "other::r--"), ("d:u:12345:rwx,d:o::-", "user:12345:rwx\t#effective:rw-")])
def test_who_may_read_a_gate(host: Any, queue: Queue, acl: str, rights: str) -> None:
    if acl:
        subprocess.run(["setfacl", "-m", acl, str(host.work)], check=True)
    before = os.umask(0o077)
    try:
        queue.close_gate("anna")
    finally:
        os.umask(before)
    said = subprocess.run(["getfacl", "--omit-header", "-p", queue.jobset.gate], capture_output=True, text=True, check=True).stdout
    assert rights in said.splitlines(), said


def test_a_gate_that_is_no_file_is_closed(queue: Queue, holder: owner.Holder) -> None:
    os.symlink("nowhere", queue.jobset.gate)
    queue.enqueue([("a", {})])
    assert queue.gate().closed and queue.claim(holder) is None


RACER = (
    "import sys\nfrom dirqueue import definitions, owner\nfrom dirqueue.layout import Layout\nfrom dirqueue.queue import Queue\n"
    "queue = Queue(Layout(sys.argv[1], 't'), definitions.load(sys.argv[1], 't'))\n"
    "holder = owner.Holder(queue.layout.workers, 't-' + sys.argv[2])\n"
    "print('up', flush=True)\nsys.stdin.readline()\n"
    "while True:\n"
    "    claim = queue.claim(holder)\n"
    "    if claim is None:\n        break\n"
    "    print(claim.name)\n"
    "    if sys.argv[3] == 'finish':\n        queue.finish(claim, 'done', {'REASON': 'ok'})\n"
)


@pytest.mark.parametrize("then", ["keep", "finish"])
def test_each_of_500_jobs_is_claimed_once_by_four_processes(host: Any, queue: Queue, then: str) -> None:
    names = [f"job{number}" for number in range(500)]
    queue.enqueue([(name, {}) for name in names])
    racers = [host.python(RACER, str(host.root), str(number), then) for number in range(4)]
    for racer in racers:
        racer.stdout.readline()
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [racer.communicate()[0].split() for racer in racers]
    assert sorted(sum(taken, [])) == sorted(names)
    assert set(host.states().values()) == ({"running"} if then == "keep" else {"done"})
    assert len(host.owners()) == (500 if then == "keep" else 0)
    if then == "finish":
        assert sorted(line["job"] for line in host.history()) == sorted(names)


def test_a_claimer_who_finds_its_list_taken_by_others_looks_again(queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    # Nothing was held or released for long, so its list stays as it is.
    os.utime(queue.layout.held, (1000, 1000))
    assert queue.look()
    # Another one is about to move it to running, and a job has come since.
    assert queue._own("a", holder.record("0" * 32), "0" * 32)
    queue.enqueue([("b", {})])
    assert queue.claim(holder).name == "b"


def test_a_claimer_that_died_before_its_job_ran(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    name = host.dead_claimer()
    os.rename(host.path("running", name), host.path("pending", name))
    assert host.owners() == ["a.env.owner"]
    assert queue.claim(holder).name == "a"
    assert queue.owner_of("a")["OWNER_PID"] == str(os.getpid())


def test_recovery_removes_what_a_dead_claimer_left(host: Any, queue: Queue) -> None:
    queue.enqueue([("a", {})])
    name = host.dead_claimer()
    os.rename(host.path("running", name), host.path("pending", name))
    assert recovered(queue) == {}
    assert host.owners() == [] and host.states() == {"a": "pending"}
    assert os.listdir(queue.layout.workers) == []


# ---- finish -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["done", "failed", "pending"])
def test_a_result_is_in_the_file_and_in_the_history(host: Any, queue: Queue, holder: owner.Holder, state: str) -> None:
    queue.enqueue([("a", {"X": "1"})])
    claim = queue.claim(holder)
    queue.finish(claim, state, {"REASON": "exit_status", "EXIT_STATUS": "3", "ATTEMPTS": "1"})
    assert host.states() == {"a": state} and host.owners() == []
    values = host.values("a")
    assert (values["X"], values["EXIT_STATUS"], values["CLAIM"], values["RESULT"]) == ("1", "3", claim.id, state)
    assert host.history() == [
        {"job": "a", "result": state, "attempts": "1", "exit_status": "3", "reason": "exit_status", "claim": claim.id}
    ]


def test_a_new_attempt_leaves_nothing_of_the_last(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    queue.finish(queue.claim(holder), "pending", {"REASON": "signal", "SIGNAL": "9", "ATTEMPTS": "1"})
    queue._names.clear()
    queue.finish(queue.claim(holder), "done", {"REASON": "ok", "EXIT_STATUS": "0", "ATTEMPTS": "2"})
    assert "SIGNAL" not in host.values("a") and host.values("a")["ATTEMPTS"] == "2"


def test_a_claim_that_was_lost_records_nothing(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    claim = queue.claim(holder)
    with pytest.raises(LostClaim, match="job a is no longer held"):
        queue.finish(claim._replace(id="another"), "done", {"REASON": "ok"})
    (host.root / "var/t/queue/running/a.env.owner").unlink()
    with pytest.raises(LostClaim):
        queue.finish(claim, "done", {"REASON": "ok"})
    assert host.states() == {"a": "running"} and host.history() == []


def test_a_job_that_was_taken_away_is_a_lost_claim(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    claim = queue.claim(holder)
    host.path("running", "a").unlink()
    with pytest.raises(LostClaim, match="job a has vanished from running; its result is not recorded"):
        queue.finish(claim, "done", {"REASON": "ok"})
    queue.close()
    assert os.listdir(queue.layout.staging) == []


def test_a_job_of_the_largest_size_can_be_finished(host: Any, queue: Queue, holder: owner.Holder) -> None:
    size = 65536
    while True:
        try:
            queue.enqueue([("a", {"A": "x" * size})])
            break
        except QueueError:
            size -= 8
    queue.finish(queue.claim(holder), "done", {"REASON": "ok", "DETAIL": "d" * 500, "WORKER": "w" * 200})
    assert host.states() == {"a": "done"} and len(host.values("a")["A"]) == size


def test_a_large_file_put_there_by_hand_blocks_nobody(host: Any, queue: Queue, holder: owner.Holder) -> None:
    host.put("pending", "a", "A=" + "x" * 65_530 + "\n")
    claim = queue.claim(holder)
    if claim:
        queue.finish(claim, "done", {"REASON": "ok", "DETAIL": "d" * 500})
    assert set(host.states()) == {"a"} and host.states()["a"] in ("done", "failed") and host.owners() == []


# ---- what can't be a job ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["OFFSET\n", "OFFSET=1\nOFFSET=2\n", "x" * 70_000])
def test_a_malformed_job_fails_and_its_file_is_kept(host: Any, queue: Queue, holder: owner.Holder, text: str) -> None:
    os.utime(host.put("pending", "bad", text), (1000, 1000))
    queue.enqueue([("good", {})])
    assert queue.claim(holder).name == "good"
    assert host.states() == {"bad": "failed", "good": "running"}
    values = host.values("bad")
    assert values["REASON"] == "malformed_job" and values["DETAIL"] and values["RESULT"] == "failed"
    assert Path(values["ORIGINAL"]).read_text(encoding="utf-8") == text
    assert host.owners() == ["good.env.owner"] and host.history()[0]["reason"] == "malformed_job"
    assert "malformed (" in queue.retry()[0].reason


def litter(host: Any, state: str) -> dict[str, str]:
    """Put what can't be jobs into a state; return entry and reason."""
    outside = host.base / "outside"
    outside.write_text("SECRET=1\n", encoding="utf-8")
    host.path(state, "link").symlink_to(outside)
    os.mkfifo(host.path(state, "fifo"))
    host.path(state, "folder").mkdir()
    os.link(outside, host.path(state, "second"))
    (host.path(state, "x").parent / "notes.txt").write_text("", encoding="utf-8")
    (host.path(state, "x").parent / ".hidden.env").write_text("", encoding="utf-8")
    found = {"link": "not a regular file", "fifo": "not a regular file", "folder": "not a regular file", "second": "hard link"}
    host.put(state, "closed").chmod(0)
    found["closed"] = "its permissions keep its owner from reading it"
    if os.geteuid() == 0:
        os.chown(host.put(state, "foreign"), 12345, -1)
        found["foreign"] = "belongs to another user (uid 12345)"
    return found


def test_what_cannot_be_a_job_is_refused_and_named_while_the_rest_goes_on(host: Any, queue: Queue, holder: owner.Holder) -> None:
    found = litter(host, "pending")
    queue.enqueue([("good", {})])
    assert claimed(queue, holder) == ["good"]
    assert {f"pending/{name}.env" for name in found} < set(queue.refused)
    for name, reason in found.items():
        assert reason in queue.refused[f"pending/{name}.env"]
        with pytest.raises(MalformedJob):
            queue.read("pending", name)
    assert queue.refused["pending/'notes.txt'"] == queue.refused["pending/'.hidden.env'"] == "not a job's name"
    assert all(os.path.lexists(host.path("pending", name)) for name in found), "nothing was moved or removed"
    assert os.path.exists(host.base / "outside")


def test_litter_in_running_disturbs_no_recovery(host: Any, queue: Queue) -> None:
    litter(host, "running")
    queue.enqueue([("good", {})])
    host.dead_claimer()
    assert recovered(queue)["good"] == "pending"


def test_litter_in_failed_disturbs_no_retry(host: Any, queue: Queue) -> None:
    found = litter(host, "failed")
    host.put("failed", "good", "REASON=timeout\nATTEMPTS=3\n")
    assert [change.name for change in queue.retry() if change.new_state != "failed"] == ["good"]
    assert all(os.path.lexists(host.path("failed", name)) for name in found)


def test_a_folder_in_the_way_holds_up_one_job_only(host: Any, queue: Queue, holder: owner.Holder) -> None:
    host.path("running", "a").mkdir()
    os.utime(host.put("pending", "a", ""), (1000, 1000))
    host.put("pending", "b", "")
    names = []
    for _turn in range(3):
        try:
            claim = queue.claim(holder)
        except OSError:
            continue
        names += [claim.name] if claim else []
    assert names == ["b"]
    assert host.owners() == ["b.env.owner"], "what was not claimed has no owner"


# ---- retry, remove, adoption ------------------------------------------------------------------------------------


def test_retry(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {"X": "1"}), ("b", {})])
    queue.finish(queue.claim(holder), "failed", {"REASON": "timeout", "ATTEMPTS": "3", "RECOVERIES": "2"})
    predicted = queue.retry(check=True)
    assert host.states()["a"] == "failed"
    assert queue.retry() == predicted
    assert (predicted[0].old_state, predicted[0].new_state, predicted[0].reason) == ("failed", "pending", "was timeout")
    values = host.values("a")
    assert job.own_values(values) == {"X": "1"} and (values["ATTEMPTS"], values["RECOVERIES"]) == ("0", "0")
    assert queue.retry() == []
    assert [change.reason for change in queue.retry(["b", "nobody"])] == ["left alone: pending", "left alone: there is no such job"]
    with pytest.raises(QueueError, match="can't be a name"):
        queue.retry(["../x"])


def test_remove(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([(name, {}) for name in ("run", "stay", "go")])
    queue.claim(holder)
    log = Path(queue.layout.log, "go.log")
    log.write_text("x", encoding="utf-8")
    predicted = queue.remove(None, check=True)
    assert len(host.states()) == 3
    assert queue.remove(["go"], ["failed"])[0].reason == "left alone: pending"
    assert queue.remove(["go"], logs=False)[0].new_state is None and log.exists()
    queue.enqueue([("go", {})])
    assert queue.remove(None, logs=True) == predicted
    assert host.states() == {"run": "running"} and not log.exists()
    assert "its owner lives" in {change.name: change.reason for change in predicted}["run"]


def test_remove_leaves_alone_what_it_cannot_remove(host: Any, queue: Queue) -> None:
    host.path("pending", "folder").mkdir()
    host.put("pending", "a", "")
    host.put("pending", "z", "")
    changes = {change.name: change.new_state for change in queue.remove(None)}
    changes.pop("folder", None)
    assert changes == {"a": None, "z": None} and host.path("pending", "folder").is_dir()


def test_an_older_queue_is_adopted(host: Any, queue: Queue, holder: owner.Holder, wait_for: Any) -> None:
    script = host.base / "sagequeue-worker.sh"
    script.write_text("read wait\n", encoding="utf-8")
    with subprocess.Popen(["/bin/sh", str(script)], stdin=subprocess.PIPE) as older:
        # Amid its execve(2) it has no name yet.
        wait_for(Path(f"/proc/{older.pid}/cmdline").read_bytes)
        running = host.root / "var/t/queue/running"
        for name, pid in (("t_off0", older.pid), ("t_off1", 4_194_300)):
            host.put("running", name, f"OFFSET={name[-1]}\n")
            (running / f"{name}.env.owner").write_text(f"OWNER_PID={pid}\nOWNER_WORKER_ID=1\nOWNER_TS=x\n", encoding="utf-8")
        host.put("running", "t_off2", "OFFSET=2\n")
        host.put("done", "t_off3", "OFFSET=3\n")
        assert {c.name: c.new_state for c in queue.enqueue(queue.jobset.offset_jobs())} == {
            **dict.fromkeys(("t_off0", "t_off1", "t_off2"), "running"),
            "t_off3": "done",
        }
        assert recovered(queue) == {"t_off1": "pending", "t_off2": "pending"}
        assert sorted(claimed(queue, holder)) == ["t_off1", "t_off2"]
        older.kill()
    assert recovered(queue) == {"t_off0": "pending"}


def test_a_queue_that_was_not_made(host: Any, queue: Queue) -> None:
    os.rmdir(host.root / "var/t/queue/done")
    with pytest.raises(QueueError, match="jobset t has no usable queue: .*done: No such file"):
        host.queue()


def test_a_queue_behind_a_link_is_refused(host: Any, queue: Queue) -> None:
    done = host.root / "var/t/queue/done"
    done.rename(host.base / "elsewhere")
    done.symlink_to(host.base / "elsewhere")
    with pytest.raises(QueueError, match="no usable queue"):
        host.queue()


# ---- killed at every point --------------------------------------------------------------------------------------


def _work_once(queue: Queue, state: str) -> None:
    holder = owner.Holder(queue.layout.workers, "t-1")
    claim = queue.claim(holder)
    if claim:
        queue.finish(claim, state, {"REASON": "ok"})
    holder.release()


def _enqueue(queue: Queue) -> None:
    queue.enqueue([("a", {"X": "1"}), ("b", {})], force=True)


DEEDS: dict[str, Any] = {
    "done": lambda queue: _work_once(queue, "done"),
    "pending": lambda queue: _work_once(queue, "pending"),
    "malformed": lambda queue: _work_once(queue, "done"),
    "enqueue": _enqueue,
    "retry": lambda queue: queue.retry(),
    "recover": lambda queue: recovered(queue),
    "recover malformed": lambda queue: recovered(queue),
}


@pytest.mark.parametrize("deed", list(DEEDS))
def test_killed_before_any_call_nothing_is_lost_or_stuck(host: Any, killed_at: Any, deed: str) -> None:
    number = 0
    killed = True
    while killed:
        number += 1
        name = f"t{number}"
        host.define(name)
        text = "not a job\n" if "malformed" in deed else "X=1\n"
        state = {"retry": "failed", "enqueue": "done"}.get(deed, "pending")
        host.put(state, "a", text, name)
        if deed.startswith("recover"):
            _abandon(host.queue(name))
        killed = killed_at(lambda name=name: DEEDS[deed](host.queue(name)), number)
        queue = host.queue(name)
        assert set(host.states(name)) - {"b"} == {"a"}, f"killed before call {number}: in exactly one state"
        recovered(queue)
        assert host.owners(name) == [], f"killed before call {number}: nobody owns anything"
        assert os.listdir(queue.layout.workers) == []
        reached = host.states(name)["a"]
        assert reached in ({"pending", "done"} if deed == "enqueue" else {"pending", "done", "failed"}), f"killed before call {number}"
        holder = owner.Holder(queue.layout.workers, "after")
        while claim := queue.claim(holder):
            assert claim.values.get("X") == ("1" if claim.name == "a" else None)
            queue.finish(claim, "done", {"REASON": "ok"})
        assert host.states(name)["a"] == ("failed" if "malformed" in deed or (deed == "retry" and reached == "failed") else "done")
        attempts = [line["claim"] for line in host.history(name)]
        assert len(attempts) == len(set(attempts)), f"killed before call {number}: one line per attempt"
        queue.close()
    assert number > 5


def _abandon(queue: Queue) -> None:
    """Leave a job in running whose claimer is dead."""
    pid = os.fork()
    if pid == 0:
        try:
            holder = owner.Holder(queue.layout.workers, "t-1")
            name = "a"
            if queue._own(name, holder.record("c" * 32), "c" * 32):
                queue._rename(name, "pending", "running")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert queue.locate("a") == "running"


def test_a_result_whose_staged_file_was_cleaned_away_is_tried_again(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {})])
    queue.end(queue.claim(holder), "done", {"REASON": "ok"})
    # What a recovery does whose clock was set forward.
    os.unlink(f"{queue.layout.staging}/result.{queue.owner_of('a')['OWNER_CLAIM']}")
    with pytest.raises(OSError, match="its new file was cleaned away"):
        queue.commit()
    assert host.states() == {"a": "running"} and host.owners()
    assert queue.commit() == []
    assert host.states() == {"a": "done"} and host.values("a")["RESULT"] == "done"


# ---- several at once --------------------------------------------------------------------------------------------


@pytest.fixture
def three(queue: Queue, holder: owner.Holder) -> Any:
    queue.enqueue([("a", {"X": "1"}), ("b", {}), ("c", {})])
    return [queue.claim(holder) for _job in range(3)]


def test_several_are_recorded_together(host: Any, queue: Queue, three: Any) -> None:
    for claim, state in zip(three, ("done", "failed", "pending")):
        queue.end(claim, state, {"REASON": "ok", "ATTEMPTS": "1"})
    assert set(host.states().values()) == {"running"} and len(host.owners()) == 3 and host.history() == []
    assert queue.commit() == [] and queue.commit() == []
    assert host.states() == {"a": "done", "b": "failed", "c": "pending"} and host.owners() == []
    assert [(line["job"], line["result"]) for line in host.history()] == [("a", "done"), ("b", "failed"), ("c", "pending")]
    assert host.values("a")["X"] == "1"


def test_one_that_vanishes_does_not_hold_up_the_others(host: Any, queue: Queue, three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for claim in three:
        queue.end(claim, "done", {"REASON": "ok"})
    append = queue._append

    def meanwhile(*words: Any) -> None:
        append(*words)
        host.path("running", "b").unlink()

    monkeypatch.setattr(queue, "_append", meanwhile)
    assert queue.commit() == ["b"]
    assert host.states() == {"a": "done", "c": "done"} and host.owners() == []


def test_what_ended_and_was_not_recorded_when_its_worker_died_is_recovered_as_it_ended(host: Any, queue: Queue) -> None:
    queue.enqueue([("a", {}), ("b", {})])
    pid = os.fork()
    if not pid:
        victim = owner.Holder(queue.layout.workers, "t-2")
        queue.end(queue.claim(victim), "failed", {"REASON": "timeout"})
        queue.claim(victim)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert host.states() == {"a": "running", "b": "running"}
    assert recovered(queue) == {"a": "failed", "b": "pending"}
    assert host.values("a")["REASON"] == "timeout" and host.values("b")["REASON"] == "orphan"
    assert not [entry for entry in os.listdir(queue.layout.staging) if entry.startswith("result.")]


@pytest.mark.parametrize("text", ["", "RESULT=done\n", "CLAIM={claim}\n", "CLAIM={claim}\nRESULT=do", "CLAIM={claim}\nRESULT=done\n\0"])
def test_half_a_note_of_a_dead_worker_counts_for_nothing(host: Any, queue: Queue, text: str) -> None:
    queue.enqueue([("a", {})])
    host.dead_claimer()
    claim = queue.owner_of("a")["OWNER_CLAIM"]
    (Path(queue.layout.staging) / f"result.{claim}").write_text(text.format(claim=claim))
    assert recovered(queue) == {"a": "pending"}
    assert host.values("a")["REASON"] == "orphan"


def test_an_owner_record_is_used_again(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {}), ("b", {}), ("c", {})])
    inodes = set()
    for name in ("a", "b", "c"):
        claim = queue.claim(holder)
        record = host.path("running", name).with_name(f"{name}.env.owner")
        inodes.add(record.stat().st_ino)
        assert queue.owner_of(name)["OWNER_CLAIM"] == claim.id and record.stat().st_nlink == 2
        queue.finish(claim, "done", {"REASON": "ok"})
    assert len(inodes) == 1
    queue.close()
    assert os.listdir(queue.layout.staging) == []


# ---- history ----------------------------------------------------------------------------------------------------


def test_lines_written_at_once_stay_lines(host: Any, queue: Queue) -> None:
    # Seen between two pages of somebody else's line, the file ends in half a line.
    write = "import sys; from dirqueue import definitions, layout, queue\n"
    write += "q = queue.Queue(layout.Layout(sys.argv[1], 't'), definitions.load(sys.argv[1], 't'))\n"
    write += "[q._append(q.layout.history, {'claim': str(k), 'detail': 'x' * 3000}) for k in range(1500)]"
    writers = [host.python(write, str(host.root)) for _writer in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(int(line["claim"]) for line in host.history()) == sorted(3 * list(range(1500)))


def test_half_a_line_is_written_again_whole(host: Any, queue: Queue) -> None:
    holder = owner.Holder(queue.layout.workers, "t-1")
    queue.enqueue([("a", {})])
    claim = queue.claim(holder)
    assert claim
    queue._overwrite("running", "a", {"CLAIM": claim.id, "RESULT": "done", "REASON": "ok"})
    history = Path(queue.layout.history)
    history.write_text(f'{{"job":"a","result":"done","claim":"{claim.id}","rea')
    holder.release()
    assert recovered(queue) == {"a": "done"}
    half, whole = history.read_text().splitlines()
    assert half.endswith('"rea') and whole.startswith('{"job":"a","result":"done"')


# ---- what goes wrong half way -----------------------------------------------------------------------------------


def test_a_claim_that_failed_half_way_is_given_back(host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.enqueue([("a", {}), ("b", {})])
    for step, error in (("_accept", OSError(24, "Too many open files")), ("_rename", OSError(5, "Input/output error"))):

        def fail(*_arguments: Any, error: OSError = error, **_options: Any) -> None:
            raise error

        with monkeypatch.context() as patched, pytest.raises(OSError, match=str(error.strerror)):
            patched.setattr(queue, step, fail)
            queue.claim(holder)
        assert sorted(host.states()) == ["a", "b"] and queue.look()
    # The next claim sets it right, and loses nothing.
    assert sorted(queue.claim(holder).name for _job in "ab") == ["a", "b"] and queue.claim(holder) is None
    assert host.states() == {"a": "running", "b": "running"}


def test_what_a_claim_had_decided_is_carried_out_by_the_next(host: Any, queue: Queue, holder: owner.Holder) -> None:
    """A malformed job that could not be recorded as failed, as its history can't be written."""
    host.put("pending", "bad", "nonsense\n")
    history = Path(queue.layout.history)
    history.mkdir()
    with pytest.raises(OSError, match="refused, not a regular file"):
        queue.claim(holder)
    assert host.states() == {"bad": "running"} and host.values("bad")["REASON"] == "malformed_job"
    history.rmdir()
    assert queue.claim(holder) is None and host.states() == {"bad": "failed"} and host.owners() == []
    assert [line["reason"] for line in host.history()] == ["malformed_job"]


def test_what_a_claim_had_recorded_is_not_recorded_twice(
    host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A malformed job whose end is in the history already, and which then could not be moved."""
    host.put("pending", "bad", "nonsense\n")

    def fail(name: str, source: str, target: str, sync: bool = True) -> None:
        if target == "failed":
            raise OSError(5, "Input/output error")
        Queue._rename(queue, name, source, target, sync)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output error"):
        patched.setattr(queue, "_rename", fail)
        queue.claim(holder)
    assert host.states() == {"bad": "running"} and len(host.history()) == 1
    assert queue.claim(holder) is None and host.states() == {"bad": "failed"}
    assert [line["reason"] for line in host.history()] == ["malformed_job"]


def test_a_gate_that_closes_during_a_claim_puts_the_job_back(
    host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([("a", {"X": "1"})])

    def rename(*words: Any, **more: Any) -> None:
        Queue._rename(queue, *words, **more)
        (host.work / "t_stop.txt").write_text("STOP requested by test\n")

    with monkeypatch.context() as patched:
        patched.setattr(queue, "_rename", rename)
        assert queue.claim(holder) is None
    assert host.states() == {"a": "pending"} and host.owners() == []
    assert (host.values("a")["REASON"], host.values("a")["X"], host.values("a").get("ATTEMPTS", "0")) == ("gate", "1", "0")


def test_a_commit_that_failed_half_way_is_gone_on_with(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([("a", {}), ("b", {})])
    claims = {claim.name: claim for claim in (queue.claim(holder), queue.claim(holder))}
    history = Path(queue.layout.history)
    history.mkdir()
    for claim in claims.values():
        queue.end(claim, "done", {"REASON": "ok"})
    with pytest.raises(OSError, match="refused"):
        queue.commit()
    assert host.states() == {"a": "running", "b": "running"} and len(host.owners()) == 2
    history.rmdir()
    # One is taken away meanwhile, by hand.
    host.path("running", "a").unlink()
    with pytest.raises(LostClaim, match="job a has vanished from running; its result is not recorded"):
        queue.finish(claims["a"], "done", {"REASON": "ok"})
    assert host.states() == {"b": "done"} and host.owners() == [] and queue.commit() == []
    assert sorted(line["job"] for line in host.history()) == ["a", "b"]


def test_the_original_of_a_malformed_job_is_never_written_over(host: Any, queue: Queue, holder: owner.Holder) -> None:
    path = host.put("pending", "bad", "nonsense\n")
    taken = Path(queue.layout.malformed) / f"bad.{path.stat().st_ino}.env"
    taken.write_text("of an earlier one\n")
    assert queue.claim(holder) is None and host.states() == {"bad": "failed"}
    assert taken.read_text() == "of an earlier one\n" and Path(host.values("bad")["ORIGINAL"]).read_text() == "nonsense\n"


def test_recovery_of_what_is_no_orphan(host: Any, queue: Queue, holder: owner.Holder) -> None:
    def end(_name: str, _claim: str) -> None:
        raise AssertionError("nothing may be ended")

    queue.enqueue([("a", {})])
    queue.claim(holder)
    with queue.lock():
        assert queue.recover("a", holder, end, check=False).reason == "left alone: its owner lives"
        assert queue.recover("b", holder, end, check=False) == ("b", None, None, "left alone: no longer running", 1, "", "")
    assert host.states() == {"a": "running"}


def test_redoing_that_can_be_called_back_only_in_part_says_so(
    host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([("old", {})])
    queue.finish(queue.claim(holder), "done", {"REASON": "ok"})

    def fail(*_words: Any, **_more: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(queue, "_rename", fail)
        with pytest.raises(QueueError, match="only old could not be called back.*No space left"):
            queue.enqueue([("new", {}), ("old", {})], force=True)
    assert host.states() == {"old": "done"}, "the new one is gone again"
    assert recovered(queue) == {} and host.states() == {"old": "pending"}, "and recovery brings the other on"


def test_many_that_all_exist_are_redone_or_left_alone(host: Any, queue: Queue, holder: owner.Holder) -> None:
    jobs = [(f"n{number}", {}) for number in range(batch.LEAST)]
    host.put("done", "n0", "RESULT=done\n")
    for name, _values in jobs[1:]:
        host.put("pending", name)
    (again, alone) = queue.enqueue(jobs, force=True)
    assert again[:3] == ("n0", "done", "pending") and alone[2:5] == ("pending", "left alone: already pending", batch.LEAST - 1)
    assert os.listdir(queue.layout.batches) == [] and set(host.states().values()) == {"pending"}


SHORT = """
import os, resource, sys
from dirqueue import cases, definitions, owner, progress
from dirqueue.errors import NotReady, QueueError, is_shortage
from dirqueue.layout import Layout
from dirqueue.queue import Queue
from dirqueue.recovery import recover
from dirqueue.runners.known import make
root = sys.argv[1]

def session():
    layout = Layout(root, "t")
    with Queue(layout, definitions.load(root, "t")) as queue:
        progress.look(queue, "jobs")
        recover(queue, make(layout, queue.jobset))
        queue.gate()
        holder = owner.Holder(layout.workers, "t-1")
        claim = queue.claim(holder)
        if claim:
            queue.finish(claim, "done", {"REASON": "ok"})

most = resource.getrlimit(resource.RLIMIT_NOFILE)
free = os.dup(0)
for limit in range(free, free + 24):
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most[1]))
        try:
            session()
            said = "ok"
        except (OSError, QueueError, NotReady) as exc:
            said = f"short {limit}" if is_shortage(exc) else repr(exc)
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
        print(said, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_short_of_descriptors_at_any_point_nothing_is_lost_or_taken_for_something_else(host: Any) -> None:
    """A file that can't be opened for want of descriptors is neither missing nor broken, and its owner not dead."""
    host.define(state_file="state", cases=3)
    (host.work / "state").write_text("1")
    (host.work / "t_stop.txt.other").touch()
    queue = host.queue()
    names = [f"n{number}" for number in range(30)]
    queue.enqueue([(name, {}) for name in names])
    process = host.python(SHORT, str(host.root))
    assert process.stdout
    said = process.stdout.read().split("\n")[:-1]
    assert process.wait() == 0 and len(said) == 24
    assert said[0].startswith("short") and said[-1] == "ok" and {word.split()[0] for word in said} == {"short", "ok"}, said
    recovered(queue)
    assert sorted(host.states()) == sorted(names) and sum(state == "done" for state in host.states().values()) >= said.count("ok")
    assert set(host.states().values()) == {"pending", "done"} and queue.refused == {}


# ---- what lies in the queue and is none of ours -----------------------------------------------------------------


def test_odd_owner_records_batches_and_requests_are_named_and_stay(host: Any, queue: Queue, holder: owner.Holder) -> None:
    running = Path(queue.layout.queue) / "running"
    (running / "linked.env.owner").symlink_to("/etc/passwd")
    (running / "folder.env.owner").mkdir()
    os.mkfifo(running / "pipe.env.owner")
    for name in ("linked", "folder", "pipe"):
        host.put("running", name)
        assert queue.owner_of(name) == {} and queue.why_orphan(name) == "no readable owner record"
    host.put("pending", "twice")
    os.link(host.path("pending", "twice"), host.base / "second")
    (Path(queue.layout.batches) / "a b").touch()
    (Path(queue.layout.batches) / "gone.cursor").symlink_to("/etc/passwd")
    (Path(queue.layout.run) / f"kill.{'0' * 32}").symlink_to("/etc/passwd")
    (Path(queue.layout.staging) / "redo.x").symlink_to("/etc/passwd")
    counts = queue.survey()
    assert recovered(queue) == dict.fromkeys(("linked", "folder", "pipe"), "running") and queue.survey() == counts
    named = {"running/linked.env.owner", "running/folder.env.owner", "running/pipe.env.owner", "pending/twice.env", "batches/'a b'"}
    assert named <= set(queue.refused) and "has a second name" in queue.refused["pending/twice.env"]
    assert queue.claim(holder) is None and queue.copy("none", "pending") is None
    with pytest.raises(MalformedJob, match="has a second name"):
        queue.copy("twice", "pending")
    assert [change.reason for change in queue.remove(["twice"])] == ["refused: has a second name (a hard link)"]
    assert host.path("pending", "twice").exists() and (Path(queue.layout.staging) / "redo.x").is_symlink()
    assert (Path(queue.layout.run) / f"kill.{'0' * 32}").is_symlink() and (Path(queue.layout.batches) / "gone.cursor").is_symlink()


def test_removing_a_pending_job_removes_the_record_of_one_who_died_claiming_it(host: Any, queue: Queue) -> None:
    queue.enqueue([("a", {})])
    assert host.dead_claimer() == "a"
    # It died just before its rename.
    host.path("running", "a").rename(host.path("pending", "a"))
    assert host.owners() == ["a.env.owner"]
    assert queue.remove(["a"])[0].new_state is None and host.owners() == [] and host.states() == {}


def test_a_gate_that_is_no_file_or_has_no_folder(host: Any, queue: Queue) -> None:
    gate = Path(queue.jobset.gate)
    gate.mkdir()
    assert queue.gate() == (True, "(can't be read: not a regular file)", False, "")
    with pytest.raises(QueueError, match="jobset t: can't open the gate: .*Is a directory"):
        queue.open_gate()
    gate.rmdir()
    gate.symlink_to("/etc/passwd")
    assert queue.gate().closed and "can't be read" in queue.gate().text
    gate.unlink()
    host.work.rename(host.base / "elsewhere")
    with pytest.raises(QueueError, match="jobset t: can't make the gate: .*No such file"):
        queue.close_gate()
    (host.base / "elsewhere").rename(host.work)
    assert queue.close_gate() and not queue.close_gate() and queue.open_gate() and not queue.open_gate()


def test_when_the_oldest_was_enqueued(host: Any, queue: Queue) -> None:
    assert queue.oldest_pending() is None
    queue.enqueue([(f"n{number}", {}) for number in range(batch.LEAST)])
    first = queue.oldest_pending()
    assert first and not queue.ended() and queue.waits()
    host.put("pending", "older", "PRIORITY=1\nENQUEUED_AT=2026-01-01T00:00:00.000Z\n")
    os.utime(host.path("pending", "older"), (1, 1))
    assert queue.oldest_pending() == owner.seconds_of("2026-01-01T00:00:00.000Z") < first
    queue.remove(None)
    assert queue.ended() and not queue.waits()
    assert [change.reason for change in queue.remove(["none"])] == ["left alone: there is no such job"]
    queue.enqueue([(f"n{number}", {}) for number in range(batch.LEAST)])
    assert [change.reason for change in queue.remove(["none"])] == ["left alone: there is no such job"]
    assert queue.counts()["pending"] == batch.LEAST
