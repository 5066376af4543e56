# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Large enqueues: one file of many jobs, which become files of their own as they are claimed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, job, owner, progress
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make

MANY = 1300


@pytest.fixture
def queue(host: Any) -> Queue:
    host.define(stride=10**6, script="job.sh")
    opened: Queue = host.queue()
    return opened


def many(count: int = MANY) -> batch.Lines:
    return batch.numbered("t_off", range(count))


def drain(queue: Queue, most: int = 10**9) -> list[str]:
    """Claim and finish jobs; return their names in order."""
    holder = owner.Holder(queue.layout.workers, "t-1")
    names = []
    while len(names) < most and (claim := queue.claim(holder)):
        assert claim.values["OFFSET"] == claim.name[5:]
        queue.finish(claim, "done", {"REASON": "ok"})
        names.append(claim.name)
    holder.release()
    return names


def batches(queue: Queue) -> list[str]:
    return sorted(os.listdir(queue.layout.batches))


def test_many_jobs_are_one_file_and_come_out_once_each_in_order(queue: Queue) -> None:
    (change,) = queue.enqueue(many())
    assert (change.name, change.new_state, change.jobs) == ("t_off0", "pending", MANY)
    assert len(batches(queue)) == 1
    assert os.listdir(os.path.join(queue.layout.queue, "pending")) == []
    assert queue.counts() == {"pending": MANY, "running": 0, "done": 0, "failed": 0}
    assert drain(queue) == [f"t_off{number}" for number in range(MANY)]
    assert batches(queue) == []
    assert queue.counts() == {"pending": 0, "running": 0, "done": MANY, "failed": 0}


def test_a_batch_can_be_read_by_a_person(queue: Queue) -> None:
    queue.enqueue(many())
    lines = (Path(queue.layout.batches) / batches(queue)[0]).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# batch ") and f" {MANY} jobs enqueued 20" in lines[0]
    assert lines[1:3] == ["t_off0 OFFSET=0", "t_off1 OFFSET=1"]


def test_values_come_through_as_they_are(host: Any) -> None:
    host.define()
    queue = host.queue()
    values = {"A": "$(touch x) 'q' \"d\" \\ é #", "B": "", "PRIORITY": "-3"}
    queue.enqueue([(f"j{number}", values) for number in range(batch.LEAST)])
    assert len(batches(queue)) == 1
    claim = queue.claim(owner.Holder(queue.layout.workers, "t-1"))
    assert {key: claim.values[key] for key in values} == values


def test_every_look_sees_them_as_pending(queue: Queue) -> None:
    queue.enqueue(many())
    drain(queue, 3)
    assert queue.counts() == {"pending": MANY - 3, "running": 0, "done": 3, "failed": 0}
    assert [queue.locate(f"t_off{number}") for number in (2, 3, 1200, MANY - 1, MANY)] == ["done", "pending", "pending", "pending", None]
    assert progress.summary(queue)["counts"]["pending"] == MANY - 3
    states = {found["name"]: found["state"] for found in progress.jobs(queue)}
    assert len(states) == MANY and states["t_off1299"] == "pending"


def test_what_exists_is_left_alone(queue: Queue) -> None:
    queue.enqueue(many(1100))
    drain(queue, 5)
    changes = {(change.old_state, change.new_state): change.jobs for change in queue.enqueue(many())}
    assert changes == {(None, "pending"): 200, ("pending", "pending"): 1095, ("done", "done"): 5}
    assert len(batches(queue)) == 3, "two batches and a cursor"
    # A few names meet the batches as well.
    assert [change.reason for change in queue.enqueue(many(1))] == ["left alone: already done"]
    assert queue.enqueue([("t_off1250", {"OFFSET": "1250"})])[0].reason == "left alone: already pending"
    assert len(drain(queue)) == MANY - 5
    assert queue.counts()["done"] == MANY


def test_force_redoes_the_finished_ones(queue: Queue) -> None:
    queue.enqueue(many(1000))
    drain(queue, 2)
    changed = [change for change in queue.enqueue(many(), force=True) if change.old_state != "pending"]
    assert sorted((change.name, change.old_state, change.jobs) for change in changed) == [
        ("t_off0", "done", 1), ("t_off1", "done", 1), ("t_off1000", None, 300),
    ]  # fmt: skip
    assert sorted(drain(queue)) == sorted(many().names)


def test_check_mode_only_looks(queue: Queue) -> None:
    (change,) = queue.enqueue(many(), check=True)
    assert (change.jobs, batches(queue)) == (MANY, [])


def test_a_name_that_is_there_twice_is_refused(queue: Queue) -> None:
    with pytest.raises(QueueError, match="t_off0 is named twice; nothing was enqueued"):
        queue.enqueue(batch.Lines([*many().names, "t_off0"], [*many().lines, "t_off0 OFFSET=0"]))
    assert batches(queue) == []


