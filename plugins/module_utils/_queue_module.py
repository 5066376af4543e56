# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the queue_* modules share. Private to the collection."""

from __future__ import annotations

import contextlib
import os
import pwd
from collections import Counter
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from . import _host, _supervisors
from .dirqueue import definitions
from .dirqueue.errors import QueueError, explain
from .dirqueue.jobset import Jobset
from .dirqueue.keys import ENGINES
from .dirqueue.layout import Layout
from .dirqueue.queue import Queue
from .dirqueue.store import Change

SHARED: dict[str, dict[str, Any]] = {
    "jobset": {"type": "str", "required": True},
    "root": {"type": "path", "default": "~/sagequeue"},
}
# The options of a module that defines the jobset first, where the inventory says how: see define.
DEFINITION: dict[str, dict[str, Any]] = {
    "definition": {"type": "dict"},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
}


def root_of(given: str) -> str:
    """Return the queue's root: where HOME is another than the user database's, whose home units of systemd have, it may lie there."""
    home = os.path.expanduser("~")
    # A user without a name, in a container say, has no other home.
    with contextlib.suppress(KeyError):
        known = pwd.getpwuid(os.getuid()).pw_dir + given[len(home) :]
        return known if given.startswith(home + os.sep) and not os.path.isdir(given) and os.path.isdir(known) else given
    return given


def named(root: str, name: str) -> str:
    """Return the jobset's name.

    Raises:
        QueueError: none is given.
    """
    if not name:
        raise QueueError(f"Name a jobset: -e jobset=NAME; defined are {', '.join(definitions.defined(root)) or 'none; run setup'}")
    return name


def run(
    options: dict[str, dict[str, Any]],
    call: Callable[[AnsibleModule, Queue], dict[str, Any]],
    define: Callable[[AnsibleModule, str], list[dict[str, str]]] | None = None,
    **more: Any,
) -> None:
    """Run a module: open the jobset's queue, make one call, exit with its result and the queue's counts.

    Args:
        options: the module's own options, beside jobset and root.
        call: returns the result.
        define: called with the root before the jobset is looked up, which it may define; returns the differences that makes.
        more: further arguments of AnsibleModule.
    """
    # What it makes is private to the user, whatever the umask is.
    os.umask(0o077)
    module = AnsibleModule(argument_spec={**SHARED, **options}, supports_check_mode=True, **more)
    root = root_of(module.params["root"])
    try:
        named(root, module.params["jobset"])
        differences = define(module, root) if define else []
        definition = definitions.load(root, module.params["jobset"])
        with Queue(Layout(root, definition.name), definition) as queue:
            result = call(module, queue)
            if result["changed"] and not module.check_mode and definition.supervisor in ENGINES:
                _wake(module, root, definition)
            if "counts" not in result:
                result["counts"] = queue.counts()
        if differences:
            shown = result["diff"] if isinstance(result["diff"], list) else [result["diff"]]
            result.update(changed=True, diff=[*differences, *shown])
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(**result)


def define(module: AnsibleModule, root: str) -> list[dict[str, str]]:
    """Define the jobset, where the options say how."""
    options = module.params
    if options["definition"] is None:
        return []
    host = _host.of(root)
    return _host.define(root, options["jobset"], options["definition"], options["secrets"], host.defaults(), module.check_mode)[1]


def _wake(module: AnsibleModule, root: str, definition: Jobset) -> None:
    """Have workers for jobs that are pending now: an engine's leave when there are none."""
    try:
        _supervisors.wake(_host.of(root), definition)
    except QueueError as exc:
        module.warn(f"{exc}; when that is mended, start.yml has workers come for the jobs that are pending")


def report(changes: list[Change], what: str, check: bool) -> dict[str, Any]:
    """Return a module's result for what became of some jobs.

    Args:
        changes: one per job, or per so many alike.
        what: the deed, as in "enqueued".
        check: whether it was only predicted.
    """
    changed = [change for change in changes if change.changed]
    left: Counter[str] = Counter()
    for change in changes:
        if not change.changed:
            left[change.reason] += change.jobs
    deed = f"would be {what}" if check else what
    message = f"{sum(change.jobs for change in changed)} {deed}" + "".join(f"; {count} {reason}" for reason, count in sorted(left.items()))
    return {
        "changed": bool(changed),
        "jobs": [
            {
                "name": change.name,
                "old_state": change.old_state,
                "new_state": change.new_state,
                "changed": change.changed,
                "reason": change.reason,
                "jobs": change.jobs,
            }
            for change in changes
        ],
        "msg": message,
        "diff": {
            "before": "".join(f"{_named(change)}: {change.old_state or 'absent'}{change.before}\n" for change in changed),
            "after": "".join(f"{_named(change)}: {change.new_state or 'absent'}{change.after}\n" for change in changed),
        },
    }


def _named(change: Change) -> str:
    return change.name if change.jobs == 1 else f"{change.name} and {change.jobs - 1} more"
