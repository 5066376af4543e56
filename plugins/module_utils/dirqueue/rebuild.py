# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The queues' part in building an image anew: nothing runs meanwhile, and afterwards all goes on as it was.

What was found is noted on disk (var/rebuild_image.json) before the first gate is closed. So whoever is killed, at whatever moment,
is gone on with by the next: a gate that was open is opened again, if its text is still the one that was written here. Whoever else
has closed it meanwhile, an operator or a program that has solved the jobset, meant it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import Any

from . import owner
from .errors import MalformedJob, QueueError
from .jobset import Jobset
from .layout import Layout, open_own, sync_folder, write_whole
from .queue import Queue
from .recovery import recover
from .runners.known import make
from .store import Change

# Bytes of a log's end that are looked at, and lines after a traceback's frames that may belong to its message.
_TAIL = 64 * 1024
_MESSAGE = 6

_HEADER = re.compile(r"\[[^]]*\] attempt [0-9]+ of .*, claim ([0-9a-f]{32})$")
_FOOTER = re.compile(r"\[[^]]*\] failed: exit_status: ")
# A line that says that the package can't be imported, in the words of Python, of Sage, or of the shipped notebook.
_PACKAGE = re.compile(r"pycryptosat|cryptominisat", re.IGNORECASE)
_UNIMPORTABLE = re.compile(
    r"No module named|ModuleNotFoundError|ImportError|(FeatureNotPresent|PackageNotFound)Error|cannot import name|cannot open shared object"
    r"|undefined symbol|not (installed|available|found|present)",
    re.IGNORECASE,
)
# The agent in the container, podman exec and podman run, of a command that the image lacks or can't execute.
_UNSTARTED = re.compile(r"the job can't be started: |Error: .*(OCI|executable file)")


def path_of(root: str) -> str:
    """Return where is noted what a rebuild that goes on has found."""
    return os.path.join(root, "var", "rebuild_image.json")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def blames_image(queue: Queue, name: str) -> bool:
    """Tell whether a failed job's last attempt failed for want of pycryptosat, or of the command itself, in the image.

    Its program ended by itself (the reason exit_status), and the last thing that it printed in that attempt says so: the message
    after a traceback or, without one, the last line.

    Raises:
        OSError: its log can't be read.
    """
    try:
        values = queue.read("failed", name)
    except (FileNotFoundError, MalformedJob):
        return False
    if values.get("REASON") != "exit_status":
        return False
    last = _last_words(os.path.join(queue.layout.log, f"{name}.log"), values.get("CLAIM", ""))
    if values.get("EXIT_STATUS") in ("126", "127"):
        return any(_UNSTARTED.match(line) for line in last)
    return any(_PACKAGE.search(line) and _UNIMPORTABLE.search(line) for line in last)


def _last_words(path: str, claim: str) -> list[str]:
    """Return what an attempt's program said last: the message after a traceback, or the last line. Nothing if the log is not whole."""
    lines: list[str] = []
    # The attempt may have begun in the piece before.
    for piece in (f"{path}.1", path):
        with contextlib.suppress(FileNotFoundError), open(piece, "rb", opener=open_own) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines += file.read(_TAIL).decode("utf-8", "replace").splitlines()
    begun = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    if not begun or not lines[begun[-1]].endswith(claim):
        return []
    said = [line for line in lines[begun[-1] + 1 :] if line.strip() and not _FOOTER.match(line)]
    traces = [number for number, line in enumerate(said) if line.startswith("Traceback (most recent call last)")]
    if traces:
        message = traces[-1] + 1
        while message < len(said) and said[message].startswith(" "):
            message += 1
        if len(said) - message <= _MESSAGE:
            return said[message:]
    return said[-1:]


