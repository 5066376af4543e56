# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each command of the program sagequeue does with its options; each returns the exit status.

A worker runs in here, too: so what it has no use for is imported by the commands that do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from typing import Any, Callable

from . import definitions, engine, progress_text
from .carriers import end_carriers, signal_carriers
from .errors import QueueError, explain
from .kill import kill
from .layout import Layout
from .queue import Queue
from .recovery import recover
from .runners.known import make
from .selection import select
from .store import Change
from .worker import Worker

# What `progress --follow` exits with, beside 0 for what is done or solved, and seconds that a recovery has for hooks.
_ENDS = {"failed": 1, "stopped": 3, "held": 3}
_HOOKS = 30.0
# Control characters, such as those that steer a terminal, which a gate's text or a file's name may hold.
HARMLESS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def say(text: str) -> None:
    """Print a text for a person."""
    sys.stdout.write(text.translate(HARMLESS) + "\n")
    sys.stdout.flush()


def run_worker(options: argparse.Namespace) -> int:
    """Run a worker, or a keeper, to its end."""
    name, dash, number = options.instance.rpartition("-")
    if not dash or not number.isdecimal():
        raise QueueError(f"{options.instance!r} is not JOBSET-NUMBER")
    kind: type[Worker] = Worker
    if definitions.load(options.root, name).runner == "condor_job":
        # What other workers have no use for is not loaded by them.
        from .keeper import Keeper

        kind = Keeper
    worker = kind(options.root, name, number, say, options.program, options.until_idle)
    end = worker.run()
    if worker.engine and end == "replaced":
        # No one else would start the new one.
        os.execv(options.program, [options.program, "worker", options.instance])
    if worker.engine and end == "signal":
        # As it is now: fewer workers may be wanted, and that be why.
        wanted = definitions.load(options.root, name).workers
        say(engine.come_again(worker.layout, worker.engine, int(number), wanted) or "stopped by the operator")
    return 0


def recover_jobs(options: argparse.Namespace) -> int:
    """Bring back the jobs of dead workers, once or again and again, and tell the hooks what is to be told."""
    # At once: while this runs, the program may be replaced by another.
    from . import hooks_tell

    while True:
        layout = Layout(options.root, options.jobset)
        try:
            definition = definitions.load(options.root, options.jobset)
            with Queue(layout, definition) as queue:
                recover(queue, make(layout, definition), log=say)
                hooks_tell.run(queue, say, _HOOKS)
        except (OSError, MemoryError, QueueError) as exc:
            if not options.every:
                raise
            say(explain(exc, layout.base))
        if not options.every:
            return 0
        time.sleep(options.every)


def call_hooks(options: argparse.Namespace) -> int:
    """Call on_done and on_failed for what has happened."""
    from . import hooks_tell

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        hooks_tell.run(queue, say)
    return 0


def find_carriers(options: argparse.Namespace) -> int:
    """Find, signal or kill processes by the variables that they carry."""
    wanted: list[dict[str, str]] = [{}]
    for word in options.variables:
        key, equals, value = word.partition("=")
        if equals:
            wanted[-1][key] = value
        elif word == "or" and wanted[-1]:
            wanted.append({})
        else:
            raise QueueError(f"{' '.join(options.variables)!r} is not KEY=VALUE ...")
    # Without variables it would find every process.
    if not wanted[-1]:
        raise QueueError(f"{' '.join(options.variables)!r} ends amid its variables")
    if options.until_gone:
        end_carriers(*wanted)
        return 0
    pids = signal_carriers(options.signal, *wanted, spare_session=options.spare_session)
    say(" ".join(str(pid) for pid in pids))
    return 0


def show_progress(options: argparse.Namespace) -> int:
    """Say how far jobsets are, or follow them to their end."""
    from . import progress

    names = options.jobset or definitions.defined(options.root)
    if not names:
        raise QueueError("no jobset is defined on this host; run setup")
    status = 0
    while True:
        found = []
        for name in list(names):
            try:
                with Queue(Layout(options.root, name), definitions.load(options.root, name)) as queue:
                    found.append(progress.look(queue, options.depth, options.rows))
            except (QueueError, OSError) as exc:
                if options.jobset:
                    raise
                # The others are looked at all the same.
                sys.stderr.write(f"sagequeue: {explain(exc, options.root)}\n".translate(HARMLESS))
                names.remove(name)
                status = 1
        ended = all(one["settled"] for one in found)
        if options.json:
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        elif not options.follow:
            say("\n".join(progress_text.text(one, _size().columns) for one in found))
        else:
            _follow(found, ended)
        if ended and options.follow and not options.json:
            say("\n".join(progress_text.verdict(one) for one in found))
        if not options.follow or ended:
            return max([status, *(_ENDS.get(one["ended"], 0) for one in found if options.follow)])
        time.sleep(options.interval)


