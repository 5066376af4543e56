# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong in a way that a person can mend."""

from __future__ import annotations

import errno
import os

# What runs short on a host and comes back, and what a person can do about it.
_STEPS = {
    errno.ENOSPC: "free some space or inodes on its file system (df, df -i)",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EROFS: "find out why its file system is read-only (dmesg), and mount it writable",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close some files, or raise fs.file-max",
    errno.ENOMEM: "free some memory, or raise the limit (ulimit -v)",
    errno.EAGAIN: "end some processes, or raise the limit (ulimit -u)",
}


def is_shortage(error: BaseException) -> bool:
    """Tell whether an error says nothing of the thing it happened to, only that the host has run out of something."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _STEPS)


def explain(error: BaseException, thing: str) -> str:
    """Return a system's error as thing, reason and, for a shortage, the next step. Our own errors say all that already.

    Args:
        error: what was raised.
        thing: what it happened to, where the error itself does not name it by a full path.
    """
    if not isinstance(error, (OSError, MemoryError)):
        return str(error)
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno or 0
    named = getattr(error, "filename", None)
    # Other names are those of staged files, which differ each time.
    thing = named if isinstance(named, str) and os.path.isabs(named) else thing
    reason = getattr(error, "strerror", None) or os.strerror(number)
    return f"{thing}: {reason}" + (f"; {_STEPS[number]}" if number in _STEPS else "")


def nearest(word: str, words: list[str]) -> str:
    """Return a hint that names the nearest of some words, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, words, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


class QueueError(Exception):
    """The one exception of the library: names the thing, the reason and the next step."""


class MalformedJob(QueueError):
    """A job file, or what it asks for, can't be understood. The text is the reason."""


class NotReady(QueueError):
    """A runner can't run anything now, through no fault of a job. The text says why and what to do."""


class LostClaim(QueueError):
    """A worker finds that the job it ran is no longer its own."""
