#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_adopt
short_description: Take over the queues of the older shell scripts
version_added: 0.1.0
description:
  - Stops and disables the units of the older scripts (C(sagequeue@N), C(sagequeue-recover), C(sagequeue-container)), and ends
    workers of theirs that were started by hand.
  - Takes jobs with all that their files say, C(ATTEMPTS) included, and logs over into the queue below O(root). Where that is the
    same folder, they stay where they are.
  - Reads their environment file, which no shell reads here, and writes it down as a jobset for the inventory.
  - Deletes nothing. What was taken over goes to F(var/JOBSET/adopted) in their folder. What can't be taken over stays where it is,
    and is named.
  - A job that ran stays running, without an owner, until it is recovered. One that its worker has called failed because it was
    stopped here is pending again.
  - Refuses to go on while programs of their jobs still run, as they do in a container when their worker is gone.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: Says what would be done, and changes nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: A second run finds nothing left to do.
    support: full
options:
  source:
    description: The folder of the older scripts, or its F(var), or one F(var/JOBSET).
    type: path
    required: true
  env_file:
    description: Their environment file. It knows one jobset. The definitions of others are for you to write.
    type: path
    default: ~/.config/sagequeue/sagequeue.env
  wait:
    description:
      - How many seconds a worker of theirs that no unit stops has to end by itself. After that it is killed, and what it runs
        is asked to end and given as long again.
    type: float
    default: 10
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
notes:
  - Run it as the batch user, who must be the one who ran the older scripts.
requirements:
  - Python 3.8 or newer on the host
seealso:
  - module: sagequeue.batch.queue_recover
"""

EXAMPLES = r"""
- name: Take over what the older scripts have left
  sagequeue.batch.queue_adopt:
    source: ~/src/sagequeue
"""

RETURN = r"""
jobsets:
  description: What became of each jobset of theirs.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The jobset.
      type: str
    source:
      description: Where it was.
      type: str
    in_place:
      description: Whether it was in the folder of this queue already.
      type: bool
    jobs:
      description: How many jobs were taken over, by the state that they are in now.
      type: dict
    logs:
      description: How many logs were taken over.
      type: int
    refused:
      description: What stays where it is, with the reason.
      type: dict
    interrupted:
      description: The jobs that ran when their workers were stopped.
      type: list
      elements: str
units:
  description: The units that were stopped and disabled.
  returned: success
  type: list
  elements: str
ended:
  description: The workers, by their pids, that were ended without a unit.
  returned: success
  type: list
  elements: int
definition:
  description: What their environment file says as a jobset, for the inventory. Empty if there is none.
  returned: success
  type: str
definition_file:
  description: Where that is written.
  returned: success
  type: str
msg:
  description: What was done, in a few lines.
  returned: always
  type: str
