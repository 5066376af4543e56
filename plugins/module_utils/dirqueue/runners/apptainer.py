# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner apptainer: each command runs in a fresh container, made from one file (.sif), by the user's own processes.

There is no daemon. But Apptainer takes half a second and several processes to begin, which hide the environment that they were
given: so they carry a mark, too (see Runner._spawn). In the container the command is no first process, so it gets all signals.

A job finds the variables that the image has and those that it was given, as with podman_run, and nothing of Apptainer's own:
/usr/bin/env in the image sees to that. It is the batch user there, not the image's user, and all files of the image are its own.
"""

from __future__ import annotations

import functools
import json
import os
import re
from typing import Callable

from ..carriers import commands_of, end_carriers, memory_of
from ..errors import NotReady
from ..jobset import Jobset
from ..layout import Layout
from .base import Command, Running
from .client import Client, ask

apptainer = functools.partial(ask, "apptainer")

# By its own user alone, without a setuid program, whose processes nobody may look at.
_EXEC = ["--silent", "exec", "--userns", "--containall", "--no-umask", "--no-eval", "--writable-tmpfs"]
# What Apptainer sets itself, or understands in a way of its own.
_ALTERED = ["HOME", "LANG", "TERM", "PWD", "PS1", "PROMPT_COMMAND", "LD_LIBRARY_PATH", "PREPEND_PATH", "APPEND_PATH"]
_ALTERED += [
    f"{prefix}_{name}"
    for prefix in ("APPTAINER", "SINGULARITY")
    for name in ("APPNAME", "BIND", "COMMAND", "CONTAINER", "ENVIRONMENT", "NAME", "NO_EVAL")
]
# A line of the script that Apptainer makes of the image's variables.
_EXPORT = re.compile(r'^export ([A-Za-z_][A-Za-z0-9_]*)="(?:\$\{\1:-"(.*?)"\}|(.*?))"$', re.MULTILINE | re.DOTALL)


def image_variables(scripts: dict[str, str]) -> dict[str, str]:
    """Return the variables of the image that a .sif was made from, as its scripts have them."""
    text = "".join(script for path, script in sorted(scripts.items()) if path.endswith("/10-docker2singularity.sh"))
    return {name: re.sub(r'\\(["\\`$])', r"\1", kept or fixed) for name, kept, fixed in _EXPORT.findall(text)}


class Apptainer(Client, name="apptainer"):
    """Runs each command in a container of its own, without Podman."""

    _checked = ""
    _variables: dict[str, str]

    def __init__(self, layout: Layout, jobset: Jobset, log: Callable[[str], None] = lambda _text: None) -> None:
        super().__init__(layout, jobset, log)
        # What somebody means for all containers of his is not for jobs.
        for name in [one for one in self._inherited if one.startswith((b"APPTAINERENV_", b"SINGULARITYENV_"))]:
            del self._inherited[name]

    def ready(self) -> str:
        """See Runner.ready."""
        path = self.jobset.image
        try:
            found = os.stat(path)
        except OSError as exc:
            if not isinstance(exc, FileNotFoundError):
                raise NotReady(f"the image {path} can't be looked at: {exc.strerror}") from exc
            raise NotReady(f"the image {path} is not there; setup makes Sage's; or correct the jobset's key image") from exc
        token = f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}"
        if token != self._checked:
            inspected = apptainer("inspect", "--environment", "--json", path)
            script, workdir = self.jobset.script, self.jobset.container_workdir
            tested = apptainer(*self._words(), path, "/usr/bin/env", "test", "-e", script)
            if tested.returncode == 1:
                where = os.path.join(workdir, script)
                raise NotReady(f"the script {where} is not there in the image {path}; put {script} into {self.jobset.workdir}")
            if inspected.returncode != 0 or tested.returncode != 0:
                raise NotReady(f"apptainer can't run commands in the image {path}: {(inspected.stderr + tested.stderr).strip()[-300:]}")
            self._variables = image_variables(json.loads(inspected.stdout)["data"]["attributes"].get("environment") or {})
            self._checked = token
        return token

    def _words(self) -> list[str]:
        # As in CSV, so that there may be a colon or a comma in a path.
        ways = [("source", self.jobset.workdir), ("destination", self.jobset.container_workdir)]
        fields = ["type=bind", *('"{}={}"'.format(key, path.replace('"', '""')) for key, path in ways)]
        return [*_EXEC, "--mount", ",".join(fields), "--cwd", self.jobset.container_workdir, *self.jobset.run_options]

    def start(self, command: Command, carries: dict[str, str], token: str) -> Running:
        """See Runner.start."""
        wanted = {**self._variables, **command.environment}
        kept = [f"{name}={wanted[name]}" for name in _ALTERED if name in wanted]
        # Of a user whose name the image does not know, it is the home that Apptainer makes.
        gone = [word for name in _ALTERED if name not in wanted and name != "HOME" for word in ("-u", name)]
        passed = {f"APPTAINERENV_{name}": value for name, value in command.environment.items() if name not in _ALTERED}
        mark = {name: value for name, value in command.environment.items() if name.startswith("SAGEQUEUE_")}
        words = ["apptainer", *self._words(), self.jobset.image, "/usr/bin/env", *gone, *kept, *command.argv]
        return Running(self._spawn(words, {**passed, **mark}, command.output, "/", mark), carries, token)

    def signal(self, running: Running, number: int) -> None:
        """See Runner.signal. Apptainer passes it on; while it is still about to begin, it would lose it."""
        if any(commands_of({running.carries["SAGEQUEUE_CLAIM"]})):
            os.kill(running.session, number)
        else:
            self.end(running.carries)

    def end(self, *wanted: dict[str, str]) -> None:
        """See Runner.end."""
        end_carriers(*wanted)

    def sample(self, running: Running) -> None:
        """See Runner.sample."""
        pids = [pid for _claim, pid in commands_of({running.carries["SAGEQUEUE_CLAIM"]})]
        running.peak_kib = max(running.peak_kib, memory_of(pids))

    def why_lost(self, running: Running) -> str:
        """See Runner.why_lost. All is looked at again."""
        self._checked = ""
        lost = super().why_lost(running)
        return "the image was replaced while the job ran" if lost.startswith("the container was") else lost
