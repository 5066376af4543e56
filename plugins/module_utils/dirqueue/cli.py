# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program sagequeue: what systemd and supervisord start, and what a person at the host may ask."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import sys
import time
from typing import Any, Callable, Optional

from . import __version__, definitions, engine, hooks, listing, progress, progress_text
from .errors import QueueError, explain
from .kill import kill
from .layout import Layout
from .queue import Queue
from .recovery import recover
from .runners import make
from .runners.base import end_carriers, signal_carriers
from .selection import select
from .store import Change
from .worker import Worker

# sysexits(3): the jobset is not defined, or not rightly; starting again would not help.
EX_CONFIG = 78


# What `progress --follow` exits with, beside 0 for what is done or solved, and seconds that a recovery has for hooks.
_ENDS = {"failed": 1, "stopped": 3, "held": 3}
_HOOKS = 30.0
# Control characters, such as those that steer a terminal, which a gate's text or a file's name may hold.
_HARMLESS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}


def _say(text: str) -> None:
    sys.stdout.write(text.translate(_HARMLESS) + "\n")
    sys.stdout.flush()


def _root(program: str) -> str:
    """Return the folder above the program's bin."""
    return os.path.dirname(os.path.dirname(os.path.realpath(program)))


def _worker(options: argparse.Namespace) -> int:
    name, dash, number = options.instance.rpartition("-")
    if not dash or not number.isdecimal():
        raise QueueError(f"{options.instance!r} is not JOBSET-NUMBER")
    kind: type[Worker] = Worker
    if definitions.load(options.root, name).runner == "condor_job":
        # What other workers have no use for is not loaded by them.
        from .keeper import Keeper

        kind = Keeper
    worker = kind(options.root, name, number, _say, options.program, options.until_idle)
    end = worker.run()
    if worker.engine and end == "replaced":
        # No one else would start the new one.
        os.execv(options.program, [options.program, "worker", options.instance])
    if worker.engine and end == "signal":
        # As it is now: fewer workers may be wanted, and that be why.
        wanted = definitions.load(options.root, name).workers
        _say(engine.come_again(worker.layout, worker.engine, int(number), wanted) or "stopped by the operator")
    return 0


def _recover(options: argparse.Namespace) -> int:
    while True:
        layout = Layout(options.root, options.jobset)
        try:
            definition = definitions.load(options.root, options.jobset)
            with Queue(layout, definition) as queue:
                recover(queue, make(layout, definition), log=_say)
                hooks.run(queue, _say, _HOOKS)
        except (OSError, MemoryError, QueueError) as exc:
            if not options.every:
                raise
            _say(explain(exc, layout.base))
        if not options.every:
            return 0
        time.sleep(options.every)


def _progress(options: argparse.Namespace) -> int:
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
                sys.stderr.write(f"sagequeue: {explain(exc, options.root)}\n".translate(_HARMLESS))
                names.remove(name)
                status = 1
        ended = all(one["settled"] for one in found)
        if options.json:
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        elif not options.follow:
            _say("\n".join(progress_text.text(one, shutil.get_terminal_size().columns) for one in found))
        else:
            _follow(found, ended)
        if ended and options.follow and not options.json:
            _say("\n".join(progress_text.verdict(one) for one in found))
        if not options.follow or ended:
            return max([status, *(_ENDS.get(one["ended"], 0) for one in found if options.follow)])
        time.sleep(options.interval)


def _list(options: argparse.Namespace) -> int:
    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        found = listing.listing(queue, options.jobs or None, options.state, options.limit)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        _say(listing.table(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else 80))
    return 0


# What an operator decides for single jobs: what the command does, in words, and how.
_DEEDS: dict[str, tuple[str, Callable[[Queue, list[str], argparse.Namespace], list[Change]]]] = {
    "kill": ("end jobs now: they go to failed, and are not tried again", lambda queue, names, _options: kill(queue, names)),
    "reset": ("bring done and failed jobs back to pending as if they had never run", lambda queue, names, _options: queue.reset(names)),
    "hold": ("keep pending jobs from being claimed", lambda queue, names, _options: queue.hold(names)),
    "release": ("let held jobs be claimed again", lambda queue, names, _options: queue.release(names)),
    "priority": (
        "give pending jobs another priority, -100 to 100",
        lambda queue, names, options: queue.prioritize(names, options.priority),
    ),
}


