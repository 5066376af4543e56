# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The runner apptainer without Apptainer: what stands for it runs the command here. With Apptainer: tests/roles/sage_sif."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carried, carriers
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import NotReady, QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.apptainer import image_variables
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.base import Command
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make

# As Apptainer: it passes on what is called APPTAINERENV_X, adds variables of its own, and begins in several steps that have no
# environment. Waits in the second one while the file slow is there.
APPTAINER = f"""#!{sys.executable} -IS
import json, os, sys, time
here = os.path.dirname(os.path.abspath(__file__))
words = sys.argv[1:]
if words[0] == "begin":
    open(here + "/begun", "w").close()
    while os.path.exists(here + "/slow"):
        time.sleep(0.01)
    place, variables, words = json.loads(words[1])
    os.chdir(place)
    os.execvpe(words[0], words, variables)
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words[0] == "inspect":
    print(open(here + "/inspected").read())
    sys.exit(os.path.getsize(words[-1]) == 3)
image = next(number for number, word in enumerate(words) if word.endswith(".sif"))
if open(words[image]).read() == "bad":
    sys.stderr.write("FATAL: not an image")
    sys.exit(255)
variables = {{name[13:]: value for name, value in os.environ.items() if name.startswith("APPTAINERENV_")}}
variables = {{"LANG": "C", "PATH": os.environ["PATH"], "SHAPE": "round", **variables}}
variables.update(HOME="/its/own", PS1="A> ", APPTAINER_NAME="x")
state = json.dumps([words[words.index("--cwd") + 1], variables, words[image + 1 :]])
os.execve(sys.executable, [sys.executable, "-IS", __file__, "begin", state], {{}})
"""
SCRIPT = '#!/bin/sh\nexport SHAPE="${SHAPE:-"round"}"\nexport PATH="/bin:/usr/bin"\nexport HOME="${HOME:-"/home/\\"sage\\$"}"'


