# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker works by, and whether it is still current: its program, its jobset's definition, and what its jobs run in."""

from __future__ import annotations

import os
import time
from typing import Callable

from . import definitions
from .errors import NotReady
from .layout import Layout
from .patience import Patient
from .queue import Queue
from .runners.base import Runner
from .runners.known import make

# How long it trusts that the runner is ready, in seconds.
_READY = 5.0


class Current(Patient):
    """A process that works by a jobset's definition.

    Args:
        root: the batch user's sagequeue folder.
        jobset: the jobset's name.
        log: where its own messages go.
        program: the program's file.
    Raises:
        QueueError: the jobset is not defined, or its queue is not usable.
    """

    def __init__(self, root: str, jobset: str, log: Callable[[str], None], program: str) -> None:
        self.layout = Layout(root, jobset)
        super().__init__(self.layout.base, log)
        self._program = (program, _stamp(program))
        self._definition = (definitions.path_of(root, jobset), "")
        self._define()
        # Of two kinds, see keeper.py.
        self._keeps = self.runner.keeps
        self.queue = Queue(self.layout, self.jobset)
        self._token = ""
        self._token_until = 0.0

    def _define(self) -> None:
        stamp = _stamp(self._definition[0])
        self.jobset = definitions.load(self.layout.root, self.layout.jobset)
        if self._definition[1]:
            self.runner.close()
        self.runner: Runner = make(self.layout, self.jobset, self.log)
        # Only now: a definition that can't be read is said to be so before each claim, and none is made under the old one.
        self._definition = (self._definition[0], stamp)

    def _is_replaced(self) -> bool:
        if self.runner.keeps != self._keeps:
            self.log("the jobset's runner has changed; starting anew")
        elif _stamp(self._program[0]) != self._program[1]:
            self.log("the program was replaced; starting anew")
        else:
            return False
        return True

    def _reload(self) -> None:
        if _stamp(self._definition[0]) != self._definition[1]:
            self._define()
            self.queue.jobset = self.jobset
            self._token = ""
            self.log("the jobset's definition has changed; it holds from the next job on")
            if self.runner.keeps != self._keeps:
                raise NotReady(f"jobset {self.jobset.name} has the runner {self.jobset.runner} now")

    def _make_ready(self) -> None:
        if not self._token or time.monotonic() > self._token_until:
            self._token = ""
            self._token = self.runner.ready()
            self._token_until = time.monotonic() + _READY


def _stamp(path: str) -> str:
    """Return what changes when a file is replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"
