# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far jobs have come inside: the cases that their programs have done, and how long the rest may take.

A program keeps the case that it did last in a file of its own, the state file, which the jobset names. Part K of a run
with the stride S has the cases K, K + S, K + 2S and so on, of all that the key cases counts.

The rate is that of the attempts themselves, not of the files: when an attempt begins, its worker notes what was done
already (begin), and when it ends, how many more it did (since). So a part that goes on where an earlier attempt stopped
shows no wild rate.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import math
import os
import re
import stat
import time
from typing import Any, NamedTuple, Optional

from . import job
from .errors import MalformedJob, QueueError, is_shortage
from .jobset import Jobset
from .layout import open_own
from .owner import Holder
from .queue import Claim, Queue

# What is larger is no state file.
_MAX_BYTES = 64 * 1024
# Into how many jobs one look goes.
_MOST = 10_000
# From how many cases on something is said of the time; of how many latest attempts.
_LEAST = 3
_LATEST = 50
_NUMBER = re.compile(r"-1|[0-9]{1,15}")


class Pace(NamedTuple):
    """How fast cases go: seconds for one, from how many this is known, and how uneven they are (1: as by chance)."""

    seconds: float
    known: int
    spread: float

    def range(self, cases: int, hands: int = 1) -> tuple[int, int]:
        """Return between how many seconds some cases, one after another, should take, in 8 of 10 such times.

        Durations that differ greatly are taken as exponential, whose sums are gamma: the logarithm of the mean of n of
        them has a variance of about 1/n. What is to come differs from what was seen by both, so by the variance
        1/known + 1/cases, times the dispersion between the attempts, where that is more than chance's. Where several go
        on side by side, the slowest counts: its median is that of the greatest of so many normal variables.

            v = spread * (1/known + 1/cases)    c = normal quantile of 0.5 ** (1/hands)
            low, high = cases * seconds * exp(c * sqrt(spread/cases) -+ 1.28 * sqrt(v))

        Sources: B. Epstein and M. Sobel, Life Testing, J. Amer. Statist. Assoc. 48 (1953), for the rate where cases are
        not done yet; P. McCullagh and J. A. Nelder, Generalized Linear Models (1989), 4.5, for the dispersion. It holds
        as far as the cases to come are like those done.

        Args:
            cases: how many.
            hands: how many times so many go on side by side.
        """
        if not cases:
            return 0, 0
        # Slow to import, and a worker does without.
        from statistics import NormalDist

        shift = NormalDist().inv_cdf(0.5 ** (1 / hands)) * math.sqrt(self.spread / cases)
        width = NormalDist().inv_cdf(0.9) * math.sqrt(self.spread * (1 / self.known + 1 / cases))
        low, high = (math.exp(min(shift + side * width, 20)) * cases * self.seconds for side in (-1, 1))
        return math.floor(low), math.ceil(high)


def pace(attempts: list[tuple[float, int]]) -> Optional[Pace]:
    """Return how fast cases go, None where too little is known.

    Args:
        attempts: the seconds of some attempts, those of a case that is not done included, and the cases that each did.
    """
    attempts = [(seconds, done) for seconds, done in attempts if seconds > 0]
    known, seconds = sum(done for _seconds, done in attempts), sum(seconds for seconds, _done in attempts)
    if known < _LEAST:
        return None
    # Pearson's statistic of the counts: about 1 per degree of freedom where only chance is at work.
    expected = [(seconds * known / total, done) for total in [seconds] for seconds, done in attempts]
    telling = [(done - mean) ** 2 / mean for mean, done in expected if mean >= 1]
    spread = sum(telling) / (len(telling) - 1) if len(telling) > 1 else 1.0
    return Pace(seconds / known, known, max(spread, 1.0))


def number_in(text: str) -> int:
    """Return the number that a state file holds: the first word that is one, else the first digits; -1 says none yet.

    Raises:
        ValueError: there is none.
    """
    words = (word.strip(".,;:()[]") for word in text.split())
    found = next(filter(_NUMBER.fullmatch, words), None) or next(iter(re.findall(r"(?<![0-9])[0-9]{1,15}(?![0-9])", text)), None)
    if found is None:
        raise ValueError("holds no number")
    return int(found)


