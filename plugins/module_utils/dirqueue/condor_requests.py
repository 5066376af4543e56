# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a jobset asks HTCondor for, be it for workers or for jobs."""

from __future__ import annotations

from .errors import QueueError
from .jobset import Jobset


def requests(jobset: Jobset, ours: set[str]) -> dict[str, str]:
    """Return what a jobset asks HTCondor for, as commands of condor_submit.

    Args:
        jobset: its definition.
        ours: the commands that may not be among its engine_options.
    Raises:
        QueueError: one is.
    """
    given = {
        "request_cpus": str(jobset.cpus),
        "request_memory": str(-(-jobset.memory >> 20)) if jobset.memory else "",
        "request_disk": str(-(-jobset.disk >> 10)) if jobset.disk else "",
        "request_gpus": str(jobset.gpus or ""),
        "accounting_group": jobset.account,
    }
    for key in ("partition", "qos", "time_limit"):
        if getattr(jobset, key):
            raise QueueError(f"jobset {jobset.name}: {key} is for the supervisor slurm, not htcondor; take it out")
    for key, value in jobset.engine_options.items():
        if key.lower() in ours:
            raise QueueError(f"jobset {jobset.name}: engine_options has {key}, which sagequeue itself needs under htcondor; take it out")
        given[key] = value
    return {key: value for key, value in given.items() if value}
