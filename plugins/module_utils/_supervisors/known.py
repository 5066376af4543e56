# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which supervisors there are. Private to the collection."""

from __future__ import annotations

from .._host import Host, others
from ..dirqueue.errors import QueueError
from ..dirqueue.jobset import Jobset
from . import Supervisor
from .htcondor import Htcondor
from .slurm import Slurm
from .supervisord import Supervisord
from .systemd import Systemd

KNOWN: dict[str, type[Supervisor]] = {"systemd": Systemd, "supervisord": Supervisord, "slurm": Slurm, "htcondor": Htcondor}


def make(name: str, host: Host, jobsets: list[Jobset], check: bool) -> Supervisor:
    """Return a supervisor, which looks after those of the jobsets that name it.

    Raises:
        QueueError: there is none of this name.
    """
    if name not in KNOWN:
        raise QueueError(f"there is no supervisor {name}; there are {', '.join(KNOWN)}")
    return KNOWN[name](host, [jobset for jobset in jobsets if jobset.supervisor == name], check)


def start(host: Host, jobset: Jobset, check: bool) -> list[dict[str, str]]:
    """Let one jobset's workers start, now and with the host; return the differences."""
    supervisor = make(jobset.supervisor, host, [jobset, *others(host, [jobset.name])], check)
    supervisor.define([jobset])
    supervisor.enable([jobset], True)
    supervisor.start([jobset])
    return supervisor.diff
