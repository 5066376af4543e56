# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What the unit tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import owner
from ansible_collections.sagequeue.batch.tests.unit.batch_host import host, program, small_disk, wait_for  # noqa: F401
from hypothesis import settings

# The machine may be busy: no deadline for one example.
settings.register_profile("unit", max_examples=60, deadline=None)
settings.load_profile("unit")


@pytest.fixture
def holder(queue: Any) -> Iterator[owner.Holder]:
    """A worker of the test's queue."""
    made = owner.Holder(queue.layout.workers, "t-1")
    yield made
    made.release()


def killed_at(call: Callable[[], None], number: int) -> bool:
    """Run a call in a child process that is killed right before its number-th system call on files.

    Returns:
        whether it was killed; False: it came to its end, with fewer calls.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _kill_before(number)
            call()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(1)
    _pid, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the call failed; see its traceback"
    return False


def _kill_before(number: int) -> None:
    import fcntl

    made = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("open", "link", "rename", "unlink", "fsync", "utime"):
        setattr(os, name, counted(getattr(os, name)))
    fcntl.flock = counted(fcntl.flock)


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """End a test that hangs, with a trace of where."""

    def stop(_number: int, _frame: Any) -> None:
        raise AssertionError("the test hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for


@pytest.fixture(name="killed_at")
def _killed_at() -> Callable[[Callable[[], None], int], bool]:
    return killed_at
