# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner process: the command is a process of the host, in a session of its own."""

from __future__ import annotations

import contextlib
import os
import shutil

from ..carriers import end_carriers
from ..errors import NotReady
from .base import Command, Outcome, Runner, Running


class Process(Runner, name="process"):
    """Runs commands on the host itself."""

    def ready(self) -> str:
        """See Runner.ready."""
        workdir, script = self.jobset.workdir, self.jobset.script
        if not os.path.isdir(workdir):
            raise NotReady(f"the folder {workdir} (workdir) is not there; make it, or run setup")
        if self.jobset.command and not shutil.which(self.jobset.command[0]):
            raise NotReady(f"the program {self.jobset.command[0]} (command) is not there; run setup, or correct the jobset")
        if not os.path.exists(os.path.join(workdir, script)):
            raise NotReady(f"the script {os.path.join(workdir, script)} is not there; put it there, or correct the jobset")
        return "host"

    def start(self, command: Command, carries: dict[str, str], token: str) -> Running:
        """See Runner.start."""
        return Running(self._spawn(command.argv, command.environment, command.output, self.jobset.workdir), carries, token)

    def signal(self, running: Running, number: int) -> None:
        """See Runner.signal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.session, number)

    def end(self, *wanted: dict[str, str]) -> None:
        """See Runner.end."""
        end_carriers(*wanted)

    def _outcome(self, running: Running, code: int, client_kib: int) -> Outcome:
        return Outcome(code if code >= 0 else None, -code if code < 0 else None, client_kib)