def _size() -> os.terminal_size:
    """Return the terminal's size; one that does not know its own says 0, which Python before 3.9 hands on."""
    columns, lines = shutil.get_terminal_size()
    return os.terminal_size((columns or 80, lines or 24))


def _follow(found: list[dict[str, Any]], ended: bool) -> None:
    """Show how far jobsets are in place on a terminal; elsewhere, a line each when something was done."""
    last: Any = getattr(_follow, "last", None)
    if sys.stdout.isatty():
        size = _size()
        whole = "\n".join(progress_text.text(one, size.columns - 1) for one in found)
        # What has scrolled away can't be written over.
        lines = [line.translate(HARMLESS)[: size.columns - 1] for line in whole.split("\n")][: max(size.lines - 1, 1)]
        sys.stdout.write(f"\033[{last}A" * bool(last) + "".join(f"\r\033[K{line}\n" for line in lines) + "\033[J")
        sys.stdout.flush()
        _follow.last = len(lines)  # type: ignore[attr-defined]
        return
    news = [(one["counts"], one["gate"], (one["cases"] or {}).get("done")) for one in found]
    if news != last:
        _follow.last = news  # type: ignore[attr-defined]
        say("\n".join(progress_text.line(one).replace("\n", " ") for one in found))


def list_jobs(options: argparse.Namespace) -> int:
    """Show a table of jobs."""
    from . import listing

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        found = listing.listing(queue, options.jobs or None, options.state, options.limit)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        say(listing.table(found, _size().columns if sys.stdout.isatty() else 80))
    return 0


# What an operator decides for single jobs: what the command does, in words, and how.
DEEDS: dict[str, tuple[str, Callable[[Queue, list[str], argparse.Namespace], list[Change]]]] = {
    "kill": ("end jobs now: they go to failed, and are not tried again", lambda queue, names, _options: kill(queue, names)),
    "reset": ("bring done and failed jobs back to pending as if they had never run", lambda queue, names, _options: queue.reset(names)),
    "hold": ("keep pending jobs from being claimed", lambda queue, names, _options: queue.hold(names)),
    "release": ("let held jobs be claimed again", lambda queue, names, _options: queue.release(names)),
    "priority": (
        "give pending jobs another priority, -100 to 100",
        lambda queue, names, options: queue.prioritize(names, options.priority),
    ),
}


def decide(options: argparse.Namespace) -> int:
    """Do what an operator decides for single jobs."""
    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        changes = DEEDS[options.command][1](queue, select(queue, options.jobs) or [], options)
    for change in changes:
        say(f"{change.name}: {change.new_state or 'absent'} ({change.reason})")
    return 1 if options.command == "kill" and any(change.new_state == "running" for change in changes) else 0


def write_report(options: argparse.Namespace) -> int:
    """Write a page about a jobset."""
    from . import report

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        path = report.write(queue, options.to)
    say(report.said(path))
    return 0


def write_backup(options: argparse.Namespace) -> int:
    """Write a jobset into an archive."""
    from . import backup

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        made = backup.backup(queue, options.file, options.state_files)
    say(f"{made['path']}: {backup.described(made)}")
    return 0


def restore_backup(options: argparse.Namespace) -> int:
    """Put an archive's jobs into a queue."""
    from . import restore

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        done = restore.restore(queue, options.file, options.keep_state_files)
        if done["changed"]:
            recover(queue, make(queue.layout, queue.jobset), log=say)
    say(restore.told(done))
    return 0


def write_diag(options: argparse.Namespace) -> int:
    """Write an archive for a bug report."""
    from . import diag

    collected = diag.Diag(options.root, options.jobset, options.container)
    collected.collect()
    say(diag.said(collected.archive(options.to)))
    return 0


def show_metrics(options: argparse.Namespace) -> int:
    """Print or write the metrics of all jobsets."""
    from . import metrics

    text = metrics.text(options.root)
    if options.write:
        metrics.write(text, options.write)
    else:
        sys.stdout.write(text)
    return 0