"""

import glob
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import root_of
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import adopt, adopt_workers, jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import STATES, Layout, probe
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue

# The timer first: it would bring failed jobs back to pending meanwhile.
UNITS = ("sagequeue-recover.timer", "sagequeue-recover.service", "sagequeue@*.service", "sagequeue-container.service")


def units(module: AnsibleModule) -> list[str]:
    """Return the units of the older scripts that run or are enabled."""
    wants = os.path.join(os.environ.get("XDG_CONFIG_HOME") or os.path.join(Path.home(), ".config"), "systemd", "user", "*.wants")
    found = {os.path.basename(path) for unit in UNITS for path in glob.glob(os.path.join(wants, unit))}
    systemctl = module.get_bin_path("systemctl")
    code, listed, why = (1, "", "systemctl is not installed")
    if systemctl:
        code, listed, why = module.run_command(
            [
                systemctl,
                "--user",
                "list-units",
                "--plain",
                "--no-legend",
                "--no-pager",
                "--state=active,activating,deactivating,reloading",
                *UNITS,
            ]
        )
    if code and found:
        raise QueueError(
            f"the units {', '.join(sorted(found))} are enabled, but systemctl --user can't be asked: {why.strip()}; nothing was changed"
        )
    found |= {line.split()[0] for line in listed.splitlines() if line.strip()} if not code else set()
    return sorted(found, key=lambda unit: (not unit.startswith("sagequeue-recover"), unit))


def stop(module: AnsibleModule, names: list[str]) -> None:
    """Stop and disable units."""
    systemctl = module.get_bin_path("systemctl", required=True)
    code, _out, why = module.run_command([systemctl, "--user", "disable", "--now", *names])
    if code:
        raise QueueError(f"can't stop and disable {', '.join(names)}: {why.strip()}; no job was taken over")


def belong(source: str, values: dict[str, str]) -> bool:
    """Tell whether the units work on this source, as far as their environment file says."""
    root = values.get("PROJECT_ROOT", "")
    return (
        not root
        or os.path.realpath(source).startswith(os.path.realpath(root))
        or os.path.realpath(root).startswith(os.path.realpath(source))
    )


def take_over(module: AnsibleModule, root: str) -> dict[str, Any]:
    """Take over all that there is; return the module's result."""
    check, source = module.check_mode, module.params["source"]
    if not source:
        raise QueueError("Name the folder of the older scripts: -e from=PATH")
    found = adopt.find(source)
    values = adopt.environment(module.params["env_file"])
    known = values.get("JOBSET") if values.get("JOBSET") in {older.name for older in found} else None
    stopped = units(module) if belong(source, values) else []
    wanted = adopt.definition(values, sum(unit.startswith("sagequeue@") for unit in stopped)) if known else None
    if wanted and known:
        # What they said must make sense here, before anything is touched.
        jobset.Jobset(known, wanted)
    probe(root)
    interrupted = {
        older.name: {name for names in adopt_workers.workers(older).values() for name in names} | adopt_workers.interrupted(older)
        for older in found
    }
    ended: list[int] = []
    if not check:
        for older in found:
            adopt_workers.interrupted(older, interrupted[older.name])
        if stopped:
            stop(module, stopped)
        ended = [pid for older in found for pid in adopt_workers.end_workers(older, module.params["wait"])]
        for older in found:
            left = adopt_workers.programs(older, values)
            if left:
                which = ", ".join(f"pid {pid} ({name})" for pid, name in left.items())
                raise QueueError(
                    f"jobset {older.name}: programs of its jobs still run: {which}. Their workers and units are stopped, and no "
                    f"job was taken over. End them (podman restart {values.get('SERVICE', 'sagemath')} ends all in the container), or wait "
                    "for their end, and adopt again"
                )
    taken = []
    for older in found:
        layout = Layout(root, older.name)
        missing = bool(layout.missing())
        one: dict[str, Any] = {"name": older.name, "source": older.base, "interrupted": sorted(interrupted[older.name])}
        if check and missing:
            # There is no queue to ask yet, so all that is in order would come over.
            one.update(adopt.foresee(older, os.path.realpath(layout.base) == older.base))
        else:
            if not check:
                layout.create()
            with Queue(layout, jobset.Jobset(older.name, wanted if wanted and older.name == known else {"script": "unknown"})) as queue:
                prefix = values.get("LOG_PREFIX", "") if older.name == known else ""
                one.update(adopt.take_over(queue, older, prefix, interrupted[older.name], check))
                one["counts"] = queue.counts()
            if not check:
                adopt_workers.all_done(older)
        taken.append({**one, "changed": missing or any(one["jobs"].values()) or one["logs"] > 0})
    text = adopt.inventory(known, wanted) if known and wanted else ""
    path = os.path.join(root, "adopted", f"{known}.yml") if known else ""
    new = bool(path) and not os.path.lexists(path)
    if new and not check:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    changed = new or bool(stopped or ended) or any(one["changed"] for one in taken)
    result = {"changed": changed, "jobsets": taken, "units": stopped, "ended": ended, "definition": text, "definition_file": path}
    return {**result, "msg": "\n".join(said(result, check))}


def said(result: dict[str, Any], check: bool) -> list[str]:
    """Return what was done, for people."""
    would = "would be " if check else ""
    lines = [] if result["changed"] else ["nothing is left to do"]
    if result["units"]:
        lines.append(f"{would}stopped and disabled: {', '.join(result['units'])}; their files stay")
    if result["ended"]:
        lines.append(f"ended: workers of theirs without a unit, pid {', '.join(map(str, result['ended']))}")
    for one in result["jobsets"]:
        jobs = ", ".join(f"{one['jobs'][state]} {state}" for state in STATES)
        if one["changed"]:
            how = "adopted where it is" if one["in_place"] else f"taken over from {one['source']}: {jobs}, {one['logs']} logs"
            lines.append(f"{one['name']}: {would}{how}")
        if one.get("counts"):
            lines.append(f"{one['name']} has " + ", ".join(f"{count} {state}" for state, count in one["counts"].items()))
        if one["interrupted"]:
            lines.append(
                f"{one['name']}: ran when their workers {'would be' if check else 'were'} stopped: {', '.join(one['interrupted'])}"
            )
        lines += [f"{one['name']}: left where it is: {entry}: {why}" for entry, why in one["refused"].items()]
    if result["definition_file"]:
        lines.append(f"the definition for your inventory {'would be' if check else 'is'} in {result['definition_file']}")
    others = [one["name"] for one in result["jobsets"] if not result["definition"].find(f"\n  {one['name']}:\n") > 0]
    if others:
        lines.append(f"no definition was found for {', '.join(others)}: add {'them' if len(others) > 1 else 'it'} to sagequeue_jobsets")
    return lines


def main() -> None:
    """Run the module."""
    os.umask(0o077)
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "env_file": {"type": "path", "default": "~/.config/sagequeue/sagequeue.env"},
            "wait": {"type": "float", "default": 10},
            "root": {"type": "path", "default": "~/sagequeue"},
        },
        supports_check_mode=True,
    )
    # Where systemctl finds the user's systemd, also by way of become.
    runtime = f"/run/user/{os.getuid()}"
    if "XDG_RUNTIME_DIR" not in os.environ and os.path.isdir(runtime):
        os.environ["XDG_RUNTIME_DIR"] = runtime
    root = root_of(module.params["root"])
    try:
        result = take_over(module, root)
    except (QueueError, OSError, MemoryError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