@pytest.mark.parametrize("line", ["../x A=1", "x a=1", "x A", "x A=1 A=2", "x ATTEMPTS=1", "x PRIORITY=1000", "x A='1"])
def test_a_list_with_a_bad_line_is_refused(line: str) -> None:
    with pytest.raises(QueueError, match="line 3 of the list of jobs: .*; nothing was enqueued"):
        batch.listed(f"a A=1\n\n{line}\nb A=2\n")


@pytest.mark.parametrize("line", ["x A=1 A=2", "x A=a\0b", "x A=" + "\N{GRINNING FACE}" * 15_000])
def test_a_plain_list_with_a_bad_line_is_refused(line: str) -> None:
    with pytest.raises(QueueError, match="line 2 of the list of jobs"):
        batch.listed(f"a A=1\n{line}\n")


def test_some_jobs_of_a_batch_are_not_enqueued_again(queue: Queue) -> None:
    queue.enqueue(many())
    some = [(f"t_off{number}", {"OFFSET": str(number)}) for number in range(500, 600)]
    assert {change.reason for change in queue.enqueue(some)} == {"left alone: already pending"}
    assert queue.counts()["pending"] == MANY


HEAD = b"# batch 0123456789abcdef: 3 jobs enqueued 2026-11-21T00:00:00.000Z, place 1\n"


# It may be looked at before the others or after them.
@pytest.mark.parametrize("name", ["0", "odd"])
@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (b"n\xff A=1\n", "after byte 76: 'utf-8' codec can't decode"),
        (b"a\0b A=1\n", "after byte 76: line 1 of the list of jobs"),
        (b"../../x\n", "after byte 76: line 1 of the list of jobs"),
        (b"b A=\0\n", "after byte 76: line 1 of the list of jobs"),
        (b"x" * 300 + b"\n", "after byte 76: line 1 of the list of jobs"),
        (b"t_off7 A=\xff\n", "after byte 76: 'utf-8' codec can't decode"),
        (b"\n" * 3, ""),
    ],
)
def test_no_look_at_a_broken_batch_ends_in_a_traceback(queue: Queue, name: str, lines: bytes, why: str) -> None:
    queue.enqueue([("a", {"OFFSET": ""})])
    (Path(queue.layout.batches) / f"{name}.batch").write_bytes(HEAD + lines)
    assert drain(queue) == ["a"]
    progress.jobs(queue)
    progress.summary(queue)
    queue.enqueue(many())
    assert queue.locate("t_off1299") == "pending"
    assert not why or why in queue.refused[f"batches/{name}.batch"]
    # The broken one is the first in the queue, and in nobody's way.
    assert len(drain(queue)) >= MANY - 1


def test_a_batch_that_lost_its_end_says_how_many_are_missing(queue: Queue) -> None:
    (Path(queue.layout.batches) / "odd.batch").write_bytes(HEAD + b"t_off7 OFFSET=7\n")
    assert drain(queue) == ["t_off7"]
    assert queue.refused["batches/odd.batch"] == "it ends at byte 92, where 2 jobs are to follow"


def test_a_name_that_is_twice_in_a_batch_is_issued_once(queue: Queue) -> None:
    (Path(queue.layout.batches) / "odd.batch").write_bytes(HEAD + b"t_off1 OFFSET=1\nt_off1 OFFSET=1\nt_off2 OFFSET=2\n")
    assert drain(queue) == ["t_off1", "t_off2"]


def test_an_odd_cursor_without_a_batch_stays_and_is_in_nobodys_way(queue: Queue) -> None:
    (Path(queue.layout.batches) / "odd.cursor").mkdir()
    recover(queue, make(queue.layout, queue.jobset))
    assert batches(queue) == ["odd.cursor"]


def test_a_list_with_comments_quotes_and_priorities(host: Any) -> None:
    host.define()
    queue = host.queue()
    plain = "".join(f"n{number} A={number}\n" for number in range(batch.LEAST))
    jobs = batch.listed(f"# all of them\n{plain}first PRIORITY=5 A='two words'  # ahead\n")
    assert len(jobs.names) == batch.LEAST + 1
    queue.enqueue(jobs)
    claim = queue.claim(owner.Holder(queue.layout.workers, "t-1"))
    assert (claim.name, claim.values["A"]) == ("first", "two words")


def test_the_place_in_the_queue_is_kept(queue: Queue) -> None:
    queue.enqueue(many())
    queue.enqueue([("late", {"OFFSET": ""}), ("urgent", {"OFFSET": "", "PRIORITY": "1"})])
    holder = owner.Holder(queue.layout.workers, "t-1")
    names = []
    while claim := queue.claim(holder):
        names.append(claim.name)
        queue.finish(claim, "done", {"REASON": "ok"})
    assert names == ["urgent", *many().names, "late"]