def _deed(options: argparse.Namespace) -> int:
    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        changes = _DEEDS[options.command][1](queue, select(queue, options.jobs) or [], options)
    for change in changes:
        _say(f"{change.name}: {change.new_state or 'absent'} ({change.reason})")
    return 1 if options.command == "kill" and any(change.new_state == "running" for change in changes) else 0


def _follow(found: list[dict[str, Any]], ended: bool) -> None:
    """Show how far jobsets are in place on a terminal; elsewhere, a line each when something was done."""
    last: Any = getattr(_follow, "last", None)
    if sys.stdout.isatty():
        # Not os.get_terminal_size: a terminal may not know its size, and says 0 then.
        size = shutil.get_terminal_size()
        whole = "\n".join(progress_text.text(one, size.columns - 1) for one in found)
        # What has scrolled away can't be written over.
        lines = [line.translate(_HARMLESS)[: size.columns - 1] for line in whole.split("\n")][: max(size.lines - 1, 1)]
        sys.stdout.write(f"\033[{last}A" * bool(last) + "".join(f"\r\033[K{line}\n" for line in lines) + "\033[J")
        sys.stdout.flush()
        _follow.last = len(lines)  # type: ignore[attr-defined]
        return
    news = [(one["counts"], one["gate"], (one["cases"] or {}).get("done")) for one in found]
    if news != last:
        _follow.last = news  # type: ignore[attr-defined]
        _say("\n".join(progress_text.line(one).replace("\n", " ") for one in found))


def _metrics(options: argparse.Namespace) -> int:
    from . import metrics

    text = metrics.text(options.root)
    if options.write:
        metrics.write(text, options.write)
    else:
        sys.stdout.write(text)
    return 0


def _hooks(options: argparse.Namespace) -> int:
    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        hooks.run(queue, _say)
    return 0


def _report(options: argparse.Namespace) -> int:
    # What a worker has no use for is not loaded by it.
    from . import report

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        path = report.write(queue, options.to)
    _say(report.said(path))
    return 0


def _backup(options: argparse.Namespace) -> int:
    from . import backup

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        made = backup.backup(queue, options.file, options.state_files)
    _say(f"{made['path']}: {backup.described(made)}")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from . import restore

    with Queue(Layout(options.root, options.jobset), definitions.load(options.root, options.jobset)) as queue:
        done = restore.restore(queue, options.file, options.keep_state_files)
        if done["changed"]:
            recover(queue, make(queue.layout, queue.jobset), log=_say)
    _say(restore.told(done))
    return 0


def _diag(options: argparse.Namespace) -> int:
    from . import diag

    collected = diag.Diag(options.root, options.jobset, options.container)
    collected.collect()
    _say(diag.said(collected.archive(options.to)))
    return 0


