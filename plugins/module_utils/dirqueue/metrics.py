# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How all jobsets are, as Prometheus reads it: a file for node_exporter's textfile collector.

https://prometheus.io/docs/instrumenting/exposition_formats/ is the format, version 0.0.4.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from typing import Any

from . import __version__, definitions, owner, progress
from .errors import QueueError, explain
from .layout import Layout, Refused, open_own
from .queue import Queue

# Name, type, what it is. All have the label jobset, and the others that are in parentheses.
_METRICS = {
    "up": ("gauge", "1 if the jobset's queue could be read."),
    "jobs": ("gauge", "Jobs in a state (state)."),
    "held_jobs": ("gauge", "Pending jobs that are held."),
    "attempts_total": ("counter", "Attempts that ended, by reason and by the state that the job went to (reason, result)."),
    "attempt_seconds_total": ("counter", "Seconds that these attempts took together."),
    "oldest_pending_seconds": ("gauge", "Seconds since the job was enqueued that has been pending longest; 0 if none is."),
    "running_seconds": ("gauge", "Seconds since a worker took the job that it runs (worker)."),
    "orphans": ("gauge", "Running jobs whose owner is dead."),
    "workers": ("gauge", "Workers that live, running a job or not."),
    "workers_defined": ("gauge", "Workers that the jobset should have."),
    "gate_closed": ("gauge", "1 if the gate is closed."),
    "solved": ("gauge", "1 if the gate's text names the job that solved the jobset."),
    "refused_entries": ("gauge", "What lies in the queue and can't be a file of its own."),
    "cases": ("gauge", "Cases of all jobs together, where the jobset's definition has them."),
    "cases_done": ("gauge", "Cases that the state files say are done."),
    "seconds_left": ("gauge", "Seconds that the rest should take, where known: the 8 in 10 range's ends (bound)."),
    "hooks_undelivered_total": ("counter", "Calls of on_done and on_failed that failed."),
}
# What a file may raise that is not there, or not what we wrote: then it is counted as if it were not there.
_ODD = (FileNotFoundError, Refused, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
_REASON = re.compile(r"[a-z_]{1,40}\Z")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def text(root: str) -> str:
    """Return the metrics of all jobsets that are defined on this host; one that can't be read is not up."""
    samples: dict[str, list[str]] = {name: [] for name in _METRICS}

    def add(metric: str, value: float, **labels: str) -> None:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        samples[metric].append(f"sagequeue_{metric}{{{shown}}} {value:.15g}\n")

    for name in definitions.defined(root):
        try:
            with Queue(Layout(root, name), definitions.load(root, name)) as queue:
                found = _of(queue)
            add("up", 1, jobset=name)
        except (QueueError, OSError):
            add("up", 0, jobset=name)
            continue
        for metric, labels, value in found:
            add(metric, value, jobset=name, **labels)
    lines = [f'# HELP sagequeue_info The version of sagequeue.\n# TYPE sagequeue_info gauge\nsagequeue_info{{version="{__version__}"}} 1\n']
    for metric, (kind, about) in _METRICS.items():
        if samples[metric]:
            lines += [f"# HELP sagequeue_{metric} {about}\n# TYPE sagequeue_{metric} {kind}\n", *samples[metric]]
    return "".join(lines)


def _of(queue: Queue) -> list[tuple[str, dict[str, str], float]]:
    """Return the metrics of one jobset: names, labels, values."""
    now = time.time()
    found = progress.summary(queue)
    result: list[tuple[str, dict[str, str], float]] = [("jobs", {"state": state}, count) for state, count in found["counts"].items()]
    told = _attempts(queue)
    for pair, count in sorted(told["counts"].items()):
        reason, _slash, state = pair.partition("/")
        result.append(("attempts_total", {"reason": reason, "result": state}, count))
    # One series a worker, whatever jobs it takes.
    taken = {held["worker"]: owner.seconds_of(held["since"]) for held in found["running"] if held["alive"] and held["worker"]}
    result += [("running_seconds", {"worker": worker}, round(max(now - since, 0.0), 3)) for worker, since in sorted(taken.items()) if since]
    oldest = queue.oldest_pending()
    plain: dict[str, float] = {
        "attempt_seconds_total": round(told["seconds"], 3),
        "oldest_pending_seconds": round(max(now - oldest, 0.0), 3) if oldest else 0,
        "held_jobs": found["held"],
        "orphans": sum(1 for held in found["running"] if not held["alive"]),
        "workers": found["workers"],
        "workers_defined": queue.jobset.workers,
        "gate_closed": int(found["gate"]["closed"]),
        "solved": int(found["gate"]["solved"]),
        "refused_entries": len(found["refused"]),
        "hooks_undelivered_total": _undelivered(queue.layout),
    }
    inside = found["cases"] or {}
    if inside:
        plain["cases_done"] = inside["done"]
        if inside["total"]:
            plain["cases"] = inside["total"]
        for bound, value in zip(("low", "high"), inside["seconds_left"] or ()):
            result.append(("seconds_left", {"bound": bound}, value))
    return result + [(metric, {}, value) for metric, value in plain.items()]


def _undelivered(layout: Layout) -> int:
    with contextlib.suppress(*_ODD):
        return int(_kept(os.path.join(layout.run, "hooks.json"))["undelivered"])
    return 0


def _kept(path: str) -> Any:
    with open(path, "rb", opener=open_own) as file:
        return json.loads(file.read(1 << 20))


def _attempts(queue: Queue) -> dict[str, Any]:
    """Count the attempts in the history, going on where the last count ended: run/attempts.json says where."""
    path = os.path.join(queue.layout.run, "attempts.json")
    told: dict[str, Any] = {"offset": 0, "counts": {}, "seconds": 0.0}
    began = 0
    with contextlib.suppress(FileNotFoundError, Refused), open(queue.layout.history, "rb", opener=open_own) as file:
        with contextlib.suppress(*_ODD):
            known = _kept(path)
            if 0 <= int(known["offset"]) <= os.fstat(file.fileno()).st_size:
                counts = {str(pair): int(count) for pair, count in known["counts"].items()}
                told = {"offset": int(known["offset"]), "counts": counts, "seconds": float(known["seconds"])}
        began = told["offset"]
        file.seek(began)
        for line in file:
            if not line.endswith(b"\n"):
                break
            told["offset"] += len(line)
            with contextlib.suppress(*_ODD):
                attempt = json.loads(line)
                reason, state = str(attempt["reason"]), str(attempt["result"])
                pair = f"{reason if _REASON.match(reason) else 'other'}/{state if state in ('done', 'failed', 'pending') else 'other'}"
                told["counts"][pair] = told["counts"].get(pair, 0) + 1
                seconds = float(attempt.get("duration_s", 0))
                told["seconds"] += seconds if 0 <= seconds < 1e12 else 0
    if told["offset"] != began:
        # Without it the next count begins anew: no reason to fail.
        with contextlib.suppress(OSError):
            staged = os.path.join(queue.layout.staging, f"attempts.{os.urandom(8).hex()}")
            with open(staged, "x", encoding="utf-8", opener=open_own) as file:
                json.dump(told, file)
            os.rename(staged, path)
    return told


def current(path: str) -> str:
    """Return what a file of metrics says now, empty where there is none.

    Raises:
        QueueError: its name is none that node_exporter reads.
    """
    if not path.endswith(".prom"):
        raise QueueError(f"{path}: node_exporter reads only files whose names end with .prom")
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return file.read(1 << 24).decode("utf-8", "replace") if stat.S_ISREG(os.fstat(fd).st_mode) else ""
    return ""


def write(text: str, path: str) -> None:
    """Write the metrics where node_exporter finds them, whole or not at all.

    Raises:
        QueueError: they can't be written.
    """
    path = os.path.abspath(os.path.expanduser(path))
    current(path)
    folder, name = os.path.split(path)
    # Any name that does not end with .prom.
    staged = os.path.join(folder, f".{name}.{os.urandom(8).hex()}")
    try:
        with open(staged, "x", encoding="utf-8") as file:
            # node_exporter is another user.
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
        os.rename(staged, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        why = explain(OSError(exc.errno, exc.strerror), path)
        raise QueueError(f"can't write {why}; the user who runs the jobs must be able to write into {folder}") from exc
