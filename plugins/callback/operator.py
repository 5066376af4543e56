# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator reads: what a playbook says, why it failed, how long it may take; nothing of how it was done."""

from __future__ import annotations

DOCUMENTATION = r"""
name: operator
type: stdout
short_description: What a playbook says, and no task noise
version_added: 0.1.0
description:
  - Prints what the playbook's P(ansible.builtin.debug#module) tasks say, wrapped to the terminal, and nothing of the other tasks.
    A list of dictionaries becomes a table. The same words of several hosts are printed once, with the hosts' names.
  - A failure is printed with its reason and the next step; warnings go to stderr.
  - With C(--check) the tasks that would change something are named, and with C(--diff) what they change is shown.
  - On a terminal a line at the bottom says what is being done, since when, and how long it may still take. Elsewhere such a
    line is printed now and then. The time left is taken from a former run on the same host, or from the counts of jobs.
  - With C(-v) the output is that of P(ansible.builtin.default#callback).
  - With C(-e output=json) stdout holds exactly one JSON document, and everything else goes to stderr. For each host it holds
    what was said, what changed, what failed, and under C(results) the result of every task that registered a variable whose
    name does not begin with an underscore.
author:
  - the sagequeue.batch authors (@sagequeue)
requirements:
  - Set as C(stdout_callback) in the configuration.
extends_documentation_fragment:
  - ansible.builtin.default_callback
  - ansible.builtin.result_format_callback
options:
  every:
    description:
      - Without a terminal, after how many seconds a line says what is being done. The times in between double, up to ten times this.
    type: float
    default: 30
    env:
      - name: SAGEQUEUE_OPERATOR_EVERY
    ini:
      - section: callback_operator
        key: every
"""

import atexit
import contextlib
import functools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from ansible import constants as C
from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils import color
from ansible.utils.vars import load_extra_vars
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.progress import duration
from ansible_collections.sagequeue.batch.plugins.plugin_utils.memory import Memory
from ansible_collections.sagequeue.batch.plugins.plugin_utils.words import plain, reason, said, visible, wrap

# Whose failures are written for people: no more than their message is printed.
_SPEAKING = ("ansible.builtin.fail", "ansible.builtin.assert", "fail", "assert")
_ANSIBLES_OWN = ("Task failed", "The task includes", "The conditional check")
_DEBUG = ("ansible.builtin.debug", "ansible.legacy.debug", "debug")
_ASKING = ("ansible.builtin.pause", "ansible.legacy.pause", "pause")
# What a debug task's result holds beside the variable that it shows.
_NOT_SHOWN = ("changed", "failed", "skipped", "invocation", "skip_reason", "ansible_loop_var", "ansible_index_var", "ansible_loop", "item")


def may_be_rescued(task: Any) -> bool:
    """Tell whether the task is in a block with a rescue part that comes into play when it fails."""
    child, parent = task, getattr(task, "_parent", None)
    while parent is not None:
        if getattr(parent, "rescue", None) and any(child._uuid == one._uuid for one in parent.block):
            return True
        child, parent = parent, getattr(parent, "_parent", None)
    return False


