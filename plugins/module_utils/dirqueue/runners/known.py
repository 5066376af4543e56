# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which runners there are: one line each. docs/adding.md says how to add one."""

from __future__ import annotations

from typing import Callable

from ..jobset import Jobset
from ..layout import Layout

# A runner is known once it is imported. By name, because Ansible sends with a module only what it finds imported so.
from . import (  # noqa: F401  # pylint: disable=unused-import
    apptainer,
    condor_job,
    docker_exec,
    podman_exec,
    podman_run,
    process,
)
from .base import Runner


def make(layout: Layout, jobset: Jobset, log: Callable[[str], None] = lambda _text: None) -> Runner:
    """Return the runner of a jobset."""
    return Runner.kinds[jobset.runner](layout, jobset, log)
