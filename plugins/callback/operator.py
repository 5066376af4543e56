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
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from ansible import constants as C
from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.vars import load_extra_vars
from ansible_collections.sagequeue.batch.plugins.plugin_utils.activity import Activity
from ansible_collections.sagequeue.batch.plugins.plugin_utils.failures import entry, failures, may_be_rescued, reason
from ansible_collections.sagequeue.batch.plugins.plugin_utils.gathered import FAILURES, Gathered
from ansible_collections.sagequeue.batch.plugins.plugin_utils.screen import Screen
from ansible_collections.sagequeue.batch.plugins.plugin_utils.words import plain, said, visible, wrap

_DEBUG = ("ansible.builtin.debug", "ansible.legacy.debug", "debug")
_ASKING = ("ansible.builtin.pause", "ansible.legacy.pause", "pause")
# What a debug task's result holds beside the variable that it shows.
_NOT_SHOWN = ("changed", "failed", "skipped", "invocation", "skip_reason", "ansible_loop_var", "ansible_index_var", "ansible_loop", "item")


def _own(method: Callable[..., None]) -> Callable[..., None]:
    """Make a method give way to that of Ansible's own output where -v asks for it. A JSON document is gathered all the same."""

    @functools.wraps(method)
    def either(self: CallbackModule, *args: Any, **kwargs: Any) -> None:
        if self._document is not None or not self._display.verbosity:
            with self._screen.lock:
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
        self._begun = False
        self._document: Optional[dict[str, Any]] = None
        # Host -> its part of the document.
        self._hosts: dict[str, dict[str, Any]] = {}
        self._gathered = Gathered()
        self._changes = 0
        self._now = Activity()
        self._screen = Screen(self._display, self._line)

    # Printing

    def _flush(self) -> None:
        """Print what was gathered."""
        colours = {"change": C.COLOR_CHANGED, "FAILED": C.COLOR_ERROR, "UNREACHABLE": C.COLOR_UNREACHABLE}
        for told in self._gathered.drain(list(self._hosts), self._screen.width(), bool(context.CLIARGS.get("check"))):
            stderr = told.kind in FAILURES and bool(self.get_option("display_failed_stderr"))
            self._screen.print(told.lines, None if told.plain else colours.get(told.kind), stderr)

    def _gather(self, kind: str, host: str, lines: list[str], heading: str = "") -> None:
        if self._document is None:
            self._gathered.add(kind, host, lines, heading)

    # What is being done

    def _begin(self, task: Any) -> None:
        """A task begins."""
        self._flush()
        # One without a name would be taken for another in the memory.
        self._now.begin("" if task.action in _ASKING else task.name or task.get_name(), task.get_name() if task.name else "")
        silent = self._document is not None or bool(self._display.verbosity) or bool(context.CLIARGS.get("step"))
        self._screen.follow(self.get_option("every"), silent)

    def _line(self, width: int) -> str:
        """Return what is being done in one line, empty where that is nothing that lasts."""
        names = {name for name, host in self._hosts.items() if host["status"] == "ok"}
        return self._now.line(width, names) if self._now.lasts() else ""

    def _poll(self, result: Any) -> None:
        """A task that waits for something has looked."""
        self._now.poll(result._host.get_name(), result._result)

    def _end(self, result: Any) -> dict[str, Any]:
        """A host has ended a task. Returns its part of the document."""
        self._handle_warnings(result._result)
        name = result._host.get_name()
        self._now.end(name, bool(result._result.get("changed")), bool(context.CLIARGS.get("check")))
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
        self._gather("all" if result._task.run_once else "said", name, said(message, self._screen.width() - 2 * (len(self._hosts) > 1)))

    def _failed(self, result: Any, kind: str) -> None:
        host = self._end(result)
        task, found, name = result._task, result._result, result._host.get_name()
        self._register(host, result)
        host["status"] = "unreachable" if kind == "UNREACHABLE" else "failed"
        if task.action in _DEBUG and "failed_when_result" in found:
            # It says something, and that the playbook has failed by it.
            self._say(result)
            host["failures"].append(entry(task, task.name, reason(found), found))
            return
        for failure in failures(task, found, name if kind == "UNREACHABLE" else "", self._get_item_label):
            host["failures"].append(failure.entry)
            self._gather(kind, name, failure.lines, failure.next)

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
            if wanted == "json":
                self._document = {"playbooks": [], "ok": False, "check_mode": bool(context.CLIARGS.get("check")), "errors": []}
            self._screen.open(None if self._document is None else self._document["errors"])
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
        self._now.task = ""
        self._screen.erase()

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
        local = "local" in (host.get_vars().get("ansible_connection"), context.CLIARGS.get("connection"))
        self._now.start(name, local or bool(host.implicit))

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
            if context.CLIARGS.get("check") and not self._gathered.has_change(name, result._host.get_name()):
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
        self._screen.print(["No host matches: nothing was done. Look at sagequeue_hosts, --limit and the inventory (-i)."], C.COLOR_SKIP)

    @_own
    def v2_playbook_on_stats(self, stats: Any) -> None:
        """A playbook has ended."""
        self._flush()
        self._now.task = ""
        self._screen.erase()
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
            self._screen.print(wrap(f"Check mode: {changes}.", self._screen.width()), C.COLOR_CHANGED if self._changes else C.COLOR_OK)
        if len(self._hosts) > 1 and set(ends) != {"ok"}:
            told = [f"{status}: {', '.join(ends[status])}" for status in ("failed", "unreachable", "ok") if status in ends]
            self._screen.print(wrap("; ".join(told), self._screen.width()), C.COLOR_ERROR)

    def _exit(self) -> None:
        """Leave the terminal as it was, and hand out the document, however the run ended."""
        if not self._screen.close():
            return
        with self._screen.lock:
            self._flush()
            self._now.save()
            if self._document is not None:
                for host in self._hosts.values():
                    host["changed"] = list(dict.fromkeys(host["changed"]))
                self._document["hosts"] = self._hosts
                self._screen.print([json.dumps(self._document, indent=2, ensure_ascii=False, default=str)])


def _silent(name: str) -> Callable[..., None]:
    """Return a method of that name which prints nothing."""

    def silent(_self: CallbackModule, *_args: Any, **_kwargs: Any) -> None:
        pass

    silent.__name__ = name
    return silent


# Whatever else the default callback prints.
for _name in [name for name in vars(Default) if name.startswith("v2_") and name not in vars(CallbackModule)]:
    setattr(CallbackModule, _name, _own(_silent(_name)))
