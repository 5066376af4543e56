# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a task failed, as an operator reads it and as the document of -e output=json has it."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from ansible.playbook.task_include import TaskInclude
from ansible_collections.sagequeue.batch.plugins.plugin_utils.words import plain, said, visible

# Whose failures are written for people: no more than their message is printed.
_SPEAKING = ("ansible.builtin.fail", "ansible.builtin.assert", "fail", "assert")
_ANSIBLES_OWN = ("Task failed", "The task includes", "The conditional check")


class Failure(NamedTuple):
    """Why a task, or an item of its loop, failed: the lines that say so, where that was or what is next, and its entry in the document."""

    lines: list[str]
    next: str
    entry: dict[str, Any]


def failures(task: Any, found: Mapping[str, Any], unreachable: str, label: Callable[[Mapping[str, Any]], str]) -> list[Failure]:
    """Return why a task failed, for each item of its loop that did.

    Args:
        task: the task, as Ansible has it.
        found: its result.
        unreachable: the host, if it could not be reached; else empty.
        label: returns what an item is called.
    """
    bad = [one for one in found.get("results", []) if isinstance(one, Mapping) and (one.get("failed") or one.get("unreachable"))]
    made = []
    for name, one in [(f"{label(one)}: ", one) for one in bad] or [("", found)]:
        lines = reason(one)
        # Tags of the label of an item that is itself a dictionary would only repeat the jobset.
        lines[:1] = [(name if len(name) < 60 else "") + lines[0]]
        following = f'in the task "{task.get_name()}", {_short(task.get_path())}; the same command with -v says more'
        if unreachable:
            following = f"Next: see that {unreachable} is up and lets you in, then run the same command again; -v says more."
        elif task.action in _SPEAKING or (task.action.startswith("sagequeue.batch.") and "invocation" in one):
            # Unless Ansible itself could not do it, a template for one.
            following = following if str(one.get("msg")).startswith(_ANSIBLES_OWN) else ""
        made.append(Failure(lines, following, entry(task, task.name or task.get_name(), lines, one)))
    return made


def entry(task: Any, name: str, lines: list[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the document says of a failure."""
    return {"task": name, "path": task.get_path(), "msg": "\n".join(lines), "result": plain(found)}


def reason(result: Mapping[str, Any]) -> list[str]:
    """Return why a task failed: its message and, for a command, the end of what it printed."""
    message = result.get("msg") or result.get("reason") or result.get("censored") or "no reason was given"
    if isinstance(message, str):
        message = message.removeprefix("Task failed: ")
    command = result.get("cmd")
    if result.get("rc") and command and "non-zero return code" in str(message):
        words = command if isinstance(command, str) else " ".join(map(str, command))
        message = f"{textwrap.shorten(words, 200, placeholder=' ...')} ended with exit status {result['rc']}"
    lines = said(message, sys.maxsize)
    for key in ("stderr", "module_stderr", "stdout", "module_stdout"):
        if result.get(key) and not any(line in lines for line in visible(result[key])[-1:]):
            return lines + [f"  {line}" for line in visible(result[key])[-10:]]
    return lines


def may_be_rescued(task: Any) -> bool:
    """Tell whether the task is in a block with a rescue part that comes into play when it fails."""
    child, parent = task, getattr(task, "_parent", None)
    while parent is not None:
        if getattr(parent, "rescue", None) and any(child._uuid == one._uuid for one in parent.block):
            return True
        # What is imported stands in the block itself; the import, which is its parent, does not.
        if not (isinstance(parent, TaskInclude) and parent.statically_loaded):
            child = parent
        parent = getattr(parent, "_parent", None)
    return False


def _short(path: Optional[str]) -> str:
    """Return a task's place as it is shortest, seen from here."""
    path = path or "somewhere"
    return min((path, os.path.relpath(path)), key=len)
