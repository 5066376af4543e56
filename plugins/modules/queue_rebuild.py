#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_rebuild
short_description: Let no job run while an image is built anew, and let all go on as it was
version_added: 0.1.0
description:
  - Acts on all jobsets of the host whose jobs run in an image, or in the container that is made from it.
  - How all was is noted in C(var/rebuild_image.json) below the root before the first gate is closed, and forgotten when all is as it was.
    So a procedure that was killed can be begun again at any point, and ends right.
  - The playbook C(rebuild_image) calls it, and builds in between.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: Says what would be done, and changes nothing.
    support: full
  diff_mode:
    description: Says nothing more.
    support: none
  idempotent:
    description: What has been done is not done again, but for the restart of workers with O(state=ended).
    support: full
options:
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
  image:
    description: The image. Jobsets with the runner podman_run and this image use it.
    type: str
    required: true
  container:
    description: The container that is made from it. Jobsets with the runner podman_exec and this container use it.
    type: str
    default: sagemath
  state:
    description:
      - V(begun) notes how all is and closes the gates, if there is a reason, or a rebuild was begun before.
        Otherwise it only retries the failed jobs that the image is to blame for.
      - V(drained) recovers what dead workers have left, and says whether jobs still run.
      - V(ended) restarts the workers that ran, retries the failed jobs that the image is to blame for, and opens the gates that were open.
      - V(cancelled) starts those workers and opens those gates, and does nothing else.
    type: str
    choices: [begun, drained, ended, cancelled]
    required: true
  reasons:
    description: Why the image has to be built.
    type: list
    elements: str
    default: []
  container_reason:
    description: Why the container has to be started anew. Counts only where a jobset uses it.
    type: str
    default: ""
  put_back:
    description: Whether V(begun) stops the workers, so that jobs that run go back to pending, instead of letting them finish.
    type: bool
    default: false
notes:
  - Run it as the batch user.
  - A failed job is retried if its reason is C(exit_status), and the last thing that its program printed in its last attempt says that
    pycryptosat can't be imported. The last thing is the message after a traceback or, without one, the last line. The exit statuses 126 and
    127 count if that line is the agent's or Podman's, which could not start the command in the image.
seealso:
  - module: sagequeue.batch.queue_gate
  - module: sagequeue.batch.queue_retry
  - module: sagequeue.batch.queue_workers
"""

EXAMPLES = r"""
- name: Let no more jobs be claimed
  sagequeue.batch.queue_rebuild:
    image: localhost/sagequeue-sagemath:10.7-pycryptosat
    reasons: [its Containerfile changed]
    state: begun

- name: Wait for those that run
  sagequeue.batch.queue_rebuild:
    image: localhost/sagequeue-sagemath:10.7-pycryptosat
    state: drained
  register: queue
  until: queue is failed or queue.drained
  retries: 1000000
"""

RETURN = r"""
begun:
  description: Whether a rebuild goes on.
  returned: success
  type: bool
containers:
  description: Whether a jobset uses the container.
  returned: success
  type: bool
drained:
  description: Whether no job runs that uses the image.
  returned: success
  type: bool
running:
  description: The jobs that run.
  returned: success
  type: list
  elements: str
jobsets:
  description: The jobsets that use the image.
  returned: success
  type: list
  elements: str
retried:
  description: The jobs that were retried.
  returned: success
  type: list
  elements: str
progress:
  description: How far the waiting is.
  returned: success
  type: dict
said:
  description: What was done, or would be, a line each.
  returned: success
  type: list
  elements: str
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils import _host
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import root_of
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.known import make
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.rebuild import Rebuild

_LISTED = 20


