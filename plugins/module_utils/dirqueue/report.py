# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to report of a jobset: read from its history, jobs and logs, bounded, without secrets."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

from . import job, joblog, owner, progress, wsl
from .errors import MalformedJob, QueueError, explain
from .layout import Refused, open_own
from .queue import Queue
from .redact import Redactor

# Of the history so many bytes are read, from its end: about 200,000 attempts.
_HISTORY = 64 << 20
# Of a log, so many bytes and lines, and so many characters of a line.
_LOG = 64 << 10
LINES = 20
_WIDTH = 500
# So many groups of failures, and jobs of each whose log is shown; files of failed jobs that are read for want of a history.
GROUPS = 12
SHOWN = 5
_FILES = 200

KINDS = ("done", "failed", "back")

# Why an attempt did not end in done, for a person: what it means, and what to do. The others are failures of the job itself.
REASONS = {
    "exit_status": ("The program ended with an exit status that is not 0.", "Read the end of its log."),
    "signal": ("A signal that the worker did not send ended the program.", "Read the end of its log; 9 is often want of memory."),
    "out_of_memory": ("The program was killed while the kernel was out of memory.", "Use fewer workers, or smaller jobs."),
    "timeout": ("It ran longer than the jobset's key timeout.", "Raise timeout, or split the work into more jobs."),
    "runner_lost": ("Its container went away, or its command could not be started.", "See what the container says: journal, diag."),
    "not_started": ("Its log could not be opened, or the host had run short of something.", "Read the detail."),
    "orphan": ("Its worker died; it was brought back.", "Nothing, if it happens rarely."),
    "too_many_recoveries": ("Its worker or container died again and again.", "Look for what kills it: memory, time-outs of the host."),
    "malformed_job": ("Its file can't be understood.", "Enqueue it as it should be; the file as it was is in run/malformed."),
    "killed": ("An operator ended it.", "Nothing; to run it again: retry_failed, or reset."),
    "gate": ("It stopped early because the gate was closed.", "Nothing."),
    "worker_stopped": ("Its worker was stopped.", "Nothing."),
}  # fmt: skip
_BACK = ("gate", "worker_stopped", "not_started")

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3})?Z\Z")
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?<=>]*[ -/]*[@-~]|\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)|[ -/]*[0-~])")
# Control characters, and what turns the direction of writing: shown by their numbers, as the program's other commands do.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(0x7F, 0xA0))}
_SHOWN.update({code: f"<U+{code:04X}>" for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))})


class Attempt(NamedTuple):
    """One attempt at a job, with what could be read of it."""

    job: str
    worker: str
    kind: str
    reason: str
    cause: str
    detail: str
    start: Optional[float]
    end: Optional[float]
    seconds: Optional[float]
    peak: Optional[float]
    number: str


class Log(NamedTuple):
    """The last lines of a job's log."""

    lines: list[str]
    note: str


def seconds_of(text: object) -> Optional[float]:
    """Return a time of the queue's as seconds since 1970, None where it is none."""
    if isinstance(text, str) and _TIME.match(text) and text[17] < "6":
        minute = _minute(text[:16])
        return None if minute is None else minute + float(text[17:-1])
    return None


@functools.lru_cache(1000)
def _minute(text: str) -> Optional[float]:
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.datetime.fromisoformat(f"{text}+00:00").timestamp()
    return None


def _number(text: object) -> Optional[float]:
    try:
        number = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < 1e12 else None


def clean(text: object, length: int = _WIDTH) -> str:
    """Return a hostile text on one line: not too long, and nothing in it that steers a terminal or a page."""
    line = _ESCAPES.sub("", str(text)).translate(_SHOWN).replace("\n", " ").encode("utf-8", "replace").decode()
    if len(line) > length:
        line = f"{line[: length * 3 // 4]} \u2026 {len(line) - length} characters left out \u2026 {line[-(length // 4) :]}"
    return line


