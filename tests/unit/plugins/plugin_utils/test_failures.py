# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Why a task failed, as an operator reads it."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("ansible")
from ansible_collections.sagequeue.batch.plugins.plugin_utils.failures import Failure, failures, may_be_rescued


class Task:
    def __init__(self, action: str = "ansible.builtin.copy", parent: Any = None) -> None:
        self.action, self.name, self._uuid, self._parent = action, "Write it", object(), parent

    def get_name(self) -> str:
        return f"role : {self.name}"

    def get_path(self) -> str:
        return os.path.join(os.getcwd(), "x.yml:3")


class Block(Task):
    def __init__(self, rescue: list[Any], parent: Any = None) -> None:
        super().__init__(parent=parent)
        self.rescue = rescue
        self.block: list[Any] = []


def told(task: Task, found: dict[str, Any], unreachable: str = "") -> list[Failure]:
    return failures(task, found, unreachable, lambda item: str(item["item"]))


def test_what_is_written_for_people_needs_no_place() -> None:
    (found,) = told(Task(), {"msg": "Task failed: no room", "invocation": {}, "_ansible_no_log": False})
    assert found.lines == ["no room"] and found.next == 'in the task "role : Write it", x.yml:3; the same command with -v says more'
    assert found.entry == {
        **{"task": "Write it", "path": Task().get_path(), "msg": "no room"},
        "result": {"msg": "Task failed: no room"},
    }
    assert told(Task("ansible.builtin.fail"), {"msg": "no"})[0].next == ""
    assert told(Task("sagequeue.batch.queue_info"), {"msg": "no", "invocation": {}})[0].next == ""
    assert "in the task" in told(Task("sagequeue.batch.queue_info"), {"msg": "no"})[0].next
    assert "in the task" in told(Task("fail"), {"msg": "Task failed: a template"})[0].next
    assert told(Task(), {"msg": "no route"}, "n1")[0].next.startswith("Next: see that n1 is up")


def test_of_a_loop_the_items_that_failed() -> None:
    results = [{"item": "a"}, {"item": "b", "failed": True, "msg": "no"}, {"item": "c" * 60, "failed": True, "msg": "no"}]
    assert [one.lines for one in told(Task(), {"msg": "some", "results": results})] == [["b: no"], ["no"]]


def test_of_a_command_the_end_of_what_it_printed() -> None:
    found = {"cmd": ["false", "x"], "rc": 2, "msg": "non-zero return code", "stderr": "\n".join(map(str, range(20)))}
    (one,) = told(Task(), found)
    assert one.lines == ["false x ended with exit status 2", *(f"  {number}" for number in range(10, 20))]
    assert told(Task(), {})[0].lines == ["no reason was given"]


def test_only_a_task_in_the_part_that_is_rescued_is() -> None:
    plain, outer = Block([]), Block(["rescue"])
    task = Task(parent=plain)
    plain.block, plain._parent, outer.block = [task], outer, [plain]
    assert may_be_rescued(task)
    outer.block = []
    assert not may_be_rescued(task) and not may_be_rescued(Task())
