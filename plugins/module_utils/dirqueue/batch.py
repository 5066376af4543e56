# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pending jobs that wait as lines of one file, until workers have use for them.

A batch is the file queue/batches/NAME.batch: one line that says what it is, and one line a job, written as in a list of
jobs. Beside it NAME.cursor says how far its jobs have been turned into files in pending. The cursor may lag behind: a
job whose file exists in any state is not made again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import job
from .errors import MalformedJob, QueueError
from .layout import Refused, open_own

SUFFIX = ".batch"
CURSOR = ".cursor"
# From how many new jobs on an enqueue makes a batch, and how many of its jobs become files at a time.
LEAST = 1000
CHUNK = 256
# Keys of a line that are the queue's own.
_SPECIAL = re.compile(rf"(?:^| )(?:{'|'.join((*job.RESULT_KEYS, *job.QUEUE_KEYS))})=")
_HEAD = re.compile(rb"# batch ([0-9a-f]{16}): ([0-9]{1,12}) jobs enqueued ([0-9TZ:.-]{20,30}), place (-?[0-9]{1,20})\n")
_READ = 1024 * 1024


def _open(folder: int, entry: str) -> int:
    try:
        return open_own(entry, os.O_RDONLY, folder)
    except Refused as exc:
        raise MalformedJob(str(exc.strerror)) from exc


class Lines(NamedTuple):
    """Jobs to be enqueued, as lines of a list of jobs: the names, and the lines."""

    names: list[str]
    lines: list[str]


def line(name: str, values: dict[str, str]) -> str:
    """Return the line of one job."""
    return " ".join([name, *(f"{key}={shlex.quote(value)}" for key, value in values.items())])


def numbered(prefix: str, numbers: Iterable[int]) -> Lines:
    """Return the jobs of some offsets: PREFIX0 with OFFSET=0, and so on."""
    chosen = list(numbers)
    return Lines([f"{prefix}{number}" for number in chosen], [f"{prefix}{number} OFFSET={number}" for number in chosen])


def _sets_twice(entry: str) -> bool:
    keys = [word.partition("=")[0] for word in entry.split(" ")[1:]]
    return len(keys) != len(set(keys))


def listed(text: str) -> Lines:
    """Check a list of jobs.

    Raises:
        QueueError: with the line and the reason.
    """
    lines = text.split("\n")
    # A million plain lines in a second; what is not plain is looked at closely.
    if not lines[-1]:
        lines.pop()
    plain = all(map(job.PLAIN.match, lines)) and not any(map(_sets_twice, (entry for entry in lines if entry.count("=") > 1)))
    # A character can be four bytes.
    if not plain or _SPECIAL.search(text) or max(map(len, lines), default=0) > job.MAX_BYTES // 8:
        try:
            jobs = sorted(job.parse_list(lines), key=lambda entry: -int(entry[1].get("PRIORITY", "0")))
        except QueueError as exc:
            raise QueueError(f"{exc}; nothing was enqueued") from exc
        lines = [line(name, values) for name, values in jobs]
    return Lines([entry.partition(" ")[0] for entry in lines], lines)


def head(identity: str, jobs: int, place: int, stamp: str) -> str:
    """Return the first line of a batch.

    Args:
        identity: what its cursor must name.
        jobs: how many.
        place: of the first in the queue, in nanoseconds: see store.ahead.
        stamp: when they were enqueued.
    """
    return f"# batch {identity}: {jobs} jobs enqueued {stamp}, place {place}\n"


