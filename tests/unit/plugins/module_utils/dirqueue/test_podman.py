# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The Podman runners' command lines and how they read what podman says. Podman itself runs in molecule's scenarios."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carried
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import NotReady
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners import client
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.base import Command, Running
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make

# It notes how it was called, and answers what the file `answers` says for the call's first words.
PODMAN = f"""#!{sys.executable}
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps([sys.argv[1:], dict(os.environ)]) + "\\n")
for words, (status, out, err) in json.load(open(here + "/answers")).items():
    if " ".join(sys.argv[1:]).startswith(words):
        sys.stdout.write(out)
        sys.stderr.write(err)
        sys.exit(status)
"""
RUNNING = {"container inspect": [0, "true abc 2026-01-01\n", ""]}


@pytest.fixture
def podman(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = host.base / "podman-bin"
    folder.mkdir()
    (folder / "podman").write_text(PODMAN, encoding="utf-8")
    (folder / "podman").chmod(0o755)
    (folder / "answers").write_text("{}", encoding="utf-8")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def answer(podman: Path, answers: dict[str, Any]) -> None:
    (podman / "answers").write_text(json.dumps(answers), encoding="utf-8")


def calls(podman: Path) -> list[Any]:
    path = podman / "calls"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def runner_of(host: Any, kind: str, **keys: Any) -> Any:
    definition = host.define(runner=kind, image="localhost/x:1", container_workdir="/w", **keys)
    return make(host.queue().layout, definition)


def ran(runner: Any, environment: dict[str, str]) -> tuple[Any, Any]:
    whose = carried(runner.layout, "a", "c1")
    running = runner.start(Command(["prog", "a b"], environment, os.open("/dev/null", os.O_WRONLY)), whose, "token")
    while not (outcome := runner.reap(running)):
        time.sleep(0.01)
    return running, outcome


def test_exec_passes_values_but_not_in_the_process_list(host: Any, podman: Path) -> None:
    _running, outcome = ran(runner_of(host, "podman_exec"), {"JOB_SECRET": "s3cret $x", "HOME": "/in", "SAGEQUEUE_CLAIM": "c1"})
    # Before, it has tried to start an agent, which on a slow machine may have been given up before it came to say so.
    *_agent, (words, environment) = calls(podman)
    options = ["--env", "JOB_SECRET", "--env", "HOME=/in", "--env", "SAGEQUEUE_CLAIM"]
    assert words == ["exec", "--workdir", "/w", *options, "sagemath", "prog", "a b"]
    assert environment["JOB_SECRET"] == "s3cret $x" and environment["HOME"] == os.environ["HOME"]
    assert (outcome.exit_status, outcome.signal) == (0, None)


@pytest.mark.parametrize("name", ["JOB_HTTP_PROXY", "MY_PROXY", "GOOGLE_API_KEY", "XY_CONTAINER", "API_TOKEN"])
def test_only_what_podman_obeys_stands_in_the_process_list(host: Any, podman: Path, name: str) -> None:
    ran(runner_of(host, "podman_exec"), {name: "s3cret", "SAGEQUEUE_CLAIM": "c1"})
    words, environment = calls(podman)[-1]
    assert name in words and "s3cret" not in str(words) and environment[name] == "s3cret"


def test_run_takes_secrets_from_podman(host: Any, podman: Path) -> None:
    runner = runner_of(host, "podman_run", podman_secrets={"API_TOKEN": "my-token"})
    answer(podman, {"secret inspect": [1, "", "no such secret"]})
    with pytest.raises(NotReady, match="the podman secret my-token is not there; make it: podman secret create my-token FILE"):
        runner.ready()
    answer(podman, {})
    runner.ready()
    ran(runner, {"SAGEQUEUE_CLAIM": "c1"})
    assert "--secret=my-token,type=env,target=API_TOKEN" in calls(podman)[-1][0]


def test_run_names_and_labels_its_container(host: Any, podman: Path) -> None:
    ran(runner_of(host, "podman_run", run_options="--network none"), {"JOB_X": "1", "SAGEQUEUE_CLAIM": "c1", "SAGEQUEUE_JOB": "a"})
    ((words, _environment),) = calls(podman)
    assert words[:6] == ["run", "--rm", "--pull=never", "--log-driver=none", "--name", "sagequeue-c1"]
    assert "--label=SAGEQUEUE_CLAIM=c1" in words and "--label=SAGEQUEUE_JOB=a" in words and not any("JOB_X=" in word for word in words)
    assert f"{host.work}:/w" in words and words[-3:] == ["localhost/x:1", "prog", "a b"]
    assert words.index("--network") < words.index("localhost/x:1")


@pytest.mark.parametrize(
    ("status", "exit_status", "number"), [(0, 0, None), (3, 3, None), (137, None, 9), (143, None, 15), (255, 255, None)]
)
def test_exit_statuses(host: Any, podman: Path, status: int, exit_status: int | None, number: int | None) -> None:
    answer(podman, {"exec": [status, "", ""]})
    _running, outcome = ran(runner_of(host, "podman_exec"), {})
    assert (outcome.exit_status, outcome.signal) == (exit_status, number)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"container inspect": [125, "", "no such container"]}, "the container sagemath is not there; start it"),
        ({"container inspect": [0, "false abc x\n", ""]}, "the container sagemath is not running; start it: systemctl --user start"),
        ({**RUNNING, "exec": [1, "", ""]}, "the script /w/job.sh is not in the container sagemath; put job.sh into"),
        ({**RUNNING, "exec": [126, "", "no such folder"]}, "the container sagemath can't run commands in /w: no such folder"),
    ],
)
def test_what_exec_waits_for(host: Any, podman: Path, answers: dict[str, Any], message: str) -> None:
    answer(podman, answers)
    with pytest.raises(NotReady) as caught:
        runner_of(host, "podman_exec").ready()
    assert message in str(caught.value)


