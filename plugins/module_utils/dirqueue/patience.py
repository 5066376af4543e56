# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a worker waits: until a signal comes, a child ends, there is something to read; and until what failed works again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import FrameType
from typing import Callable, Optional, TypeVar

from .errors import NotReady, explain

_T = TypeVar("_T")


class Patient:
    """A process that waits, and tries again.

    Args:
        base: what an error happened to, where that does not name it: a folder.
        log: where its messages go.
    """

    def __init__(self, base: str, log: Callable[[str], None]) -> None:
        self.log = log
        self._base = base
        # The signal that has told it to stop, by its name, and what it has said last.
        self._stopping = ""
        self._said = ""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def _heed_signals(self) -> None:
        """From now on SIGTERM and SIGINT ask it to stop; they, the end of a child and SIGIO end _sleep."""
        # A handler is needed for a signal to be written to the pipe that _sleep watches.
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGIO, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _say(self, text: str) -> None:
        """Log a condition once, however long it lasts."""
        if text and text != self._said:
            self.log(text)
        self._said = text

    def _on_signal(self, number: int, _frame: Optional[FrameType]) -> None:
        self._stopping = signal.Signals(number).name

    def _sleep(self, seconds: float, *more: int) -> None:
        """Wait, until a signal comes, a child ends or one of more descriptors (-1: none) has something to read."""
        watched = [self._wake_read, *(fd for fd in more if fd >= 0)]
        if self._wake_read in select.select(watched, [], [], max(0.0, seconds))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)

    def _try(self, call: Callable[[], None]) -> None:
        """Call once; if that fails, say so."""
        try:
            call()
        except (OSError, MemoryError, NotReady) as exc:
            self._say(explain(exc, self._base))

    def _insist(self, call: Callable[[], _T], trouble: str) -> _T:
        """Call again and again until it works: until then the job stays owned. LostClaim goes through."""
        while True:
            try:
                return call()
            except (OSError, MemoryError, NotReady) as exc:
                self._say(f"{trouble} ({explain(exc, self._base)}); trying again")
                self._sleep(1.0)
