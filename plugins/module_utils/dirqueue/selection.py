# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which jobs an operator means: names, numbers in brackets, globs.

off[0-3,7]   a job's full name, or what follows JOBSET_ in it: JOBSET_off0 to JOBSET_off3, and JOBSET_off7
part[00-15]  a zero in front is kept: part00, part01, ...
*_r?         any characters, and one character
a,b[1,2]     several, split at the commas that are in no brackets
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Optional

from . import job
from .errors import QueueError
from .queue import Queue

_ANY = "[A-Za-z0-9._-]"
_PIECE = re.compile(r"(?P<text>[A-Za-z0-9._-]+)|(?P<many>\*)|(?P<one>\?)|" + job.NUMBERS)


def split(patterns: Iterable[str]) -> list[str]:
    """Return each pattern by itself, also where Ansible has split a list at the commas in brackets."""
    found = re.findall(r"(?:[^,\[]|\[[^\]]*(?:\]|\Z))+", ",".join(patterns))
    return list(dict.fromkeys(text.strip() for text in found if text.strip()))


def _digits(low: str, high: str) -> str:
    """Return a regular expression for the numbers between two of as many digits."""
    if not low or low == high:
        return low
    if low[0] == high[0]:
        return low[0] + _digits(low[1:], high[1:])
    rest, first, last = len(low) - 1, int(low[0]), int(high[0])
    parts = []
    if low[1:].strip("0"):
        parts.append(low[0] + _digits(low[1:], "9" * rest))
        first += 1
    if high[1:].strip("9"):
        parts.append(high[0] + _digits("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return "(?:" + "|".join(parts) + ")"


def _numbers(text: str) -> str:
    """Return a regular expression for what stands in brackets: numbers, and ranges of them."""
    parts = []
    for start, end, least in job.ranges(text):
        for length in range(least, max(least, len(str(end))) + 1):
            first, last = max(start, 10 ** (length - 1) if length > least else 0), min(end, 10**length - 1)
            if first <= last:
                parts.append(_digits(str(first).zfill(length), str(last).zfill(length)))
    return "(?:" + "|".join(parts) + ")"


def expression(pattern: str, jobset: str) -> str:
    """Return the regular expression of one pattern.

    Raises:
        QueueError: it is none; says why.
    """
    parts, position = [], 0
    while position < len(pattern):
        piece = _PIECE.match(pattern, position)
        if not piece or any(len(number) > 18 for number in re.findall("[0-9]+", piece["numbers"] or "")):
            raise QueueError(
                f"{pattern!r} names no jobs: at {pattern[position:]!r} a name, * or ?, or numbers in brackets such as [0-3,7] should stand"
            )
        numbers = piece["numbers"]
        parts.append(_numbers(numbers) if numbers else _ANY + "*" if piece["many"] else _ANY if piece["one"] else re.escape(piece["text"]))
        position = piece.end()
    return f"(?:{re.escape(jobset)}_)?" + "".join(parts)


def select(queue: Queue, patterns: Optional[Iterable[str]], strict: bool = True) -> Optional[list[str]]:
    """Return the names of the jobs that are meant, each once, in the order of the patterns; None if all are.

    Args:
        queue: the jobset's queue.
        patterns: see above; None: all.
        strict: a pattern that no job matches is an error; else a plain name is returned as it is, and any other is passed over.
    Raises:
        QueueError: a pattern that means nothing, or that no job matches: says which jobs there are.
    """
    if patterns is None:
        return None
    chosen: dict[str, None] = {}
    jobset = queue.jobset.name
    for pattern in split(patterns):
        if job.is_name(pattern):
            names = [name for name in (pattern, f"{jobset}_{pattern}") if job.is_name(name) and queue.locate(name)]
            names = names or ([] if strict else [pattern])
        else:
            names = sorted(queue.matching(expression(pattern, jobset)), key=job.natural)
        if not names and strict:
            raise QueueError(f"jobset {jobset}: no job matches {pattern!r}; {_there_are(queue)}")
        chosen.update(dict.fromkeys(names))
    if not chosen and strict:
        raise QueueError(f"jobset {jobset}: no jobs are named; name some, as in jobs='off[0-3,7]', or all by '*'")
    return list(chosen)


def _there_are(queue: Queue) -> str:
    names = sorted(queue.matching(f"{_ANY}*"), key=job.natural)
    if len(names) > 8:
        return f"there are {len(names)} jobs: {', '.join(names[:3])} ... {names[-1]}"
    return f"there are {', '.join(names)}" if names else "it has no jobs"