def test_a_container_that_was_started_anew_is_not_the_jobs_fault(host: Any, podman: Path) -> None:
    answer(podman, RUNNING)
    runner = runner_of(host, "podman_exec")
    token = runner.ready()
    running, _outcome = ran(runner, {})
    running.token = token
    assert runner.why_lost(running) == ""
    answer(podman, {"container inspect": [0, "true abc later\n", ""]})
    assert "started anew" in runner.why_lost(running)
    answer(podman, {"container inspect": [0, "false abc later\n", ""]})
    assert "is not running" in runner.why_lost(running)


def test_an_image_that_is_not_there(host: Any, podman: Path) -> None:
    runner = runner_of(host, "podman_run")
    assert runner.ready() == "localhost/x:1"
    answer(podman, {"image exists": [1, "", ""]})
    with pytest.raises(NotReady, match="the image localhost/x:1 is not there; build or pull it"):
        runner.ready()


def test_without_podman(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for kind in ("podman_exec", "podman_run"):
        with pytest.raises(NotReady, match="podman is not installed"):
            runner_of(host, kind).ready()


def test_what_runs_in_the_container_is_looked_for_and_killed(host: Any, podman: Path) -> None:
    answer(podman, {"container inspect": [0, "true\n", ""]})
    runner_of(host, "podman_exec").end({"SAGEQUEUE_CLAIM": "c1"}, {"SAGEQUEUE_CLAIM": "c2"})
    words = calls(podman)[-1][0]
    sought = ["SAGEQUEUE_CLAIM=c1", "or", "SAGEQUEUE_CLAIM=c2"]
    assert words[0] == "unshare" and words[2:] == [str(host.program), "carriers", "--signal", "9", "--until-gone", *sought]


class OldEnum(int):
    """A signal as Python has it before 3.11."""

    def __str__(self) -> str:
        return "Signals.SIGTERM"


@pytest.mark.parametrize("kind", ["podman_exec", "podman_run"])
def test_a_signal_is_passed_on_as_a_number(host: Any, podman: Path, kind: str) -> None:
    runner_of(host, kind).signal(Running(0, {"SAGEQUEUE_CLAIM": "c1"}, ""), OldEnum(15))
    words = calls(podman)[-1][0]
    assert words[words.index("--signal") + 1] == "15"


def test_a_container_of_a_dead_claim_is_removed(host: Any, podman: Path) -> None:
    labels = {"abc": ("a", "t", "1"), "other": ("b", "t", "2"), "more": ("a", "u", "3"), "def": ("a", "t", "4"), "third": ("c", "t", "5")}
    keys = ("SAGEQUEUE_JOB", "SAGEQUEUE_JOBSET", "SAGEQUEUE_CLAIM")
    answer(podman, {"ps": [0, json.dumps([{"Id": name, "Labels": dict(zip(keys, values))} for name, values in labels.items()]), ""]})
    runner_of(host, "podman_run").end({"SAGEQUEUE_JOB": "a", "SAGEQUEUE_JOBSET": "t"}, {"SAGEQUEUE_CLAIM": "5"})
    words = [call[0] for call in calls(podman)]
    assert "--filter=label=SAGEQUEUE_CLAIM" in words[0]
    assert [word[-1] for word in words[1:]] == ["abc", "def", "third"] and all(word[:2] == ["rm", "--force"] for word in words[1:])


@pytest.mark.parametrize(
    ("kind", "answers", "message"),
    [
        ("podman_exec", {"container": [125, "", "Error: locked"]}, "podman can't tell whether sagemath runs: Error: locked"),
        (
            "podman_exec",
            {"container exists": [0, "", ""], "container inspect": [125, "", "Error: locked"]},
            "podman can't tell whether sagemath runs: Error: locked",
        ),
        (
            "podman_exec",
            {"container exists": [0, "", ""], "container inspect": [0, "true\n", ""], "unshare": [125, "", "Error: no"]},
            "can't look for a job's processes in the container: Error: no",
        ),
        ("podman_run", {"ps": [125, "", "Error: locked"]}, "podman can't tell what a dead worker's job left running: Error: locked"),
        (
            "podman_run",
            {"ps": [0, '[{"Id": "abc", "Labels": {"SAGEQUEUE_CLAIM": "c1"}}]', ""], "rm": [125, "", "Error: no"]},
            "the container abc of a dead worker's job can't be removed: Error: no",
        ),
    ],
)
def test_what_cannot_be_looked_for_is_not_taken_for_gone(
    host: Any, podman: Path, kind: str, answers: dict[str, Any], message: str
) -> None:
    answer(podman, answers)
    with pytest.raises(NotReady, match=f"^{message}"):
        runner_of(host, kind).end({"SAGEQUEUE_CLAIM": "c1"})


def test_a_container_that_is_gone_holds_no_process(host: Any, podman: Path) -> None:
    answer(podman, {"container exists": [1, "", ""]})
    runner_of(host, "podman_exec").end({"SAGEQUEUE_CLAIM": "c1"})
    assert not [words for words, _environment in calls(podman) if words[0] == "unshare"]


def test_a_container_is_signalled_by_its_name(host: Any, podman: Path) -> None:
    runner = runner_of(host, "podman_run")
    running, _outcome = ran(runner, {"SAGEQUEUE_CLAIM": "c1"})
    runner.signal(running, 15)
    (words, _environment) = calls(podman)[-1]
    started = calls(podman)[0][0]
    assert words == ["kill", "--signal", "15", started[started.index("--name") + 1]]


def test_a_podman_that_does_not_answer_is_not_waited_for(host: Any, podman: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (podman / "podman").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(client, "PATIENCE", 0.2)
    with pytest.raises(NotReady, match="podman container has not answered for 0.2 s"):
        runner_of(host, "podman_exec").ready()
