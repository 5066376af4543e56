# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What must be so for a stranger to find the way: files of a size that can be read at once, each named where one looks for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from ansible_collections.sagequeue.batch.tests.unit.batch_host import REPOSITORY

PLUGINS = REPOSITORY / "plugins"
DIRQUEUE = PLUGINS / "module_utils" / "dirqueue"
LINES = 300
TASKS = [path for where in ("roles/*/tasks/*.yml", "playbooks/*.yml", "playbooks/tasks/*.yml") for path in sorted(REPOSITORY.glob(where))]
TASK_LINES = 60
ABOUT = ("DOCUMENTATION", "EXAMPLES", "RETURN")


def lines_of(path: Path) -> int:
    """Return how many lines a file has but for its documentation."""
    text = path.read_text(encoding="utf-8")
    about: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            about.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in ABOUT:
            about.update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(text.splitlines()) - len(about)


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_a_file_can_be_read_at_once(path: Path) -> None:
    assert lines_of(path) <= LINES, "split it where its subject splits"


@pytest.mark.parametrize("path", TASKS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_of_tasks_can_be_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= TASK_LINES, "split it where its subject splits"


def test_the_page_names_each_file_of_the_library() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    there = {path.name for path in DIRQUEUE.rglob("*.py") if path.name != "__init__.py"}
    assert not {name for name in there if f"`{name}`" not in page}
    named = set(re.findall(r"`([a-z_]+\.py)`", page))
    assert not {name for name in named if not list(PLUGINS.rglob(name))}, "they are gone"


def test_each_arrow_of_the_page_is_one_of_the_code() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", page.partition("subgraph dirqueue")[2].partition("    end")[0], flags=re.MULTILINE))
    there = set()
    for path in DIRQUEUE.rglob("*.py"):
        inner = path.parent != DIRQUEUE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1 + inner:
                below = [node.module.split(".")[0]] if node.module else [one.name for one in node.names]
                there |= {("runners" if inner else path.stem, name) for name in below}
    # Queue and Worker are made of these.
    parts = dict.fromkeys(("notes", "order", "control", "copies", "intake", "records", "gate", "store", "batch"), "queue")
    parts |= dict.fromkeys(("current", "patience"), "worker")
    there = {tuple(parts.get(name, name) for name in arrow) for arrow in there}
    assert len(drawn) > 30 and not drawn - there
