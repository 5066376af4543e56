# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Definitions: what they may say, and what a person reads who got one wrong."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import MalformedJob, QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout


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


@pytest.mark.parametrize(("text", "size"), [(0, 0), ("0", 0), (5000, 5000), ("4k", 4096), ("64M", 64 << 20), ("2G", 2 << 30)])
def test_a_size_has_a_unit_or_none(text: Any, size: int) -> None:
    assert define(log_size=text).log_size == size == jobset.Jobset("t", define(log_size=text).to_dict()).log_size


def test_a_container_brings_its_own_sage() -> None:
    found = jobset.Jobset("x", {"script": "s.sage", "runner": "podman_exec"}, {"sage_command": ["/opt/sage"]})
    assert (found.command, found.container, found.container_workdir) == (["/sage/sage"], "sagemath", "/home/sage/notebooks")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"script": ""}, "jobset rook_r3: the key 'script' is missing"),
        ({"script": None}, "the key 'script' is missing"),
        ({"script": 5}, "script is 5; it must be one line of text"),
        ({"script": "a\nb"}, "it must be one line of text"),
        ({"strid": 8}, "jobset rook_r3: unknown key 'strid'; did you mean stride?"),
        ({"worker": 8}, "unknown key 'worker'; did you mean workers?"),
        ({"time_out": 8}, "unknown key 'time_out'; did you mean timeout?"),
        ({"xyzzy": 8}, "unknown key 'xyzzy' (keys are script, "),
        ({5: 8}, "unknown key 5"),
        ({"stride": 0}, "jobset rook_r3: stride is 0; it must be a number of at least 1"),
        ({"stride": -1}, "stride is -1"),
        ({"stride": "eight"}, "stride is 'eight'"),
        ({"stride": 1.5}, "stride is 1.5"),
        ({"stride": True}, "stride is True"),
        ({"stride": 10**9}, "stride is 1000000000"),
        ({"workers": -1}, "workers is -1; it must be a number of at least 0"),
        ({"log_size": 64}, "log_size is 64; it must be a number of bytes of at least 4K, such as 64M, or 0"),
        ({"log_size": "64MB"}, "log_size is '64MB'"),
        ({"log_size": True}, "log_size is True"),
        ({"log_keep": -1}, "log_keep is -1; it must be a number of at least 0"),
        ({"attempts": 0}, "attempts is 0; it must be a number of at least 1"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": "nan"}, "timeout is 'nan'"),
        ({"timeout": "inf"}, "timeout is 'inf'"),
        ({"grace": "soon"}, "grace is 'soon'"),
        ({"runner": "podman-exec"}, "runner is 'podman-exec'; did you mean podman_exec?"),
        ({"runner": "podman_run"}, "the runner podman_run needs the key 'image'"),
        ({"supervisor": "cron"}, "supervisor is 'cron'; did you mean htcondor? (it can be systemd, supervisord, slurm, htcondor)"),
        ({"workdir": "Jupyter"}, "workdir is 'Jupyter'; it must be an absolute path, or begin with ~/"),
        ({"gate_file": "a/b"}, "gate_file is 'a/b'; it must be a file's name in workdir"),
        ({"gate_file": ".."}, "gate_file is '..'"),
        ({"args": 5}, "args is 5; it must be a list of words or one line"),
        ({"args": "it's"}, "No closing quotation"),
        ({"args": {"graph": "rook"}}, "it must be a list of words or one line"),
        ({"args": ["a\0b"]}, "args"),
        ({"environment": {"A": "a\0b"}}, "environment"),
        ({"environment": ["A=1"]}, "it must be a mapping of names to values"),
        ({"environment": {"A B": 1}}, "'A B', which can't be an environment variable's name"),
        ({"environment": {"A=B": 1}}, "'A=B'"),
        ({"secrets": {"PATH": "c4nary"}}, "the secret PATH can't be passed on: PATH is a variable that podman obeys; name it otherwise"),
        ({"secrets": {"https_proxy": "c4nary"}}, "https_proxy is a variable that podman obeys"),
        ({"secrets": {"JOB_OFFSET": "c4nary"}}, "JOB_OFFSET is a variable that the worker sets"),
        ({"secrets": {"SAGEQUEUE_CLAIM": "c4nary"}}, "SAGEQUEUE_CLAIM is a variable that the worker sets"),
        ({"secrets": "c4nary"}, "secrets is no mapping; it must be a mapping of names to values"),
        ({"secrets": ["c4nary"]}, "secrets is no mapping"),
        ({"secrets": {"A B": "c4nary"}}, "'A B', which can't be an environment variable's name"),
        ({"secrets": {"A": "c4nary\0"}}, "the value of A has a NUL byte"),
        ({"secrets": {"A": "c4nary"}, "environment": {"A": "b"}}, "A is given twice"),
        ({"podman_secrets": {"A": "b"}, "runner": "podman_exec"}, "give them to the container (sage_container_secrets)"),
        ({"podman_secrets": {"A": "b"}, "runner": "process"}, "podman_secrets are for the runner podman_run, not process"),
        ({"podman_secrets": {"A": "b,target=PATH"}, "runner": "podman_run", "image": "x"}, "'b,target=PATH' of A can't be the name"),
        ({"podman_secrets": {"LD_PRELOAD": "b"}, "runner": "podman_run", "image": "x"}, "LD_PRELOAD is a variable that podman obeys"),
        ({"engine_options": {"--mem": "1"}}, "it must be a mapping of options' names, without --, to values of one line"),
        ({"engine_options": {"mem": "1\n#SBATCH --uid=0"}}, "engine_options is"),
        ({"engine_options": ["mem"]}, "engine_options is"),
        ({"enabled": "maybe"}, "enabled is 'maybe'; it must be true or false"),
        ({"args": ["--stride", "8"]}, "args has --stride, which the worker itself adds"),
        ({"args": "--rank 3 --offset=2"}, "args has --offset=2"),
        ({"command": ["sage", "--stride=2"]}, "has --stride=2"),
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


def test_numbers_and_flags_may_come_as_text_as_ansible_gives_them() -> None:
    found = define(stride="8", timeout="1.5", enabled="yes")
    assert (found.stride, found.timeout, found.enabled) == (8, 1.5, True)


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


def test_what_is_stored_is_loaded(host: Any) -> None:
    found = host.define("rook", stride=8, environment={"SECRET": "ä $x"}, args=["{gate_file}", "a b"])
    assert jobset.load(str(host.root), "rook").to_dict() == found.to_dict()
    path = jobset.path_of(str(host.root), "rook")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert jobset.stored_text(found) == jobset.current_text(str(host.root), "rook")
    assert os.listdir(os.path.dirname(path)) == ["rook.json"]


def test_an_unknown_jobset(host: Any) -> None:
    with pytest.raises(QueueError, match=r"jobset rook_r4 is not defined on this host \(none is; run setup\)"):
        jobset.load(str(host.root), "rook_r4")
    host.define("rook_r3")
    host.define("shri_r3")
    with pytest.raises(QueueError, match=r"did you mean rook_r3\? \(defined are rook_r3, shri_r3\)"):
        jobset.load(str(host.root), "rook_r4")


@pytest.mark.parametrize("text", ["", "{", '{"script": "x', "\xff"])
def test_a_broken_definition_file(host: Any, text: str) -> None:
    host.define("t")
    with open(jobset.path_of(str(host.root), "t"), "w", encoding="latin-1") as file:
        file.write(text)
    with pytest.raises(QueueError, match="jobset t: .*t.json can't be read .* run setup to write it anew"):
        jobset.load(str(host.root), "t")


def test_a_definition_file_that_a_person_changed_is_checked(host: Any) -> None:
    definition = {**host.define("t").to_dict(), "strides": 3}
    with open(jobset.path_of(str(host.root), "t"), "w", encoding="utf-8") as file:
        json.dump(definition, file)
    with pytest.raises(QueueError, match="unknown key 'strides'; did you mean stride"):
        jobset.load(str(host.root), "t")


def test_a_forgotten_jobset_leaves_its_queue(host: Any) -> None:
    host.define("t")
    host.queue().enqueue([("j", {})])
    jobset.forget(str(host.root), "t")
    assert jobset.defined(str(host.root)) == []
    assert host.states() == {"j": "pending"}


def test_a_definition_that_cannot_be_kept_is_refused(host: Any) -> None:
    with pytest.raises(QueueError, match="can't be written as JSON in UTF-8"):
        define(script="job\udc80.sh")
    with pytest.raises(QueueError, match="lease is 9; it must be at least 10 s"):
        define(lease=9)
    made = host.define()
    path = Path(jobset.path_of(str(host.root), "t"))
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(QueueError, match="can't be read .larger than 1048576 bytes.; run setup to write it anew"):
        jobset.load(str(host.root), "t")
    with pytest.raises(QueueError, match="can't be read .larger than 1048576 bytes.; remove it, and run setup again"):
        jobset.current_text(str(host.root), "t")
    path.write_bytes(b"\xff")
    assert jobset.current_text(str(host.root), "t") == "(not UTF-8)\n" and jobset.current_text(str(host.root), "none") == ""
    path.unlink()
    path.mkdir()
    with pytest.raises(QueueError, match="jobset t: can't write .*Is a directory"):
        jobset.store(Layout(str(host.root), "t"), made)
    assert os.listdir(path.parent) == ["t.json"], "nothing half written is left"
