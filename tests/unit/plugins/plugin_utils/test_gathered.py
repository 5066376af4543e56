# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What hosts say in a task: each thing once, and with their names only where there are several."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("ansible")
from ansible_collections.sagequeue.batch.plugins.plugin_utils.gathered import Gathered, Told


def printed(gathered: Gathered, hosts: list[str], check: bool = False) -> list[tuple[str, str]]:
    return [(told.kind, line) for told in gathered.drain(hosts, sys.maxsize, check) for line in told.lines]


def test_one_host_is_not_named() -> None:
    gathered = Gathered()
    gathered.add("said", "a", ["it is so"])
    gathered.add("said", "a", [])
    gathered.add("FAILED", "a", ["it is not so"], "what is next")
    assert printed(gathered, ["a"]) == [("said", "it is so"), ("FAILED", "FAILED: it is not so"), ("FAILED", "  what is next")]
    assert printed(gathered, ["a"]) == []


def test_of_several_hosts_those_that_say_the_same_are_named_together() -> None:
    gathered = Gathered()
    for host in ("c", "a"):
        gathered.add("said", host, ["the same"])
    gathered.add("said", "b", ["b: one", "two"])
    gathered.add("said", "a", ["one", "two"])
    gathered.add("all", "a", ["for all"])
    gathered.add("UNREACHABLE", "b", ["no route"])
    assert [line for _kind, line in printed(gathered, ["a", "b", "c"])] == [
        *["a, c: the same", "b: one", "two", "a:", "  one", "  two", "for all", "b: UNREACHABLE: no route"]
    ]


def test_a_change_is_said_once_whatever_number_of_diffs_it_has() -> None:
    gathered = Gathered()
    gathered.add("change", "a", ["--- x\n+++ x\n"], "Write it")
    gathered.add("change", "a", ["--- y\n+++ y\n"], "Write it")
    gathered.add("change", "a", [], "Make it")
    assert gathered.has_change("Make it", "a") and not gathered.has_change("Make it", "b") and not gathered.has_change("Write", "a")
    told = gathered.drain(["a"], sys.maxsize, True)
    assert [line for one in told for line in one.lines] == [
        *["would change: Write it", "--- x", "+++ x", "--- y", "+++ y", "would change: Make it"]
    ]
    assert told[1] == Told("change", ["--- x", "+++ x"], True) and not told[0].plain
