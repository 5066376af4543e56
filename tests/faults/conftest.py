# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What the fault tests share. They take minutes; with --long they try everything, and take an hour."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.unit.batch_host import host, program, small_disk, wait_for  # noqa: F401
from hypothesis import settings

settings.register_profile("short", max_examples=200, deadline=None)
settings.register_profile("long", max_examples=5000, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="try everything, not a sample")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("long" if config.getoption("--long") else "short")


@pytest.fixture(scope="session")
def long(pytestconfig: pytest.Config) -> bool:
    """Whether to try everything."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(autouse=True, scope="session")
def _ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    os.environ.setdefault(ledger.VARIABLE, str(tmp_path_factory.mktemp("ledger") / "rows.jsonl"))
    yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    path = os.environ.get(ledger.VARIABLE, "")
    if path and Path(path).exists():
        terminalreporter.section("faults")
        terminalreporter.write(ledger.table(ledger.rows(path)))
