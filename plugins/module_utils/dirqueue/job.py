# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One job file: its name, its text, and the keys that the queue itself writes.

A job file is UTF-8, at most 64 KiB, one KEY=VALUE a line. It is parsed here and never read by a shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import MalformedJob, QueueError

SUFFIX = ".env"
MAX_BYTES = 64 * 1024
# Of these, what is left for the keys that the queue writes; and how long one of its texts may be.
_RESERVED = 8 * 1024
_LONGEST = 1000

_NAMED = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_NAME = re.compile(_NAMED + r"\Z")
# What a job's file is called.
FILE = re.compile(_NAMED + re.escape(SUFFIX) + r"\Z")
_KEY = re.compile(r"[A-Z][A-Z0-9_]*\Z")
# Numbers in brackets that stand in a name for several jobs, as in off[0-3,7].
NUMBERS = r"\[(?P<numbers>[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*)\]"
# How many jobs one such name may stand for.
_MANY = 1_000_000
# A line of a list of jobs that needs no shell's quoting.
PLAIN = re.compile(_NAMED + r"(?: [A-Z][A-Z0-9_]*=[^\s'\"\\#\0]*)*\Z")

# What the queue writes into a job's file. Times are UTC in ISO 8601, durations seconds, memory KiB.
RESULT_KEYS = (
    "ATTEMPTS", "RECOVERIES", "STARTED_AT", "ENDED_AT", "DURATION_S", "EXIT_STATUS", "SIGNAL", "PEAK_MEMORY_KIB",
    "CASES_DONE", "REASON", "DETAIL", "WORKER", "CLAIM", "RESULT", "ORIGINAL",
)  # fmt: skip
# What an enqueue sets beside the job's own keys, and who holds a job back.
QUEUE_KEYS = ("ENQUEUED_AT", "PRIORITY", "HELD_AT", "HELD_BY")
_OURS = frozenset((*RESULT_KEYS, *QUEUE_KEYS))
_OF_RESULT = frozenset(RESULT_KEYS)


def is_name(name: str) -> bool:
    """Tell whether a text can be the name of a job or of a jobset."""
    return _NAME.match(name) is not None


def check_name(name: str) -> str:
    """Return the name of a job or of a jobset.

    Raises:
        QueueError: the name could not be a file's name in a queue.
    """
    if not isinstance(name, str) or not is_name(name):
        raise QueueError(
            f"{name!r} can't be a name: 1 to 200 letters, digits, dots, dashes and underscores, the first one a letter or a digit"
        )
    return name


def ranges(numbers: str) -> list[tuple[int, int, int]]:
    """Return first and last of each range of what stands in brackets, and how many digits a number has at least.

    Raises:
        QueueError: a range ends before it begins.
    """
    found = []
    for one in numbers.split(","):
        low, _dash, high = one.partition("-")
        if int(low) > int(high or low):
            raise QueueError(f"the range [{one}] ends before it begins")
        # A zero in front says how many digits there are at least.
        found.append((int(low), int(high or low), len(low) if low.startswith("0") else 1))
    return found


def spelt_out(text: str) -> list[str]:
    """Return the names that a name with numbers in brackets stands for: part[08-10] is part08, part09, part10.

    Raises:
        QueueError: a range ends before it begins, or it stands for too many.
    """
    names = [""]
    for position, part in enumerate(re.split(NUMBERS, text)):
        spans = ranges(part) if position % 2 else []
        if len(names) * sum(last + 1 - first for first, last, _digits in spans) > _MANY:
            raise QueueError(f"{text} stands for more than {_MANY:,} jobs: name fewer at a time")
        ends = [str(number).zfill(digits) for first, last, digits in spans for number in range(first, last + 1)]
        names = [name + end for name in names for end in (ends if position % 2 else [part])]
    return names


