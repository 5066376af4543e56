# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What must be so for a runner or an operator's command to be a small thing to add: docs/adding.md."""

from __future__ import annotations

import ast
import re

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_change import _LEAVING
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.known import KNOWN
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import keys
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners import known
from ansible_collections.sagequeue.batch.tests.unit.batch_host import REPOSITORY

FOLDER = REPOSITORY / "plugins" / "module_utils" / "dirqueue" / "runners"


def test_a_jobset_may_name_each_runner_and_supervisor_there_is() -> None:
    assert list(keys.RUNNERS) == sorted(known.Runner.kinds)
    assert set(keys.SUPERVISORS) == set(KNOWN)


def test_what_changes_a_queue_has_the_workers_of_each_engine_come() -> None:
    assert set(keys.ENGINES) == set(_LEAVING) and all(KNOWN[name] is kind for name, kind in _LEAVING.items())


@pytest.mark.parametrize("name", keys.RUNNERS)
def test_a_runner_is_a_file_and_a_line_and_knows_no_other(name: str) -> None:
    lines = [line.strip() for line in (FOLDER / "known.py").read_text().splitlines()]
    assert lines.count(f"{name},") == 1
    near = {
        imported
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for imported in ([node.module] if node.module else [one.name for one in node.names])
    }
    assert not near & set(keys.RUNNERS)


PAGE = (REPOSITORY / "docs" / "adding.md").read_text()
EXAMPLES = {"Add a runner": "docker_exec", "Add an operator's command": "verify"}


@pytest.mark.parametrize("section", EXAMPLES)
def test_the_page_is_true_of_its_examples(section: str) -> None:
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0].replace("NAME", EXAMPLES[section])
    rows = re.findall(r"^\| `([^`]*)` \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) > 5
    for path, what in rows:
        assert (REPOSITORY / path).exists(), path
        line, begins = re.match(r".*one line: `([^`]*)`", what), re.match(r"one row, which begins with `([^`]*)`", what)
        wanted = re.escape(line[1]) if line else f"^\\| `{re.escape(begins[1])}` \\|" if begins else ""
        found = [one for one in (REPOSITORY / path).read_text().splitlines() if re.search(wanted, one)] if wanted else ["whole"]
        assert len(found) == 1, (path, wanted, found)


TARGETS = REPOSITORY / "tests" / "integration" / "targets"
MODULES = sorted(path.stem for path in (REPOSITORY / "plugins" / "modules").glob("[!_]*.py"))


def target_of(module: str) -> str:
    """Where a role has a module's name, ansible-test would run the role."""
    return f"{module}_module" if (REPOSITORY / "roles" / module).exists() else module


def test_each_target_is_a_modules() -> None:
    assert sorted(path.name for path in TARGETS.glob("[!.]*") if not path.name.startswith("setup_")) == sorted(map(target_of, MODULES))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_target(module: str) -> None:
    said = "\n".join(path.read_text() for path in sorted((TARGETS / target_of(module) / "tasks").glob("*.yml")))
    calls = re.findall(rf"^ *sagequeue\.batch\.{module}:\n((?:.+\n)+)", said, flags=re.MULTILINE)
    looped = [call for call in calls if "check_mode:" in call and "loop:" in call]
    # One that only looks has no diff, and no more has one that makes a new file.
    shows = "diff" in (REPOSITORY / "plugins" / "modules" / f"{module}.py").read_text().partition('"""\nEXAMPLES')[2]
    assert looped and all("diff: true" in call for call in looped if shows), module
    assert any("failed_when: refused.msg is not search(" in call for call in calls) and "ansible.builtin.assert:" in said, module
    assert (TARGETS / target_of(module) / "aliases").exists(), "ansible-test does not run it without"
