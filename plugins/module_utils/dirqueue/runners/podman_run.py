# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner podman_run: each command runs in a fresh container, which is removed after it."""

from __future__ import annotations

import functools
import json

from ..carriers import end_carriers
from ..errors import NotReady
from .base import Command, Running
from .client import Client, ask

podman = functools.partial(ask, "podman")


class PodmanRun(Client, name="podman_run"):
    """Runs each command in a container of its own."""

    def ready(self) -> str:
        """See Runner.ready."""
        if podman("image", "exists", self.jobset.image).returncode != 0:
            raise NotReady(f"the image {self.jobset.image} is not there; build or pull it, or correct the jobset's key image")
        for secret in self.jobset.podman_secrets.values():
            if podman("secret", "inspect", secret).returncode != 0:
                raise NotReady(f"the podman secret {secret} is not there; make it: podman secret create {secret} FILE")
        return self.jobset.image

    def start(self, command: Command, carries: dict[str, str], token: str) -> Running:
        """See Runner.start."""
        jobset = self.jobset
        words = ["podman", "run", "--rm", "--pull=never", "--log-driver=none", "--name", _name(carries)]
        words += [f"--label={name}={command.environment[name]}" for name in command.environment if name.startswith("SAGEQUEUE_")]
        words += ["--volume", f"{jobset.workdir}:{jobset.container_workdir}", "--workdir", jobset.container_workdir]
        words += [f"--secret={secret},type=env,target={name}" for name, secret in jobset.podman_secrets.items()]
        return self._start([*words, *jobset.run_options], jobset.image, command, carries, token)

    def signal(self, running: Running, number: int) -> None:
        """See Runner.signal."""
        podman("kill", "--signal", str(int(number)), _name(running.carries))

    def end(self, *wanted: dict[str, str]) -> None:
        """See Runner.end."""
        end_carriers(*wanted)
        found = podman("ps", "--all", "--filter=label=SAGEQUEUE_CLAIM", "--format=json")
        if found.returncode != 0:
            raise NotReady(f"podman can't tell what a dead worker's job left running: {found.stderr.strip()[-300:]}")
        containers = {one["Id"]: one["Labels"].items() for one in json.loads(found.stdout or "[]")}
        for container in [one for one, labels in containers.items() if any(carries.items() <= labels for carries in wanted)]:
            removed = podman("rm", "--force", "--time=0", container)
            if removed.returncode != 0:
                raise NotReady(f"the container {container} of a dead worker's job can't be removed: {removed.stderr.strip()[-300:]}")


def _name(carries: dict[str, str]) -> str:
    return f"sagequeue-{carries['SAGEQUEUE_CLAIM']}"