class Batch:
    """An open batch. Close it, or use it in a with statement.

    Args:
        folder: a descriptor of queue/batches.
        name: its name, without the suffix.
    Raises:
        MalformedJob: it is no batch; the text says why.
        FileNotFoundError: it is gone.
    """

    def __init__(self, folder: int, name: str) -> None:
        self.name = name
        self._fd = _open(folder, name + SUFFIX)
        try:
            found = _HEAD.match(os.pread(self._fd, 200, 0))
            if not found:
                raise MalformedJob("its first line is not a batch's")
            self.id = found[1].decode()
            self.jobs, self.place, self.stamp = int(found[2]), int(found[4]), found[3].decode()
            self.offset, self.issued = found.end(), 0
            with contextlib.suppress(FileNotFoundError):
                self._set_cursor(_open(folder, name + CURSOR))
        except BaseException:
            os.close(self._fd)
            raise

    def _set_cursor(self, fd: int) -> None:
        try:
            said = re.match(rb"([0-9a-f]{16}) ([0-9]{1,18}) ([0-9]{1,12})\n\Z", os.pread(fd, 100, 0))
        finally:
            os.close(fd)
        # A cursor of another id is that of what this batch was before some of its jobs were removed.
        if said and said[1].decode() == self.id:
            self.offset, self.issued = int(said[2]), int(said[3])

    def close(self) -> None:
        """Give the file's descriptor back."""
        os.close(self._fd)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def left(self) -> int:
        """How many of its jobs have not been turned into files."""
        return max(0, self.jobs - self.issued)

    def next(self, count: int = CHUNK) -> tuple[list[tuple[str, dict[str, str]]], bytes]:
        """Return the names and values of the next jobs, none at its end, and the cursor that stands after them.

        Raises:
            MalformedJob: a line can't be understood.
        """
        data = os.pread(self._fd, _READ, self.offset)
        lines = data[: data.rfind(b"\n") + 1].split(b"\n", min(count, self.left))[:-1]
        if self.left and not lines:
            raise MalformedJob(f"it ends at byte {self.offset}, where {self.left} jobs are to follow")
        try:
            jobs = list(job.parse_list(entry.decode("utf-8") for entry in lines))
        except (QueueError, UnicodeDecodeError) as exc:
            raise MalformedJob(f"after byte {self.offset}: {exc}") from exc
        offset = self.offset + sum(len(entry) + 1 for entry in lines)
        return jobs, f"{self.id} {offset} {self.issued + len(lines)}\n".encode()

    def names(self) -> list[str]:
        """Return the names of the next jobs, as many as become files at a time."""
        data = os.pread(self._fd, _READ, self.offset)
        names = [entry.partition(b" ")[0].decode("utf-8", "replace") for entry in data.split(b"\n")[:CHUNK]]
        return [name for name in names if job.is_name(name)]

    def _view(self) -> mmap.mmap:
        return mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)

    def holds(self, name: str) -> bool:
        """Tell whether a job is among those that are left."""
        with self._view() as view:
            return any(view.find(b"\n" + name.encode() + ending, self.offset - 1) >= 0 for ending in (b" ", b"\n"))

    def matching(self, expression: str) -> Iterator[str]:
        """Return the names of the jobs that are left and match a regular expression, in their order."""
        with self._view() as view:
            for found in re.compile(rb"(?m)^(%b)(?=[ \n])" % expression.encode()).finditer(view, self.offset):
                yield found[1].decode()

    def find(self, names: set[str]) -> Iterator[tuple[int, str, str]]:
        """Return which job in order, name and line of each of these jobs that is left."""
        wanted = {name.encode() for name in names}
        with self._view() as view:
            view.seek(self.offset)
            for order, entry in enumerate(iter(view.readline, b""), self.issued):
                name = entry[:-1].partition(b" ")[0]
                if name in wanted:
                    yield order, name.decode(), entry[:-1].decode("utf-8", "replace")
                    wanted.remove(name)
                    if not wanted:
                        return

    def rest(self) -> Iterator[tuple[str, str]]:
        """Return name and line of each job that is left."""
        with self._view() as view:
            # What can't be understood is refused by next, and must not keep others from looking at the rest.
            text = view[self.offset :].decode("utf-8", "replace")
        for entry in text.split("\n"):
            name = entry.partition(" ")[0]
            if job.is_name(name):
                yield name, entry