def _read(folder: str, path: str) -> tuple[str, float]:
    """Return a state file's text and when it was written. It may be a container's, so of any user, but no link leads to it.

    Raises:
        ValueError: it can't be a state file.
        OSError: it can't be read.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    *folders, last = path.split("/")
    for step in (*folders, last):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (0 if step is last else os.O_DIRECTORY)
        try:
            inner = os.open(step, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise ValueError("is not a regular file")
    with open(fd, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"is larger than {_MAX_BYTES} bytes")
    return data.decode("utf-8", "replace"), found.st_mtime


def _odd(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
        return "is not a regular file"
    return f"can't be read ({error.strerror})"


class Part(NamedTuple):
    """How far one job is: cases done and in all (None: not known), when the last was done (0: not known), what is wrong."""

    done: Optional[int]
    total: Optional[int]
    at: float = 0.0
    why: str = ""


def part(jobset: Jobset, name: str, values: dict[str, str]) -> Part:
    """Return how far a job's program says it is.

    Raises:
        OSError: too many open files, or the like: it can't be told.
    """
    total = path = None
    try:
        offset, stride = 0, 1
        if "OFFSET" in values:
            if not re.fullmatch(r"[0-9]{1,9}", values["OFFSET"]) or int(values["OFFSET"]) >= jobset.stride:
                raise MalformedJob(f"OFFSET={values['OFFSET']} is outside the stride {jobset.stride}")
            offset, stride = int(values["OFFSET"]), jobset.stride
        total = len(range(offset, jobset.cases, stride)) if jobset.cases else None
        path = jobset.state_path(name, values)
        text, at = _read(jobset.workdir, path)
        number = number_in(text)
        if not jobset.state_counts and number >= 0:
            if number < offset or (number - offset) % stride:
                raise ValueError(f"says {number}, which is no case of this part")
            number = (number - offset) // stride + 1
        if total is not None and number > total:
            raise ValueError(f"says that {number} cases of {total} are done")
        return Part(max(number, 0), total, at)
    except FileNotFoundError:
        return Part(0, total)
    except OSError as exc:
        if is_shortage(exc):
            raise
        return Part(None, total, why=f"{path} {_odd(exc)}")
    except ValueError as exc:
        return Part(None, total, why=f"{path} {exc}")
    except QueueError as exc:
        return Part(None, total, why=str(exc))


# ---- what a worker notes --------------------------------------------------------------------------------------


def begin(jobset: Jobset, claim: Claim, holder: Holder) -> Optional[int]:
    """Note where others can read it what a job had done before this attempt; return that."""
    if not jobset.state_file:
        return None
    # Nothing that is wrong here may keep a job from running.
    with contextlib.suppress(OSError, MemoryError):
        done = part(jobset, claim.name, claim.values).done
        holder.note(f"{claim.id} {-1 if done is None else done} {time.time():.3f}\n")
        return done
    return None


def since(jobset: Jobset, claim: Claim, before: Optional[int]) -> dict[str, str]:
    """Return what the file of a job that has ended is to say of the cases that this attempt did."""
    if jobset.state_file and before is not None:
        with contextlib.suppress(OSError, MemoryError):
            done = part(jobset, claim.name, claim.values).done
            if done is not None:
                return {"CASES_DONE": str(_more(before, done))}
    return {}


def _more(before: int, done: int) -> int:
    # A program that does not resume begins anew.
    return done - before if done >= before else done


def _begun(queue: Queue, name: str, done: int, now: float) -> Optional[tuple[float, int]]:
    """Return for how long the attempt that runs has been at its cases, and how many it did; None if its worker did not say."""
    record = queue.owner_of(name) or {}
    lock = record.get("OWNER_LOCK", "")
    if not lock or "/" in lock:
        return None
    with contextlib.suppress(FileNotFoundError, ValueError, OSError):
        with open(os.path.join(queue.layout.workers, lock), "rb", opener=open_own) as file:
            claim, before, at = file.read(200).decode("ascii", "replace").split()
        if claim == record.get("OWNER_CLAIM") and int(before) >= 0:
            return max(now - float(at), 0.0), _more(int(before), done)
    return None


# ---- looking --------------------------------------------------------------------------------------------------


def look(queue: Queue, attempts: list[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """Return how far the jobs of a jobset are inside, None where it names no state file.

    Args:
        queue: the jobset's.
        attempts: the latest of its history.
    Returns:
        done and total (None: not known), known_from (from how many cases the rate is known), rate (cases per hour while
        as many jobs run as now), seconds_left (low and high), why (what can't be said, in words), and parts.
    """
    jobset, now = queue.jobset, time.time()
    if not jobset.state_file:
        return None
    seen: list[tuple[float, int]] = []
    for attempt in attempts:
        with contextlib.suppress(KeyError, ValueError, TypeError):
            seen.append((float(attempt["duration_s"]), int(attempt["cases_done"])))
    seen = [(seconds, done) for seconds, done in seen if 0 <= seconds < 1e12 and 0 <= done < 1e12][-_LATEST:]
    parts: list[dict[str, Any]] = []
    why = ""
    for name, state, values in _jobs(queue):
        if len(parts) == _MOST:
            why = f"there are more than {_MOST} jobs"
            break
        found = part(jobset, name, values)
        begun = _begun(queue, name, found.done, now) if state == "running" and found.done is not None else None
        seen += [begun] if begun else []
        parts.append(
            {
                "job": name,
                "state": state,
                "offset": values.get("OFFSET", ""),
                "done": found.done,
                "total": found.total,
                "seconds_since": round(now - found.at, 1) if found.at else None,
                "why": found.why,
                "rate": round(begun[1] * 3600 / begun[0], 2) if begun and begun[1] and begun[0] else None,
                "seconds_left": None,
            }
        )
    parts.sort(key=lambda one: (not one["offset"], job.number(one, "offset"), one["job"]))
    known = pace(seen)
    at_a_time = sum(1 for one in parts if one["state"] == "running")
    return {
        "done": sum(one["done"] or 0 for one in parts),
        "total": jobset.cases or None,
        "known_from": known.known if known else 0,
        "rate": round(at_a_time * 3600 / known.seconds, 2) if known and at_a_time else None,
        **_left(parts, known, at_a_time, why),
        "parts": parts,
    }


def _jobs(queue: Queue) -> Any:
    for state in ("pending", "held", "running", "done", "failed"):
        for name in queue.entries(state):
            with contextlib.suppress(FileNotFoundError, MalformedJob):
                yield name, state, queue.read(state, name)
        if state == "pending":
            for name, values in queue.batched():
                yield name, state, values


def _left(parts: list[dict[str, Any]], known: Optional[Pace], at_a_time: int, why: str) -> dict[str, Any]:
    """Return how long the rest takes: each part in its worker's hands, the pending ones as workers get free."""
    left = [one for one in parts if one["state"] in ("pending", "running")]
    unknown = next((one["job"] for one in left if one["done"] is None or one["total"] is None), "")
    if not why and unknown:
        why = "the key cases is not set" if any(one["total"] is None for one in left) else f"how far {unknown} is can't be read"
    if not why and not known and left:
        why = f"too few cases are done since the workers began (fewer than {_LEAST})"
    if not why and not at_a_time and left:
        why = "no job is running"
    if why or not left or not known:
        return {"seconds_left": None, "why": why}
    hands: list[int] = []
    for one in sorted(left, key=lambda one: one["state"] != "running"):
        more = one["total"] - one["done"]
        one["seconds_left"] = list(known.range(more))
        # Who is free first takes the next.
        heapq.heappush(hands, more + (heapq.heappop(hands) if len(hands) == at_a_time else 0))
    # Those that may well be the last to end.
    return {"seconds_left": list(known.range(max(hands), sum(1 for more in hands if more * 5 >= max(hands) * 4))), "why": ""}
