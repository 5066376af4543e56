# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner podman_exec: the command runs in the long-lived container.

To start it by podman exec takes a tenth of a second. So with its first job a worker starts an agent in the container,
by podman exec, which then starts its jobs there (see agent.py). Where there can be no agent, podman exec does.

What runs in the container outlives the podman client and gets no signal from it. So it is found by the variables that
it carries: the container's processes are processes of the host, which a process in the user's rootless namespace
(podman unshare) may look at and signal.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pkgutil
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Optional

from ..carriers import agent_name, end_carriers
from ..errors import NotReady, is_shortage
from . import agent
from .base import Command, Outcome, Running
from .client import PATIENCE, Client, ask

podman = functools.partial(ask, "podman")

# Seconds that an agent gets to say its first word, or a later one, and for how long there is none when one was lost.
_FIRST = 10.0
_WORD = 3.0
_WITHOUT = 600.0
# ... and what has started it, to tell podman of its end.
_LEAVE = 3.0
# Bytes that a job's words and variables may have together to be told to an agent in one message.
_LARGEST = 100_000


class Agent:
    """An agent in the container, from its worker's side.

    Args:
        container: the container's name.
        token: its incarnation, see Runner.ready.
    Raises:
        NotReady: there can't be one; says why.
        OSError: we are short of something.
    """

    def __init__(self, container: str, token: str) -> None:
        self.token = token
        self.name = agent_name()
        self._container = container
        self.running: Optional[Delegated] = None
        self._pings = 0
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with other:
                self._channel.send(pkgutil.get_data(agent.__package__, "agent.py") or b"")
                # The socket becomes descriptor 3, the first that podman passes on. Podman need not stay: it would take more
                # memory than the agent.
                words = ["exec", "--detach", "--preserve-fds=1", "--env=SAGEQUEUE_AGENT", container]
                started = subprocess.run(
                    ["sh", "-c", 'exec podman "$@" 3<&0 0</dev/null', "sh", *words, *_PROGRAM],
                    stdin=other.fileno(),
                    capture_output=True,
                    text=True,
                    errors="replace",
                    env={**os.environ, "SAGEQUEUE_AGENT": self.name},
                    timeout=PATIENCE,
                    check=False,
                )
            if started.returncode != 0:
                raise NotReady(started.stderr.strip()[-300:])
            self._session = started.stdout.strip()
            if self.hear(_FIRST) != b"ready":
                raise NotReady("its python3 does not run the agent")
        except (OSError, subprocess.SubprocessError, NotReady) as exc:
            self.close()
            if is_shortage(exc):
                raise
            raise NotReady(str(exc)) from exc

    def close(self) -> None:
        """Let go of it: it ends what it runs, and itself."""
        if self.running:
            self.running.fileno = -1
        self._channel.close()

    def leave(self) -> None:
        """Let go of it, and have podman forget it.

        Podman keeps what it has started detached in mind until the container ends. And systemd kills what is to tell it of the end
        (conmon) as soon as the worker has ended: for each of those, podman keeps everybody waiting 5 s then.
        """
        self.close()
        if not self._session:
            return
        deadline = time.monotonic() + _LEAVE
        while _names(os.fsencode(self._session)) and time.monotonic() < deadline:
            time.sleep(0.02)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            words = ["podman", "container", "cleanup", "--rm", "--exec", self._session, self._container]
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LEAVE, check=False)

    def hear(self, seconds: float) -> Optional[bytes]:
        """Return what it says next, nothing if it is lost, None if it is silent for some seconds."""
        if self._channel.fileno() < 0:
            return b""
        if seconds:
            waiting = select.poll()
            waiting.register(self._channel, select.POLLIN)
            waiting.poll(seconds * 1000)
        try:
            return self._channel.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def answers(self) -> bool:
        """Say whether it is there, and not frozen with its container."""
        self._pings += 1
        ping = b"ping %d" % self._pings
        with contextlib.suppress(OSError):
            self._channel.send(ping, socket.MSG_DONTWAIT)
            while heard := self.hear(_WORD):
                if heard == ping:
                    return True
        return False

    def start(self, message: bytes, output: int, carries: dict[str, str]) -> Delegated:
        """Let it start a job.

        Raises:
            OSError: it has been told nothing.
        """
        # Who is somebody else in the container may open /dev/stdout there, too.
        os.fchmod(output, 0o666)
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, output.to_bytes(4, sys.byteorder))]
        self._channel.sendmsg([message], passed, socket.MSG_DONTWAIT)
        self.running = Delegated(self, carries, self._channel.fileno())
        return self.running


