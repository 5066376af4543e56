# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a runner is: it starts, signals, ends and reaps one command, and knows nothing of states.

A command carries its identity in its environment (SAGEQUEUE_CLAIM and others), so that whoever finds it later can tell
whose it is and end it, also when its worker is long gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Callable, ClassVar, NamedTuple, Optional

from .. import owner
from ..errors import NotReady, is_shortage
from ..jobset import Jobset
from ..layout import Layout

# Seconds that a process gets to vanish after SIGKILL.
_KILL_WAIT = 10.0
# The descriptor by which a program that hides its environment shows whose it is, with all that it starts: see Runner._spawn.
_MARK = 60
_MARK_NAME = "sagequeue "
# As os.fsencode does it.
_ENCODING = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


class Command(NamedTuple):
    """One command to run: words, the variables that it gets besides, and where its output goes (a descriptor)."""

    argv: list[str]
    environment: dict[str, str]
    output: int


class Outcome(NamedTuple):
    """How a command ended: exit status or signal number, and peak memory in KiB where it is known."""

    exit_status: Optional[int]
    signal: Optional[int]
    peak_kib: Optional[int]


class Running:
    """A command that was started. token says in which surroundings, see Runner.ready.

    session is the pid, and the session, of what was started here, 0 if something else has started the command; then fileno is
    a descriptor on which to wait for news of it.
    """

    def __init__(self, session: int, carries: dict[str, str], token: str) -> None:
        self.session = session
        self.carries = carries
        self.token = token
        self.fileno = -1
        self.peak_kib = 0
        self.hidden: list[int] = []


def identity(layout: Layout, job: str, claim: str) -> dict[str, str]:
    """Return the variables that tell whose a process is."""
    return {
        "SAGEQUEUE_ROOT": layout.root,
        "SAGEQUEUE_JOBSET": layout.jobset,
        "SAGEQUEUE_JOB": job,
        "SAGEQUEUE_CLAIM": claim,
    }


def carried(layout: Layout, job: str, claim: str) -> dict[str, str]:
    """Return what all processes of a claim carry; without a claim's id, what those of any claim of the job carry."""
    whole = identity(layout, job, claim)
    return {"SAGEQUEUE_CLAIM": claim} if claim else {key: whole[key] for key in whole if key != "SAGEQUEUE_CLAIM"}


def agent_name() -> str:
    """Return a new name for an agent of this process (see agent.py), which is in the agent's environment."""
    return " ".join([owner.pid_namespace(), str(os.getpid()), owner.process_start(os.getpid()), os.urandom(8).hex()])


def _left_agent(variables: list[bytes]) -> bool:
    """Say whether a process is an agent whose worker is gone: it may be about to start what it was told last."""
    for variable in variables:
        if variable.startswith(b"SAGEQUEUE_AGENT="):
            namespace, pid, start = [*os.fsdecode(variable)[16:].split(" "), "", "", ""][:3]
            return namespace == owner.pid_namespace() and pid.isdecimal() and owner.process_start(int(pid)) != start
    return False


