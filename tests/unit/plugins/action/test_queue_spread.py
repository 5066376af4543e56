# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What keeps a step of a spread jobset from being taken. How the steps go on, over three hosts, is in tests/integration/test_spread.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ansible")
from ansible_collections.sagequeue.batch.plugins.action.queue_spread import _Step
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError

ANSWER = {"workers": 1, "states": {}, "info": {"gate": {"solved_by": ""}, "seconds_left": None, "settled": False}}


def refused(tmp_path: Path, answer: Any, **more: Any) -> str:
    """Return why a step can't be taken."""
    options = {"step": "enqueue", "jobset": "t", "record": str(tmp_path / "t.json"), "hosts": ["a", "b"], "answers": ["_it"], **more}
    variables = {"hostvars": {"a": answer, "b": answer}, "sagequeue_jobsets": {"quick": {}, "other": {}}}
    with pytest.raises(QueueError) as caught:
        _Step({"policy": None, **options}, variables, True)
    return str(caught.value)


def test_a_step_that_cannot_be_taken_says_why(tmp_path: Path) -> None:
    told = {"_it": {"msg": "Failed to connect to the host via ssh: No route to host"}}
    assert refused(tmp_path, told) == "jobset t: none of a, b can be asked; a: No route to host"
    assert refused(tmp_path, {"_it": ANSWER}, policy="best") == "there is no policy best; there are sequential, random, smart, frugal"
    assert refused(tmp_path, {}, jobset="") == "Name a jobset: -e jobset=NAME; defined are other, quick"
