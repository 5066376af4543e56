# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The runner docker_exec without Docker: `docker exec` runs the command here. With Docker: tests/roles/runners/test_docker.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carried
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import NotReady
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners import docker_exec
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.base import Command
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make

# Notes how it was called. Answers `container inspect` with a file; runs what is to be executed with the variables that were named.
DOCKER = f"""#!{sys.executable}
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
words = sys.argv[1:]
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words[0] == "container":
    status, out, err = json.load(open(here + "/state"))
    sys.stdout.write(out), sys.stderr.write(err), sys.exit(status)
environment = {{"PATH": os.environ["PATH"]}}
words = words[1:]
while words[0].startswith("--"):
    option, _, value = words.pop(0).partition("=")
    if option in ("--env", "--workdir") and not value:
        value = words.pop(0)
    if option == "--workdir":
        os.chdir(value)
    if option == "--env":
        name, equals, text = value.partition("=")
        environment[name] = text if equals else os.environ[name]
os.execvpe(words[1], words[1:], environment)
"""
UP = [0, "running abc 2026\n", ""]


@pytest.fixture
def docker(host: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder: Path = host.base / "docker-bin"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER, encoding="utf-8")
    (folder / "docker").chmod(0o755)
    (folder / "state").write_text(json.dumps(UP), encoding="utf-8")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder
    for path in Path("/dev/shm").glob(f"sagequeue-ended.x{os.getpid()}*"):
        path.unlink()


def runner_of(host: Any, **keys: Any) -> Any:
    host.script("")
    definition = host.define(runner="docker_exec", container="box", container_workdir=str(host.work), **keys)
    return make(host.queue().layout, definition)


def calls(docker: Path) -> list[list[str]]:
    return [json.loads(line) for line in (docker / "calls").read_text(encoding="utf-8").splitlines()]


def start(runner: Any, claim: str, *words: str, **variables: str) -> tuple[Any, int]:
    whose = {"SAGEQUEUE_CLAIM": f"x{os.getpid()}{claim}"}
    reading, writing = os.pipe()
    running = runner.start(Command(list(words), {**variables, **whose}, writing), whose, runner.ready())
    os.close(writing)
    return running, reading


def ended(runner: Any, started: tuple[Any, int]) -> tuple[Any, bytes]:
    with open(started[1], "rb") as output:
        printed = output.read()
    while not (outcome := runner.reap(started[0])):
        time.sleep(0.01)
    return outcome, printed


def test_a_job_gets_what_it_was_given_and_nothing_else(host: Any, docker: Path) -> None:
    runner = runner_of(host)
    given = {"JOB_A": "ä 'x' $y\nz", "HOME": "/in", "EMPTY": ""}
    outcome, printed = ended(runner, start(runner, "a", "env", "-0", **given))
    found = dict(line.split("=", 1) for line in printed.decode().split("\0")[:-1])
    # What measures coverage gives it to whoever calls exec.
    found.pop("COVERAGE_PROCESS_CONFIG", None)
    assert found == {**given, "SAGEQUEUE_CLAIM": f"x{os.getpid()}a", "PATH": os.environ["PATH"]}
    assert (outcome.exit_status, outcome.signal) == (0, None)
    # A value stands in no process list, but for those that the client itself would obey.
    words = calls(docker)[-1]
    assert words[:3] == ["exec", "--workdir", str(host.work)] and "JOB_A" in words and "HOME=/in" in words and "$y" not in str(words)
    assert ended(runner, start(runner, "b", "sh", "-c", "yes | head -n 1; kill -9 $$"))[0].signal == 9
    outcome, printed = ended(runner, start(runner, "c", "no-such-program"))
    assert outcome.exit_status == 127 and printed == b"no-such-program: No such file or directory\n"
    assert ended(runner, start(runner, "d", "/etc/passwd"))[0].exit_status == 126