def _names(session: bytes) -> bool:
    """Tell whether the command line of a process names an exec session, as those of conmon and of podman's clean-up do."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if session in file.read():
                return True
    return False


class Delegated(Running):
    """A command that an agent has been told to start."""

    def __init__(self, agent: Agent, carries: dict[str, str], fileno: int) -> None:
        super().__init__(0, carries, agent.token)
        self.agent = agent
        self.fileno = fileno
        self.lost = ""


# The container's Python, isolated from what jobs give to theirs.
_PROGRAM = ["python3", "-ISc", "import os; exec(os.read(3, 65536))"]


class PodmanExec(Client, name="podman_exec"):
    """Runs commands in a container that is running already."""

    _checked = ""
    _agent: Optional[Agent] = None
    # In which incarnation of the container, and until when, there is to be no agent.
    _without = ("", 0.0)
    # An agent that may still start a job which nobody wants any more.
    _given_up = ""

    def close(self) -> None:
        """See Runner.close."""
        if self._agent:
            self._agent.leave()
        self._agent = None

    def _drop(self) -> None:
        """Let go of an agent that does not answer."""
        if self._agent:
            self._agent.close()
        self._agent = None

    def _do_without(self, token: str, why: str) -> None:
        self._without = (token, time.monotonic() + _WITHOUT)
        self.log(f"jobs are started by podman exec, which takes 0.1 s each: no agent in the container {self.jobset.container} ({why})")

    def ready(self) -> str:
        """See Runner.ready. An agent that answers stands for its container."""
        if self._agent and self._agent.token == self._checked:
            if self._agent.answers():
                return self._checked
            # It has nothing to do, so there is nothing that it could do later.
            self._drop()
        name = self.jobset.container
        inspected = podman("container", "inspect", "--format", "{{.State.Running}} {{.Id}} {{.State.StartedAt}}", name)
        if inspected.returncode != 0:
            raise NotReady(f"the container {name} is not there; start it: systemctl --user start {name}.service, or run setup")
        running, _blank, token = inspected.stdout.strip().partition(" ")
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
        variables = [f"{name}={value}" for name, value in command.environment.items()]
        words = [str(len(command.argv)), self.jobset.container_workdir, *command.argv, *variables]
        message = b"run\0" + b"".join(os.fsencode(word) + b"\0" for word in words)
        # Once more with a new one, if the one that was there has gone meanwhile.
        for _try in range(2 if len(message) < _LARGEST else 0):
            told = self._agent_in(token)
            if not told:
                break
            try:
                return told.start(message, command.output, carries)
            except OSError:
                self._drop()
                try:
                    # Its container may have gone with it.
                    token = self.ready()
                except NotReady as exc:
                    raise OSError(str(exc)) from exc
        words = ["podman", "exec", "--workdir", self.jobset.container_workdir]
        return self._start(words, self.jobset.container, command, carries, token)

    def _agent_in(self, token: str) -> Optional[Agent]:
        # An agent that is there is right: it ends with its container.
        token = self._checked or token
        if not self._agent and (self._without[0] != token or time.monotonic() > self._without[1]):
            try:
                self._agent = Agent(self.jobset.container, token)
            except NotReady as exc:
                self._do_without(token, str(exc))
        return self._agent

    def reap(self, running: Running) -> Outcome | None:
        """See Runner.reap."""
        if not isinstance(running, Delegated):
            return super().reap(running)
        heard = running.agent.hear(0)
        while heard and heard.startswith(b"ping "):
            heard = running.agent.hear(0)
        if heard is None:
            return None
        ended = re.match(rb"ended (\d+) (\d+)\Z", heard)
        if ended:
            running.agent.running = None
            status = int(ended[1])
            # Of the largest of its processes; at least what the agent itself takes, 10 MB.
            running.peak_kib = max(running.peak_kib, int(ended[2]))
            # As podman exec has it, for which a shell that says that its command ended by a signal has ended so itself.
            return self._outcome(running, 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), 0)
        running.lost = "the agent that had started the job in the container went away"
        self._give_up(running.agent)
        return Outcome(None, signal.SIGKILL, running.peak_kib or None)

    def _give_up(self, told: Agent) -> None:
        self._given_up = told.name
        told.close()
        self._agent = None

    def why_lost(self, running: Running) -> str:
        """See Runner.why_lost. The script is looked for again."""
        self._checked = ""
        lost = super().why_lost(running)
        if not lost and isinstance(running, Delegated) and running.lost:
            # Not the container's doing. Whatever it was, the next job shall not suffer from it.
            lost = running.lost
            self._do_without(running.token, "it went away")
        return lost

    def _unshared(self, wanted: Iterable[dict[str, str]], *words: str) -> list[int]:
        program = [sys.executable, self.layout.program, "carriers", *words]
        sought = [[f"{key}={value}" for key, value in carries.items()] for carries in wanted]
        answer = podman("unshare", *program, *sought[0], *(word for pairs in sought[1:] for word in ("or", *pairs)))
        if answer.returncode != 0:
            raise NotReady(f"can't look for a job's processes in the container: {answer.stderr.strip()[-300:]}")
        return [int(pid) for pid in answer.stdout.split()]

    def _hidden(self, running: Running) -> list[int]:
        if not any(os.path.exists(f"/proc/{pid}") for pid in running.hidden):
            try:
                running.hidden = self._unshared([running.carries], "--spare-session", str(running.session))
            except NotReady:
                running.hidden = []
        return running.hidden

    def signal(self, running: Running, number: int) -> None:
        """See Runner.signal."""
        self._unshared([running.carries], "--spare-session", str(running.session), "--signal", str(int(number)))

    def end(self, *wanted: dict[str, str]) -> None:
        """See Runner.end."""
        if self._agent and self._agent.running:
            # It may be about to start the job.
            self._give_up(self._agent)
        # First who could still start something: the agent or the client. Then what was started.
        steps: list[tuple[dict[str, str], ...]] = [({"SAGEQUEUE_AGENT": self._given_up},)] if self._given_up else []
        steps.append(wanted)
        for step in steps:
            end_carriers(*step)
        exists = podman("container", "exists", self.jobset.container)
        if exists.returncode != 1:
            inspected = podman("container", "inspect", "--format", "{{.State.Running}}", self.jobset.container)
            if exists.returncode != 0 or inspected.returncode != 0:
                why = (exists.stderr + inspected.stderr).strip()[-300:]
                raise NotReady(f"podman can't tell whether {self.jobset.container} runs: {why}")
            for step in steps if inspected.stdout.strip() == "true" else []:
                self._unshared(step, "--signal", str(int(signal.SIGKILL)), "--until-gone")
        self._given_up = ""
