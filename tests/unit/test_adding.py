# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What must be so for a runner or an operator's command to be a small thing to add: docs/adding.md."""

from __future__ import annotations

import ast

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import runners
from ansible_collections.sagequeue.batch.tests.unit.batch_host import REPOSITORY

FOLDER = REPOSITORY / "plugins" / "module_utils" / "dirqueue" / "runners"


@pytest.mark.parametrize("name", runners.NAMES)
def test_a_runner_is_a_file_and_a_line_and_knows_no_other(name: str) -> None:
    lines = [line.strip() for line in (FOLDER / "__init__.py").read_text().splitlines()]
    assert lines.count(f"{name},") == 1
    near = {
        imported
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for imported in ([node.module] if node.module else [one.name for one in node.names])
    }
    assert not near & set(runners.NAMES)
