# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate, a file: while it is there no job is claimed. A job makes it when it has solved the jobset, or an operator does."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import re
import stat
from typing import NamedTuple

from . import job, owner
from .errors import QueueError, explain, is_shortage
from .layout import PLACES, sync_folder
from .store import Store

REQUESTED = "STOP requested by "


class Gate(NamedTuple):
    """The gate: closed or not, its text, whether it was an operator's request, and the job that its text names."""

    closed: bool
    text: str = ""
    requested: bool = False
    solved_by: str = ""


class Gated(Store):
    """A queue with its gate. What it needs and raises: see Store."""

    def ended(self) -> bool:
        """Tell whether no job runs, and none is pending (or held), or the gate is closed. Certain only under the lock (rule 3)."""
        return (self._is_shut() or not self._any_in("pending", "held")) and not any(True for _name in self._each("running"))

    def waits(self) -> bool:
        """Tell whether there is something to claim, without changing what is listed. Certain only under the lock (rule 3)."""
        return self._any_in("pending") and not self._is_shut()

    def _is_shut(self) -> bool:
        return os.access(self.jobset.gate, os.F_OK, follow_symlinks=False)

    def gate(self) -> Gate:
        """Return how the gate stands.

        Raises:
            OSError: too many open files, or the like: it can't be told.
        """
        try:
            fd = os.open(self.jobset.gate, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return Gate(False)
        except OSError as exc:
            if is_shortage(exc):
                raise
            return Gate(True, f"(can't be read: {exc.strerror})")
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return Gate(True, "(can't be read: not a regular file)")
            text = os.read(fd, job.MAX_BYTES).decode("utf-8", "replace").strip()
        finally:
            os.close(fd)
        requested = text.startswith(REQUESTED)
        return Gate(True, text, requested, "" if requested else self._named_by(text))

    def _named_by(self, text: str) -> str:
        """Return the job that a gate's text names, or an empty text."""
        numbers = [int(number) for number in re.findall(r"(?<!\w)[0-9]{1,9}(?!\w)", text)[:64]]
        candidates = [self.jobset.job_name(number) for number in numbers]
        # Jobs with names of their own, and patterns without an offset.
        candidates += itertools.islice((name for state in PLACES for name in self._each(state)), 1000)
        for name in dict.fromkeys(candidates):
            with contextlib.suppress(FileNotFoundError, QueueError):
                state = self.locate(name)
                if state and self.jobset.names_job(text, name, self.read(state, name)):
                    return name
        return ""

    def close_gate(self, by: str = "", check: bool = False) -> bool:
        """Close the gate with a line that says who and when; return whether it was open.

        Raises:
            QueueError: the gate file can't be made.
        """
        if self._is_shut():
            return False
        if not check:
            text = f"{REQUESTED}{by or me()} at {owner.now()}\n"
            staged = f"{self.jobset.gate}.{os.urandom(8).hex()}"
            try:
                try:
                    with open(staged, "x", encoding="utf-8") as file:
                        # Whoever a container runs its programs as may read it, whatever the umask is; where there are ACLs, these say who.
                        if not _has_acl(file.fileno()):
                            os.fchmod(file.fileno(), 0o644)
                        file.write(text)
                        file.flush()
                        os.fsync(file.fileno())
                    # link, not rename: a solver's gate that appears now must stay as it is.
                    os.link(staged, self.jobset.gate)
                    sync_folder(os.path.dirname(self.jobset.gate))
                except FileExistsError:
                    return False
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(staged)
            except OSError as exc:
                raise QueueError(f"jobset {self.jobset.name}: can't make the gate: {explain(exc, self.jobset.gate)}") from exc
        return True

    def open_gate(self, check: bool = False) -> bool:
        """Open the gate; return whether it was closed. Its text is kept in run/gates.jsonl.

        Raises:
            QueueError: the gate file can't be removed.
        """
        gate = self.gate()
        if gate.closed and not check:
            try:
                self._append(self.layout.gates, {"opened_at": owner.now(), "text": gate.text, "solved_by": gate.solved_by})
                os.unlink(self.jobset.gate)
                sync_folder(os.path.dirname(self.jobset.gate))
            except FileNotFoundError:
                return False
            except OSError as exc:
                raise QueueError(f"jobset {self.jobset.name}: can't open the gate: {explain(exc, self.jobset.gate)}") from exc
        return gate.closed


def _has_acl(fd: int) -> bool:
    """Tell whether a file's rights are more than its mode (acl(5))."""
    with contextlib.suppress(OSError):
        return "system.posix_acl_access" in os.listxattr(fd)
    return False


def me() -> str:
    """Return this user's name, or the number where it has none (in a container, say)."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return f"uid {os.geteuid()}"
