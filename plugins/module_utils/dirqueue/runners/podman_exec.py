# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner podman_exec: the command runs in the long-lived container, through podman exec.

What runs in the container outlives the podman client and gets no signal from it. So it is found by the variables that
it carries: the container's processes are processes of the host, which a process in the user's rootless namespace
(podman unshare) may look at and signal.
"""

from __future__ import annotations

import os
import signal
import sys

from ..errors import NotReady
from .base import Command, Running, end_carriers
from .podman import Podman, podman


class PodmanExec(Podman):
    """Runs commands in a container that is running already."""

    _checked = ""

    def ready(self) -> str:
        """See Runner.ready."""
        name = self.jobset.container
        inspected = podman("container", "inspect", "--format", "{{.State.Running}} {{.Id}} {{.State.StartedAt}}", name)
        if inspected.returncode != 0:
            raise NotReady(f"the container {name} is not there; start it: systemctl --user start {name}.service, or run setup")
        running, _, token = inspected.stdout.strip().partition(" ")
        if running != "true":
            raise NotReady(f"the container {name} is not running; start it: systemctl --user start {name}.service")
        if token != self._checked:
            self._check_script(name)
            self._checked = token
        return token

    def _check_script(self, name: str) -> None:
        workdir, script = self.jobset.container_workdir, self.jobset.script
        tested = podman("exec", "--workdir", workdir, name, "test", "-e", script)
        if tested.returncode == 1:
            raise NotReady(
                f"the script {os.path.join(workdir, script)} is not in the container {name}; put {script} into {self.jobset.workdir}"
            )
        if tested.returncode != 0:
            raise NotReady(f"the container {name} can't run commands in {workdir}: {tested.stderr.strip()[-300:]}")

    def start(self, command: Command, carries: dict[str, str], token: str) -> Running:
        """See Runner.start."""
        words = ["podman", "exec", "--workdir", self.jobset.container_workdir]
        return self._start(words, self.jobset.container, command, carries, token)

    def why_lost(self, running: Running) -> str:
        """See Runner.why_lost. The script is looked for again."""
        self._checked = ""
        return super().why_lost(running)

    def _unshared(self, carries: dict[str, str], *words: str) -> list[int]:
        program = [sys.executable, self.layout.program, "carriers", *words]
        answer = podman("unshare", *program, *(f"{key}={value}" for key, value in carries.items()))
        if answer.returncode != 0:
            raise NotReady(f"can't look for a job's processes in the container: {answer.stderr.strip()[-300:]}")
        return [int(pid) for pid in answer.stdout.split()]

    def _hidden(self, running: Running) -> list[int]:
        if not any(os.path.exists(f"/proc/{pid}") for pid in running.hidden):
            try:
                running.hidden = self._unshared(running.carries, "--spare-session", str(running.process.pid))
            except NotReady:
                running.hidden = []
        return running.hidden

    def signal(self, running: Running, number: int) -> None:
        """See Runner.signal."""
        self._unshared(running.carries, "--spare-session", str(running.process.pid), "--signal", str(number))

    def end(self, carries: dict[str, str]) -> None:
        """See Runner.end."""
        # First the client, so that it can't start anything any more; then what it started.
        end_carriers(carries)
        exists = podman("container", "exists", self.jobset.container)
        if exists.returncode == 1:
            return
        inspected = podman("container", "inspect", "--format", "{{.State.Running}}", self.jobset.container)
        if exists.returncode != 0 or inspected.returncode != 0:
            raise NotReady(f"podman can't tell whether {self.jobset.container} runs: {(exists.stderr + inspected.stderr).strip()[-300:]}")
        if inspected.stdout.strip() == "true":
            self._unshared(carries, "--signal", str(int(signal.SIGKILL)), "--until-gone")
