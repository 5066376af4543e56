#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_workers
short_description: Define jobsets on a host, and keep their workers under a supervisor
version_added: 0.1.0
description:
  - Acts on any number of jobsets at once, with C(systemd --user) or supervisord, and does only what is missing.
  - A change never ends a running job. Workers read a changed definition before their next job; fewer O(ignore:workers) in a definition
    stop only the surplus ones, each of which puts its job back to pending; more add to those that run.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Shows files before and after, without the values of environment variables and secrets, and workers with their states.
    support: full
  idempotent:
    description: A second run with the same options changes nothing, unless O(state=restarted).
    support: full
options:
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
  jobset:
    description: The jobset to act on. Without it, all of O(definitions), or all that are defined on the host.
    type: str
    default: ""
  one:
    description: Whether O(jobset) must be given.
    type: bool
    default: false
  definitions:
    description: All jobsets of the host, their keys by name (see the collection's README). Without it, those that the host has serve.
    type: dict
  secrets:
    description: More environment variables of jobs, by jobset and name, whose values nothing shows.
    type: dict
    default: {}
  host:
    description: What holds for all jobsets of the host. Written down, so that later calls need not say it again.
    type: dict
    suboptions:
      home:
        description: The batch user's home.
        type: path
        required: true
      runner:
        description: The runner of jobsets that name none.
        type: str
        required: true
      supervisor:
        description: The supervisor of jobsets that name none.
        type: str
        required: true
      image:
        description: The image of jobsets that name none, with the runner podman_run.
        type: str
        default: ""
      sif:
        description: The same with the runner apptainer, a path.
        type: str
        default: ""
      container:
        description: The container that the runner podman_exec enters, whose unit workers start after.
        type: str
        default: sagemath
      slice:
        description: Settings of the slice that holds all workers, as systemd knows them.
        type: dict
        default: {}
      stop_margin:
        description: What a worker gets beyond its job's grace to end by itself, in seconds.
        type: int
        default: 10
  state:
    description:
      - V(defined) makes the definitions, the queues and the workers known to the supervisor.
      - V(present) does that, and starts and enables the jobsets whose definition says C(enabled).
      - V(started), V(stopped) and V(restarted) act on the workers; jobs of workers that stop go back to pending.
      - V(absent) stops the workers and removes all of this but queues, logs and state files.
      - V(gone) does that with all jobsets and what they shared.
    type: str
    choices: [defined, present, started, stopped, restarted, absent, gone]
  enabled:
    description: Whether the workers start with the host.
    type: bool
  prune:
    description: Whether jobsets of the host that are not in O(definitions) become absent.
    type: bool
    default: false
notes:
  - Run it as the batch user.
seealso:
  - module: sagequeue.batch.queue_workers_info
"""

EXAMPLES = r"""
- name: Start a jobset's workers, now and with the host
  sagequeue.batch.queue_workers:
    jobset: rook_r3
    state: started
    enabled: true
"""

RETURN = r"""
jobsets:
  description: The jobsets that it acted on.
  returned: success
  type: list
  elements: str
left:
  description: Jobsets of the host that are not in O(definitions), and stay.
  returned: success
  type: list
  elements: str
"""

import os
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils import _host
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import named, root_of
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.known import make
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain, nearest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import put_back
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.condor_job import CondorJob

# What each state asks of a supervisor, in this order.
VERBS: dict[Optional[str], tuple[str, ...]] = {
    None: (),
    "defined": ("define",),
    "present": ("define",),
    "started": ("define", "start"),
    "stopped": ("stop",),
    "restarted": ("stop", "define", "start"),
    "absent": ("forget",),
    "gone": ("forget",),
}
# These need no definition.
ENDING = ("stopped", "absent", "gone")


def choose(host: _host.Host, options: dict[str, Any], check: bool) -> tuple[list[Jobset], list[dict[str, str]]]:
    """Define what the options say; return the jobsets to act on, and the differences."""
    given, state, there = options["definitions"], options["state"], definitions.defined(host.root)
    chosen, diff = [], []
    every = sorted({*(there if given is None or state == "gone" else ()), *(given or ())})
    for name in [options["jobset"]] if options["jobset"] else every:
        if name in (given or ()) and state not in ENDING:
            found, changes = _host.define(host.root, name, given[name] or {}, options["secrets"].get(name), host.defaults(), check)
            chosen.append(found)
            diff += changes
        elif name in there:
            chosen.append(_host.loaded(host, name) if state in ENDING else definitions.load(host.root, name))
        elif name not in (given or ()):
            known = sorted({*there, *(given or ())})
            raise QueueError(
                f"jobset {name} is not defined{nearest(name, known)} (defined are {', '.join(known) or 'none'}). "
                "Jobsets are entries of sagequeue_jobsets in the inventory; setup and enqueue bring them to the host."
            )
    return chosen, diff


def end_lasting(root: str, one: Jobset) -> list[str]:
    """End what of a jobset goes on without its workers; return those jobs, which are pending again."""
    if one.runner != "condor_job":
        return []
    layout = Layout(root, one.name)
    if not os.path.isdir(layout.queue):
        return []
    with Queue(layout, one) as queue:
        return put_back(queue, CondorJob(layout, one))


def act(root: str, options: dict[str, Any], check: bool) -> dict[str, Any]:
    """Do what the options say; return the module's result."""
    state = options["state"]
    if options["one"]:
        named(root, options["jobset"])
    host = _host.of(root, options["host"], state not in ENDING and not check)
    chosen, diff = choose(host, options, check)
    others = _host.others(host, {one.name for one in chosen})
    left = [one for one in others if options["definitions"] is not None and one.name not in options["definitions"]]
    surplus = left if options["prune"] else []
    shared = bool(options["host"]) and state in ("defined", "present")
    whole = {host.supervisor} if shared or state == "gone" else set()
    for kind in sorted({one.supervisor for one in [*chosen, *surplus]} | whole):
        supervisor = make(kind, host, [*chosen, *others], check)
        ours = [one for one in chosen if one.supervisor == kind]
        if shared:
            supervisor.prepare()
        for verb in VERBS[state]:
            getattr(supervisor, verb)(ours)
        if options["enabled"] is not None:
            supervisor.enable(ours, options["enabled"])
        elif state == "present":
            supervisor.enable([one for one in ours if one.enabled], True)
            supervisor.start([one for one in ours if one.enabled])
        supervisor.forget([one for one in surplus if one.supervisor == kind])
        if state == "gone":
            supervisor.gone()
        diff += supervisor.diff
    # What HTCondor runs goes on without its worker. One that starts again picks it up.
    for one in [*(chosen if state in ENDING else ()), *surplus] if not check else ():
        diff += [{"before": f"{name}: running\n", "after": f"{name}: pending\n"} for name in end_lasting(root, one)]
    for one in [*(chosen if state in ("absent", "gone") else ()), *surplus]:
        diff += _host.forget(root, one.name, check)
    if shared or state == "gone":
        diff += _host.remember(host, shared, check)
    return {"jobsets": [one.name for one in chosen], "left": [one.name for one in left], "diff": diff}


def main() -> None:
    """Run the module."""
    os.umask(0o077)
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "~/sagequeue"},
            "jobset": {"type": "str", "default": ""},
            "one": {"type": "bool", "default": False},
            "definitions": {"type": "dict"},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "host": {
                "type": "dict",
                "options": {
                    "home": {"type": "path", "required": True},
                    "runner": {"type": "str", "required": True},
                    "supervisor": {"type": "str", "required": True},
                    "image": {"type": "str", "default": ""},
                    "sif": {"type": "str", "default": ""},
                    "container": {"type": "str", "default": "sagemath"},
                    "slice": {"type": "dict", "default": {}},
                    "stop_margin": {"type": "int", "default": 10},
                },
            },
            "state": {"type": "str", "choices": ["defined", "present", "started", "stopped", "restarted", "absent", "gone"]},
            "enabled": {"type": "bool"},
            "prune": {"type": "bool", "default": False},
        },
        required_one_of=[("state", "enabled")],
        supports_check_mode=True,
    )
    root = root_of(module.params["root"])
    try:
        result = act(root, module.params, module.check_mode)
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(changed=bool(result["diff"]), **result)


if __name__ == "__main__":
    main()
