# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's log: a pipe that the job writes into, and the file log/NAME.log, capped, that it is copied to.

A file that is full becomes NAME.log.1, the NAME.log.1 before it NAME.log.2, and so on. What can't be written, for want of
disk, is dropped and counted: a log must never hold its job up.
"""

from __future__ import annotations

import contextlib
import glob
import os
from typing import Callable

from . import owner
from .layout import open_own

# Bytes that are copied at once: all that a pipe holds. A larger pipe was not faster (1 GB: 2 s, as long as without a pipe).
_CHUNK = 1 << 16


def pieces(path: str) -> list[str]:
    """Return a log's older pieces, newest first."""
    found: list[str] = []
    number = last = 0
    # A worker that was killed while it turned a log over has left one number out, never two.
    while number <= last + 1:
        number += 1
        if os.path.lexists(f"{path}.{number}"):
            found.append(f"{path}.{number}")
            last = number
    return found


def remove(path: str) -> None:
    """Delete a log and its older pieces."""
    for piece in [*reversed(pieces(path)), path]:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(piece)


def ends(folder: str, patterns: list[str], lines: int, most: int = 0) -> list[str]:
    """Return the last lines of logs, each log's below a line with its path.

    Args:
        folder: where they are.
        patterns: of their names, as a shell knows them.
        lines: how many of each.
        most: how many logs, those written to last; 0: all, by name.
    """
    found = sorted({path for pattern in patterns for path in glob.glob(os.path.join(glob.escape(folder), pattern))})
    if most:
        found = sorted(found, key=os.path.getmtime)[-most:]
    said = []
    for path in found:
        said.append(f"==> {path} <==")
        try:
            with open(path, "rb", opener=open_own) as file:
                start, data = file.seek(0, os.SEEK_END), b""
                while start and data.count(b"\n") <= lines:
                    end, start = start, max(0, start - _CHUNK)
                    file.seek(start)
                    data = file.read(end - start) + data
            said += data.decode("utf-8", "replace").splitlines()[-lines:] if lines else []
        except OSError as exc:
            said.append(str(exc))
    return said


class JobLog:
    """The log of one attempt.

    Args:
        path: the file.
        size: bytes that one piece may have; 0: any number.
        keep: how many older pieces stay.
        say: told once when something can't be written.
    Raises:
        Refused: what is at its place can't be a log of ours.
        OSError: it can't be opened.
    """

    def __init__(self, path: str, size: int, keep: int, say: Callable[[str], None]) -> None:
        self.path = path
        self._size = size
        self._keep = keep
        self._say = say
        self._said = False
        self._why = ""
        self._lost = 0
        self._buffer = memoryview(bytearray(_CHUNK))
        self._fd = self._read = self.output = -1
        try:
            self._open()
            for piece in pieces(path)[keep:] if size and self._length else []:
                with contextlib.suppress(IsADirectoryError):
                    os.unlink(piece)
            self._read, self.output = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._read, False)
        except OSError:
            self.close()
            raise

    def _open(self) -> None:
        self._fd = open_own(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._length = os.fstat(self._fd).st_size
        self._amid_line = self._length > 0 and os.pread(self._fd, 1, self._length - 1) != b"\n"

    def _turn_over(self) -> None:
        os.close(self._fd)
        self._fd = -1
        last = 1
        while last < self._keep and os.path.lexists(f"{self.path}.{last}"):
            last += 1
        # From the oldest on, so that one who is killed in between has put none over another.
        for number in range(last, 1, -1):
            os.rename(f"{self.path}.{number - 1}", f"{self.path}.{number}")
        with contextlib.suppress(FileNotFoundError):
            if self._keep:
                os.rename(self.path, f"{self.path}.1")
            else:
                os.unlink(self.path)

    def _put(self, data: memoryview) -> int:
        """Write as much as can be written; return how many bytes that was."""
        done = 0
        try:
            while done < len(data):
                if self._fd < 0:
                    self._open()
                if self._size and self._length >= self._size:
                    self._turn_over()
                    continue
                end = done + self._size - self._length if self._size else len(data)
                count = os.write(self._fd, data[done:end])
                self._length += count
                done += count
        except OSError as exc:
            self._why = str(exc.strerror)
        if done:
            self._amid_line = data[done - 1] != ord("\n")
        return done

    def _line(self, text: str) -> memoryview:
        return memoryview(f"{chr(10) * self._amid_line}[{owner.now()}] {text}\n".encode("utf-8", "replace"))

    def write(self, data: memoryview) -> None:
        """Write, or drop what can't be written; once there is room again, a line says how much that was."""
        if self._lost:
            line = self._line(f"{self._lost} bytes of this log are missing here: {self._why}")
            if self._put(line) < len(line):
                self._lost += len(data)
                return
        self._lost = len(data) - self._put(data)
        if self._lost and not self._said:
            self._said = True
            self._say(f"{self.path} can't be written ({self._why}); what the job prints is dropped until it can")

    def note(self, text: str) -> None:
        """Write a line of our own."""
        self.write(self._line(text))

    def started(self) -> None:
        """Close our own end of what the job writes into, once the job has it."""
        os.close(self.output)
        self.output = -1

    def fileno(self) -> int:
        """Return the descriptor on which to wait for what the job prints; -1: there will be no more."""
        return self._read

    def copy(self) -> None:
        """Copy what the job has printed by now, at most as much as its pipe holds, without waiting for more."""
        if self._read < 0:
            return
        with contextlib.suppress(BlockingIOError):
            count = os.readv(self._read, [self._buffer])
            if count:
                self.write(self._buffer[:count])
            else:
                os.close(self._read)
                self._read = -1

    def close(self) -> None:
        """Close everything; a process that the job has left behind writes into nothing from now on."""
        if self._lost:
            self.write(self._buffer[:0])
        for fd in (self._fd, self._read, self.output):
            if fd >= 0:
                os.close(fd)