def parse(data: bytes) -> dict[str, str]:
    """Parse a job file.

    Args:
        data: the file's bytes.
    Returns:
        its keys and values, in the file's order.
    Raises:
        MalformedJob: with the line and the reason.
    """
    if len(data) > MAX_BYTES:
        raise MalformedJob(f"larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise MalformedJob(f"not UTF-8 at byte {exc.start}") from exc
    values: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        key, equals, value = line.partition("=")
        if not equals or not _KEY.match(key):
            raise MalformedJob(f"line {number} is not KEY=VALUE with a key of capitals, digits and underscores")
        if key in values:
            raise MalformedJob(f"line {number} sets {key} again")
        if "\0" in value:
            raise MalformedJob(f"line {number} has a NUL byte")
        values[key] = value
    return values


def render(values: dict[str, str]) -> bytes:
    """Write a job file's text.

    Raises:
        MalformedJob: a key or a value that could not be read back as it is.
    """
    lines = []
    for key, value in values.items():
        if not _KEY.match(key):
            raise MalformedJob(f"{key!r} is not a key of capitals, digits and underscores")
        if "\n" in value or "\0" in value:
            raise MalformedJob(f"the value of {key} has a line break or a NUL byte")
        lines.append(f"{key}={value}\n")
    try:
        data = "".join(lines).encode("utf-8")
    except UnicodeEncodeError as exc:
        raise MalformedJob("a value is not valid Unicode") from exc
    if len(data) > MAX_BYTES:
        raise MalformedJob(f"larger than {MAX_BYTES} bytes")
    return data


def number(values: dict[str, str], key: str) -> int:
    """Return a count that a job's file keeps, 0 where it has none that can be read."""
    text = values.get(key, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def own_values(values: dict[str, str]) -> dict[str, str]:
    """Return what the operator gave the job, without what the queue wrote."""
    return {key: value for key, value in values.items() if key not in _OURS}


def before_attempt(values: dict[str, str]) -> dict[str, str]:
    """Return a job's values without what the queue wrote about its latest attempt; the counts stay."""
    kept = {key: value for key, value in values.items() if key not in _OF_RESULT}
    return {**kept, **{key: str(number(values, key)) for key in ("ATTEMPTS", "RECOVERIES") if key in values}}


def check_own_values(values: dict[str, str]) -> dict[str, str]:
    """Return the values of a job to be enqueued.

    Raises:
        MalformedJob: a key is one that the queue writes, or a value can't stand in a job file.
    """
    for key in values:
        if key in RESULT_KEYS or (key in QUEUE_KEYS and key != "PRIORITY"):
            raise MalformedJob(f"{key} is written by the queue; name the job's own key otherwise")
    check_priority(values.get("PRIORITY", "0"))
    check_room(values)
    return values


def check_priority(priority: str) -> str:
    """Return a job's priority.

    Raises:
        MalformedJob: it is none.
    """
    if not re.match(r"-?[0-9]{1,3}\Z", priority) or abs(int(priority)) > 100:
        raise MalformedJob(f"PRIORITY={priority} is not a whole number from -100 to 100")
    return priority


def check_room(values: dict[str, str]) -> None:
    """See to it that what the queue will write has room beside a job's own values.

    Raises:
        MalformedJob: it has not.
    """
    if len(render(own_values(values))) > MAX_BYTES - _RESERVED or any(len(values.get(key, "")) > 100 for key in QUEUE_KEYS):
        raise MalformedJob(f"larger than {MAX_BYTES - _RESERVED} bytes")


def tidy(result: dict[str, str]) -> dict[str, str]:
    """Return what the queue is about to write with each text on one line and not too long."""
    return {key: value if value.isprintable() and len(value) <= _LONGEST else _line(value) for key, value in result.items()}


def _line(text: str) -> str:
    return " ".join(text.replace("\0", " ").split("\n"))[:_LONGEST]


def parse_list(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Parse a list of jobs: a line NAME KEY=VALUE ... each, words quoted as in a shell, # begins a comment; see spelt_out, too.

    Raises:
        QueueError: with the line and the reason.
    """
    for number, line in enumerate(lines, 1):
        try:
            # Most are plain, and a million of them are not to wait for shlex.
            words = line.split(" ") if PLAIN.match(line) else shlex.split(line, comments=True)
            if not words:
                continue
            values: dict[str, str] = {}
            for word in words[1:]:
                key, equals, value = word.partition("=")
                if not equals or not _KEY.match(key):
                    raise MalformedJob(f"{word!r} is not KEY=VALUE with a key of capitals, digits and underscores")
                if key in values:
                    raise MalformedJob(f"{key} is set twice")
                values[key] = value
            for name in spelt_out(words[0]) if "[" in words[0] else words[:1]:
                yield check_name(name), check_own_values(dict(values))
        except (QueueError, ValueError) as exc:
            raise QueueError(f"line {number} of the list of jobs: {exc}") from exc


def natural(name: str) -> list[Any]:
    """Return what names are sorted by: numbers in them as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part]
