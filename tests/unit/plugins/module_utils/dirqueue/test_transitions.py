# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What transitions must not take for something else: claims of before and of others, files that were swapped, steps that are done."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import notes, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.store import CLAIM, Change

# A claim's id that sorts before, or behind, that of any other.
OTHERS = pytest.mark.parametrize("other", ["0" * 32, "f" * 32], ids=["before", "behind"])


@pytest.fixture
def queue(host: Any) -> Queue:
    host.define()
    opened: Queue = host.queue()
    # Nothing was held or released for long, so what is listed stays as it is.
    os.utime(opened.layout.held, (1000, 1000))
    return opened


@pytest.fixture
def synced(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced since, by name; a file system's name is that of the call."""
    names: list[str] = []

    def fsync(fd: int) -> None:
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(notes, "sync_file_system", lambda fd: names.append("syncfs"))
    return names


def abandoned(host: Any, queue: Queue, name: str, text: str = "") -> str:
    """Leave a job in running whose worker is dead; return the claim's id."""
    host.put("pending", name, text)
    assert host.dead_claimer() == name
    return queue.owner_of(name)["OWNER_CLAIM"]


def brought_back(queue: Queue) -> dict[str, Change]:
    """Recover, and return what became of each; checking says the same before."""
    predicted = recover(queue, make(queue.layout, queue.jobset), check=True)
    changes = recover(queue, make(queue.layout, queue.jobset))
    assert [change[:3] for change in changes] == [change[:3] for change in predicted]
    return {change.name: change for change in changes}


# ---- claim ------------------------------------------------------------------------------------------------------


def test_a_claim_costs_no_sync(queue: Queue, holder: owner.Holder, synced: list[str]) -> None:
    queue.enqueue([("a", {})])
    synced.clear()
    assert queue.claim(holder) and synced == []


@pytest.mark.parametrize("when", ["before its turn", "in its turn"])
def test_who_finds_all_that_it_had_listed_gone_looks_again(
    host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    queue.enqueue([("a", {})])
    assert queue.look()

    def taken(*_words: Any) -> bool:
        if host.path("pending", "a").exists():
            host.path("pending", "a").rename(host.path("done", "a"))
            host.put("pending", "b")
        return False

    if when == "before its turn":
        taken()
    else:
        monkeypatch.setattr(queue, "_is_twice", taken)
    assert queue.claim(holder).name == "b" and host.owners() == ["b.env.owner"]


def test_who_finds_one_gone_takes_the_next_that_it_had_listed(
    host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([("a", {}), ("b", {})])
    assert queue.look()
    host.path("pending", "a").rename(host.path("done", "a"))

    def fail(_state: str) -> None:
        raise AssertionError("a claim must not cost more where more jobs wait")

    monkeypatch.setattr(queue, "entries", fail)
    assert queue.claim(holder).name == "b"


def test_a_job_that_is_elsewhere_too_is_named_and_left_and_the_next_is_claimed(host: Any, queue: Queue, holder: owner.Holder) -> None:
    for state in ("pending", "held", "done"):
        os.utime(host.put(state, "a"), (1000, 1000))
    host.put("pending", "b")
    assert queue.claim(holder).name == "b" and queue.claim(holder) is None
    assert queue.refused["pending/a.env"] == "is in held, too: remove the one that should not be"
    assert all(host.path(state, "a").exists() for state in ("pending", "held", "done")) and host.owners() == ["b.env.owner"]


@OTHERS
def test_what_another_has_claimed_meanwhile_is_left_to_it(host: Any, queue: Queue, holder: owner.Holder, other: str) -> None:
    queue.enqueue([("a", {})])
    with host.queue() as faster:
        assert faster._own("a", holder.record(other), other)
        assert queue.claim(holder) is None
        faster._rename("a", "pending", "running")
        for _claim in range(2):
            assert queue.claim(holder) is None and host.states() == {"a": "running"} and host.owners()


@OTHERS
def test_a_claim_that_failed_is_not_taken_for_an_attempt_of_before(
    host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    host.put("pending", "a", f"REASON=timeout\nCLAIM={other}\nRESULT=failed\n")

    def fail(_claim: Any) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many"):
        patched.setattr(queue, "_accept", fail)
        queue.claim(holder)
    assert queue.claim(holder).name == "a" and host.history() == []


@pytest.mark.parametrize("taken", [False, True])
def test_a_job_that_is_swapped_for_a_link_fails_and_the_link_is_kept(host: Any, queue: Queue, holder: owner.Holder, taken: bool) -> None:
    path = host.put("pending", "a")
    assert queue.look()
    path.unlink()
    path.symlink_to("nowhere")
    if taken:
        (Path(queue.layout.malformed) / f"a.{path.lstat().st_ino}.env").touch()
    assert queue.claim(holder) is None and host.states() == {"a": "failed"}
    assert os.readlink(host.values("a")["ORIGINAL"]) == "nowhere" and not host.path("failed", "a").is_symlink()


# ---- finish -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 40])
def test_many_that_have_ended_cost_no_more_syncs_than_a_few(queue: Queue, holder: owner.Holder, synced: list[str], count: int) -> None:
    """One alone does not wait for all that others write to the disk."""
    queue.enqueue([(f"n{number}", {}) for number in range(count)])
    claims = [queue.claim(holder) for _job in range(count)]
    synced.clear()
    for claim in claims:
        queue.end(claim, "done", {"REASON": "ok"})
    queue.commit()
    notes = ["syncfs"] if count > 3 else [f"result.{claim.id}" for claim in claims]
    # The new entries before the old ones.
    assert synced == [*notes, "done", "running"]


@pytest.mark.parametrize("state", ["done", "failed", "pending"])
def test_only_what_goes_back_waits_for_the_lock(
    queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    queue.enqueue([("a", {})])
    claim = queue.claim(holder)
    locked = []

    def rename(*words: Any, **more: Any) -> None:
        with open(queue.layout.lock) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked.append(False)
            except BlockingIOError:
                locked.append(True)
        Queue._rename(queue, *words, **more)

    monkeypatch.setattr(queue, "_rename", rename)
    queue.finish(claim, state, {"REASON": "ok"})
    assert locked == [state == "pending"]


def test_a_commit_whose_last_sync_failed_is_gone_on_with(
    host: Any, queue: Queue, holder: owner.Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([("a", {})])
    queue.end(queue.claim(holder), "done", {"REASON": "ok"})
    fsync = os.fsync

    def fail(fd: int) -> None:
        if fd == queue._fds["done"]:
            raise OSError(5, "Input/output error")
        fsync(fd)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output"):
        patched.setattr(os, "fsync", fail)
        queue.commit()
    assert host.owners() == ["a.env.owner"]
    assert queue.commit() == [] and host.states() == {"a": "done"} and host.owners() == [] and len(host.history()) == 1


def test_notes_are_synced_once(queue: Queue, holder: owner.Holder, synced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that failed later does not begin anew."""
    queue.enqueue([(f"n{number}", {}) for number in range(4)])
    for claim in [queue.claim(holder) for _job in range(4)]:
        queue.end(claim, "done", {"REASON": "ok"})
    synced.clear()
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(queue, "_append", lambda *_words: (_ for _ in ()).throw(OSError(28, "full")))
        queue.commit()
    assert queue.commit() == [] and synced == ["syncfs", "done", "running"]


def test_a_note_that_is_made_again_is_synced_again(queue: Queue, holder: owner.Holder, synced: list[str]) -> None:
    queue.enqueue([("a", {})])
    claim = queue.claim(holder)
    queue.end(claim, "done", {"REASON": "ok"})
    # By a recovery whose clock was set forward.
    os.unlink(f"{queue.layout.staging}/result.{claim.id}")
    with pytest.raises(OSError, match="cleaned away"):
        queue.commit()
    synced.clear()
    assert queue.commit() == [] and synced == [f"result.{claim.id}", "done", "running"]


# ---- recover ----------------------------------------------------------------------------------------------------


@OTHERS
@pytest.mark.parametrize("reason", ["exit_status", "timeout"])
def test_how_an_attempt_of_before_ended_is_not_how_this_one_ends(host: Any, queue: Queue, other: str, reason: str) -> None:
    abandoned(host, queue, "a", f"REASON={reason}\nCLAIM={other}\nRESULT=failed\n")
    assert brought_back(queue)["a"].new_state == "pending"
    assert (host.values("a")["REASON"], host.values("a")["RECOVERIES"]) == ("orphan", "1")


@OTHERS
def test_a_note_of_another_claim_counts_for_nothing(host: Any, queue: Queue, other: str) -> None:
    claim = abandoned(host, queue, "a", "X=1\n")
    (Path(queue.layout.staging) / f"result.{claim}").write_text(f"REASON=ok\nCLAIM={other}\nRESULT=done\n")
    assert not queue.recorded_end("a")
    assert brought_back(queue)["a"].new_state == "pending" and host.values("a")["X"] == "1"


@pytest.mark.parametrize(("boot", "state"), [("", "done"), ("0", "pending"), ("f", "pending")])
def test_a_note_counts_as_long_as_the_host_has_not_started_anew(host: Any, queue: Queue, boot: str, state: str) -> None:
    claim = abandoned(host, queue, "a")
    record = host.path("running", "a").with_name("a.env.owner")
    if boot:
        record.write_text(record.read_text().replace("OWNER_BOOT=", f"OWNER_BOOT={boot}"))
    (Path(queue.layout.staging) / f"result.{claim}").write_text(f"REASON=ok\nCLAIM={claim}\nRESULT=done\n")
    assert brought_back(queue)["a"].new_state == state


def test_an_orphan_without_a_record_gets_a_claim_of_its_own(host: Any, queue: Queue) -> None:
    host.put("running", "a")
    assert brought_back(queue)["a"].new_state == "pending" and CLAIM.match(host.values("a")["CLAIM"])


def test_what_is_odd_in_running_stays_and_recovery_says_why(host: Any, queue: Queue) -> None:
    os.link(host.put("running", "linked"), host.base / "second")
    host.put("running", "owned")
    host.path("running", "owned").with_name("owned.env.owner").mkdir()
    assert {name: change.reason for name, change in brought_back(queue).items()} == {
        "linked": "refused: has a second name (a hard link)",
        "owned": "refused: its owner record: not a regular file",
    }


# ---- adopt ------------------------------------------------------------------------------------------------------


def test_only_orphans_whose_end_nobody_knows_are_adopted(host: Any, queue: Queue, holder: owner.Holder) -> None:
    claims = {name: abandoned(host, queue, name) for name in ("ended", "noted", "linked", "owned", "gone", "good")}
    queue._overwrite("running", "ended", {"CLAIM": claims["ended"], "RESULT": "done", "REASON": "ok"})
    (Path(queue.layout.staging) / f"result.{claims['noted']}").write_text(f"REASON=ok\nCLAIM={claims['noted']}\nRESULT=done\n")
    os.link(host.path("running", "linked"), host.base / "second")
    # Its claimer died just before its rename.
    host.path("running", "gone").rename(host.path("held", "gone"))
    queue.enqueue([("lives", {})])
    claims["lives"] = queue.claim(holder).id
    assert {name: claim for claim, name in queue.orphans().items()} == {n: c for n, c in claims.items() if n not in ("lives", "gone")}
    record = host.path("running", "owned").with_name("owned.env.owner")
    record.rename(host.base / "owned.owner")
    record.symlink_to(host.base / "owned.owner")
    other = owner.Holder(queue.layout.workers, "t-2")
    stale = {"0" * 32: "good", "f" * 32: "good"}
    adopted = queue.adopt({**stale, **{claim: name for name, claim in claims.items()}}, other)
    assert [(claim.name, claim.id) for claim in adopted] == [("good", claims["good"])]
    assert (queue.owner_of("good")["OWNER_LOCK"], queue.owner_of("lives")["OWNER_LOCK"]) == (other.lock, holder.lock)


@OTHERS
def test_whether_an_end_is_recorded(host: Any, queue: Queue, other: str) -> None:
    host.put("running", "plain")
    claim = abandoned(host, queue, "a", f"REASON=timeout\nCLAIM={other}\nRESULT=failed\n")
    assert not queue.recorded_end("a") and not queue.recorded_end("plain")
    queue._overwrite("running", "a", {"CLAIM": claim, "RESULT": "done", "REASON": "ok"})
    assert queue.recorded_end("a")
    # What can't be read is for recovery to reject.
    host.put("running", "a", "nonsense\n")
    assert queue.recorded_end("a") and queue.recorded_end("none")