class Rebuild:
    """A rebuild of the image that some jobsets use.

    Args:
        root: the batch user's sagequeue folder.
        jobsets: all of the host.
        image: the image's name, for the runner podman_run.
        container: the container that runs it, for podman_exec.
    Raises:
        QueueError: what an earlier one has noted can't be read.
    """

    def __init__(self, root: str, jobsets: list[Jobset], image: str, container: str) -> None:
        self.root = root
        self.notes: dict[str, Any] = {}
        path = path_of(root)
        try:
            with open(path, "rb", opener=open_own) as file:
                self.notes = json.loads(file.read())
            known = [found[key] for found in self.notes["jobsets"].values() for key in ("open", "ran")] + [self.notes["opening"]]
            if not isinstance(self.notes["id"], str) or not all(isinstance(one, bool) for one in known):
                raise ValueError("not what was noted here")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
            raise QueueError(
                f"{path} can't be read ({exc}), so which gates were open before is not known: "
                "open those that should be (clear_stop), remove the file, and run this again"
            ) from exc
        uses = [("podman_run", image), ("podman_exec", container)]
        # One that was among them is among them still, whatever it uses now: its gate may be closed.
        noted = self.notes.get("jobsets", {})
        self.jobsets = {
            one.name: one
            for one in jobsets
            if one.name in noted or (one.runner, one.image if one.runner == "podman_run" else one.container) in uses
        }

    @property
    def begun(self) -> bool:
        """Whether one was begun, and has not ended."""
        return bool(self.notes)

    def _note(self) -> None:
        write_whole(path_of(self.root), json.dumps(self.notes, indent=2))

    def queue(self, name: str) -> Queue:
        """Open a jobset's queue."""
        return Queue(Layout(self.root, name), self.jobsets[name])

    def _ours(self, queue: Queue) -> bool:
        """Tell whether the gate is one that was closed here."""
        text = queue.gate().text
        return self.begun and f" by {self._who()} " in text and queue.gate().requested

    def _who(self) -> str:
        return f"rebuild_image {self.notes['id']}"

    def gates(self) -> dict[str, bool]:
        """Return whether the gate of each jobset is, or was before this began, open."""
        found = {}
        for name in self.jobsets:
            with self.queue(name) as queue:
                known = self.notes.get("jobsets", {}).get(name)
                # One that was closed before is looked at when it ends: somebody may have opened it since.
                found[name] = known["open"] if known else not queue.gate().closed
        return found

    def ran(self, name: str, runs: bool) -> bool:
        """Return whether a jobset's workers ran when this began.

        Args:
            name: the jobset.
            runs: whether they run now.
        """
        known = self.notes.get("jobsets", {}).get(name)
        return bool(known["ran"]) if known else runs

    def begin(self, running: set[str]) -> list[str]:
        """Note how all is, and close the gates; return the jobsets whose gates this has closed.

        Args:
            running: the jobsets whose workers run.
        """
        if not self.begun:
            self.notes = {"id": os.urandom(4).hex(), "began_at": owner.now(), "opening": False, "jobsets": {}}
        # A jobset may have been defined since.
        found = {name: {"open": is_open, "ran": self.ran(name, name in running)} for name, is_open in self.gates().items()}
        self.notes["jobsets"].update(found)
        self.notes["opening"] = False
        self._note()
        return self._close()

    def waits_for(self, jobs: int) -> tuple[int, int]:
        """Return how many of the jobs that ran when it was first asked have ended, and how many those were.

        Args:
            jobs: how many run.
        """
        if jobs > self.notes.get("running", 0):
            self.notes["running"] = jobs
            self._note()
        return self.notes.get("running", 0) - jobs, self.notes.get("running", 0)

    def _close(self) -> list[str]:
        closed = []
        for name in self.jobsets:
            with self.queue(name) as queue:
                if self.notes["jobsets"][name]["open"] and queue.close_gate(self._who()):
                    closed.append(name)
        return closed

    def drain(self) -> dict[str, list[str]]:
        """Recover what dead workers have left, and return which jobs still run, by jobset. Gates that somebody has opened are closed."""
        self._close()
        left = {}
        for name, one in self.jobsets.items():
            with self.queue(name) as queue:
                if any(queue.why_orphan(job) for job in queue.entries("running")):
                    recover(queue, make(queue.layout, one))
                left[name] = sorted(queue.entries("running"))
        return {name: jobs for name, jobs in left.items() if jobs}

    def blaming(self) -> dict[str, list[str]]:
        """Return the failed jobs that the image is to blame for, by jobset."""
        found = {}
        for name in self.jobsets:
            with self.queue(name) as queue:
                found[name] = sorted(job for job in queue.entries("failed") if blames_image(queue, job))
        return {name: jobs for name, jobs in found.items() if jobs}

    def retry(self, check: bool = False) -> list[Change]:
        """Bring the failed jobs that the image is to blame for back to pending."""
        changes = []
        for name, jobs in self.blaming().items():
            with self.queue(name) as queue:
                changes += queue.retry(jobs, check)
        return changes

    def end(self) -> list[str]:
        """Open the gates that were open, and forget what was noted; return the jobsets whose gates are open now."""
        if self.begun and not self.notes["opening"]:
            self.notes["opening"] = True
            self._note()
        opened = []
        for name in self.jobsets:
            with self.queue(name) as queue:
                if self._ours(queue):
                    queue.open_gate()
                if not queue.gate().closed:
                    opened.append(name)
        if self.begun:
            _remove(f"{path_of(self.root)}.new")
            _remove(path_of(self.root))
            sync_folder(os.path.dirname(path_of(self.root)))
            self.notes = {}
        return opened
