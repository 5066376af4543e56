# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the queue_* modules share. Private to the collection."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from .dirqueue import jobset
from .dirqueue.errors import QueueError, explain
from .dirqueue.layout import Layout
from .dirqueue.queue import Change, Queue

SHARED: dict[str, dict[str, Any]] = {
    "jobset": {"type": "str", "required": True},
    "root": {"type": "path", "default": "~/sagequeue"},
}


def run(
    options: dict[str, dict[str, Any]],
    call: Callable[[AnsibleModule, Queue], dict[str, Any]],
    **more: Any,
) -> None:
    """Run a module: open the jobset's queue, make one call, exit with its result and the queue's counts.

    Args:
        options: the module's own options, beside jobset and root.
        call: returns the result.
        more: further arguments of AnsibleModule.
    """
    # What it makes is private to the user, whatever the umask is.
    os.umask(0o077)
    module = AnsibleModule(argument_spec={**SHARED, **options}, supports_check_mode=True, **more)
    try:
        definition = jobset.load(module.params["root"], module.params["jobset"])
        with Queue(Layout(module.params["root"], definition.name), definition) as queue:
            result = call(module, queue)
            if "counts" not in result:
                result["counts"] = queue.counts()
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, module.params["root"]))
    module.exit_json(**result)


def report(changes: list[Change], what: str, check: bool) -> dict[str, Any]:
    """Return a module's result for what became of some jobs.

    Args:
        changes: one per job, or per so many alike.
        what: the deed, as in "enqueued".
        check: whether it was only predicted.
    """
    changed = [change for change in changes if change.old_state != change.new_state]
    left: Counter[str] = Counter()
    for change in changes:
        if change.old_state == change.new_state:
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
                "changed": change.old_state != change.new_state,
                "reason": change.reason,
                "jobs": change.jobs,
            }
            for change in changes
        ],
        "msg": message,
        "diff": {
            "before": "".join(f"{_named(change)}: {change.old_state or 'absent'}\n" for change in changed),
            "after": "".join(f"{_named(change)}: {change.new_state or 'absent'}\n" for change in changed),
        },
    }


def _named(change: Change) -> str:
    return change.name if change.jobs == 1 else f"{change.name} and {change.jobs - 1} more"
