# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Every operation is killed (SIGKILL) before each system call on files that it makes, one real process per call."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.faults.operations import (
    OPERATIONS,
    Operation,
    Victim,
    World,
    strace,
    violations,
    work_off,
    world,  # noqa: F401
)
from ansible_collections.sagequeue.batch.tests.unit.batch_host import wait_for

# Without --long only calls that change something, or wait for a lock: in between, a kill leaves the same files behind.
_CHANGING = ["link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "write", "pwrite64", "writev"]
_CHANGING += ["ftruncate", "utimensat", "fchmod", "fsync", "fdatasync", "syncfs", "flock"]
# Of each kind of call of one operation, without --long.
_SAMPLE = 4


def _points(world: World, operation: Operation, long: bool, trace: Path) -> list[tuple[str, int]]:  # noqa: F811
    """Run the operation once, and return its calls on the queue's files: the name of each, and the how many-th of that name it is."""
    world.fill(operation, live=True)
    victim = Victim(world, operation)
    victim.begin()
    with strace(victim.pid, "-y", "-o", str(trace), "-e", "trace=%file,%desc,flock"):
        victim.run()
        assert victim.end() == (False, True)
    made: Counter[str] = Counter()
    points: dict[str, list[int]] = {}
    for line in trace.read_text(encoding="utf-8").splitlines():
        call, _, arguments = line.partition("(")
        made[call] += 1
        if str(world.host.base) in arguments or call == "syncfs":
            points.setdefault(call, []).append(made[call])
    chosen = []
    for call, numbers in points.items():
        if not long:
            numbers = sorted({numbers[step * (len(numbers) - 1) // (_SAMPLE - 1)] for step in range(_SAMPLE)})
        chosen += [(call, number) for number in numbers if long or call in _CHANGING]
    return chosen


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_kill_at_every_system_call(world: World, long: bool, tmp_path: Path, name: str) -> None:  # noqa: F811
    operation = OPERATIONS[name]
    tries = lost = doubled = 0
    wrong: list[str] = []
    for call, number in _points(world, operation, long, tmp_path / "trace"):
        world.fill(operation, live=True)
        victim = Victim(world, operation)
        victim.begin()
        with strace(victim.pid, "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"):
            victim.run()
            killed, acknowledged = victim.end()
        # Who looks at /proc makes more calls when there are more processes.
        assert killed or call not in _CHANGING or operation.worker, f"call {number} of {call} did not come again"
        tries += killed
        with Queue(world.layout, world.jobset) as queue:
            recover(queue, make(world.layout, world.jobset))
            more = violations(world, operation, acknowledged)
            if operation.worker and world.host.alive("waits"):
                more[2].append("what the dead worker ran is still running")
        lost, doubled = lost + more[0], doubled + more[1]
        wrong += [f"killed before call {number} of {call}, {acknowledged=}: {text}" for text in [*more[2], *work_off(world)]]
    assert not wrong or lost or doubled, wrong
    print("\n".join(wrong))
    ledger.record(f"kill at every system call: {name}", tries=tries, lost=lost, doubled=doubled)


@pytest.mark.parametrize("name", ["claim", "finish ok", "finish failed"])
def test_recovery_at_every_system_call_of_one_who_lives(world: World, long: bool, tmp_path: Path, name: str) -> None:  # noqa: F811
    """The process is stopped there, and goes on when a recovery has looked at what it holds: that must leave it alone."""
    operation = OPERATIONS[name]
    tries = overlapped = 0
    for call, number in _points(world, operation, long, tmp_path / "trace"):
        world.fill(operation, live=True)
        victim = Victim(world, operation)
        victim.begin()
        stopped = tmp_path / f"{call}.{number}"
        with strace(victim.pid, "-o", str(stopped), "-e", f"trace={call}", "-e", f"inject={call}:signal=STOP:when={number}"):
            victim.run()
            said = wait_for(lambda: re.search("stopped by SIGSTOP|exited with", stopped.read_text(encoding="utf-8")))  # noqa: B023
            if said[0] == "exited with" and call not in _CHANGING:
                # Not all that is only read is read each time.
                assert victim.end() == (False, True)
                continue
            with Queue(world.layout, world.jobset) as queue:
                changes = recover(queue, make(world.layout, world.jobset))
            os.kill(victim.pid, signal.SIGCONT)
            assert victim.end() == (False, True), f"stopped before call {number} of {call}"
        tries += 1
        moved = [change for change in changes if change.new_state != "running"]
        print(*(f"stopped before call {number} of {call}: {change}" for change in moved), sep="\n")
        overlapped += len(moved)
    ledger.record(f"recovery amid a live owner's {name}", tries=tries, overlapped=overlapped)
