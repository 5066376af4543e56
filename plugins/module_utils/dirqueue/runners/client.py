# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runners share that let a container engine do it: calling its client, passing variables, reading exit statuses."""

from __future__ import annotations

import signal
import subprocess

from ..carriers import carriers, memory_of, session_of
from ..errors import NotReady
from ..jobset import PODMAN_OBEYS
from .base import Command, Outcome, Runner, Running

# Seconds after which a call that should take a tenth of one is given up.
PATIENCE = 60


def ask(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run an engine's client, such as podman, and return what it said.

    Raises:
        NotReady: it is not there, or does not answer.
    """
    try:
        return subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError as exc:
        raise NotReady(
            f"{program} is not installed; install it (setup does that for podman and apptainer), or choose the runner process"
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise NotReady(f"{program} {words[0]} has not answered for {PATIENCE} s") from exc


class Client(Runner):
    """Base of the runners whose started process is an engine's client."""

    def _start(self, words: list[str], target: str, command: Command, carries: dict[str, str], token: str) -> Running:
        """Start the client with some words, the command's variables, the container or image, and the command."""
        # By name only, so that their values stand in no process list; but for those that the client itself would obey.
        passed = {name: value for name, value in command.environment.items() if not PODMAN_OBEYS.match(name)}
        options = []
        for name, value in command.environment.items():
            options += ["--env", name if name in passed else f"{name}={value}"]
        pid = self._spawn([*words, *options, target, *command.argv], passed, command.output, "/")
        return Running(pid, carries, token)

    def sample(self, running: Running) -> None:
        """See Runner.sample. The client, in its own session, carries the variables, too, and does not count."""
        pids = [pid for pid in carriers(running.carries) if session_of(pid) != running.session]
        running.peak_kib = max(running.peak_kib, memory_of(pids or self._hidden(running)))

    def _hidden(self, running: Running) -> list[int]:
        """Return the command's processes where the container's ids are not ours and keep us from looking for them."""
        return []

    def _outcome(self, running: Running, code: int, client_kib: int) -> Outcome:
        # A client exits with 128 + N where the command ended by signal N.
        if code > 128 and code - 128 in {int(number) for number in signal.Signals}:
            return Outcome(None, code - 128, running.peak_kib or None)
        return Outcome(code if code >= 0 else None, -code if code < 0 else None, running.peak_kib or None)
