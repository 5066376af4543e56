# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a runner is: it starts, signals, ends and reaps one command, and knows nothing of states.

A command carries its identity in its environment (SAGEQUEUE_CLAIM and others), so that whoever finds it later can tell
whose it is and end it, also when its worker is long gone.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
from typing import Callable, ClassVar, NamedTuple, Optional

from ..carriers import MARK, MARK_NAME
from ..errors import NotReady
from ..jobset import Jobset
from ..layout import Layout

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
                marked = os.memfd_create(MARK_NAME)
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
                    *([(os.POSIX_SPAWN_DUP2, marked, MARK)] if mark is not None else []),
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
