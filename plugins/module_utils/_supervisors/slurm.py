# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slurm: a jobset's workers are the tasks of an array."""

from __future__ import annotations

import os
import re
import shlex

from ..dirqueue.errors import QueueError
from ..dirqueue.jobset import Jobset
from . import stop_wait
from .engine import Engine, Task, ranges

_SCRIPT = """\
#!/bin/sh
# Ansible managed
{options}
export HOME={home} PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8
export SAGEQUEUE_ENGINE="slurm ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID ${{SLURM_RESTART_COUNT:-0}}"
# Slurm signals this process, so it becomes the worker.
exec {program} worker "{name}-$SLURM_ARRAY_TASK_ID"
"""

# States (squeue(1)) that a task does not leave any more.
_ENDED = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
    *("BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "REVOKED"),
}
# Slurm may signal so many seconds late.
_LATE = 30
# Options that would break what the supervisor does.
_OURS = ("array", "job-name", "comment", "output", "error", "signal", "requeue", "no-requeue", "export", "open-mode", "wrap", "parsable")


class Slurm(Engine):
    """Slurm, by its own commands."""

    name = "slurm"
    suffix = ".sh"
    # A quiet scancel says nothing at all, and fails.
    ended = re.compile("Job has already finished|Invalid job id|Job is no longer pending")

    def text(self, jobset: Jobset, enabled: bool) -> str:
        limit = int(jobset.time_limit)
        before = stop_wait(jobset, self.host) + _LATE
        if limit and limit < before + 60:
            raise QueueError(f"jobset {jobset.name}: time_limit is {limit}; at least {before + 60} are needed, the last {before} to end in")
        given = {
            "job-name": f"sagequeue.{jobset.name}",
            "comment": self.host.root,
            "output": os.path.join(self.host.root.replace("%", "%%"), "log", f"{jobset.name}-%a.log"),
            "open-mode": "append",
            "chdir": self.host.root,
            "export": "NIL",
            "requeue" if enabled else "no-requeue": "",
            "partition": jobset.partition,
            "account": jobset.account,
            "qos": jobset.qos,
            "time": f"{limit // 60}:{limit % 60:02d}" if limit else "",
            "signal": f"B:TERM@{before}" if limit else "",
            "mem": f"{-(-jobset.memory >> 20)}M" if jobset.memory else "",
            "cpus-per-task": str(jobset.cpus),
            "gpus": str(jobset.gpus or ""),
            "tmp": f"{-(-jobset.disk >> 20)}M" if jobset.disk else "",
        }
        for key, value in jobset.engine_options.items():
            if key in _OURS:
                raise QueueError(f"jobset {jobset.name}: engine_options has {key}, which the supervisor slurm itself needs; take it out")
            given[key] = value
        flags = ("requeue", "no-requeue", *jobset.engine_options)
        lines = [f"#SBATCH --{key}" + (f"={_word(value)}" if value else "") for key, value in given.items() if value or key in flags]
        return _SCRIPT.format(
            options="\n".join(lines),
            home=shlex.quote(self.host.home),
            program=shlex.quote(os.path.join(self.host.root, "bin", "sagequeue")),
            name=jobset.name,
        )

    def tasks(self, jobsets: list[Jobset], ended: bool = False) -> list[Task]:
        fields = "%F|%K|%T|%N|%r|%j|%k"
        all_states = ["--states=all"] if ended else []
        lines = self.listed("squeue", "--noheader", "--array", *all_states, f"--user={os.getuid()}", f"--format={fields}").splitlines()
        names = {f"sagequeue.{jobset.name}": jobset.name for jobset in jobsets}
        found = []
        for line in lines:
            array, number, state, where, why, name, root = line.split("|", 6)
            if name in names and root == self.host.root and number.isdecimal():
                alive = state not in _ENDED
                why = "" if why == "None" else f"({why})"
                found.append(Task(names[name], int(number), f"{array}_{number}", state, where, why, alive))
        # The latest of each number last.
        return sorted(found, key=lambda task: int(task.id.partition("_")[0]))

    def submit(self, jobset: Jobset, numbers: list[int]) -> None:
        self.said("sbatch", "--parsable", f"--array={ranges(numbers)}%{jobset.workers}", self.file(jobset))

    def end(self, tasks: list[Task], kill: bool = False) -> None:
        ids = [task.id for task in tasks]
        if not ids:
            return
        if kill:
            self.said("scancel", "--quiet", *ids, some_ended=True)
            return
        self.said("scancel", "--quiet", "--state=PENDING", *ids, some_ended=True)
        # The worker alone gets the signal: it passes it on to its job, and puts the job back.
        self.said("scancel", "--quiet", "--batch", "--signal=TERM", *ids, some_ended=True)

    def keep(self, tasks: list[Task], on: bool) -> None:
        for task in tasks:
            self.said("scontrol", "update", f"JobId={task.id}", f"Requeue={int(on)}", some_ended=True)

    def hurry(self, tasks: list[Task]) -> None:
        # What was requeued waits two minutes.
        for task in tasks:
            if task.state == "PENDING" and task.why == "(BeginTime)":
                self.said("scontrol", "update", f"JobId={task.id}", "StartTime=now", some_ended=True)


def _word(value: str) -> str:
    """Return a value as sbatch reads it in a script's line, where only double quotes and backslashes mean something."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if set(value) & set(" \t\"'\\#") else value