def _own(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method give way to that of Ansible's own output where -v asks for it. A JSON document is gathered all the same."""

    @functools.wraps(method)
    def either(self: CallbackModule, *args: Any, **kwargs: Any) -> None:
        if self._document is not None or not self._display.verbosity:
            with self._lock:
                method(self, *args, **kwargs)
        if self._display.verbosity:
            getattr(Default, method.__name__)(self, *args, **kwargs)

    return either


class CallbackModule(Default):
    """Gathers what each host says in a task, and prints it when all hosts have ended the task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "sagequeue.batch.operator"

    def __init__(self) -> None:
        super().__init__()
        # Held by Ansible while it forks: so no child inherits a lock that a thread of this plugin had.
        self._lock = getattr(self._display, "_lock", None) or threading.RLock()
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._begun = False
        self._stdout = sys.stdout
        self._document: Optional[dict[str, Any]] = None
        self._memory = Memory()
        self._terminal = False
        # Host -> its part of the document.
        self._hosts: dict[str, dict[str, Any]] = {}
        # What is not printed yet: (kind, heading, lines) -> hosts.
        self._gathered: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        self._changes = 0
        # What is being done: the task, its name in the memory, since when on which hosts, and how far it says it is.
        self._task = self._key = ""
        self._awaited: dict[str, float] = {}
        self._answered: set[str] = set()
        self._far: dict[str, dict[str, Any]] = {}
        self._polled = False
        self._next_line = 0.0
        self._pause = 0.0
        self._drawn = False

    # Printing

    def _width(self) -> int:
        return max(shutil.get_terminal_size().columns, 20) if self._stdout.isatty() else sys.maxsize

    def _write(self, text: str) -> None:
        """Write to the terminal what is no message: the line at the bottom."""
        with contextlib.suppress(OSError, ValueError):
            self._stdout.write(text)
            self._stdout.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            self._write("\r\x1b[K")

    def _print(self, lines: list[str], colour: Optional[str] = None, stderr: bool = False) -> None:
        try:
            for line in lines:
                self._display.display(line, color=colour, stderr=stderr)
            (sys.stderr if stderr else sys.stdout).flush()
        except BrokenPipeError:
            # Nobody reads on. The run goes on all the same, and Python must not trip over it at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _guard(self) -> None:
        """Let nothing be printed onto the line at the bottom, no colour reach a file, and no error miss the document."""
        show = self._display.display

        @functools.wraps(show)
        def display(msg: str, color: Optional[str] = None, stderr: bool = False, **more: Any) -> None:
            if os.getpid() == self._pid:
                with self._lock:
                    self._erase()
                if self._document is not None and stderr and msg.startswith(("[ERROR]", "ERROR!")):
                    self._document["errors"].append(msg.removeprefix("[ERROR]: ").removeprefix("ERROR! ").strip())
                if stderr and not sys.stderr.isatty() and not C.ANSIBLE_FORCE_COLOR:
                    color = None
            show(msg, color=color, stderr=stderr, **more)

        self._display.display = display

    def _flush(self) -> None:
        """Print what was gathered, each thing once, with the names of the hosts where there are several."""
        gathered, self._gathered = self._gathered, {}
        width, order, several = self._width(), list(self._hosts), len(self._hosts) > 1
        before = ""
        for (kind, heading, lines), hosts in gathered.items():
            who = ", ".join(sorted(hosts, key=order.index))
            if kind == "change":
                verb = "would change" if context.CLIARGS.get("check") else "changed"
                change = f"{verb}: {heading}" + (f" ({who})" if several else "")
                # Each item of a loop has a diff of its own.
                if change != before:
                    self._print(wrap(change, width), C.COLOR_CHANGED)
                before = change
                # What Ansible made of a diff has its own colours, and is not wrapped.
                self._print([line for one in lines for line in one.splitlines()])
                continue
            colour = {"FAILED": C.COLOR_ERROR, "UNREACHABLE": C.COLOR_UNREACHABLE}.get(kind)
            text = list(lines) or [""]
            # A text that begins with the host's name needs it only once.
            if several and kind != "all" and not text[0].startswith(who):
                if len(text) > 1 and not colour:
                    text = [f"{who}:", *(f"  {line}" for line in text)]
                else:
                    text[0] = f"{who}: {kind}: {text[0]}" if colour else f"{who}: {text[0]}"
            elif colour:
                text[0] = f"{kind}: {text[0]}"
            stderr = bool(colour and self.get_option("display_failed_stderr"))
            self._print([part for line in text for part in wrap(line, width)], colour, stderr)
            if heading:
                self._print(wrap(f"  {heading}", width), None, stderr)

    def _gather(self, kind: str, host: str, lines: list[str], heading: str = "") -> None:
        if self._document is None and (lines or kind not in ("said", "all")):
            hosts = self._gathered.setdefault((kind, heading, tuple(lines)), [])
            if host not in hosts:
                hosts.append(host)

    # What is being done

    def _begin(self, task: Any) -> None:
        """A task begins."""
        self._flush()
        self._task = "" if task.action in _ASKING else task.name or task.get_name()
        # One without a name would be taken for another in the memory.
        self._key = task.get_name() if task.name else ""
        self._awaited, self._far = {}, {}
        self._polled = False
        self._next_line = time.monotonic() + self.get_option("every")
        self._pause = self.get_option("every")
        if self._stop.is_set() or self._document is not None or self._display.verbosity or context.CLIARGS.get("step"):
            return
        if not any(thread.name == "operator" for thread in threading.enumerate()):
            threading.Thread(target=self._tick, name="operator", daemon=True).start()

    def _tick(self) -> None:
        """Say what is being done: on a terminal four times a second, elsewhere now and then."""
        while not self._stop.wait(0.25):
            with self._lock:
                # ssh may ask something on the terminal before a host has answered for the first time.
                if self._stop.is_set() or not self._task or not self._awaited or not self._answered.issuperset(self._awaited):
                    continue
                if self._terminal:
                    self._write("\r\x1b[K" + self._state(self._width() - 1))
                    self._drawn = True
                elif time.monotonic() >= self._next_line:
                    self._pause = min(self._pause * 2, self.get_option("every") * 10)
                    self._next_line = time.monotonic() + self._pause
                    self._print([self._state(sys.maxsize)])

    def _state(self, width: int) -> str:
        """Return in one line what is being done, how far it is, since when, and how long it may still take."""
        elapsed = time.monotonic() - min(self._awaited.values())
        share, words, left = None, [], None
        if self._far:
            done, total = (sum(one[key] for one in self._far.values()) for key in ("done", "total"))
            share = done / total if total else 0.0
            words += [f"{done}/{total}", *(one["text"] for one in self._far.values() if one["text"])]
            known = [one["left"] for one in self._far.values()]
            left = max(known) if None not in known else None
        elif not self._polled:
            usual = self._memory.usual(list(self._awaited), self._key, elapsed)
            if usual:
                share, left = min(elapsed / usual, 1.0), usual - elapsed
                if left <= 0:
                    words.append(f"it took {duration(usual)} the last time")
                    share = left = None
        if elapsed >= 1:
            words.append(f"for {duration(elapsed)}")
        if left is not None and left >= 1:
            words.append(f"about {duration(left)} left")
        if not {name for name, host in self._hosts.items() if host["status"] == "ok"} <= set(self._awaited):
            words.append(f"waiting for {', '.join(self._awaited)}")
        size = 20 if width >= 60 else 10
        drawn = "" if share is None else "[" + "#" * int(share * size) + "-" * (size - int(share * size)) + "] "
        told = (drawn + ", ".join(words)).rstrip()
        # On a narrow terminal the task's name gives way.
        name, room = self._task, width - len(told) - 2
        if told and len(name) > room:
            name = f"{name[: room - 3]}..." if room >= 8 else ""
        return ": ".join(part for part in (name, told) if part)[:width]

    def _poll(self, result: Any) -> None:
        """A task that waits for something has looked."""
        found = result._result
        self._polled = self._polled or "retries" in found
        counts, far = found.get("counts"), found.get("progress")
        if isinstance(far, Mapping) and "total" in far:
            entry = {"done": far.get("done", 0), "total": far["total"], "left": far.get("seconds_left"), "text": far.get("text", "")}
        elif isinstance(counts, Mapping) and {"done", "failed"} <= set(counts):
            others = [f"{count} {state}" for state, count in counts.items() if count and state != "done"]
            done = counts["done"] + counts["failed"]
            entry = {"done": done, "total": sum(counts.values()), "left": found.get("seconds_left"), "text": ", ".join(others)}
        else:
            return
        self._far[result._host.get_name()] = entry

    def _end(self, result: Any) -> dict[str, Any]:
        """A host has ended a task. Returns its part of the document."""
        self._handle_warnings(result._result)
        name = result._host.get_name()
        self._answered.add(name)
        if name in self._awaited:
            seconds = time.monotonic() - self._awaited.pop(name)
            if not self._polled and not context.CLIARGS.get("check"):
                self._memory.learn(name, self._key, bool(result._result.get("changed")), seconds)
        self._far.pop(name, None)
        return self._host(name)

    def _host(self, name: str) -> dict[str, Any]:
        return self._hosts.setdefault(name, {"status": "ok", "said": [], "changed": [], "results": {}, "failures": []})

    def _say(self, result: Any) -> None:
        """Take up what a debug task says."""
        found = result._result
        # Shown with var, it is the only key left.
        shown = {key: value for key, value in found.items() if key not in _NOT_SHOWN and not str(key).startswith("_ansible_")}
        message = found["msg"] if "msg" in found else found.get("censored", shown)
        name = result._host.get_name()
        self._host(name)["said"].append(message)
        if message is shown and len(shown) == 1:
            message = [f"{key}: {line}" for key, value in shown.items() for line in visible(value) or [""]]
        # What one host says for all needs no name.
        self._gather("all" if result._task.run_once else "said", name, said(message, self._width() - 2 * (len(self._hosts) > 1)))

    def _failed(self, result: Any, kind: str) -> None:
        host = self._end(result)
        task, found, name = result._task, result._result, result._host.get_name()
        self._register(host, result)
        bad = [one for one in found.get("results", []) if isinstance(one, Mapping) and (one.get("failed") or one.get("unreachable"))]
        entries = [(f"{self._get_item_label(one)}: ", one) for one in bad] or [("", found)]
        host["status"] = "unreachable" if kind == "UNREACHABLE" else "failed"
        if task.action in _DEBUG and "failed_when_result" in found:
            # It says something, and that the playbook has failed by it.
            self._say(result)
            host["failures"].append({"task": task.name, "path": task.get_path(), "msg": "\n".join(reason(found)), "result": plain(found)})
            return
        for label, one in entries:
            lines = reason(one)
            # Tags of the label of an item that is itself a dictionary would only repeat the jobset.
            lines[:1] = [(label if len(label) < 60 else "") + lines[0]]
            told = {"task": task.name or task.get_name(), "path": task.get_path(), "msg": "\n".join(lines), "result": plain(one)}
            host["failures"].append(told)
            where = f'in the task "{task.get_name()}", {_short(task.get_path())}; the same command with -v says more'
            if kind == "UNREACHABLE":
                where = f"Next: see that {name} is up and lets you in, then run the same command again; -v says more."
            elif task.action in _SPEAKING or (task.action.startswith("sagequeue.batch.") and "invocation" in one):
                # Unless Ansible itself could not do it, a template for one.
                where = where if str(one.get("msg")).startswith(_ANSIBLES_OWN) else ""
            self._gather(kind, name, lines, where)

    def _register(self, host: dict[str, Any], result: Any) -> None:
        """Keep for the document what a playbook gave a name to."""
        name = result._task.register
        if self._document is not None and isinstance(name, str) and not name.startswith("_"):
            host["results"][name] = plain(result._result)

    # What Ansible calls

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Find out what is wanted."""
        if not self._begun:
            self._begun = True
            wanted = load_extra_vars(playbook._loader).get("output", "text")
            if wanted not in ("text", "json"):
                self._display.error(f"output={wanted} is not known; there are output=text and output=json.", wrap_text=False)
                raise SystemExit(5)
            if os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("", "dumb"):
                color.ANSIBLE_COLOR = color.ANSIBLE_COLOR and C.ANSIBLE_FORCE_COLOR
            if wanted == "json":
                self._document = {"playbooks": [], "ok": False, "check_mode": bool(context.CLIARGS.get("check")), "errors": []}
                sys.stdout = sys.stderr
            self._terminal = self._stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
            self._guard()
            atexit.register(self._exit)
        if self._document is not None:
            self._document["playbooks"].append(Path(playbook._file_name).stem)
            self._document["ok"] = False
        if self._display.verbosity:
            super().v2_playbook_on_start(playbook)

    @_own
    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play begins."""
        self._flush()

    @_own
    def v2_playbook_on_vars_prompt(self, *_args: Any, **_kwargs: Any) -> None:
        """Ansible is going to ask something."""
        self._flush()
        self._task = ""
        self._erase()

    @_own
    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A task begins."""
        self._begin(task)

    @_own
    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """A handler begins."""
        self._begin(task)

    @_own
    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """A task begins on a host."""
        name = host.get_name()
        self._host(name)
        self._awaited[name] = time.monotonic()
        if "local" in (host.get_vars().get("ansible_connection"), context.CLIARGS.get("connection")) or host.implicit:
            self._answered.add(name)

    @_own
    def v2_runner_retry(self, result: Any) -> None:
        """A task that waits for something has not found it yet."""
        self._poll(result)

    @_own
    def v2_runner_on_async_poll(self, result: Any) -> None:
        """A task in the background has not ended yet."""
        self._poll(result)

    @_own
    def v2_runner_on_ok(self, result: Any) -> None:
        """A host has done a task."""
        found = result._result
        host = self._end(result)
        self._register(host, result)
        if result._task.action in _DEBUG:
            if "results" not in found or not result._task.loop:
                self._say(result)
        elif found.get("changed"):
            self._changes += 1
            name = result._task.name or result._task.get_name()
            host["changed"].append(name)
            # The diff, if there is one, has named the task already.
            shown = any(key[:2] == ("change", name) and result._host.get_name() in hosts for key, hosts in self._gathered.items())
            if context.CLIARGS.get("check") and not shown:
                items = [one for one in found.get("results", []) if isinstance(one, Mapping) and one.get("changed")]
                labels = ", ".join(str(self._get_item_label(one)) for one in items)
                self._gather("change", result._host.get_name(), [], name + (f": {labels}" if labels and len(labels) < 200 else ""))

    @_own
    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A host has failed in a task."""
        if ignore_errors or may_be_rescued(result._task):
            self._register(self._end(result), result)
        else:
            self._failed(result, "FAILED")

    @_own
    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host does not answer."""
        if result._task.ignore_unreachable:
            self._end(result)
        else:
            self._failed(result, "UNREACHABLE")

    @_own
    def v2_runner_on_skipped(self, result: Any) -> None:
        """A host has nothing to do in a task."""
        self._end(result)

    @_own
    def v2_runner_item_on_ok(self, result: Any) -> None:
        """A host has done an item of a loop."""
        self._handle_warnings(result._result)
        if result._task.action in _DEBUG:
            self._say(result)

    @_own
    def v2_runner_item_on_failed(self, result: Any) -> None:
        """A host has failed in an item of a loop: told when the loop has ended."""
        self._handle_warnings(result._result)

    @_own
    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """A host has nothing to do for an item of a loop."""
        self._handle_warnings(result._result)

    @_own
    def v2_on_file_diff(self, result: Any) -> None:
        """A task shows what it changes; the task's result comes next."""
        found, name = result._result, result._host.get_name()
        for one in [one for one in found.get("results", []) if isinstance(one, Mapping)] or [found]:
            text = self._get_diff(one["diff"]) if one.get("changed") and one.get("diff") else ""
            if text:
                self._host(name).setdefault("diffs", []).append(text)
                self._gather("change", name, [text], result._task.name or result._task.get_name())

    @_own
    def v2_playbook_on_no_hosts_matched(self) -> None:
        """There is no host to do it on."""
        if self._document is not None:
            self._document["errors"].append("no host matches")
        self._print(["No host matches: nothing was done. Look at sagequeue_hosts, --limit and the inventory (-i)."], C.COLOR_SKIP)

    @_own
    def v2_playbook_on_stats(self, stats: Any) -> None:
        """A playbook has ended."""
        self._flush()
        self._task = ""
        self._erase()
        ends: dict[str, list[str]] = {}
        for name in [*(one for one in self._hosts if one in stats.processed), *(one for one in stats.processed if one not in self._hosts)]:
            summary = stats.summarize(name)
            status = "unreachable" if summary["unreachable"] else "failed" if summary["failures"] else "ok"
            self._host(name)["status"] = status
            ends.setdefault(status, []).append(name)
        if self._document is not None:
            self._document["ok"] = set(ends) <= {"ok"} and not self._document["errors"]
            return
        if context.CLIARGS.get("check") and set(ends) <= {"ok"}:
            changes = f"{self._changes} change{'s' if self._changes > 1 else ''} would be made" if self._changes else "nothing would change"
            self._print(wrap(f"Check mode: {changes}.", self._width()), C.COLOR_CHANGED if self._changes else C.COLOR_OK)
        if len(self._hosts) > 1 and set(ends) != {"ok"}:
            told = [f"{status}: {', '.join(ends[status])}" for status in ("failed", "unreachable", "ok") if status in ends]
            self._print(wrap("; ".join(told), self._width()), C.COLOR_ERROR)

    def _exit(self) -> None:
        """Leave the terminal as it was, and hand out the document, however the run ended."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        with self._lock:
            self._flush()
            self._erase()
            self._memory.save()
            if self._document is not None:
                sys.stdout = self._stdout
                for host in self._hosts.values():
                    host["changed"] = list(dict.fromkeys(host["changed"]))
                self._document["hosts"] = self._hosts
                self._print([json.dumps(self._document, indent=2, ensure_ascii=False, default=str)])


def _silent(self: CallbackModule, *_args: Any, **_kwargs: Any) -> None:
    """Print nothing of it."""


# Whatever else the default callback prints.
for _name in [name for name in vars(Default) if name.startswith("v2_") and name not in vars(CallbackModule)]:
    _silent.__name__ = _name
    setattr(CallbackModule, _name, _own(_silent))


def _short(path: Optional[str]) -> str:
    """Return a task's place as it is shortest, seen from here."""
    path = path or "somewhere"
    return min((path, os.path.relpath(path)), key=len)