class Report:
    """All that the page shows.

    Args:
        queue: the jobset's queue.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.jobset = queue.jobset
        self.redact = Redactor(self.jobset.secrets.values())
        self.made = owner.now()
        self.host = os.uname().nodename
        self.summary = progress.summary(queue)
        self.left_out = ""
        # Reasons and workers come again and again.
        self._word = functools.lru_cache(10000)(self.plain)
        self.unreadable = 0
        self.attempts = list(self._attempts())
        self.failed_now = self._failed_now()
        self.gates = list(self._gates())
        starts = [one.start for one in self.attempts if one.start is not None]
        ends = [one.end for one in self.attempts if one.end is not None]
        times = [*starts, *ends]
        self.first: Optional[float] = min(times, default=None)
        self.last: Optional[float] = max(times, default=None)
        self.kinds = Counter(one.kind for one in self.attempts)

    def plain(self, text: object, length: int = _WIDTH) -> str:
        """Return a text without secrets on one line. Cleaning may put a secret together: so it is looked for twice."""
        return self.redact(clean(self.redact(str(text)), length))

    def _lines(self, path: str, tail: int) -> Iterator[dict[str, Any]]:
        """Yield the objects of a file that has one a line, from its last bytes."""
        with contextlib.suppress(FileNotFoundError, Refused), open(path, "rb", opener=open_own) as file:
            size = os.fstat(file.fileno()).st_size
            if size > tail:
                file.seek(size - tail)
                file.readline(tail)
                self.left_out = f"The history has {size >> 20} MiB: what is older than its last {tail >> 20} MiB is left out."
            for line in iter(lambda: file.readline(tail), b""):
                with contextlib.suppress(ValueError, RecursionError):
                    found = json.loads(line)
                    if isinstance(found, dict):
                        yield found
                        continue
                self.unreadable += bool(line.strip())

    def _attempts(self) -> Iterator[Attempt]:
        claims: dict[str, Attempt] = {}
        for line in self._lines(self.queue.layout.history, _HISTORY):
            if isinstance(line.get("job"), str) and job.is_name(line["job"]) and isinstance(line.get("claim"), str):
                claims[line["claim"]] = self._attempt(line["job"], line)
            else:
                self.unreadable += 1
        return iter(claims.values())

    def _attempt(self, name: str, line: dict[str, Any]) -> Attempt:
        result, reason = str(line.get("result")), self._word(str(line.get("reason", "")), 40)
        kind = "done" if result == "done" else "back" if result != "failed" and reason in _BACK else "failed"
        start, end, seconds = seconds_of(line.get("started_at")), seconds_of(line.get("ended_at")), _number(line.get("duration_s"))
        if start is not None and end is not None and end < start:
            # The clock was set back meanwhile.
            end = start + (seconds or 0)
        cause = self._word(f"{reason.replace('_', ' ')} {line.get(reason)}", 40) if reason in ("exit_status", "signal") else ""
        detail = "" if kind == "done" and reason == "ok" else self.plain(line.get("detail", ""))
        peak = _number(line.get("peak_memory_kib"))
        worker, number = self._word(str(line.get("worker", "")), 60), self._word(str(line.get("attempts", "")), 10)
        return Attempt(name, worker, kind, reason, cause, detail, start, end, seconds, peak * 1024 if peak else None, number)

    def _failed_now(self) -> set[str]:
        """Return the jobs that are in failed; what the history does not know of them is read from their files."""
        names = set(self.queue.entries("failed"))
        for name in sorted(names - {one.job for one in self.attempts if one.kind == "failed"})[:_FILES]:
            values: dict[str, str] = {}
            try:
                values = self.queue.read("failed", name)
            except FileNotFoundError:
                continue
            except MalformedJob as exc:
                values = {"REASON": "malformed_job", "DETAIL": str(exc)}
            except (OSError, QueueError) as exc:
                values = {"DETAIL": explain(exc, name)}
            self.attempts.append(self._attempt(name, {"result": "failed", **{key.lower(): value for key, value in values.items()}}))
        return names

    def _gates(self) -> Iterator[tuple[str, str, str]]:
        for line in list(self._lines(self.queue.layout.gates, 1 << 16))[-10:]:
            yield self.plain(line.get("opened_at", ""), 30), self.plain(line.get("text", "")), self.plain(line.get("solved_by", ""), 200)

    def groups(self) -> list[tuple[str, str, list[Attempt]]]:
        """Return reason, cause and attempts of each kind of failure, the most frequent first."""
        found: dict[tuple[str, str], list[Attempt]] = {}
        for one in self.attempts:
            if one.kind == "failed":
                found.setdefault((one.reason, one.cause), []).append(one)
        groups = [(reason, cause, attempts) for (reason, cause), attempts in sorted(found.items(), key=lambda item: -len(item[1]))]
        rest = [one for _reason, _cause, attempts in groups[GROUPS:] for one in attempts]
        return groups[:GROUPS] + ([("other reasons", "", rest)] if rest else [])

    def examples(self, attempts: list[Attempt]) -> list[Attempt]:
        """Return the latest attempts of a group, one a job, those first that are in failed now: their log ends with it."""
        latest = {one.job: one for one in attempts}
        return sorted(reversed(list(latest.values())), key=lambda one: one.job not in self.failed_now)[:SHOWN]

    def log(self, name: str) -> Log:
        """Return the last lines of a job's log."""
        path = os.path.join(self.queue.layout.log, f"{name}.log")
        data, cut, wanted = b"", False, _LOG + self.redact.longest
        try:
            for piece in [path, *joblog.pieces(path)[:1]]:
                with open(piece, "rb", opener=open_own) as file:
                    size = os.fstat(file.fileno()).st_size
                    cut = size > wanted - len(data)
                    file.seek(max(0, size - (wanted - len(data))))
                    data = file.read(wanted - len(data)) + data
                if cut:
                    break
        except FileNotFoundError:
            if not data:
                return Log([], "There is no log of it.")
        except OSError as exc:
            return Log([], f"Its log can't be read: {self.plain(explain(exc, path))}")
        text = self.redact(data.decode("utf-8", "replace"))
        # Half a secret may stand where we came in.
        lines = (f"\u2026{text[self.redact.longest :]}" if cut else text).split("\n")
        # A bar that a program has drawn over and over: its last state.
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()]
        return Log([self.plain(line) for line in lines[-LINES:]], f"The last lines of {path}" if cut or len(lines) > LINES else path)

    def definition(self) -> dict[str, str]:
        """Return the jobset's definition for a person; of what may be secret, names alone."""
        shown = {}
        for key, value in self.jobset.to_dict().items():
            if key in ("environment", "secrets"):
                value = ", ".join(value) + " (values not shown)" if value else ""
            elif isinstance(value, dict):
                value = ", ".join(f"{name}: {text}" for name, text in value.items())
            elif isinstance(value, list):
                value = " ".join(value)
            shown[key] = self.plain(value, 2000)
        return shown


def where(queue: Queue, to: str = "") -> str:
    """Return the page's path: ROOT/reports/JOBSET.html, or what was asked for; in a folder, under the jobset's name."""
    path = os.path.abspath(os.path.expanduser(to or os.path.join(queue.layout.root, "reports", "")))
    return os.path.join(path, f"{queue.jobset.name}.html") if not to or os.path.isdir(path) or to.endswith("/") else path


def write(queue: Queue, to: str = "") -> str:
    """Write the page, private to the user, all or nothing; return its path.

    Raises:
        QueueError: it can't be written.
    """
    from .page import page

    path = where(queue, to)
    data = page(Report(queue)).encode("utf-8", "replace")
    temporary = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise QueueError(f"jobset {queue.jobset.name}: can't write the report {explain(exc, path)}; name another place") from exc
    return path


def said(path: str) -> str:
    """Return where a page is, in words."""
    windows = wsl.windows_path(path)
    return f"The report is {path}" + (f"; in Windows open {windows}" if windows else "")
