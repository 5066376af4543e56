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

ANSWER = {"workers": 1, "stride": 4, "states": {}, "lines": {}, "info": {"gate": {"solved_by": ""}, "seconds_left": None, "settled": False}}


def refused(tmp_path: Path, answer: Any, **more: Any) -> str:
    """Return why a step can't be taken.

    Args:
        tmp_path: where the record may lie.
        answer: what both hosts answer.
        more: options of the step; hostvars: what each host answers.
    """
    known = {"hostvars": more.pop("hostvars")} if "hostvars" in more else {}
    options = {"step": "enqueue", "jobset": "t", "record": str(tmp_path / "t.json"), "hosts": ["a", "b"], "answers": ["_it"], **more}
    variables = {"hostvars": {"a": answer, "b": answer}, "sagequeue_jobsets": {"quick": {}, "other": {}}}
    absent = dict.fromkeys(("policy", "offsets", "jobs_file", "force", "source", "lost", "running", "jobs"))
    with pytest.raises(QueueError) as caught:
        _Step({**absent, **options}, {**variables, **known}, True).done()
    return str(caught.value)


def test_a_step_that_cannot_be_taken_says_why(tmp_path: Path) -> None:
    told = {"_it": {"msg": "Failed to connect to the host via ssh: No route to host"}}
    assert refused(tmp_path, told) == "jobset t: none of a, b can be asked; a: No route to host"
    assert refused(tmp_path, {"_it": ANSWER}, policy="best") == "there is no policy best; there are sequential, random, smart, frugal"
    strides = {"a": {"_it": ANSWER}, "b": {"_it": {**ANSWER, "stride": 8}}}
    why = "jobset t: its stride is 4 on a, 8 on b; run setup, so that it is the same on all hosts"
    assert refused(tmp_path, {}, hostvars=strides) == why
    assert refused(tmp_path, {}, jobset="") == "Name a jobset: -e jobset=NAME; defined are other, quick"


def test_jobs_that_cannot_move_stay(tmp_path: Path) -> None:
    it = {"_it": ANSWER}
    why = "is not one of the hosts of jobset t: a, b; name one: -e from=HOST"
    assert refused(tmp_path, it, step="move", source="c") == f"c {why}"
    assert refused(tmp_path, it, step="back") == f"no host {why}"
    assert refused(tmp_path, it, step="move", source="a", jobs=["off0"]) == "jobset t: a has none of the jobs off0; nothing was moved"
    away = {"a": {"_it": {"msg": "Failed to connect to the host via ssh: No route to host"}}, "b": it}
    assert refused(tmp_path, it, step="move", source="a", hostvars=away) == (
        "a can't be asked (No route to host). If it is down for good, or switched off so that nothing runs there,"
        " give it up by adding -e lost=true: what was pending there then goes to other hosts"
    )
    assert refused(tmp_path, it, step="back", source="a", hostvars=away) == "a can't be asked (No route to host): it is not back yet"