def test_a_claim_that_has_ended_starts_nothing_any_more(host: Any, docker: Path) -> None:
    runner = runner_of(host)
    before = start(runner, "a", "sleep", "1000")
    other = start(runner, "b", "sleep", "1000")
    runner.end({"SAGEQUEUE_CLAIM": f"x{os.getpid()}a"}, carried(runner.layout, "a", ""))
    assert ended(runner, before)[0].signal == signal.SIGKILL and not runner.reap(other[0])
    assert calls(docker)[-1][:5] == ["exec", "--privileged", "--user=0", "--workdir=/", "box"]
    # Docker's daemon gets round to it only now.
    outcome, printed = ended(runner, start(runner, "a", "echo", "late"))
    assert outcome.exit_status == 1 and printed == b"this claim has ended\n"
    runner.signal(other[0], signal.SIGTERM)
    assert ended(runner, other)[0].signal == signal.SIGTERM


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, "", "Error: No such container: box"], "the container box of Docker's is not there; start it: docker start box"),
        ([0, "exited abc 2026\n", ""], "the container box of Docker's is exited; start it: docker start box"),
        ([1, "", "Cannot connect to the Docker daemon"], "docker can't tell whether box runs: Cannot connect"),
    ],
)
def test_what_it_waits_for(host: Any, docker: Path, state: list[Any], message: str) -> None:
    (docker / "state").write_text(json.dumps(state), encoding="utf-8")
    runner = runner_of(host)
    with pytest.raises(NotReady, match=message):
        runner.ready()
    if "can't" in message:
        with pytest.raises(NotReady, match=message):
            runner.end({"SAGEQUEUE_CLAIM": "c"})
    else:
        # No container, no process.
        runner.end({"SAGEQUEUE_CLAIM": "c"})
        assert not [words for words in calls(docker) if words[0] == "exec"]


def test_a_script_and_a_python_are_needed(host: Any, docker: Path) -> None:
    with pytest.raises(NotReady, match=f"the script {host.work}/other.sh is not in the container box of Docker's; put other.sh into"):
        runner_of(host, script="other.sh").ready()
    (docker / "python3").write_text("#!/bin/sh\necho no python >&2; exit 127\n", encoding="utf-8")
    (docker / "python3").chmod(0o755)
    with pytest.raises(NotReady, match=f"can't run python3 in {host.work}: no python"):
        runner_of(host).ready()
    with pytest.raises(NotReady, match="can't look for a job's processes in the container box of Docker's: no python"):
        runner_of(host).end({"SAGEQUEUE_CLAIM": "c"})


def test_what_cannot_be_ended_stays(host: Any, docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(host)
    job = start(runner, "a", "sh", "-c", "echo here; sleep 1000; :")
    assert os.read(job[1], 5) == b"here\n"
    carries = {"SAGEQUEUE_CLAIM": f"x{os.getpid()}a"}
    monkeypatch.setattr(docker_exec, "_SIGNAL", docker_exec._SIGNAL.replace("+ 10", "+ 0.2"))
    # As one that waits for a disk, it does not end by that.
    with pytest.raises(NotReady, match=r"in the container box of Docker's: processes \[[0-9, ]+\] in it can't be killed"):
        runner._inside(0, "gone", carries)
    runner.end(carries)
    assert ended(runner, job)[0].signal == signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root has rights to give up")
def test_a_root_without_rights_says_so(host: Any, docker: Path) -> None:
    (docker / "python3").write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-sys_ptrace {sys.executable} "$@"\n', encoding="utf-8")
    (docker / "python3").chmod(0o755)
    with pytest.raises(NotReady, match="in the container box of Docker's: its root may not look at the processes of others"):
        runner_of(host).end({"SAGEQUEUE_CLAIM": "c"})


def test_a_container_that_was_started_anew_is_not_the_jobs_fault(host: Any, docker: Path) -> None:
    runner = runner_of(host)
    started = start(runner, "a", "true")
    ended(runner, started)
    assert runner.why_lost(started[0]) == ""
    (docker / "state").write_text(json.dumps([0, "running abc 2027\n", ""]), encoding="utf-8")
    assert "started anew" in runner.why_lost(started[0])
    # While it is looked at.
    (docker / "python3").write_text(f"#!/bin/sh\nprintf %s '{json.dumps(UP)}' >{docker}/state\n", encoding="utf-8")
    (docker / "python3").chmod(0o755)
    assert runner.why_lost(started[0]) == "the container box of Docker's was started anew just now"
