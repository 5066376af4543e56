# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""backup and restore as an operator calls them, from one host to another, with a worker at it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host, make_program, wait_for

from tests.integration.conftest import House


@pytest.fixture
def hosts(tmp_path: Path) -> Any:
    """Two hosts that have the jobset quick, as setup would have left them, and the playbooks on each."""
    program = make_program(tmp_path / "sagequeue")
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("first", "second"):
            folder = tmp_path / name
            host = Host(folder, program)
            stack.callback(host.close)
            host.define("quick", stride=4, secrets={"KEY": "s3cret"})
            (folder / "house").mkdir()
            house = House(folder / "house")
            house.root = host.root
            house.write()
            made.append((host, house))
        yield made


def test_to_another_host_while_a_worker_is_at_it(hosts: Any, tmp_path: Path) -> None:
    (host, house), (other, other_house) = hosts
    host.script('while [ "$JOB_OFFSET" = 1 ]; do sleep 0.1; done; echo "part $JOB_OFFSET" > state_$JOB_OFFSET.txt\n')
    queue = host.queue("quick")
    queue.enqueue(queue.jobset.offset_jobs())
    host.worker("quick-1")
    wait_for(lambda: host.states("quick")["quick_off1"] == "running")

    made = house.play("backup", jobset="quick", fetch=str(tmp_path / "kept"), state_files=["state_*.txt"])
    assert made.rc == 0, made.failures
    assert "2 pending, 1 running, 1 done, 0 failed; without the values of the secrets KEY" in made.said()
    [archive] = os.listdir(tmp_path / "kept")
    assert os.listdir(host.root / "backup") == [archive]

    wrong = other_house.play("restore", jobset="quick")
    assert wrong.rc != 0 and "Name the archive: -e file=PATH on the host, or -e send=PATH" in wrong.failures[0]
    predicted = other_house.play("restore", "--check", jobset="quick", send=str(tmp_path / "kept" / archive))
    assert predicted.rc == 0, predicted.failures
    assert "would be restored: quick as it was at" in predicted.said() and other.states("quick") == {}
    done = other_house.play("restore", jobset="quick", send=str(tmp_path / "kept" / archive))
    assert done.rc == 0, done.failures
    assert "ran when it was backed up: quick_off1, now pending" in done.said()
    assert "quick has 3 pending, 0 running, 1 done, 0 failed" in done.said()
    assert (other.work / "state_0.txt").read_text() == "part 0\n"
    again = other_house.play("restore", jobset="quick", file=str(tmp_path / "kept" / archive))
    assert again.rc == 0 and again.changed == [] and "restored already" in again.said()
    other.script("exit 0\n")
    other.work_off("quick-1")
    assert set(other.states("quick").values()) == {"done"}
