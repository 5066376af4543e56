# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the history says is new is told: which event, to which hook, once. How that is made sure: hooks.py."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Callable, Optional

from . import definitions, owner
from .hooks_call import command, mail, post, shown
from .layout import Layout, Refused, open_own
from .progress import history
from .queue import Queue

# Seconds between the tries of an address.
_WAITS = (1.0, 5.0)
# How much of the history's end is looked at where nothing was told yet (bytes).
_TAIL = 512 * 1024
# What of an attempt's line a receiver gets.
_OF_JOB = ("reason", "detail", "attempts", "recoveries", "exit_status", "signal", "duration_s", "peak_memory_kib", "worker")
# How long a text for a receiver may be.
_LONGEST = 2000


def run(queue: Queue, log: Callable[[str], None], patience: Optional[float] = None) -> None:
    """Tell what is to be told.

    Args:
        queue: the jobset's.
        log: told what was told, and what could not be.
        patience: seconds after which the rest is left to the next call; then nobody is waited for, either. None: no end.
    """
    if not (queue.jobset.on_done or queue.jobset.on_failed):
        # What happens while there is no hook is told by none that comes later.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_path(queue.layout))
        return
    with _turn(queue.layout.run, patience is None) as mine:
        if mine:
            _Teller(queue, log, patience).tell()


def _path(layout: Layout) -> str:
    return os.path.join(layout.run, "hooks.json")


