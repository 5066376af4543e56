# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all queue_* modules share. Private to the collection.

What those share that change something is in _queue_change: Ansible sends with a module all that it imports, and that takes time.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule

from .dirqueue import definitions
from .dirqueue.errors import QueueError, explain
from .dirqueue.layout import Layout
from .dirqueue.queue import Queue

SHARED: dict[str, dict[str, Any]] = {
    "jobset": {"type": "str", "required": True},
    "root": {"type": "path", "default": "~/sagequeue"},
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
    wake: Callable[[AnsibleModule, Queue], None] | None = None,
    **more: Any,
) -> None:
    """Run a module: open the jobset's queue, make one call, exit with its result and the queue's counts.

    Args:
        options: the module's own options, beside jobset and root.
        call: returns the result.
        define: called with the root before the jobset is looked up, which it may define; returns the differences that makes.
        wake: called with the queue when something has changed.
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
            if wake and result["changed"] and not module.check_mode:
                wake(module, queue)
            if "counts" not in result:
                result["counts"] = queue.counts()
        if differences:
            shown = result["diff"] if isinstance(result["diff"], list) else [result["diff"]]
            result.update(changed=True, diff=[*differences, *shown])
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(**result)
