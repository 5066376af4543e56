# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a job's end is noted beside it, before it becomes the job's file (rule 4 of queue.py)."""

from __future__ import annotations

import contextlib
import os
from typing import Optional

from . import job, owner
from .errors import MalformedJob
from .layout import STATES, Refused, open_own, sync_file_system
from .order import Order
from .store import CLAIM

# What the note of a job's end is called in staging, before its claim.
NOTE = "result."
# So many files are synced one by one, more by one call.
_FEW = 4


class Leaving:
    """A job that has ended, on its way out of running.

    Args:
        name: the job.
        values: what its file is to say, or says.
        place: its place in the queue; None: its file says all that already.
    """

    def __init__(self, name: str, values: dict[str, str], place: Optional[int] = None) -> None:
        self.name = name
        self.values = values
        self.place = place
        # How far it is: its note is synced, is the job's file, is in the history; it has left running, or has vanished from there.
        self.synced = self.written = place is None
        self.logged = self.moved = self.vanished = False

    def line(self) -> dict[str, str]:
        """Return the attempt's line in the history."""
        keys = ("RESULT", *(key for key in job.RESULT_KEYS if key in self.values and key not in ("RESULT", "ORIGINAL")))
        return {"job": self.name, **{key.lower(): self.values[key] for key in keys}}


class Notes(Order):
    """A queue that notes how jobs have ended."""

    def _note(self, ended: Leaving) -> None:
        entry = NOTE + ended.values["CLAIM"]
        with contextlib.suppress(FileExistsError):
            self._stage(entry, job.render(ended.values), sync=False)
        # What is noted has a place.
        os.utime(entry, ns=(ended.place, ended.place), dir_fd=self._fds["staging"])  # type: ignore[arg-type]

    def _noted(self, record: dict[str, str]) -> dict[str, str] | None:
        """Return how a dead owner's job ended, if that was noted. Not what a power cut may have spoiled."""
        claim = record.get("OWNER_CLAIM", "")
        if not CLAIM.match(claim) or record.get("OWNER_BOOT") != owner.boot_id():
            return None
        with contextlib.suppress(FileNotFoundError, Refused, MalformedJob):
            with open(os.path.join(self.layout.staging, NOTE + claim), "rb", opener=open_own) as file:
                values = job.parse(file.read(job.MAX_BYTES + 1))
            return values if values.get("CLAIM") == claim and values.get("RESULT") in STATES else None
        return None

    def _sync_notes(self, ended: list[Leaving]) -> None:
        if len(ended) < _FEW:
            for one in ended:
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(NOTE + one.values["CLAIM"], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fds["staging"])
                    try:
                        os.fsync(fd)
                    finally:
                        os.close(fd)
        else:
            sync_file_system(self._fds["staging"])
        for one in ended:
            one.synced = True
