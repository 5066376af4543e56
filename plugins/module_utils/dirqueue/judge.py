# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a job whose attempt has ended: the state that it goes to, and the reason."""

from __future__ import annotations

import contextlib
import signal
from typing import Callable, NamedTuple

from . import job
from .gate import Gate
from .jobset import Jobset
from .queue import Claim
from .runners.base import Outcome

# Reasons that are not the job's own doing: such an attempt does not count.
_UNCOUNTED = ("gate", "worker_stopped", "runner_lost", "not_started", "too_many_recoveries")


class Ended(NamedTuple):
    """How an attempt has ended.

    outcome: of the command.
    ended_for: why its worker ended it: timeout, killed or worker_stopped; empty if it ended by itself.
    out_of_memory: whether the kernel has killed for want of memory meanwhile.
    """

    outcome: Outcome
    ended_for: str = ""
    out_of_memory: bool = False


def judge(
    jobset: Jobset, claim: Claim, ended: Ended, gate: Gate, stopped_by: str, killed_by: Callable[[], str], why_lost: Callable[[], str]
) -> tuple[str, dict[str, str]]:
    """Return the state that a job goes to, and what its file is to say.

    Args:
        jobset: its jobset.
        claim: the job.
        ended: how its attempt has ended.
        gate: as it is now.
        stopped_by: the signal that told the worker to stop.
        killed_by: returns who wanted the job killed. Like the next, it is only asked where that matters.
        why_lost: returns why a command that failed is not to blame, or an empty text.
    """
    outcome, ended_for = ended.outcome, ended.ended_for
    solved = gate.closed and not gate.requested and jobset.names_job(gate.text, claim.name, claim.values)
    ok = outcome.exit_status == 0
    if solved and (ok or ended_for in ("worker_stopped", "killed")):
        return "done", {"REASON": "solved", "DETAIL": gate.text}
    if ended_for == "killed":
        return "failed", {"REASON": "killed", "DETAIL": killed_by()}
    if ended_for == "worker_stopped":
        return "pending", {"REASON": "worker_stopped", "DETAIL": stopped_by}
    if ended_for == "timeout":
        return again(jobset, claim, "timeout", f"ran longer than {jobset.timeout:g} s")
    if ok:
        return ("pending", {"REASON": "gate", "DETAIL": gate.text}) if gate.closed else ("done", {"REASON": "ok"})
    why = why_lost()
    if why:
        return lost(jobset, claim, why)
    if outcome.signal is not None:
        if ended.out_of_memory:
            return again(jobset, claim, "out_of_memory", "killed while the kernel was out of memory")
        return again(jobset, claim, "signal", f"ended by {_signal_name(outcome.signal)}")
    return again(jobset, claim, "exit_status", f"exit status {outcome.exit_status}")


def again(jobset: Jobset, claim: Claim, reason: str, detail: str) -> tuple[str, dict[str, str]]:
    """Decide what follows a failed attempt; returns what judge does."""
    attempt = attempt_of(claim)
    last = attempt >= jobset.attempts
    return "failed" if last else "pending", {"REASON": reason, "DETAIL": f"{detail}, attempt {attempt} of {jobset.attempts}"}


def lost(jobset: Jobset, claim: Claim, reason: str) -> tuple[str, dict[str, str]]:
    """Decide what follows when a job's surroundings went away; returns what judge does."""
    count = job.number(claim.values, "RECOVERIES") + 1
    more = {"REASON": "runner_lost", "DETAIL": reason, "RECOVERIES": str(count)}
    if count < jobset.recoveries:
        return "pending", more
    return "failed", {**more, "REASON": "too_many_recoveries", "DETAIL": f"lost {count} times, lastly: {reason}"}


def attempt_of(claim: Claim) -> int:
    """Return which attempt this is, from 1 on."""
    return job.number(claim.values, "ATTEMPTS") + 1


def attempts_after(claim: Claim, reason: str) -> int:
    """Return how many attempts a job has had when this one has ended for a reason."""
    return attempt_of(claim) - (reason in _UNCOUNTED)


def because(result: dict[str, str]) -> str:
    """Return why a job went where it did."""
    detail = result.get("DETAIL", "")
    return f"{result['REASON']}: {detail}" if detail else result["REASON"]


def oom_kills() -> int:
    """Return how often the kernel has killed for want of memory since it started (proc(5), vmstat)."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat", encoding="ascii") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _signal_name(number: int) -> str:
    # Real-time signals, but for the first and the last, have no name there.
    return signal.Signals(number).name if number in {int(known) for known in signal.Signals} else f"signal {number}"
