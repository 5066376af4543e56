# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program sagequeue: what systemd and supervisord start, and what a person at the host may ask. What each does: commands.py."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from typing import Optional

from . import __version__, commands, progress_text
from .errors import QueueError, explain
from .layout import CHOICES

# sysexits(3): the jobset is not defined, or not rightly; starting again would not help.
EX_CONFIG = 78


def _root(program: str) -> str:
    """Return the folder above the program's bin."""
    return os.path.dirname(os.path.dirname(os.path.realpath(program)))


def parser() -> argparse.ArgumentParser:
    """Return the program's command line."""
    main_parser = argparse.ArgumentParser(prog="sagequeue", description="a durable job queue in a directory")
    main_parser.add_argument("--root", help="the sagequeue folder (the folder above the program's bin)")
    main_parser.add_argument("--version", action="version", version=f"sagequeue {__version__}")
    subparsers = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = subparsers.add_parser("worker", help="claim, run and finish jobs until SIGTERM")
    command.add_argument("instance", metavar="JOBSET-NUMBER")
    command.add_argument("--until-idle", action="store_true", help="stop when nothing is pending")
    command.set_defaults(call=commands.run_worker)

    command = subparsers.add_parser("recover", help="bring the jobs of dead workers back to pending")
    command.add_argument("jobset")
    command.add_argument("--every", type=float, default=0, metavar="SECONDS", help="again and again (once)")
    command.set_defaults(call=commands.recover_jobs)

    command = subparsers.add_parser("progress", help="say how far jobsets are")
    command.add_argument("jobset", nargs="*", help="(all that are defined)")
    command.add_argument("--json", action="store_true", help="as one JSON document")
    command.add_argument("--depth", choices=progress_text.DEPTHS, default="", help="(cases where a state_file is named, else jobs)")
    command.add_argument("--rows", type=int, default=20, help="how many jobs are shown one by one (20)")
    command.add_argument("--follow", action="store_true", help="to the end: done 0, a failed job 1, gate closed or jobs held 3")
    command.add_argument("--interval", type=float, default=1.0, help="seconds between two looks with --follow (1)")
    command.set_defaults(call=commands.show_progress)

    command = subparsers.add_parser("report", help="write a page about a jobset: attempts, throughput, failures, run times, memory")
    command.add_argument("jobset")
    command.add_argument("--to", default="", metavar="PATH", help="the page's file, or a folder for it (ROOT/reports)")
    command.set_defaults(call=commands.write_report)

    command = subparsers.add_parser("backup", help="write a jobset into an archive, while its workers run")
    command.add_argument("jobset")
    command.add_argument("file", help="the archive, a .tar.gz; none is replaced")
    command.add_argument("--state-files", action="append", metavar="PATTERN", help="of files in the jobset's workdir, 'state_*.txt'")
    command.set_defaults(call=commands.write_backup)

    command = subparsers.add_parser("restore", help="put an archive's jobs into the queue of the jobset, which has none")
    command.add_argument("jobset")
    command.add_argument("file", help="the archive")
    command.add_argument("--keep-state-files", action="store_true", help="let those that are there, and differ, stay")
    command.set_defaults(call=commands.restore_backup)

    command = subparsers.add_parser("list", help="show a jobset's jobs as a table")
    command.add_argument("jobset")
    command.add_argument("jobs", nargs="*", help="names, or such as 'off[0-3,7]' or 'off*' (all)")
    command.add_argument("--state", action="append", choices=CHOICES, help="only those in a state; more than once for several")
    command.add_argument("--limit", type=int, default=100, help="how many at most; 0: all (100)")
    command.add_argument("--json", action="store_true", help="as one JSON document")
    command.set_defaults(call=commands.list_jobs)

    for name, (text, _call) in commands.DEEDS.items():
        command = subparsers.add_parser(name, help=text)
        command.add_argument("jobset")
        if name == "priority":
            command.add_argument("priority")
        command.add_argument("jobs", nargs="+", help="names, or such as 'off[0-3,7]' or 'off*'")
        command.set_defaults(call=commands.decide)

    command = subparsers.add_parser("diag", help="write an archive for a bug report, without secrets")
    command.add_argument("jobset", nargs="*", help="(all that are defined)")
    command.add_argument("--to", default="", metavar="FOLDER", help="where it is written (ROOT/diag)")
    command.add_argument("--container", default="sagemath", help="the long-lived container (sagemath)")
    command.set_defaults(call=commands.write_diag)

    command = subparsers.add_parser("metrics", help="say how all jobsets are, as Prometheus reads it")
    command.add_argument("--write", metavar="FILE.prom", help="into a file for node_exporter's textfile collector")
    command.set_defaults(call=commands.show_metrics)

    command = subparsers.add_parser("hooks", help="call on_done and on_failed for what has happened (for the workers)")
    command.add_argument("jobset")
    command.set_defaults(call=commands.call_hooks)

    command = subparsers.add_parser("carriers", help="find, signal or kill the processes that carry variables (for the runners)")
    command.add_argument("variables", nargs="+", metavar="KEY=VALUE", help="all of them; or: others, or ...")
    command.add_argument("--signal", type=int, default=0)
    command.add_argument("--spare-session", type=int, default=0)
    command.add_argument("--until-gone", action="store_true")
    command.set_defaults(call=commands.find_carriers)
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
        sys.stderr.write(f"sagequeue: {exc}\n".translate(commands.HARMLESS))
        return EX_CONFIG if options.command in ("worker", "recover") else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 0
    except (OSError, MemoryError) as exc:
        sys.stderr.write(f"sagequeue: {explain(exc, options.root)}\n".translate(commands.HARMLESS))
        return 1
