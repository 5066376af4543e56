# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The line that says what is being done."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ansible")
from ansible_collections.sagequeue.batch.plugins.plugin_utils import activity as activities
from ansible_collections.sagequeue.batch.plugins.plugin_utils.activity import Activity


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Clock()
    monkeypatch.setattr(activities, "time", made)
    return made


def begun(*hosts: str) -> Activity:
    activity = Activity()
    activity.begin("Build the image", "build")
    for host in hosts:
        activity.start(host, True)
    return activity


def test_nothing_is_said_before_a_host_has_answered_that_ssh_may_ask_for(clock: Clock) -> None:
    activity = Activity()
    activity.start("a", False)
    assert not activity.lasts()
    activity.begin("Look", "")
    activity.start("a", False)
    assert not activity.lasts()
    activity.end("a", False, False)
    activity.begin("Look again", "")
    activity.start("a", False)
    assert activity.lasts()
    activity.begin("", "")
    activity.start("a", False)
    assert not activity.lasts()


def test_what_took_long_the_last_time(clock: Clock) -> None:
    first = begun("a")
    clock.now += 100
    first.end("a", True, False)
    first.save()
    activity = begun("a")
    clock.now += 50
    assert activity.line(80, {"a"}) == "Build the image: [##########----------] for 50 s, about 50 s left"
    clock.now += 60
    assert activity.line(200, {"a"}) == "Build the image: it took 1 min the last time, for 1 min"


def test_what_was_only_predicted_is_not_remembered(clock: Clock) -> None:
    first = begun("a")
    clock.now += 100
    first.end("a", True, True)
    first.save()
    assert begun("a").line(80, {"a"}) == "Build the image"


def test_how_far_the_hosts_are_together(clock: Clock) -> None:
    activity = begun("a", "b")
    activity.poll("a", {"progress": {"done": 3, "total": 10, "seconds_left": 20}})
    activity.poll("b", {"retries": 5, "counts": {"pending": 4, "running": 1, "done": 4, "failed": 1}, "seconds_left": 30})
    activity.poll("b", {"counts": {"odd": 1}})
    clock.now += 2
    assert activity.line(200, {"a", "b", "c"}) == (
        "Build the image: [########------------] 8/20, 4 pending, 1 running, 1 failed, for 2 s, about 30 s left, waiting for a, b"
    )
    activity.end("a", False, False)
    assert "5/10" in activity.line(200, {"b"})


@pytest.mark.parametrize(("width", "line"), [(40, "Build the ...: [----------] 0/3, for 2 s"), (30, "[----------] 0/3, for 2 s")])
def test_on_a_narrow_terminal_the_name_gives_way(clock: Clock, width: int, line: str) -> None:
    activity = begun("a")
    activity.poll("a", {"progress": {"done": 0, "total": 3}})
    clock.now += 2
    assert activity.line(width, {"a"}) == line
