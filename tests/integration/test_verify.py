# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""verify as an operator calls it, on a queue that no worker works on."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.definitions import store
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_verify_says_so_or_fails_with_the_next_step(new_house: Any) -> None:
    layout = Layout(str(new_house.root), "quick")
    layout.create()
    definition = Jobset("quick", new_house.jobsets["quick"], {"runner": "process"})
    store(layout, definition)
    with Queue(layout, definition) as queue:
        queue.enqueue(definition.offset_jobs())
    sound = new_house.play("verify", jobset="quick")
    assert sound.rc == 0 and sound.changed == []
    assert "jobset quick keeps what it promises: 4 pending, 0 running, 0 done, 0 failed; the gate is open" in sound.said()

    (new_house.root / "var/quick/queue/pending/quick_off2.env").write_text("x")
    words = ["ansible-playbook", "-i", str(new_house.folder / "inventory"), f"{REPOSITORY}/playbooks/verify.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": f"{REPOSITORY}/ansible.cfg"}
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    flowing = " ".join((ran.stdout + ran.stderr).split())
    assert ran.returncode == 2
    assert "1 of what the queue promises does not hold: jobset quick: job quick_off2 has a file that can't be understood" in flowing
    ran = subprocess.run([*words, "-e", "output=json"], env=environment, capture_output=True, text=True, check=False)
    ((_host, found),) = json.loads(ran.stdout)["hosts"].items()
    (problem,) = found["failures"][0]["result"]["problems"]
    assert ran.returncode == 2 and problem["what"] == "job quick_off2" and "quick_off2.env; as it is, a worker" in problem["next"]
