# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The runner docker_exec with a real Docker: Debian's, with its daemon, on a test host."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.tests.roles.runners.test_container_agent import FILES, MAKE_IMAGE, USER, WORK, program

pytestmark = [pytest.mark.host, pytest.mark.long]

# Whose processes the batch user may look at, and whose not.
CONTAINERS = {"same-user": ["--user=1001:1001"], "root": [], "limited": ["--user=1000:1000", "--cap-drop=all", "--ulimit=nofile=234"]}
IMPORT = MAKE_IMAGE.replace("podman import --quiet --change ENV=IMAGE_SAYS=x", "docker import --change 'ENV IMAGE_SAYS=x'")
# What Docker's daemon starts processes by: the first of our commands five seconds late, where a file says so.
SLOW = """#!/bin/sh
if grep -qs "this claim has ended" -- "$@" && mv /run/slow /run/slowed 2>/dev/null; then sleep 5; touch /run/late; fi
exec /usr/sbin/runc.real "$@"
"""
# Says that it has begun, and whether another one runs.
JOB = b"""exec 9>>/work/lock
flock -n 9 || echo overlap >>/work/started
echo begin >>/work/started
[ -e /work/go ] && exit
setsid sleep 4321 &
sleep 1234
"""
RUN = WORK.replace('"podman_exec"', '"docker_exec"')
RUN += "rm -f work/started work/go; touch work/started work/lock; chmod 666 work/started work/lock\n"
BEGUN = "for n in $(seq 600); do [ -s work/started ] && break; sleep 0.1; done\n"


@pytest.fixture(scope="module")
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    name = f"xd-{os.getpid()}"
    parent: Any = request.config.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))
    subprocess.run([parent.HOST, "up", name], check=True)
    host = parent.Host(name, tmp_path_factory.mktemp(name))
    try:
        host.sh(
            "apt-get update -qq;"
            "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io docker-cli iptables >/dev/null;"
            f"usermod -aG docker {USER}; mv /usr/sbin/runc /usr/sbin/runc.real; {IMPORT}"
        )
        host.write("/usr/sbin/runc", SLOW.encode())
        host.write("/home/researcher/sagequeue/bin/sagequeue", program())
        host.write("/home/researcher/compare.py", Path(__file__).with_name("compare.py").read_bytes())
        for file, text in FILES.items():
            host.write(f"/home/researcher/work/{file}", text.encode())
        host.sh("chmod a+x /usr/sbin/runc; cd ~researcher; chmod -R a+rX,u+w . ; chmod a+x work/* sagequeue/bin/*; chown -R researcher: .")
        yield host
    finally:
        subprocess.run([parent.HOST, "down", name], check=False)


def start(box: Any, name: str, kind: str) -> None:
    options = f"--name {name} --volume /home/researcher/work:/work {' '.join(CONTAINERS[kind])}"
    box.sh(f"docker rm -f {name}; docker run --detach --init {options} localhost/small:1 sleep infinity", user=USER)