def carriers(*wanted: dict[str, str], left_agents: bool = False) -> list[int]:
    """Return the pids of the living processes whose environment, as far as we may read it, has all variables of one that is wanted.

    Args:
        wanted: variables, of one claim each.
        left_agents: return the agents of dead workers, too, whatever they carry.
    """
    entries = [entry for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
    sought = _sought(wanted)
    return [int(entry) for entry in entries if _carries(entry, sought, left_agents)]


def _sought(wanted: Iterable[dict[str, str]]) -> list[set[bytes]]:
    return [{f"{key}={value}".encode() for key, value in carries.items()} for carries in wanted]


def _variables_of(pid: str) -> list[bytes]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        variables = file.read().split(b"\0")
    mark = f"/proc/{pid}/fd/{_MARK}"
    with contextlib.suppress(FileNotFoundError):
        if os.readlink(mark).startswith(f"/memfd:{_MARK_NAME}"):
            with open(mark, "rb") as file:
                variables += file.read().split(b"\0")
    return variables


def _carries(pid: str, sought: list[set[bytes]], left_agents: bool) -> bool:
    try:
        variables = _variables_of(pid)
    except OSError as exc:
        # It is gone, or another user's. A shortage says nothing of it: it may be one of those.
        if is_shortage(exc):
            raise
        return False
    has = set(variables)
    return any(one <= has for one in sought) or (left_agents and _left_agent(variables))


def session_of(pid: int) -> int:
    """Return a process's session, 0 if it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def signal_carriers(number: int, *wanted: dict[str, str], spare_session: int = 0, left_agents: bool = False) -> list[int]:
    """Send a signal (0: none) to all that carriers finds, but for one session; return whom."""
    pids = [pid for pid in carriers(*wanted, left_agents=left_agents) if not spare_session or session_of(pid) != spare_session]
    sought = _sought(wanted)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            try:
                fd = os.pidfd_open(pid)
            except AttributeError:
                # A Python made for an older kernel than Linux 5.3.
                os.kill(pid, number)
                continue
            try:
                # It may have ended since, and its pid be another's by now. The descriptor stays with the one that is looked at here.
                if _carries(str(pid), sought, left_agents):
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)
    return pids


def end_carriers(*wanted: dict[str, str]) -> None:
    """Kill all that carriers finds, and the agents of dead workers, and wait until they are gone.

    Raises:
        NotReady: one stays.
    """
    deadline = time.monotonic() + _KILL_WAIT
    unseen = 0
    while True:
        pids = signal_carriers(signal.SIGKILL, *wanted, left_agents=True)
        # Amid an execve(2) a process shows no environment for a moment: only what stays unseen is gone.
        unseen = 0 if pids else unseen + 1
        if unseen == 2:
            return
        if time.monotonic() > deadline:
            raise NotReady(f"processes {pids} of a dead worker's job can't be killed; the job stays where it is until they end")
        time.sleep(0.02)


def memory_of(pids: list[int]) -> int:
    """Return the sum of the peak resident sizes of some processes, in KiB (VmHWM of proc(5))."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    return total


def commands_of(claims: set[str]) -> Iterator[tuple[str, int]]:
    """Yield claim and pid of each process of some claims, as far as they can be seen; without the clients' own."""
    for pid in filter(str.isdigit, os.listdir("/proc") if claims else []):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
            claim = next((os.fsdecode(word[16:]) for word in variables if word.startswith(b"SAGEQUEUE_CLAIM=")), "")
            if claim in claims:
                with open(f"/proc/{pid}/comm", "rb") as file:
                    client = file.read().strip() in (b"podman", b"conmon", b"docker", b"apptainer", b"squashfuse_ll")
                if not client:
                    yield claim, int(pid)


def memory_of_claims(claims: set[str]) -> dict[str, int]:
    """Return the peak resident size of each claim's processes now, in KiB: see commands_of."""
    found: dict[str, int] = {}
    for claim, pid in commands_of(claims):
        found[claim] = found.get(claim, 0) + memory_of([pid])
    return found


class Runner:
    """Base of all runners. One that has a name can be a jobset's: class Docker(Runner, name="docker").

    Args:
        layout: where the jobset lives.
        jobset: its definition.
        log: told what an operator may want to know.
    """

    kinds: ClassVar[dict[str, type[Runner]]] = {}
    # Whether one process keeps all of a jobset's jobs, see keeper.py.
    keeps: ClassVar[bool] = False

    def __init_subclass__(cls, name: str = "") -> None:
        if name:
            cls.kinds[name] = cls

    def __init__(self, layout: Layout, jobset: Jobset, log: Callable[[str], None] = lambda _text: None) -> None:
        self.layout = layout
        self.jobset = jobset
        self.log = log
        self._inherited = dict(os.environb)

    def _spawn(self, words: list[str], variables: dict[str, str], output: int, folder: str, mark: Optional[dict[str, str]] = None) -> int:
        """Start a program in a session of its own; return its pid.

        A process of ours has as little to do here as possible: it is short jobs that this holds up.

        Args:
            words: the program, looked for in the PATH that it gets, and its arguments.
            variables: what it gets beside our own variables.
            output: the descriptor that it writes into.
            folder: where it starts.
            mark: what it carries besides in a file without a name, on a descriptor that its children inherit.
        Raises:
            OSError: it can't be started.
        """
        own = {name.encode(*_ENCODING): value.encode(*_ENCODING) for name, value in variables.items()}
        environment = {**self._inherited, **own}
        program: str | None = words[0]
        marked = -1
        # A process is where its parent was. We ourselves have no need of a place.
        os.chdir(folder)
        try:
            if "/" not in words[0]:
                program = shutil.which(words[0], path=os.fsdecode(environment.get(b"PATH", os.defpath)))
                if not program:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), words[0])
            if mark is not None:
                marked = os.memfd_create(_MARK_NAME)
                os.write(marked, b"".join(f"{name}={value}\0".encode(*_ENCODING) for name, value in mark.items()))
            # All that is ours closes at execve(2), not before: until then the child has its worker's lock, see owner.why_dead.
            return os.posix_spawn(
                program or "",
                words,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                    *([(os.POSIX_SPAWN_DUP2, marked, _MARK)] if mark is not None else []),
                ],
                setsid=True,
                # Python ignores these.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        finally:
            os.chdir("/")
            if marked >= 0:
                os.close(marked)

    def close(self) -> None:
        """Let go of what was kept for commands to come."""

    def ready(self) -> str:
        """Return a token for the surroundings that commands would run in; another token means that they were renewed.

        Raises:
            NotReady: nothing can be run now; says why and what to do.
        """
        raise NotImplementedError

    def start(self, command: Command, carries: dict[str, str], token: str) -> Running:
        """Start a command.

        Args:
            command: what to run.
            carries: the part of its environment that tells whose it is.
            token: as ready returned it.
        Raises:
            OSError: it can't be started.
        """
        raise NotImplementedError

    def signal(self, running: Running, number: int) -> None:
        """Pass a signal on to the command itself."""
        raise NotImplementedError

    def end(self, *wanted: dict[str, str]) -> None:
        """Kill everything that carries all variables of one that is wanted, and return when it is gone.

        Raises:
            NotReady: that can't be done now.
        """
        raise NotImplementedError

    def lasting(self, *_wanted: dict[str, str], ended: bool = True) -> set[str]:
        """Return the claims, of those of dead workers, whose commands go on by themselves, so that their jobs can be taken over.

        Args:
            _wanted: the claims.
            ended: those, too, whose commands have ended by themselves.
        Raises:
            NotReady: that can't be told now.
        """
        return set()

    def sample(self, running: Running) -> None:
        """Look how much memory the command uses."""

    def reap(self, running: Running) -> Outcome | None:
        """Return how the command ended, None while it runs."""
        # It would load resource when it is first called, if that were not there: then there may be too many open files.
        ended: tuple[int, int, resource.struct_rusage] = os.wait4(running.session, os.WNOHANG)
        pid, status, usage = ended
        if pid == 0:
            return None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        return self._outcome(running, code, usage.ru_maxrss)

    def _outcome(self, running: Running, code: int, client_kib: int) -> Outcome:
        """Work out an outcome from the exit code of the process that was started (negative: a signal)."""
        raise NotImplementedError

    def why_lost(self, running: Running) -> str:
        """Return why a command that failed is not to blame (its surroundings went away), or an empty text."""
        try:
            token = self.ready()
        except NotReady as exc:
            return str(exc)
        return "" if token == running.token else "the container was started anew while the job ran"