def _carriers(options: argparse.Namespace) -> int:
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
    _say(" ".join(str(pid) for pid in pids))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the program's command line."""
    main_parser = argparse.ArgumentParser(prog="sagequeue", description="a durable job queue in a directory")
    main_parser.add_argument("--root", help="the sagequeue folder (the folder above the program's bin)")
    main_parser.add_argument("--version", action="version", version=f"sagequeue {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("worker", help="claim, run and finish jobs until SIGTERM")
    command.add_argument("instance", metavar="JOBSET-NUMBER")
    command.add_argument("--until-idle", action="store_true", help="stop when nothing is pending")
    command.set_defaults(call=_worker)

    command = commands.add_parser("recover", help="bring the jobs of dead workers back to pending")
    command.add_argument("jobset")
    command.add_argument("--every", type=float, default=0, metavar="SECONDS", help="again and again (once)")
    command.set_defaults(call=_recover)

    command = commands.add_parser("progress", help="say how far jobsets are")
    command.add_argument("jobset", nargs="*", help="(all that are defined)")
    command.add_argument("--json", action="store_true", help="as one JSON document")
    command.add_argument("--depth", choices=progress.DEPTHS, default="", help="(cases where a state_file is named, else jobs)")
    command.add_argument("--rows", type=int, default=20, help="how many jobs are shown one by one (20)")
    command.add_argument("--follow", action="store_true", help="to the end: done 0, a failed job 1, gate closed or jobs held 3")
    command.add_argument("--interval", type=float, default=1.0, help="seconds between two looks with --follow (1)")
    command.set_defaults(call=_progress)

    command = commands.add_parser("report", help="write a page about a jobset: attempts, throughput, failures, run times, memory")
    command.add_argument("jobset")
    command.add_argument("--to", default="", metavar="PATH", help="the page's file, or a folder for it (ROOT/reports)")
    command.set_defaults(call=_report)

    command = commands.add_parser("backup", help="write a jobset into an archive, while its workers run")
    command.add_argument("jobset")
    command.add_argument("file", help="the archive, a .tar.gz; none is replaced")
    command.add_argument("--state-files", action="append", metavar="PATTERN", help="of files in the jobset's workdir, 'state_*.txt'")
    command.set_defaults(call=_backup)

    command = commands.add_parser("restore", help="put an archive's jobs into the queue of the jobset, which has none")
    command.add_argument("jobset")
    command.add_argument("file", help="the archive")
    command.add_argument("--keep-state-files", action="store_true", help="let those that are there, and differ, stay")
    command.set_defaults(call=_restore)

    command = commands.add_parser("list", help="show a jobset's jobs as a table")
    command.add_argument("jobset")
    command.add_argument("jobs", nargs="*", help="names, or such as 'off[0-3,7]' or 'off*' (all)")
    command.add_argument("--state", action="append", choices=listing.CHOICES, help="only those in a state; more than once for several")
    command.add_argument("--limit", type=int, default=100, help="how many at most; 0: all (100)")
    command.add_argument("--json", action="store_true", help="as one JSON document")
    command.set_defaults(call=_list)

    for name, (text, _call) in _DEEDS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("jobset")
        if name == "priority":
            command.add_argument("priority")
        command.add_argument("jobs", nargs="+", help="names, or such as 'off[0-3,7]' or 'off*'")
        command.set_defaults(call=_deed)

    command = commands.add_parser("diag", help="write an archive for a bug report, without secrets")
    command.add_argument("jobset", nargs="*", help="(all that are defined)")
    command.add_argument("--to", default="", metavar="FOLDER", help="where it is written (ROOT/diag)")
    command.add_argument("--container", default="sagemath", help="the long-lived container (sagemath)")
    command.set_defaults(call=_diag)

    command = commands.add_parser("metrics", help="say how all jobsets are, as Prometheus reads it")
    command.add_argument("--write", metavar="FILE.prom", help="into a file for node_exporter's textfile collector")
    command.set_defaults(call=_metrics)

    command = commands.add_parser("hooks", help="call on_done and on_failed for what has happened (for the workers)")
    command.add_argument("jobset")
    command.set_defaults(call=_hooks)

    command = commands.add_parser("carriers", help="find, signal or kill the processes that carry variables (for the runners)")
    command.add_argument("variables", nargs="+", metavar="KEY=VALUE", help="all of them; or: others, or ...")
    command.add_argument("--signal", type=int, default=0)
    command.add_argument("--spare-session", type=int, default=0)
    command.add_argument("--until-gone", action="store_true")
    command.set_defaults(call=_carriers)
    return main_parser


def main(arguments: Optional[list[str]] = None, program: str = "") -> int:
    """Run the program; return its exit status.

    Args:
        arguments: the command line; None: the process's own.
        program: the program's file, whose folder's parent is the root.
    """
    options = parser().parse_args(arguments)
    # A worker does not stay in this folder.
    options.program = program and os.path.abspath(program)
    options.root = os.path.abspath(os.path.expanduser(options.root)) if options.root else _root(program)
    # A job's files are private to the user, whatever the umask is.
    os.umask(0o077)
    for stream in (sys.stdout, sys.stderr):
        # A name that is not UTF-8, or a terminal that is not, must not end us.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(options.call(options))
    except QueueError as exc:
        sys.stderr.write(f"sagequeue: {exc}\n".translate(_HARMLESS))
        return EX_CONFIG if options.command in ("worker", "recover") else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 0
    except (OSError, MemoryError) as exc:
        sys.stderr.write(f"sagequeue: {explain(exc, options.root)}\n".translate(_HARMLESS))
        return 1