def test_remove_some_and_all(queue: Queue) -> None:
    queue.enqueue(many())
    drain(queue, 2)
    wanted = ["t_off0", "t_off3", "t_off1200", "t_off9999"]
    found = {change.name: (change.old_state, change.new_state) for change in queue.remove(wanted)}
    assert found == {
        "t_off0": ("done", None), "t_off3": ("pending", None), "t_off1200": ("pending", None), "t_off9999": (None, None),
    }  # fmt: skip
    assert queue.counts() == {"pending": MANY - 4, "running": 0, "done": 1, "failed": 0}
    assert [change.new_state for change in queue.remove(["t_off1250"], states=["done"])] == ["pending"]
    drain(queue, 300)
    assert sum(change.jobs for change in queue.remove(None, check=True)) == MANY - 3
    assert sum(change.jobs for change in queue.remove(None)) == MANY - 3
    assert batches(queue) == [] and set(queue.counts().values()) == {0}
    assert drain(queue) == []


def test_a_removed_job_does_not_come_back_when_the_cursor_lags(queue: Queue) -> None:
    queue.enqueue(many())
    lagging = [entry for entry in batches(queue)]
    drain(queue, 2)
    (cursor,) = set(batches(queue)) - set(lagging)
    os.unlink(os.path.join(queue.layout.batches, cursor))
    queue.remove(["t_off0"])
    assert queue.counts()["pending"] == MANY - 2
    drain(queue)
    assert queue.counts() == {"pending": 0, "running": 0, "done": MANY - 1, "failed": 0}
    assert queue.locate("t_off0") is None


@pytest.mark.parametrize(
    "text", ["", "# batch x\n", "no batch\nat all\n", "# batch 0123456789abcdef: 2 jobs enqueued 2026-11-21T00:00:00.000Z, place 1\n../x\n"]
)
def test_what_is_no_batch_is_refused_and_in_nobodys_way(queue: Queue, text: str) -> None:
    queue.enqueue([("a", {"OFFSET": ""})])
    (Path(queue.layout.batches) / "odd.batch").write_text(text, encoding="utf-8")
    assert drain(queue) == ["a"]
    queue.counts()
    why = "after byte 76: " if " jobs " in text else "its first line is not a batch's"
    (said,) = (reason for entry, reason in queue.refused.items() if "odd.batch" in entry)
    assert said.startswith(why)
    assert (Path(queue.layout.batches) / "odd.batch").exists()


def test_links_and_fifos_are_no_batches(queue: Queue) -> None:
    queue.enqueue(many())
    (real,) = batches(queue)
    folder = Path(queue.layout.batches)
    (folder / "link.batch").symlink_to(real)
    os.mkfifo(folder / "fifo.batch")
    (folder / "folder.batch").mkdir()
    assert queue.counts()["pending"] == MANY
    assert len([entry for entry in queue.refused if entry.startswith("batches/")]) == 3


def test_a_worker_works_off_a_batch(host: Any) -> None:
    host.script("exit 0\n")
    host.define(stride=10**6)
    host.queue().enqueue(batch.numbered("t_off", range(batch.LEAST)))
    host.work_off()
    assert list(host.states().values()) == ["done"] * batch.LEAST


def test_who_lost_all_files_of_a_batch_to_others_claims_its_next(host: Any, queue: Queue) -> None:
    queue.enqueue(many())
    # Both know of the first files now, and one takes them all.
    slower = host.queue()
    assert queue.look() and slower.look()
    drain(queue, batch.CHUNK)
    claim = slower.claim(owner.Holder(queue.layout.workers, "t-2"))
    assert claim and claim.name == f"t_off{batch.CHUNK}"


def test_find_does_not_take_a_part_of_a_name(queue: Queue) -> None:
    queue.enqueue(many())
    assert queue.locate("off1") is None
    assert queue.locate("t_off129") == "pending"
    assert queue.locate("t_off130000") is None
    assert job.is_name("t_off129")


def test_a_cursor_without_its_batch_is_cleaned_up(queue: Queue) -> None:
    queue.enqueue(many())
    drain(queue, 2)
    (gone,) = (entry for entry in batches(queue) if entry.endswith(batch.SUFFIX))
    os.unlink(os.path.join(queue.layout.batches, gone))
    recover(queue, make(queue.layout, queue.jobset))
    assert batches(queue) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_and_no_batch_is_enqueued(small_disk: Any) -> None:
    small_disk.define()
    queue = small_disk.queue()
    with pytest.raises(QueueError, match="can't enqueue, nothing was enqueued: .*No space left on device"):
        queue.enqueue([(f"t_off{number}", {"A": "x" * 200}) for number in range(5000)])
    assert batches(queue) == [] and os.listdir(queue.layout.staging) == [] and queue.counts()["pending"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_and_no_files_are_made_of_a_batch(small_disk: Any) -> None:
    small_disk.define()
    queue = small_disk.queue()
    queue.enqueue([(f"t_off{number}", {"OFFSET": str(number)}) for number in range(batch.LEAST)])
    ballast = small_disk.root / "var" / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(b"x" * 256 * 1024)
    holder = owner.Holder(queue.layout.workers, "t-1")
    with pytest.raises(QueueError, match="no files can be made of the next 256 jobs of a batch: .*No space left on device; free some"):
        queue.claim(holder)
    assert queue.counts()["pending"] == batch.LEAST
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk.root / "var")], check=True)
    holder.release()
    assert len(drain(queue)) == batch.LEAST