@pytest.fixture
def apptainer(host: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder: Path = host.base / "apptainer-bin"
    folder.mkdir()
    (folder / "apptainer").write_text(APPTAINER, encoding="utf-8")
    (folder / "apptainer").chmod(0o755)
    scripts = {"/.singularity.d/env/10-docker2singularity.sh": SCRIPT, "/.singularity.d/env/90-environment.sh": 'export OTHER="x"'}
    (folder / "inspected").write_text(json.dumps({"data": {"attributes": {"environment": scripts}}}), encoding="utf-8")
    (folder / "image.sif").write_text("good", encoding="utf-8")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def runner_of(host: Any, apptainer: Path, **keys: Any) -> Any:
    host.script("")
    definition = host.define(runner="apptainer", **{"image": str(apptainer / "image.sif"), "container_workdir": str(host.work), **keys})
    return make(host.queue().layout, definition)


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


def begun(apptainer: Path) -> None:
    while not (apptainer / "begun").exists():
        time.sleep(0.01)


def test_a_job_gets_the_images_variables_and_its_own_and_nothing_else(host: Any, apptainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPTAINERENV_STRAY", "x")
    runner = runner_of(host, apptainer, run_options="--bind /data")
    given = {"JOB_A": "ä 'x' $y\nz", "EMPTY": "", "LANG": "de_DE", "PATH": os.environ["PATH"]}
    outcome, printed = ended(runner, start(runner, "a", "env", "-0", **given))
    found = dict(line.split("=", 1) for line in printed.decode().split("\0")[:-1])
    assert found == {**given, "SAGEQUEUE_CLAIM": f"x{os.getpid()}a", "HOME": '/home/"sage$', "SHAPE": "round"}
    assert (outcome.exit_status, outcome.signal) == (0, None)
    words = json.loads((apptainer / "calls").read_text(encoding="utf-8").splitlines()[-1])
    # A value stands in no process list, but for those that Apptainer would alter.
    assert "$y" not in str(words) and {"LANG=de_DE", "--userns", "--containall"} < set(words)
    assert words[words.index("--mount") + 1] == f'type=bind,"source={host.work}","destination={host.work}"'
    assert words[words.index("--bind") + 1] == "/data" and "--userns=keep-id:uid=1000,gid=1000" not in words
    for script, status, number in (("exit 3", 3, None), ("kill -9 $$", None, 9), ("exit 137", None, 9)):
        outcome = ended(runner, start(runner, "b", "sh", "-c", script))[0]
        assert (outcome.exit_status, outcome.signal) == (status, number)
    assert ended(runner, start(runner, "c", "no-such-program"))[0].exit_status == 127


def test_what_is_about_to_begin_is_found_though_it_hides_its_environment(host: Any, apptainer: Path) -> None:
    runner = runner_of(host, apptainer)
    runner.ready()
    (apptainer / "slow").touch()
    own = {**carried(runner.layout, "a", ""), "SAGEQUEUE_HOLDER": "lock-1"}
    for wanted in ({"SAGEQUEUE_CLAIM": f"x{os.getpid()}a"}, {"SAGEQUEUE_HOLDER": "lock-1"}, carried(runner.layout, "a", "")):
        (apptainer / "begun").unlink(missing_ok=True)
        before = start(runner, "a", "sleep", "1000", **own)
        begun(apptainer)
        assert not Path(f"/proc/{before[0].session}/environ").read_bytes()
        assert carriers(wanted) == [before[0].session] and not carriers({"SAGEQUEUE_CLAIM": "other"})
        runner.end(wanted)
        assert ended(runner, before)[0].signal == signal.SIGKILL


def test_a_signal_is_passed_on_and_what_is_about_to_begin_does_not_begin(host: Any, apptainer: Path) -> None:
    runner = runner_of(host, apptainer)
    job = start(runner, "a", "sh", "-c", "trap 'echo asked; exit 4' TERM; echo up; while :; do sleep 0.01; done")
    assert os.read(job[1], 3) == b"up\n"
    runner.sample(job[0])
    runner.signal(job[0], signal.SIGTERM)
    outcome, printed = ended(runner, job)
    assert (outcome.exit_status, printed) == (4, b"asked\n") and outcome.peak_kib > 300
    (apptainer / "begun").unlink()
    (apptainer / "slow").touch()
    job = start(runner, "b", "echo", "late")
    begun(apptainer)
    runner.signal(job[0], signal.SIGTERM)
    (apptainer / "slow").unlink()
    outcome, printed = ended(runner, job)
    assert (outcome.signal, printed) == (signal.SIGKILL, b"")


def test_what_it_waits_for(host: Any, apptainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = apptainer / "image.sif"
    with pytest.raises(NotReady, match=f"the script {host.work}/other.sh is not there in the image {image}; put other.sh into {host.work}"):
        runner_of(host, apptainer, script="other.sh").ready()
    with pytest.raises(NotReady, match="none.sif is not there; setup makes Sage's; or correct the jobset's key image"):
        runner_of(host, apptainer, image="/none.sif").ready()
    with pytest.raises(NotReady, match="the image /dev/null/x.sif can't be looked at: Not a directory"):
        runner_of(host, apptainer, image="/dev/null/x.sif").ready()
    runner = runner_of(host, apptainer)
    image.write_text("bad", encoding="utf-8")
    with pytest.raises(NotReady, match=f"apptainer can't run commands in the image {image}: FATAL: not an image"):
        runner.ready()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotReady, match="apptainer is not installed; install it"):
        runner.ready()


def test_an_image_that_was_replaced_is_not_the_jobs_fault(host: Any, apptainer: Path) -> None:
    runner = runner_of(host, apptainer)
    job = start(runner, "a", "true")
    ended(runner, job)
    assert runner.why_lost(job[0]) == ""
    (apptainer / "new").write_text("good", encoding="utf-8")
    (apptainer / "new").rename(apptainer / "image.sif")
    assert runner.why_lost(job[0]) == "the image was replaced while the job ran"
    (apptainer / "image.sif").unlink()
    assert "is not there" in runner.why_lost(job[0])


def test_variables_of_an_image() -> None:
    script = 'export A="${A:-"x=\\"1\\" \\$y \\`z\\` \\\\n\nline"}"\nexport PATH="/a:/b"\nexport E="${E:-""}"\n'
    assert image_variables({"/.singularity.d/env/10-docker2singularity.sh": script}) == {
        "A": 'x="1" $y `z` \\n\nline', "PATH": "/a:/b", "E": ""
    }  # fmt: skip
    assert image_variables({}) == {}


def test_the_keys_of_a_jobset() -> None:
    defaults = {"runner": "apptainer", "home": "/home/u", "image": "localhost/x", "sif": "/shared/x.sif"}
    jobset = Jobset("t", {"script": "s"}, defaults)
    assert (jobset.image, jobset.run_options, jobset.command) == ("/shared/x.sif", [], ["/sage/sage"])
    assert Jobset("t", {"script": "s", "image": "~/y.sif"}, defaults).image == "/home/u/y.sif"
    assert Jobset("t", {"script": "s", "runner": "podman_run"}, defaults).image == "localhost/x"
    with pytest.raises(QueueError, match="image is 'localhost/x'; for apptainer it must be the absolute path of a .sif"):
        Jobset("t", {"script": "s", "image": "localhost/x"}, defaults)
    with pytest.raises(QueueError, match="the runner apptainer needs the key 'image'"):
        Jobset("t", {"script": "s", "runner": "apptainer"})
