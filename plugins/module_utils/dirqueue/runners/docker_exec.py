# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner docker_exec: the command runs in a container of Docker's that is running already, started by docker exec.

It is no child of the client that was started here, but of Docker's daemon. So it outlives the client and gets no signal
from it, and it may belong to another user: it is found by what it carries, and ended, from inside, as the container's root.

And the daemon may start what it was told by a client that is dead by now. So each command begins as a program of ours,
which is found like the command itself, and goes on only if nobody has said meanwhile that the claim has ended. That is
said by a file in the container's /dev/shm, which goes away with all processes, when the container stops.
"""

from __future__ import annotations

import functools
import json
import signal

from ..carriers import end_carriers
from ..errors import NotReady
from .base import Command, Running
from .client import Client, ask

docker = functools.partial(ask, "docker")
# The container's Python, isolated from what jobs give to theirs.
_PYTHON = ["python3", "-ISc"]
_SCRIPT = "import os, sys; sys.exit(not os.path.lexists(sys.argv[1]))"
_ENDED = "/dev/shm/sagequeue-ended."
# Arguments: the file that says that the claim has ended, the command. Python itself may have changed the environment.
_START = """
import os, signal, sys
if os.path.lexists(sys.argv[1]):
    sys.exit("this claim has ended")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
with open("/proc/self/environ", "rb") as file:
    pairs = [one.partition(b"=") for one in file.read().split(b"\\0")[:-1]]
try:
    os.execvpe(sys.argv[2], sys.argv[2:], {name: value for name, _equals, value in pairs})
except OSError as exc:
    sys.stderr.write("%s: %s\\n" % (sys.argv[2], exc.strerror))
    os._exit(127 if isinstance(exc, FileNotFoundError) else 126)
"""
# Arguments: the signal, whether to go on until nothing is left, and as JSON what each of the wanted carries.
# Amid an execve(2) a process shows no environment for a moment: only what stays unseen is gone. Who has CAP_SYS_PTRACE (19) may
# look at all processes of the container; a container that shares those of the host may have others.
_SIGNAL = """
import glob, json, os, sys, time
number, until_gone, wanted = int(sys.argv[1]), sys.argv[2] == "gone", [json.loads(word) for word in sys.argv[3:]]
sought = [{os.fsencode("%s=%s" % pair) for pair in carries.items()} for carries in wanted]
with open("/proc/self/status") as file:
    rights = int(file.read().partition("CapEff:")[2].split()[0], 16)
if os.geteuid() == 0 and not rights >> 19 & 1:
    sys.exit("its root may not look at the processes of others")
ended = [carries["SAGEQUEUE_CLAIM"] for carries in wanted if carries.get("SAGEQUEUE_CLAIM", "").isalnum()]
for claim in ended if until_gone else []:
    os.close(os.open("{ended}" + claim, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
for path in glob.glob("{ended}*"):
    if os.lstat(path).st_mtime < time.time() - 86400:
        os.unlink(path)
deadline, unseen = time.monotonic() + 10, 0
while unseen < 2:
    pids = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                has = set(file.read().split(b"\\0"))
            if any(one <= has for one in sought):
                pids.append(int(path.split("/")[2]))
                os.kill(pids[-1], number)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass
    if not until_gone:
        break
    unseen = 0 if pids else unseen + 1
    if time.monotonic() > deadline:
        sys.exit("processes %s in it can't be killed" % pids)
    time.sleep(0.02)
""".replace("{ended}", _ENDED)


class DockerExec(Client, name="docker_exec"):
    """Runs commands in a container of Docker's that is running already."""

    _checked = ""

    def ready(self) -> str:
        """See Runner.ready."""
        name, script = self.jobset.container, self.jobset.script
        state, token = self._state()
        if state != "running":
            raise NotReady(f"the container {name} of Docker's is {state or 'not there'}; start it: docker start {name}")
        if token != self._checked:
            tested = docker("exec", "--workdir", self.jobset.container_workdir, name, *_PYTHON, _SCRIPT, script)
            if tested.returncode == 1:
                where = f"{self.jobset.container_workdir}/{script}"
                raise NotReady(f"the script {where} is not in the container {name} of Docker's; put {script} into {self.jobset.workdir}")
            if tested.returncode != 0:
                why = (tested.stderr + tested.stdout).strip()[-300:]
                raise NotReady(f"the container {name} of Docker's can't run python3 in {self.jobset.container_workdir}: {why}")
            # Its processes are gone for a while before Docker says so of it.
            if self._state() != (state, token):
                raise NotReady(f"the container {name} of Docker's was started anew just now")
            self._checked = token
        return token

    def _state(self) -> tuple[str, str]:
        """Return how the container is, empty where there is none, and its incarnation.

        Raises:
            NotReady: Docker does not say.
        """
        format_ = "{{.State.Status}} {{.Id}} {{.State.StartedAt}}"
        inspected = docker("container", "inspect", "--format", format_, self.jobset.container)
        if inspected.returncode == 0:
            state, _blank, token = inspected.stdout.strip().partition(" ")
            return state, token
        if "no such container" in inspected.stderr.lower():
            return "", ""
        raise NotReady(f"docker can't tell whether {self.jobset.container} runs: {inspected.stderr.strip()[-300:]}")

    def start(self, command: Command, carries: dict[str, str], token: str) -> Running:
        """See Runner.start."""
        begin = [*_PYTHON, _START, _ENDED + command.environment["SAGEQUEUE_CLAIM"]]
        words = ["docker", "exec", "--workdir", self.jobset.container_workdir]
        return self._start(words, self.jobset.container, command._replace(argv=[*begin, *command.argv]), carries, token)

    def why_lost(self, running: Running) -> str:
        """See Runner.why_lost. The script is looked for again."""
        self._checked = ""
        return super().why_lost(running)

    def signal(self, running: Running, number: int) -> None:
        """See Runner.signal."""
        self._inside(number, "once", running.carries)

    def end(self, *wanted: dict[str, str]) -> None:
        """See Runner.end."""
        # First the clients, which could still ask for something to be started. Then what was started, or is about to be.
        end_carriers(*wanted)
        state, _token = self._state()
        # In any other state, such as paused, there are processes.
        if state not in ("", "created", "exited", "dead"):
            self._inside(signal.SIGKILL, "gone", *wanted)

    def _inside(self, number: int, until: str, *wanted: dict[str, str]) -> None:
        """Send a signal to what carries all variables of one that is wanted, as root with all rights in the container.

        Raises:
            NotReady: that can't be done now.
        """
        name = self.jobset.container
        words = [*_PYTHON, _SIGNAL, str(int(number)), until, *map(json.dumps, wanted)]
        done = docker("exec", "--privileged", "--user=0", "--workdir=/", name, *words)
        if done.returncode != 0:
            why = (done.stderr + done.stdout).strip()[-300:]
            raise NotReady(f"can't look for a job's processes in the container {name} of Docker's: {why}")
