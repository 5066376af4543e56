# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Definitions: what they may say, and what a person reads who got one wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import MalformedJob, QueueError


def define(**keys: Any) -> jobset.Jobset:
    return jobset.Jobset("rook_r3", {"script": "s.sage", "workdir": "/w", **keys})


def test_what_is_left_out_is_filled_in() -> None:
    found = jobset.Jobset("rook_r3", {"script": "s.sage"}, {"home": "/home/anna", "sage_command": ["/opt/sage"], "runner": "process"})
    assert (found.workdir, found.command, found.gate_file, found.gate) == (
        "/home/anna/Jupyter",
        ["/opt/sage"],
        "rook_r3_stop.txt",
        "/home/anna/Jupyter/rook_r3_stop.txt",
    )
    assert (found.stride, found.workers, found.attempts, found.recoveries, found.grace, found.timeout) == (1, 1, 3, 10, 8, 0)
    assert (found.log_size, found.log_keep) == (64 << 20, 1)
    assert found.enabled is False and found.environment == {} and found.solved_pattern == "off={offset} stride={stride}"


def test_a_container_brings_its_own_sage() -> None:
    found = jobset.Jobset("x", {"script": "s.sage", "runner": "podman_exec"}, {"sage_command": ["/opt/sage"]})
    assert (found.command, found.container, found.container_workdir) == (["/sage/sage"], "sagemath", "/home/sage/notebooks")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"script": ""}, "jobset rook_r3: the key 'script' is missing"),
        ({"script": None}, "the key 'script' is missing"),
        ({"strid": 8}, "jobset rook_r3: unknown key 'strid'; did you mean stride?"),
        ({"worker": 8}, "unknown key 'worker'; did you mean workers?"),
        ({"time_out": 8}, "unknown key 'time_out'; did you mean timeout?"),
        ({"xyzzy": 8}, "unknown key 'xyzzy' (keys are script, "),
        ({5: 8}, "unknown key 5"),
        ({"runner": "podman_run"}, "the runner podman_run needs the key 'image'"),
        ({"gate_file": "a/b"}, "gate_file is 'a/b'; it must be a file's name in workdir"),
        ({"gate_file": ".."}, "gate_file is '..'"),
        ({"secrets": {"PATH": "c4nary"}}, "the secret PATH can't be passed on: PATH is a variable that podman obeys; name it otherwise"),
        ({"secrets": {"https_proxy": "c4nary"}}, "https_proxy is a variable that podman obeys"),
        ({"secrets": {"JOB_OFFSET": "c4nary"}}, "JOB_OFFSET is a variable that the worker sets"),
        ({"secrets": {"SAGEQUEUE_CLAIM": "c4nary"}}, "SAGEQUEUE_CLAIM is a variable that the worker sets"),
        ({"secrets": {"A": "c4nary"}, "environment": {"A": "b"}}, "A is given twice, in two of environment, secrets and podman_secrets"),
        ({"podman_secrets": {"A": "b"}, "runner": "podman_exec"}, "give them to the container (sage_container_secrets)"),
        ({"podman_secrets": {"A": "b"}, "runner": "process"}, "podman_secrets are for the runner podman_run, not process"),
        ({"podman_secrets": {"A": "b,target=PATH"}, "runner": "podman_run", "image": "x"}, "'b,target=PATH' of A can't be the name"),
        ({"podman_secrets": {"LD_PRELOAD": "b"}, "runner": "podman_run", "image": "x"}, "LD_PRELOAD is a variable that podman obeys"),
        ({"args": ["--stride", "8"]}, "args has --stride, which the worker itself adds"),
        ({"args": "--rank 3 --offset=2"}, "args has --offset=2"),
        ({"command": ["sage", "--stride=2"]}, "has --stride=2"),
        ({"on_failed": [""]}, "jobset rook_r3: on_failed names no program"),
    ],
)
def test_bad_definitions(keys: dict[Any, Any], message: str) -> None:
    with pytest.raises(QueueError) as caught:
        jobset.Jobset("rook_r3", {"script": "s.sage", "workdir": "/w", **keys})
    assert message in str(caught.value)
    assert "rook_r3" in str(caught.value)
    assert "c4nary" not in str(caught.value)


