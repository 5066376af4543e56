# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What HTCondor is told of a job, and what its node is given to run."""

from __future__ import annotations

import math
import re
import shlex

from ..condor_requests import requests
from ..jobset import Jobset
from .base import Command

# Commands of condor_submit that would break what the runner does.
_OURS = {
    *("universe", "executable", "arguments", "initialdir", "queue", "log", "output", "error", "batch_name", "kill_sig", "remove_kill_sig"),
    *("should_transfer_files", "when_to_transfer_output", "transfer_executable", "transfer_input_files", "transfer_output_files"),
    *("transfer_output_remaps", "preserve_relative_paths", "want_graceful_removal", "job_max_vacate_time", "max_retries", "environment"),
    *("stream_output", "stream_error", "on_exit_remove", "on_exit_hold", "leave_in_queue", "retry_until", "success_exit_code"),
}

_SUBMIT = """\
universe = vanilla
executable = {folder}/.sagequeue.sh
transfer_executable = true
should_transfer_files = YES
when_to_transfer_output = ON_EXIT
initialdir = {workdir}
preserve_relative_paths = true
transfer_input_files = {inputs}
transfer_output_files = .sagequeue.tar
transfer_output_remaps = ".sagequeue.tar={folder}/files.tar"
output = {folder}/output
error = {folder}/error
log = {folder}/events
batch_name = sagequeue.{jobset}
kill_sig = SIGTERM
remove_kill_sig = SIGTERM
want_graceful_removal = true
job_max_vacate_time = {grace}
{options}
+SagequeueClaim = "{claim}"
+SagequeueBase = {base}
+SagequeueJob = "{job}"
queue
"""

# It passes SIGTERM on, and packs what was made, of which HTCondor must find a file in any case.
_SCRIPT = """\
#!/bin/sh
: "${{HOME:=$PWD}}" "${{PATH:=/usr/local/bin:/usr/bin:/bin}}"
export HOME PATH
{exports}
: >.sagequeue.tar
mkdir .sagequeue && {{ {inputs}; }} && cd .sagequeue || exit 74
find . -type f {had} >../.sagequeue.had
{command} </dev/null 2>&1 &
pid=$!
trap 'kill -TERM "$pid" 2>/dev/null' TERM
while :; do
    wait "$pid"
    status=$?
    kill -0 "$pid" 2>/dev/null || break
done
find . -type f {made} | grep -vxFf ../.sagequeue.had >../.sagequeue.made
tar -cf ../.sagequeue.tar --no-recursion --verbatim-files-from -T ../.sagequeue.made || {{ [ "$status" -ne 0 ] || status=74; }}
exit "$status"
"""


def description(jobset: Jobset, base: str, folder: str, carries: dict[str, str], inputs: list[str]) -> str:
    """Return what condor_submit reads of one job.

    Args:
        jobset: its jobset.
        base: the folder of that, by which HTCondor's queue is searched.
        folder: the folder of its claim.
        carries: the variables that tell whose it is, all of them.
        inputs: files and folders in workdir that it is sent.
    Raises:
        QueueError: see requests.
    """
    return _SUBMIT.format(
        folder=folder,
        workdir=jobset.workdir,
        inputs=", ".join(inputs),
        jobset=jobset.name,
        grace=math.ceil(jobset.grace),
        options="\n".join(f"{key} = {value}" for key, value in requests(jobset, _OURS).items()),
        claim=carries["SAGEQUEUE_CLAIM"],
        base=quoted(base),
        job=carries["SAGEQUEUE_JOB"],
    )


def script(command: Command, inputs: list[str], outputs: list[str], back: list[str]) -> str:
    """Return what a node runs; see CondorJob.submit."""
    tops = list(dict.fromkeys(name.split("/")[0] for name in inputs))
    named = [re.sub(r"([][*?\\])", r"\\\1", name) for name in back]
    selected = [*(f"./{pattern}{end}" for pattern in outputs for end in ("", "/*")), *(f"./{name}" for name in named)]
    return _SCRIPT.format(
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in command.environment.items()),
        inputs=f"mv -- {shlex.join(tops)} .sagequeue/" if tops else ":",
        # Of what it was sent, only what is asked for by name goes back.
        had=" ".join(f"! -path {shlex.quote(pattern)}" for pattern in selected),
        command=shlex.join(command.argv),
        made=f"\\( {' -o '.join(f'-path {shlex.quote(pattern)}' for pattern in selected)} \\)" if outputs else "",
    )


def quoted(text: str) -> str:
    """Return a text as ClassAds write it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