@pytest.fixture(params=["same-user", "root"])
def sagemath(box: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A container that workers find by its name."""
    start(box, "sagemath", request.param)
    box.write("/home/researcher/work/job.sh", JOB)
    yield box
    box.sh("docker rm -f sagemath", user=USER)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_job_is_what_docker_exec_makes_of_it(box: Any, kind: str) -> None:
    """Its output, exit status, signal, environment, limits, descriptors and all that it inherits."""
    start(box, "compared", kind)
    words = ["compare.py", "/home/researcher/sagequeue/bin/sagequeue", "compared", "/work"]
    found = json.loads(box.exec("env", "RUNNER=docker_exec", "python3", *words, user=USER).stdout)
    box.sh("docker rm -f compared", user=USER)
    for case, ways in found.items():
        ours, docker = ways["docker_exec"], ways["docker exec"]
        if docker[0] in (1, 126, 127):
            # Each says in its own words why it can't start a job. How it says that differs from Docker to Docker.
            assert ours[0] in (126, 127) and ours[2] and docker[2], case
            continue
        if case == "output":
            # Docker has a stream for each of the two, and mixes them as it likes.
            ours[2], docker[2] = "".join(sorted(ours[2])), "".join(sorted(docker[2]))
        assert ours == docker, case
    variables = found["environment"]["docker_exec"][2].encode("latin-1").decode()
    assert "\0JOB_A=ä 'x' $y\nz\0" in variables and "SAGEQUEUE_CLAIM=" in variables and "PWD=" not in variables


def test_what_a_dead_worker_left_is_ended_before_the_job_runs_again(sagemath: Any) -> None:
    """Also what has left the job's session, and what is another user's."""
    look = "docker top sagemath -eo pid,args; "
    said = sagemath.sh(
        RUN + f"sagequeue/bin/sagequeue worker t-1 & worker=$!; {BEGUN} {look} echo killed; kill -9 $worker; touch work/go;"
        f"sagequeue/bin/sagequeue worker t-1 --until-idle; echo worked; {look} cat work/started",
        user=USER,
    )
    before, _, after = said.partition("killed")
    assert "sleep 4321" in before and "sleep 1234" in before
    assert "job a: running -> pending" in after and "job a: done" in after
    assert "sleep 4321" not in after and after.endswith("\nbegin\nbegin\n")


def test_what_docker_starts_late_for_a_dead_client_does_not_run(sagemath: Any) -> None:
    """Docker's daemon goes on with what it was told by a client that has been killed. By then the job has run elsewhere."""
    wait = "for n in $(seq 600); do {} && break; sleep 0.1; done;".format
    said = sagemath.sh(
        f"{RUN} sudo rm -f /run/slowed /run/late; sudo touch /run/slow;"
        f"sagequeue/bin/sagequeue worker t-1 >/dev/null 2>&1 & worker=$!; {wait('[ -e /run/slowed ]')} kill -9 $worker; touch work/go;"
        "sagequeue/bin/sagequeue worker t-1 --until-idle; ls /run/late 2>/dev/null || echo not yet;"
        + wait("[ -e /run/late ]")
        + wait('[ "$(docker container inspect --format "{{len .ExecIDs}}" sagemath)" = 0 ]')
        + "cat work/started",
        user=USER,
    )
    assert "job a: done" in said and said.endswith("not yet\nbegin\n")


def test_what_goes_away_in_mid_job_is_not_the_jobs_fault(sagemath: Any) -> None:
    said = sagemath.sh(
        f"{RUN} sagequeue/bin/sagequeue worker t-1 --until-idle & worker=$!; {BEGUN} touch work/go; docker restart --time=0 sagemath;"
        "wait $worker; cat sagequeue/var/t/run/history.jsonl work/started",
        user=USER,
    )
    assert "runner_lost: the container" in said and '"attempts":"0"' in said
    assert "job a: done" in said and said.endswith("\nbegin\nbegin\n")


def test_a_worker_that_is_asked_to_stop_passes_that_on(sagemath: Any) -> None:
    job = b"trap 'echo asked; exit 0' TERM; echo begin >>/work/started; while :; do sleep 0.1; done"
    sagemath.write("/home/researcher/work/job.sh", job)
    said = sagemath.sh(
        f"{RUN} sagequeue/bin/sagequeue worker t-1 & worker=$!; {BEGUN} kill $worker; wait $worker; cat sagequeue/var/t/log/a.log;"
        "docker top sagemath -eo pid,args",
        user=USER,
    )
    assert "job a: pending" in said and "worker_stopped" in said and "\nasked\n" in said and "trap" not in said


def test_without_an_answer_nothing_is_taken_for_gone(sagemath: Any) -> None:
    """Neither of a daemon that is stopped nor of a container that is frozen. Then it goes on by itself."""
    recover = "sagequeue/bin/sagequeue recover t 2>&1 || :; "
    said = sagemath.sh(
        f"{RUN} sagequeue/bin/sagequeue worker t-1 >/dev/null & worker=$!; {BEGUN} kill -9 $worker; wait $worker || :;"
        f"docker pause sagemath; {recover} docker unpause sagemath;"
        f"sudo systemctl stop --quiet docker.socket docker; {recover} ls sagequeue/var/t/queue/running/a.env;"
        f"sudo systemctl start docker; docker start sagemath; {recover} ls sagequeue/var/t/queue/pending/a.env",
        user=USER,
    )
    assert "can't look for a job's processes in the container sagemath of Docker's" in said and "paused" in said
    assert "docker can't tell whether sagemath runs" in said and "/running/a.env" in said and said.endswith("/pending/a.env\n")
