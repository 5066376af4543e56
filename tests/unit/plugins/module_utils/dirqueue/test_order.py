# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Which pending job is next, and how a worker hears that there is one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.tests.unit.batch_host import claimed


@pytest.fixture
def queue(host: Any) -> Queue:
    host.define(stride=4)
    return host.queue()


def test_oldest_first(queue: Queue, holder: owner.Holder) -> None:
    for name in ("c", "a", "b"):
        queue.enqueue([(name, {})])
    assert claimed(queue, holder) == ["c", "a", "b"]


def test_a_batch_in_its_own_order(queue: Queue, holder: owner.Holder) -> None:
    names = [f"job{number}" for number in range(120)]
    queue.enqueue([(name, {}) for name in names])
    assert claimed(queue, holder) == names


def _work(queue: Queue, holder: owner.Holder, jobs: int) -> list[str]:
    """Look and claim, as a worker does."""
    done = []
    while len(done) < jobs and queue.look():
        claim = queue.claim(holder)
        assert claim
        queue.finish(claim, "done", {"REASON": "ok"})
        done.append(claim.name)
    return done


def test_files_of_a_batch_are_made_before_they_are_needed_by_one_worker_alone(host: Any, queue: Queue, holder: owner.Holder) -> None:
    names = [f"job{number}" for number in range(batch.LEAST)]
    queue.enqueue([(name, {}) for name in names])
    other = host.queue()
    half = batch.CHUNK // 2
    assert _work(queue, holder, half) == names[:half]
    assert other.look() and len(queue.entries("pending")) == half
    with other.lock():
        # Nobody waits for it.
        assert queue.look() and len(queue.entries("pending")) == half
    assert _work(other, holder, half // 2) == names[half : half + half // 2]
    assert other.look() and len(queue.entries("pending")) == half // 2 + batch.CHUNK
    assert _work(queue, holder, 1) == [names[half + half // 2]] and len(queue.entries("pending")) == half // 2 - 1 + batch.CHUNK
    assert _work(queue, holder, len(names)) == names[half + half // 2 + 1 :] and os.listdir(queue.layout.batches) == []


def test_what_keeps_files_from_being_made_is_said_when_they_are_needed(host: Any, queue: Queue, holder: owner.Holder) -> None:
    queue.enqueue([(f"job{number}", {}) for number in range(batch.LEAST)])
    assert len(_work(queue, holder, batch.CHUNK // 2)) == batch.CHUNK // 2
    (path,) = Path(queue.layout.batches).glob("*.batch")
    text = path.read_bytes()
    path.write_bytes(text[: len(text) // 2].rpartition(b"\n")[0] + b"\nbad key\n")
    left = len(_work(queue, holder, batch.LEAST))
    assert batch.CHUNK // 2 <= left < batch.LEAST // 2 and queue.refused[f"batches/{path.name}"]


def test_priority_before_age(queue: Queue, holder: owner.Holder) -> None:
    for name, priority in (("low", "-100"), ("plain", "0"), ("first", "100"), ("second", "1")):
        queue.enqueue([(name, {"PRIORITY": priority})])
    assert claimed(queue, holder) == ["first", "second", "plain", "low"]


def test_natural_order_where_age_does_not_tell(host: Any, queue: Queue, holder: owner.Holder) -> None:
    for name in ("t_off10", "t_off9", "t_off1"):
        os.utime(host.put("pending", name), (1000, 1000))
    assert claimed(queue, holder) == ["t_off1", "t_off9", "t_off10"]


def test_a_batch_whose_later_lines_are_broken_is_named_and_in_nobodys_way(host: Any, queue: Queue, holder: owner.Holder) -> None:
    head = batch.head("0" * 16, 3, 1, owner.now())
    (Path(queue.layout.batches) / "odd.batch").write_text(head + "good X=1\nbad key\nlast X=3\n")
    host.put("pending", "a")
    assert queue.claim(holder).name == "a"
    for _look in range(2):
        assert queue.claim(holder) is None
    assert queue.refused["batches/odd.batch"] and host.states() == {"a": "running"}


@pytest.mark.parametrize("news", ["a job", "a batch", "the gate is opened"])
def test_the_kernel_tells_of_news(host: Any, news: str) -> None:
    host.define()
    queue = host.queue()
    if news == "the gate is opened":
        queue.close_gate("test")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    try:
        assert queue.arm() and not queue.look()
        # Listing the folder, which look has done, leaves the watch in place.
        assert queue.entries("pending") == [] and signal.sigtimedwait([signal.SIGIO], 0) is None
        if news == "the gate is opened":
            queue.open_gate()
        else:
            queue.enqueue([(f"j{number}", {}) for number in range(1 if news == "a job" else batch.LEAST)])
        assert signal.sigtimedwait([signal.SIGIO], 10)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])


def test_a_watch_that_the_kernel_does_not_grant_is_done_without(host: Any, queue: Queue) -> None:
    pending = Path(queue.layout.queue) / "pending"
    pending.rename(host.base / "pending")
    assert queue.arm() is False
    (host.base / "pending").rename(pending)
