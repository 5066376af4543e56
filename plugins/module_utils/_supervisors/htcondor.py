# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HTCondor: a jobset's workers are the jobs of a cluster."""

from __future__ import annotations

import json
import os
import re
import shlex
from typing import Any

from ..dirqueue.condor_requests import requests
from ..dirqueue.jobset import Jobset
from . import stop_wait
from .engine import Engine, Task

_SUBMIT = """\
# Ansible managed
universe = vanilla
executable = /bin/sh
transfer_executable = false
should_transfer_files = NO
initialdir = {root}
arguments = "-c {script}"
log = {root}/etc/htcondor/{name}.log
batch_name = sagequeue.{name}
# The worker alone gets the signal: it passes it on to its job, and puts the job back.
kill_sig = SIGTERM
remove_kill_sig = SIGTERM
want_graceful_removal = true
job_max_vacate_time = {stop_wait}
job_lease_duration = {lease}
{options}
+SagequeueRoot = {quoted_root}
+SagequeueJobset = "{name}"
+SagequeueNumber = $(number)
"""

# The number of its start, which the engine knows, too: see dirqueue/engine.py.
_SCRIPT = (
    "export HOME={home} PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8; "
    's=$(sed -n "s/^NumShadowStarts = //p" "$_CONDOR_JOB_AD"); export SAGEQUEUE_ENGINE="htcondor $(ClusterId).$(ProcId) ${{s:-0}}"; '
    'exec {program} worker "{name}-$(number)" >>{log} 2>&1'
)

_STATES = {1: "IDLE", 2: "RUNNING", 3: "REMOVED", 4: "COMPLETED", 5: "HELD", 6: "RUNNING", 7: "SUSPENDED"}
_ATTRIBUTES = (
    *("ClusterId", "ProcId", "SagequeueJobset", "SagequeueNumber", "JobStatus", "RemoteHost"),
    *("HoldReason", "RemoveReason", "ExitCode", "ExitBySignal", "ExitSignal"),
)
_NOT_ENABLED = "JobStatus == 1 && NumShadowStarts > 0"
# Commands that would break what the supervisor does.
_OURS = {
    *("universe", "executable", "arguments", "initialdir", "queue", "log", "output", "error", "batch_name", "kill_sig", "remove_kill_sig"),
    *("should_transfer_files", "transfer_executable", "want_graceful_removal", "periodic_remove", "job_max_vacate_time"),
}


class Htcondor(Engine):
    """HTCondor, by its own commands."""

    name = "htcondor"
    suffix = ".sub"
    ended = re.compile("Job [0-9.]+ not (found|held)")

    def text(self, jobset: Jobset, enabled: bool) -> str:
        root = self.host.root
        log = os.path.join(root, "log", f"{jobset.name}-$(number).log")
        script = _SCRIPT.format(
            home=shlex.quote(self.host.home), program=shlex.quote(os.path.join(root, "bin", "sagequeue")), name=jobset.name, log=_path(log)
        )
        given = {
            # A worker that dies, for want of memory say, comes back so often.
            "max_retries": str(jobset.recoveries) if enabled else "",
            "periodic_remove": "" if enabled else _NOT_ENABLED,
            **requests(jobset, _OURS),
        }
        return _SUBMIT.format(
            root=root,
            # As condor_submit reads words: single quotes around, those within doubled; and all in double quotes, those doubled.
            script="'" + script.replace("'", "''").replace('"', '""') + "'",
            name=jobset.name,
            stop_wait=stop_wait(jobset, self.host),
            lease=max(60, int(jobset.lease)),
            options="\n".join(f"{key} = {value}" for key, value in given.items() if value),
            quoted_root=json.dumps(root),
        )

    def _ads(self, *words: str) -> list[dict[str, Any]]:
        constraint = f"SagequeueRoot == {json.dumps(self.host.root)}"
        said = self.listed(*words, "-constraint", constraint, "-json", "-attributes", ",".join(_ATTRIBUTES)).strip()
        found = json.loads(said) if said else []
        return found if isinstance(found, list) else []

    def tasks(self, jobsets: list[Jobset], ended: bool = False) -> list[Task]:
        ads = [(ad, False) for ad in self._ads("condor_history", "-limit", "200")][::-1] if ended else []
        ads += [(ad, True) for ad in self._ads("condor_q", "-nobatch")]
        names = {jobset.name for jobset in jobsets}
        found = []
        for ad, alive in ads:
            if ad.get("SagequeueJobset") in names:
                state = _STATES.get(ad.get("JobStatus", 0), "UNKNOWN")
                why = ad.get("HoldReason", "") if state == "HELD" else ad.get("RemoveReason", "") if state == "REMOVED" else ""
                if state == "COMPLETED":
                    why = f"signal {ad.get('ExitSignal')}" if ad.get("ExitBySignal") else f"exit status {ad.get('ExitCode')}"
                    alive = False
                elif state == "IDLE":
                    why = f"no machine has taken it yet; condor_q -better-analyze {ad['ClusterId']}.{ad['ProcId']} says why"
                where = str(ad.get("RemoteHost", "")).rpartition("@")[2] if alive else ""
                task = f"{ad['ClusterId']}.{ad['ProcId']}"
                found.append(Task(ad["SagequeueJobset"], int(ad["SagequeueNumber"]), task, state, where, f"({why})" if why else "", alive))
        return found

    def submit(self, jobset: Jobset, numbers: list[int]) -> None:
        self.said("condor_submit", "-terse", self.file(jobset), "-queue", f"number in ({', '.join(map(str, numbers))})")

    def end(self, tasks: list[Task], kill: bool = False) -> None:
        ids = [task.id for task in tasks if kill or task.state != "REMOVED"]
        if ids:
            self.said("condor_rm", *(["-forcex"] if kill else []), *ids, some_ended=True)

    def keep(self, tasks: list[Task], on: bool) -> None:
        for task in tasks:
            self.said("condor_qedit", task.id, "PeriodicRemove", "false" if on else _NOT_ENABLED)

    def hurry(self, tasks: list[Task]) -> None:
        held = [task.id for task in tasks if task.state == "HELD"]
        if held:
            self.said("condor_release", *held, some_ended=True)


def _path(path: str) -> str:
    """Return a path that a macro of condor_submit is part of, for a shell."""
    return path if set(path).isdisjoint(" '\"\\;&|<>*?[]#~`") else shlex.quote(path)
