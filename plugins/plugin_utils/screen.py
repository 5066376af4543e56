# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an operator reads: what is printed line by line, and on a terminal the line at the bottom, which comes and goes."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import threading
import time
from typing import Any, Callable, Optional

from ansible import constants as C
from ansible.utils import color


class Screen:
    """Standard output, whether it is a terminal or not.

    lock: to be held by who prints, and by who changes what the line at the bottom says.

    Args:
        display: Ansible's own, which prints.
        line: returns what is being done in a line of at most so many characters; empty: nothing that is to be told.
    """

    def __init__(self, display: Any, line: Callable[[int], str]) -> None:
        # Held by Ansible while it forks: so no child inherits a lock that a thread of this plugin had.
        self.lock = getattr(display, "_lock", None) or threading.RLock()
        self._display = display
        self._line = line
        self._pid = os.getpid()
        self._stdout = sys.stdout
        self._errors: Optional[list[str]] = None
        self._terminal = False
        self._drawn = False
        self._stop = threading.Event()
        # Seconds; without a terminal, when the next line is due, and how long after the last.
        self._every = 0.0
        self._next_line = 0.0
        self._pause = 0.0

    def open(self, errors: Optional[list[str]]) -> None:
        """Find out what can be shown, and watch over all that is printed from now on.

        Args:
            errors: where errors are added of which Ansible tells; stdout is kept free until the end then. None: stdout is for people.
        """
        self._errors = errors
        plain = os.environ.get("TERM", "") in ("", "dumb")
        if os.environ.get("NO_COLOR") or plain:
            color.ANSIBLE_COLOR = color.ANSIBLE_COLOR and C.ANSIBLE_FORCE_COLOR
        if errors is not None:
            sys.stdout = sys.stderr
        self._terminal = self._stdout.isatty() and not plain
        self._guard()

    def _guard(self) -> None:
        """Let nothing be printed onto the line at the bottom, no colour reach a file, and no error be missed."""
        show = self._display.display

        @functools.wraps(show)
        def display(msg: str, color: Optional[str] = None, stderr: bool = False, **more: Any) -> None:
            if os.getpid() == self._pid:
                with self.lock:
                    self.erase()
                if self._errors is not None and stderr and msg.startswith(("[ERROR]", "ERROR!")):
                    self._errors.append(msg.removeprefix("[ERROR]: ").removeprefix("ERROR! ").strip())
                if stderr and not sys.stderr.isatty() and not C.ANSIBLE_FORCE_COLOR:
                    color = None
            show(msg, color=color, stderr=stderr, **more)

        self._display.display = display

    def close(self) -> bool:
        """Leave the terminal as it was, and stdout to who prints last; return False in a child of the process that began, which may not."""
        if os.getpid() != self._pid:
            return False
        self._stop.set()
        with self.lock:
            self.erase()
            if self._errors is not None:
                sys.stdout = self._stdout
        return True

    def width(self) -> int:
        """Return how long a line may be."""
        return max(shutil.get_terminal_size().columns, 20) if self._stdout.isatty() else sys.maxsize

    def print(self, lines: list[str], colour: Optional[str] = None, stderr: bool = False) -> None:
        """Print lines."""
        try:
            for line in lines:
                self._display.display(line, color=colour, stderr=stderr)
            (sys.stderr if stderr else sys.stdout).flush()
        except BrokenPipeError:
            # Nobody reads on. The run goes on all the same, and Python must not trip over it at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _write(self, text: str) -> None:
        """Write to the terminal what is no message: the line at the bottom."""
        with contextlib.suppress(OSError, ValueError):
            self._stdout.write(text)
            self._stdout.flush()

    def erase(self) -> None:
        """Take away the line at the bottom; it comes again if there is something to tell."""
        if self._drawn:
            self._drawn = False
            self._write("\r\x1b[K")

    def follow(self, every: float, silent: bool) -> None:
        """Something begins: say from now on what is being done.

        Args:
            every: without a terminal, after how many seconds; the times in between double, up to ten times this.
            silent: nothing is to be said.
        """
        self._every = self._pause = every
        self._next_line = time.monotonic() + every
        if self._stop.is_set() or silent:
            return
        if not any(thread.name == "operator" for thread in threading.enumerate()):
            threading.Thread(target=self._tick, name="operator", daemon=True).start()

    def _tick(self) -> None:
        """Say what is being done: on a terminal four times a second, elsewhere now and then."""
        while not self._stop.wait(0.25):
            with self.lock:
                due = self._terminal or time.monotonic() >= self._next_line
                line = self._line(self.width() - 1 if self._terminal else sys.maxsize) if due and not self._stop.is_set() else ""
                if line and self._terminal:
                    self._write("\r\x1b[K" + line)
                    self._drawn = True
                elif line:
                    self._pause = min(self._pause * 2, self._every * 10)
                    self._next_line = time.monotonic() + self._pause
                    self.print([line])