@contextlib.contextmanager
def _turn(folder: str, wait: bool) -> Iterator[bool]:
    """Yield whether it is our turn: not where somebody else waits already, who will see all that we have seen."""
    with contextlib.ExitStack() as held:
        fds = []
        for name in ("hooks-next.lock", "hooks.lock"):
            fds.append(open_own(os.path.join(folder, name), os.O_RDWR | os.O_CREAT))
            held.callback(os.close, fds[-1])
        try:
            fcntl.flock(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(fds[1], fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        fcntl.flock(fds[0], fcntl.LOCK_UN)
        yield True


class _Teller:
    """The one process that tells now."""

    def __init__(self, queue: Queue, log: Callable[[str], None], patience: Optional[float]) -> None:
        self.queue = queue
        self.jobset = queue.jobset
        self.log = log
        self.until = time.monotonic() + (float("inf") if patience is None else patience)
        self.tries = 1 + len(_WAITS)
        self.told = self._load()

    def _load(self) -> dict[str, Any]:
        """Return how far was told: the offset in the history, the ids of the latest on_failed and on_done, how many got lost."""
        with contextlib.suppress(FileNotFoundError, Refused, ValueError, RecursionError, TypeError, LookupError):
            with open(_path(self.queue.layout), "rb", opener=open_own) as file:
                told = json.loads(file.read(_TAIL))
            if 0 <= told["offset"] <= os.stat(self.queue.layout.history).st_size:
                return {**told, "failed": str(told["failed"]), "done": str(told["done"]), "undelivered": int(told["undelivered"])}
        return self._first()

    def _first(self) -> dict[str, Any]:
        """Begin with what has happened since the hooks were defined, not with all that ever failed."""
        told: dict[str, Any] = {"offset": 0, "failed": "", "done": "", "undelivered": 0, "why": ""}
        # The clock of a file's time lags behind by a tick.
        defined = os.stat(definitions.path_of(self.queue.layout.root, self.jobset.name)).st_mtime - 0.1
        with contextlib.suppress(FileNotFoundError):
            told["offset"] = max(0, os.stat(self.queue.layout.history).st_size - _TAIL)
            for offset, attempt in self._attempts(told["offset"]):
                if owner.seconds_of(str(attempt.get("ended_at", ""))) >= defined:
                    break
                told.update(offset=offset, done=str(attempt.get("claim", "")))
        return told

    def _attempts(self, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the attempts from an offset in the history on, and where each one's line ends."""
        with contextlib.suppress(FileNotFoundError), open(self.queue.layout.history, "rb", opener=open_own) as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    # Somebody is at it.
                    return
                offset += len(line)
                attempt = None
                with contextlib.suppress(ValueError, RecursionError):
                    attempt = json.loads(line)
                # Half a line, that of a writer who was cut short, counts for nothing.
                yield offset, attempt if isinstance(attempt, dict) else {}

    def _note(self, **more: Any) -> None:
        """Remember how far was told."""
        self.told.update(more)
        path = _path(self.queue.layout)
        staged = os.path.join(self.queue.layout.staging, f"hooks.{os.urandom(8).hex()}")
        with open(staged, "x", encoding="utf-8", opener=open_own) as file:
            file.write(json.dumps(self.told) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(staged, path)

    def tell(self) -> None:
        """Tell all that happened since."""
        before = dict(self.told)
        for offset, attempt in self._attempts(self.told["offset"]):
            if time.monotonic() > self.until:
                return
            claim = str(attempt.get("claim", ""))
            if self.jobset.on_failed and attempt.get("result") == "failed" and claim != self.told["failed"]:
                self._call(self.jobset.on_failed, self._failed(attempt, claim))
                self._note(offset=offset, failed=claim)
            self.told["offset"] = offset
        if self.jobset.on_done:
            event = self._done()
            if event and event["id"] != self.told["done"]:
                self._call(self.jobset.on_done, event)
                self._note(done=event["id"])
        if self.told != before:
            self._note()

    def _event(self, name: str, claim: str, text: str, **more: Any) -> dict[str, Any]:
        about = {"event": name, "id": claim, "jobset": self.jobset.name, "host": socket.gethostname(), "at": owner.now()}
        whole = {**about, "text": f"jobset {self.jobset.name}: {text}", **more}
        # The history may hold anything.
        whole = {key: str(value)[:_LONGEST].replace("\0", " ").encode("utf-8", "replace").decode() for key, value in whole.items()}
        return {**whole, "counts": self.queue.counts()}

    def _failed(self, attempt: dict[str, Any], claim: str) -> dict[str, Any]:
        name = str(attempt.get("job", ""))
        about = {key: attempt[key] for key in _OF_JOB if key in attempt}
        detail = f" ({attempt['detail']})" if attempt.get("detail") else ""
        log = os.path.join(self.queue.layout.log, f"{name}.log")
        return self._event("failed", claim, f"job {name} failed: {attempt.get('reason', '')}{detail}", job=name, log=log, **about)

    def _done(self) -> Optional[dict[str, Any]]:
        with self.queue.lock():
            gate = self.queue.gate()
            if not self.queue.ended() or (gate.closed and not gate.solved_by and self.queue.counts()["pending"]):
                return None
            # Each line is there before its job has left running: now all see the same last one.
            attempts = history(self.queue)
        if not attempts:
            return None
        counts = self.queue.counts()
        what = f"solved by {gate.solved_by}" if gate.solved_by else "all jobs have ended"
        text = f"{what}: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return self._event("done", str(attempts[-1]["claim"]), text, solved_by=gate.solved_by, gate=gate.text)

    def _call(self, words: list[str], event: dict[str, Any]) -> None:
        """Call a hook; what fails is logged, and told no more."""
        what, call = f"on_{event['event']}", command
        if words[0].startswith(("http:", "https:")):
            call = post
        elif words[0].startswith("mailto:"):
            call = mail
        why = ""
        # A command is called once: who knows what it has done already.
        for number in range(1 if call is command else self.tries):
            if number:
                time.sleep(_WAITS[number - 1])
            why = call(words, event, self.jobset)
            if not why:
                break
        self.log(f"{what}: {event['text']}: " + (f"not delivered to {shown(words[0])}: {why}" if why else f"told {shown(words[0])}"))
        # As long as nobody answers, the others get one try each.
        self.tries = 1 if why else 1 + len(_WAITS)
        if why:
            self.told.update(undelivered=self.told["undelivered"] + 1, why=why)
