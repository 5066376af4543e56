# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""A module of the collection as a real process, with its arguments on stdin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COLLECTIONS = Path(__file__).resolve().parents[2] / "playbooks" / "collections"


def run_module(module: str, options: dict[str, Any], folder: Path, limit: str = "unlimited", **environment: str) -> dict[str, Any]:
    """Run a module; return its result, which says whether it failed, as its exit status does.

    Args:
        module: its name.
        options: its arguments, with those of Ansible's own that a test wants.
        folder: where it may put what it needs for a while.
        limit: how many blocks a file that it writes may have (ulimit -f).
        environment: variables that it gets besides.
    """
    start = (
        # What Ansible's own wrapper sets.
        "from ansible.module_utils import basic; basic._ANSIBLE_PROFILE = 'legacy'\n"
        f"from ansible_collections.sagequeue.batch.plugins.modules import {module}; {module}.main()\n"
    )
    path = os.pathsep.join([str(COLLECTIONS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["/bin/sh", "-c", f'ulimit -f {limit}; exec "$@"', "sh", sys.executable, "-c", start],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {**options, "_ansible_remote_tmp": str(folder)}}),
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert bool(result.get("failed")) == (done.returncode != 0)
    return result