class Procedure:
    """The steps, each of which may be repeated.

    Args:
        root: the queue's root.
        options: the module's.
        check: whether only to say what would be done.
    """

    def __init__(self, root: str, options: dict[str, Any], check: bool) -> None:
        self.host = _host.of(root)
        self.options = options
        self.check = check
        self.all = [definitions.load(root, name) for name in definitions.defined(root)]
        self.rebuild = Rebuild(root, self.all, options["image"], options["container"])
        self.used = list(self.rebuild.jobsets.values())
        self.containers = any(one.runner == "podman_exec" for one in self.used)
        self.reasons = [*options["reasons"], *([options["container_reason"]] if self.containers and options["container_reason"] else [])]
        self.changed = False
        self.retried: list[str] = []
        self.said: list[str] = []
        if not self.used:
            raise QueueError(
                f"no jobset of this host runs its jobs in the image {options['image']}, or in the container {options['container']}: "
                "there is nothing to stop and to restart. build_image builds the image alone"
            )

    def _supervisors(self, verbs: tuple[str, ...], jobsets: list[Jobset]) -> None:
        for kind in sorted({one.supervisor for one in jobsets}):
            supervisor = make(kind, self.host, self.all, self.check)
            for verb in verbs:
                getattr(supervisor, verb)([one for one in jobsets if one.supervisor == kind])
            self.changed = self.changed or bool(supervisor.diff)

    def _running(self) -> set[str]:
        """Return the jobsets whose workers run."""
        kinds = {one.supervisor for one in self.used}
        return {name for kind in kinds for name in make(kind, self.host, self.all, False).running(self.used)}

    def _ran(self) -> list[Jobset]:
        running = self._running()
        return [one for one in self.used if self.rebuild.ran(one.name, one.name in running)]

    def _tell(self, deed: str, things: list[str], nothing: str = "") -> None:
        """Say what is done with some things; in check mode that it would be."""
        if things or nothing:
            shown = ", ".join(things[:_LISTED]) + (f" and {len(things) - _LISTED} more" if len(things) > _LISTED else "")
            self.said.append((f"would {deed}" if self.check else deed) + f" {shown}" if things else nothing)

    def begun(self) -> None:
        """Note how all is, and close the gates; or do what needs no closed gates."""
        if self.rebuild.begun and self.rebuild.notes["opening"] and not self.check:
            # Only the last step was left. What there is to do since is done anew.
            self.rebuild.end()
            self.changed = True
        if not self.reasons and not self.rebuild.begun:
            self._retry()
            return
        if self.check:
            self._predict()
            return
        ran, closed = self._ran(), self.rebuild.begin(self._running())
        self.changed = self.changed or bool(closed)
        self._tell("closed: the gates of", closed)
        if self.options["put_back"]:
            self._supervisors(("stop",), ran)
            self._tell("stopped: the workers of", [one.name for one in ran])
        left = self._left()
        if left:
            more = "; put_back=true puts them back instead, cancel=true lets all go on as it was" if not self.options["put_back"] else ""
            self._tell("waiting for these jobs to end:", left)
            self.said[-1] += more

    def _predict(self) -> None:
        gates, ran = self.rebuild.gates(), [one.name for one in self._ran()]
        opened = [name for name, is_open in gates.items() if is_open]
        running = [job for one in self.used for job in self._jobs(one)]
        self._tell("close the gates of", opened)
        self._tell("leave closed, as now: the gates of", [name for name, is_open in gates.items() if not is_open])
        if self.options["put_back"]:
            self._tell("stop the workers of", ran)
        self._tell("put back" if self.options["put_back"] else "wait for the end of", running)
        self._tell("build the image and start its container anew, because", self.reasons or ["an earlier rebuild has not ended"])
        self._tell("restart the workers of", ran)
        self._retry()
        self._tell("open the gates of", opened)
        self.changed = True

    def _jobs(self, one: Jobset) -> list[str]:
        with self.rebuild.queue(one.name) as queue:
            return sorted(queue.entries("running"))

    def _left(self) -> list[str]:
        return [job for jobs in self.rebuild.drain().values() for job in jobs]

    def drained(self) -> None:
        """Look which jobs still run."""

    def _retry(self) -> None:
        changes = [change for change in self.rebuild.retry(self.check) if change.changed]
        self.retried = [change.name for change in changes]
        self.changed = self.changed or bool(changes)
        self._tell("retry, because the image was to blame:" if self.check else "retried, because the image was to blame:", self.retried)

    def ended(self) -> None:
        """Let all go on as it was."""
        if not self.rebuild.begun:
            return
        ran = self._ran()
        self._supervisors(("stop", "start"), ran)
        self._tell("restart the workers of" if self.check else "restarted: the workers of", [one.name for one in ran])
        self._retry()
        self._open()

    def _open(self) -> None:
        self.changed = True
        if self.check:
            self._tell("open the gates of", [name for name, is_open in self.rebuild.gates().items() if is_open])
            return
        opened = self.rebuild.end()
        self._tell("open: the gates of", opened)
        self._tell("closed: the gates of", [one.name for one in self.used if one.name not in opened])

    def cancelled(self) -> None:
        """Let all go on as it was, with what image there is."""
        if not self.rebuild.begun:
            self.said.append("no rebuild goes on: nothing to cancel")
            return
        ran = self._ran()
        self._supervisors(("start",), ran)
        if self.check:
            self._tell("start the workers of", [one.name for one in ran])
        self._open()

    def result(self) -> dict[str, Any]:
        """Return what the module returns."""
        running = self._left() if self.rebuild.begun and not self.check else [job for one in self.used for job in self._jobs(one)]
        done, total = self.rebuild.waits_for(len(running)) if self.rebuild.begun and not self.check else (0, len(running))
        return {
            "changed": self.changed,
            "begun": self.rebuild.begun,
            "containers": self.containers,
            "drained": not running,
            "running": running,
            "jobsets": [one.name for one in self.used],
            "retried": self.retried,
            "progress": {"done": done, "total": total, "text": f"still running: {', '.join(running[:3])}" if running else ""},
            "said": self.said,
        }


def main() -> None:
    """Run the module."""
    os.umask(0o077)
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "~/sagequeue"},
            "image": {"type": "str", "required": True},
            "container": {"type": "str", "default": "sagemath"},
            "state": {"type": "str", "choices": ["begun", "drained", "ended", "cancelled"], "required": True},
            "reasons": {"type": "list", "elements": "str", "default": []},
            "container_reason": {"type": "str", "default": ""},
            "put_back": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    root = root_of(module.params["root"])
    try:
        procedure = Procedure(root, module.params, module.check_mode)
        getattr(procedure, module.params["state"])()
        result = procedure.result()
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
