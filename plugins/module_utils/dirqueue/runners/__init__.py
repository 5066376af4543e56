# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a job's command is executed: one file per runner, one line each here."""

from __future__ import annotations

from typing import Callable

from ..jobset import Jobset
from ..layout import Layout
from .base import Command, Outcome, Runner, Running, carried, identity
from .podman_exec import PodmanExec
from .podman_run import PodmanRun
from .process import Process

__all__ = ["Command", "Outcome", "Runner", "Running", "carried", "identity", "make"]

_RUNNERS: dict[str, type[Runner]] = {
    "podman_exec": PodmanExec,
    "podman_run": PodmanRun,
    "process": Process,
}


def make(layout: Layout, jobset: Jobset, log: Callable[[str], None] = lambda _text: None) -> Runner:
    """Return the runner of a jobset."""
    return _RUNNERS[jobset.runner](layout, jobset, log)
