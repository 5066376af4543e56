# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes are a claim's: they carry its identity in their environment, by which they are found, signalled, ended and measured."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator

from . import owner
from .errors import NotReady, is_shortage
from .layout import Layout

# Seconds that a process gets to vanish after SIGKILL.
_KILL_WAIT = 10.0
# The descriptor by which a program that hides its environment shows whose it is, with all that it starts: see Runner._spawn.
MARK = 60
MARK_NAME = "sagequeue "


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
    mark = f"/proc/{pid}/fd/{MARK}"
    with contextlib.suppress(FileNotFoundError):
        if os.readlink(mark).startswith(f"/memfd:{MARK_NAME}"):
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
