# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a worker that an engine of a cluster, such as Slurm, has started does besides.

It leaves when there has been nothing to do for a while. A worker that leaves says so before it looks for the last time, and
whoever makes jobs pending reads that only afterwards: so either the worker sees the job and stays, or it is seen to have left.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

from .layout import Layout

_LEFT = "left."
# Seconds that an engine gets to answer, and for which its answer is kept.
_PATIENCE = 30
_TRUST = 5.0
# What an engine calls a worker: 12_3 or 12.0.
_ID = re.compile(r"[0-9][0-9_.]*\Z")


class Engine(NamedTuple):
    """What an engine calls this process: its kind, the id of the worker, and how often the worker was started anew."""

    kind: str
    id: str
    restarts: str


def own() -> Engine | None:
    """Return which engine has started this process, None if none has."""
    return _parse(os.environ.get("SAGEQUEUE_ENGINE", ""))


def _parse(said: str) -> Engine | None:
    words = said.split(" ")
    return Engine(*words) if len(words) == 3 else None


def _call(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of an engine.

    Raises:
        OSError: it is not there.
        subprocess.TimeoutExpired: it does not answer.
    """
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
    )


def started_mark(root: str, kind: str, jobset: str) -> str:
    """Return the file that is there as long as a jobset's workers are wanted."""
    return os.path.join(root, "etc", kind, f"{jobset}.started")


def say_left(layout: Layout, which: Engine, on: bool) -> None:
    """Say, or take back, that a worker leaves."""
    path = os.path.join(layout.run, _LEFT + which.id)
    if on:
        with open(path, "w", encoding="utf-8"):
            pass
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def left(layout: Layout, ids: Collection[str], clean: bool = False) -> set[str]:
    """Return which of some workers have said that they leave.

    Args:
        layout: the jobset's.
        ids: all that the engine knows.
        clean: remove what others have left behind.
    """
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(layout.run):
            if entry.startswith(_LEFT):
                found.add(entry[len(_LEFT) :])
        for one in found.difference(ids) if clean else ():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(layout.run, _LEFT + one))
    return found.intersection(ids)


@contextlib.contextmanager
def turn(layout: Layout, which: Engine | None, every: float) -> Iterator[float]:
    """Yield in how many seconds a worker is to look for orphans: at once (0) only one of all those of a jobset, every so often.

    Each look asks for all that runs, so very many workers must not all look. A worker that the engine has started anew does
    so at once: it may be its own job that is to be brought back. If the look fails, it is anybody's turn.
    """
    path = os.path.join(layout.run, "recovered")
    wait = 0.0
    if which:
        if which.restarts in ("0", "1" if which.kind == "htcondor" else "0"):
            with contextlib.suppress(FileNotFoundError):
                # However wrong the clock of this host is, no longer than that.
                wait = max(0.0, min(every, os.stat(path).st_mtime + every - time.time()))
        if not wait:
            with open(path, "w", encoding="utf-8"):
                os.utime(path)
    try:
        yield wait
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def come_again(layout: Layout, which: Engine, number: int, workers: int) -> str:
    """Have the engine start this worker anew, if it ends against the operator's will (its time is up); return what was done, in words."""
    if which.kind != "slurm" or number > workers or not os.path.exists(started_mark(layout.root, which.kind, layout.jobset)):
        return ""
    try:
        done = _call(["scontrol", "requeue", which.id])
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"slurm could not be asked to start this worker anew: {exc}"
    return f"slurm can't start this worker anew: {done.stderr.strip()}" if done.returncode else "slurm starts this worker anew"


_answers: dict[str, tuple[float, bool]] = {}


def runs(said: str) -> bool:
    """Tell whether an engine says that a worker that it has started still runs, in the same start. No answer is no.

    Args:
        said: what SAGEQUEUE_ENGINE was there.
    """
    which = _parse(said)
    if not which or which.kind not in _ASK or not _ID.match(which.id):
        return False
    asked, answer = _answers.get(said, (0.0, False))
    if not asked or time.monotonic() > asked + _TRUST:
        answer = _asked(which)
        _answers[said] = (time.monotonic(), answer)
    return answer


# How an engine is asked for one worker: it says a state and a number of starts; the states in which it runs.
_ASK: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "slurm": (["squeue", "--noheader", "--states=all", "--Format=State:20,RestartCnt:20", "--jobs={}"], ("RUNNING", "SUSPENDED")),
    # Running, transferring its output, or suspended.
    "htcondor": (["condor_q", "-global", "{}", "-af", "JobStatus", "NumShadowStarts"], ("2", "6", "7")),
}


def _asked(which: Engine) -> bool:
    words, states = _ASK[which.kind]
    try:
        done = _call([word.format(which.id) for word in words])
    except (OSError, subprocess.TimeoutExpired):
        return False
    found = done.stdout.split()
    return done.returncode == 0 and len(found) >= 2 and found[0] in states and found[1] == which.restarts