def test_a_definition_is_a_mapping() -> None:
    with pytest.raises(QueueError, match="jobset x: its definition is not a mapping"):
        jobset.Jobset("x", ["script"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "../x", "a b", ".x"])
def test_bad_names(name: str) -> None:
    with pytest.raises(QueueError, match="can't be a name"):
        jobset.Jobset(name, {"script": "s"})


def test_look_alikes_of_stride_and_offset_are_fine() -> None:
    assert define(args="--strides 3 --offset_file x").args == ["--strides", "3", "--offset_file", "x"]


def test_the_command_of_a_job() -> None:
    found = define(
        stride=8,
        command="/sage/sage -python",
        args="--graph {graph} --stop_file {gate_file} --tag '{job} of {jobset}/{stride}' --at {offset} {NOT} {}",
    )
    assert found.argv("rook_r3_off7", {"OFFSET": "7", "GRAPH": "$(rook) 'x'", "ATTEMPTS": "2"}) == [
        *["/sage/sage", "-python", "s.sage", "--graph", "$(rook) 'x'", "--stop_file", "rook_r3_stop.txt"],
        *["--tag", "rook_r3_off7 of rook_r3/8", "--at", "7", "{NOT}", "{}", "--stride", "8", "--offset", "7"],
    ]


def test_values_are_not_filled_in_twice() -> None:
    assert define(args=["{a}"]).argv("j", {"A": "{b}", "B": "x"})[-1] == "{b}"


def test_a_job_without_an_offset_gets_none() -> None:
    assert "--stride" not in define(args="x").argv("j", {"TITLE": "t"})


@pytest.mark.parametrize("offset", ["8", "-1", "x", "", "1 ", "99999999999"])
def test_an_offset_outside_the_stride_is_malformed(offset: str) -> None:
    with pytest.raises(MalformedJob, match="outside the stride 8"):
        define(stride=8).argv("j", {"OFFSET": offset})


def test_a_placeholder_that_a_job_lacks_is_malformed() -> None:
    with pytest.raises(MalformedJob, match=re.escape("asks for {graph}, which this job does not have")):
        define(args="--graph {graph}").argv("j", {})


def test_the_queues_own_keys_are_no_placeholders() -> None:
    with pytest.raises(MalformedJob, match=re.escape("{reason}")):
        define(args="{reason}").argv("j", {"REASON": "x"})


def test_jobs_of_the_stride() -> None:
    assert define(stride=3).offset_jobs().lines == [f"rook_r3_off{k} OFFSET={k}" for k in range(3)]
    assert define(stride=8).offset_jobs([5, 3]).names == ["rook_r3_off5", "rook_r3_off3"]


@pytest.mark.parametrize("offset", [-1, 8, 100])
def test_offsets_outside_the_stride(offset: int) -> None:
    with pytest.raises(QueueError, match=f"offset {offset} is outside the stride; offsets go from 0 to 7"):
        define(stride=8).offset_jobs([0, offset])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SAT gidx=3 off=1 stride=12 J=(0, 1)", True),
        ("off=1 stride=12", True),
        ("off=11 stride=12", False),
        ("off=1 stride=120", False),
        ("koff=1 stride=12", False),
        ("STOP requested by anna", False),
    ],
)
def test_the_job_that_a_gate_names(text: str, named: bool) -> None:
    assert define(stride=12).names_job(text, "rook_r3_off1", {"OFFSET": "1"}) is named


def test_a_pattern_of_ones_own() -> None:
    found = define(solved_pattern="found by {job} [{title}]")
    assert found.names_job("found by j [a.b]", "j", {"TITLE": "a.b"})
    assert not found.names_job("found by j [axb]", "j", {"TITLE": "a.b"})
    assert not found.names_job("found by j []", "j", {})


def test_a_definition_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(QueueError, match="can't be written as JSON in UTF-8"):
        define(script="job\udc80.sh")
    with pytest.raises(QueueError, match="lease is 9; it must be at least 10 s"):
        define(lease=9)
