# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the queue_* modules share that change what is in a queue. Private to the collection."""

from __future__ import annotations

from collections import Counter
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from . import _host
from ._queue_module import run
from ._supervisors import Supervisor
from ._supervisors.htcondor import Htcondor
from ._supervisors.slurm import Slurm
from .dirqueue.errors import QueueError
from .dirqueue.queue import Queue
from .dirqueue.store import Change

# The options of a module that defines the jobset first, where the inventory says how: see define.
DEFINITION: dict[str, dict[str, Any]] = {
    "definition": {"type": "dict"},
    "secrets": {"type": "dict", "default": {}, "no_log": True},
}
# Those whose workers leave when there are no jobs.
_LEAVING: dict[str, type[Supervisor]] = {"slurm": Slurm, "htcondor": Htcondor}


def change(
    options: dict[str, dict[str, Any]],
    call: Callable[[AnsibleModule, Queue], dict[str, Any]],
    define: Callable[[AnsibleModule, str], list[dict[str, str]]] | None = None,
    **more: Any,
) -> None:
    """Run a module as run does; where it changes something, have workers for the jobs that are pending then."""
    run(options, call, define, _wake, **more)


def define(module: AnsibleModule, root: str) -> list[dict[str, str]]:
    """Define the jobset, where the options say how."""
    options = module.params
    if options["definition"] is None:
        return []
    host = _host.of(root)
    return _host.define(root, options["jobset"], options["definition"], options["secrets"], host.defaults(), module.check_mode)[1]


def _wake(module: AnsibleModule, queue: Queue) -> None:
    """Have workers for jobs that are pending now: an engine's leave when there are none."""
    kind = _LEAVING.get(queue.jobset.supervisor)
    if kind:
        try:
            kind(_host.of(queue.layout.root), [queue.jobset], False).wake([queue.jobset])
        except QueueError as exc:
            module.warn(f"{exc}; when that is mended, start.yml has workers come for the jobs that are pending")


def report(changes: list[Change], what: str, check: bool) -> dict[str, Any]:
    """Return a module's result for what became of some jobs.

    Args:
        changes: one per job, or per so many alike.
        what: the deed, as in "enqueued".
        check: whether it was only predicted.
    """
    changed = [one for one in changes if one.changed]
    left: Counter[str] = Counter()
    for one in changes:
        if not one.changed:
            left[one.reason] += one.jobs
    deed = f"would be {what}" if check else what
    message = f"{sum(one.jobs for one in changed)} {deed}" + "".join(f"; {count} {reason}" for reason, count in sorted(left.items()))
    return {
        "changed": bool(changed),
        "jobs": [
            {
                "name": one.name,
                "old_state": one.old_state,
                "new_state": one.new_state,
                "changed": one.changed,
                "reason": one.reason,
                "jobs": one.jobs,
            }
            for one in changes
        ],
        "msg": message,
        "diff": {
            "before": "".join(f"{_named(one)}: {one.old_state or 'absent'}{one.before}\n" for one in changed),
            "after": "".join(f"{_named(one)}: {one.new_state or 'absent'}{one.after}\n" for one in changed),
        },
    }


def _named(one: Change) -> str:
    return one.name if one.jobs == 1 else f"{one.name} and {one.jobs - 1} more"
