# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The runner apptainer with a real Apptainer and a real Sage, as an ordinary user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sage_host
from ansible_collections.sagequeue.batch.tests.roles.runners.test_container_agent import WORK
from ansible_collections.sagequeue.batch.tests.roles.sage_sif.conftest import SIF

pytestmark = [pytest.mark.host, pytest.mark.long]
USER = "researcher"
RUN = WORK.replace('"podman_exec", "container_workdir": "/work"', f'"apptainer", "image": "{SIF}"')
RUN += "rm -f work/started work/go; touch work/started work/lock\n"
BEGUN = "for n in $(seq 600); do [ -s work/started ] && break; sleep 0.1; done\n"
# All that Apptainer starts, and what the job does.
LEFT = "pgrep -u researcher -a -x 'apptainer|starter|appinit|squashfuse_ll|fuse-overlayfs|sleep' || echo nothing;"
WORKER = "sagequeue/bin/sagequeue worker t-1"
# Starts a worker, and waits until it has begun to start the job.
BEGINS = f"{WORKER} >out & worker=$!; for n in $(seq 600); do grep -qs attempt out && break; sleep 0.01; done;"
# Says that it has begun, and whether another one runs.
JOB = b"""exec 9>>lock
flock -n 9 || echo overlap >>started
echo begin >>started
[ -e go ] && exit
setsid sleep 4321 &
env -i sleep 2345 &
sleep 1234
"""
SAGE = b"""import os
from sage.sat.boolean_polynomials import solve
from sage.sat.solvers import CryptoMiniSat
x, y = BooleanPolynomialRing(2, "x,y").gens()
print(solve([x * y + 1], solver=CryptoMiniSat, s_threads=1), os.environ["HOME"])
open("made", "w").write("here")
open(os.environ["HOME"] + "/x", "w").write("gone")
"""
# The job is started, and the worker killed when so many hundredths of a second have gone by.
STOPS = [5, 10, 15, 20, 25, 30, 40, 50, 60, 80]


def test_a_job_is_what_podman_run_makes_of_it(sif_host: Any) -> None:
    """Its output, exit status, environment; a signal it shows better."""
    sif_host.write("/home/researcher/compare.py", (Path(__file__).parents[1] / "runners" / "compare.py").read_bytes())
    words = ["compare.py", "/home/researcher/sagequeue/bin/sagequeue", SIF, "/home/researcher/work"]
    set_up = ["env", "XDG_RUNTIME_DIR=/run/user/1001", "RUNNER=apptainer", f"IMAGE={sage_host.IMAGE}", "APPTAINERENV_STRAY=x"]
    found = json.loads(sif_host.exec(*set_up, "python3", *words, user=USER).stdout)
    ways = {case: list(by.values()) for case, by in found.items()}
    ours, podmans = (set(one[2].split("\0")) for one in ways.pop("environment"))
    assert not ours - podmans and {one.partition("=")[0] for one in podmans - ours} == {"HOSTNAME", "container"}
    assert {"HOME=/in", "EMPTY=", "DOT_SAGE=/home/sage/.sage"} < ours
    assert "JOB_A=ä 'x' $y\nz".encode().decode("latin-1") in ours
    for case in ("no input", "words", "exit 0", "exit 3", "exit 255", "exit 137", "broken pipe"):
        assert ways[case][0] == ways[case][1], case
    assert sorted(ways["output"][0][2]) == sorted(ways["output"][1][2])
    assert ways["killed"][0][1] == 9 and ways["segmentation fault"][0][1] == 11
    assert [ways[case][0][0] for case in ("no such program", "not executable")] == [127, 126]
    ours, podmans = ({line.split(":")[0]: line for line in one[2].splitlines()} for one in ways["inherited"])
    for what in ("SigBlk", "SigIgn", "CapEff", "CapPrm", "Umask"):
        assert ours[what] == podmans[what]


def test_sage_runs_and_keeps_its_state_in_the_workdir(sif_host: Any) -> None:
    sif_host.write("/home/researcher/work/job.sage", SAGE)
    run = RUN.replace('"job.sh", "command": "sh"', '"job.sage"')
    said = sif_host.sh(f"{run} {WORKER} --until-idle; cat sagequeue/var/t/log/a.log work/made; stat -c %U work/made; {LEFT}", user=USER)
    assert "job a: done" in said and "}] /home/sage\n" in said and said.endswith("here" + "researcher\nnothing\n")


def test_what_a_dead_worker_left_is_ended_before_the_job_runs_again(sif_host: Any) -> None:
    """Also what has left the job's session, and what has cleared its environment."""
    sif_host.write("/home/researcher/work/job.sh", JOB)
    said = sif_host.sh(
        f"{RUN} {WORKER} & worker=$!; {BEGUN} sleep 0.2; {LEFT} kill -9 $worker; wait $worker || :; touch work/go;"
        f"echo killed; {WORKER} --until-idle; {LEFT} cat work/started",
        user=USER,
    )
    before, _, after = said.partition("killed")
    assert all(f"sleep {number}" in before for number in (1234, 2345, 4321))
    assert "job a: running -> pending" in after and "job a: done" in after
    assert after.endswith("nothing\nbegin\nbegin\n")


def test_a_worker_killed_while_apptainer_begins_leaves_nothing_that_starts_later(sif_host: Any) -> None:
    sif_host.write("/home/researcher/work/job.sh", JOB)
    for hundredths in STOPS:
        said = sif_host.sh(
            f"{RUN} {BEGINS} sleep {hundredths / 100}; kill -9 $worker; wait $worker || :; touch work/go;"
            f"sagequeue/bin/sagequeue recover t; : >work/started; {LEFT} sleep 1; cat work/started; {WORKER} --until-idle; {LEFT}"
            "cat work/started",
            user=USER,
        )
        # The first look at what is left comes after recover: nothing is on its way any more. Nor has anything begun since.
        assert "running -> pending" in said and said.count("nothing\n") == 2 and said.endswith("nothing\nbegin\n"), (hundredths, said)


def test_a_worker_that_is_asked_to_stop_passes_that_on(sif_host: Any) -> None:
    sif_host.write("/home/researcher/work/job.sh", b"trap 'echo asked; exit 0' TERM; echo begin >>started; while :; do sleep 0.1; done")
    said = sif_host.sh(
        f"{RUN} {WORKER} & worker=$!; {BEGUN} kill $worker; wait $worker; cat sagequeue/var/t/log/a.log; {LEFT}",
        user=USER,
    )
    assert "job a: pending" in said and "worker_stopped" in said and "\nasked\n" in said and said.endswith("nothing\n")


def test_one_that_stops_while_apptainer_begins_does_not_wait(sif_host: Any) -> None:
    """Apptainer would lose the signal then, and the job run on until its grace is over."""
    sif_host.write("/home/researcher/work/job.sh", b"echo begin >>started; sleep 1234")
    run = RUN.replace('"grace": 1', '"grace": 600')
    said = sif_host.sh(
        f"{run} {BEGINS}sleep 0.15; kill $worker; wait $worker; cat out; {LEFT}",
        user=USER,
    )
    assert "job a: pending" in said and "worker_stopped" in said and said.endswith("nothing\n")


def test_apptainer_killed_in_mid_job_takes_the_job_with_it(sif_host: Any) -> None:
    sif_host.write("/home/researcher/work/job.sh", JOB)
    said = sif_host.sh(
        f"{RUN} {WORKER} --until-idle & worker=$!; {BEGUN} touch work/go; pkill -9 -u researcher starter;"
        f"wait $worker; cat work/started sagequeue/var/t/run/history.jsonl; {LEFT}",
        user=USER,
    )
    assert "\nbegin\nbegin\n" in said and "job a: done" in said and said.endswith("nothing\n")


def test_what_it_waits_for(sif_host: Any) -> None:
    sif_host.write("/home/researcher/work/job.sh", b"true")
    # What the one before has said must not be taken for what this one says.
    ready = f"rm -f out; {WORKER} >out 2>&1 & worker=$!; "
    ready += "for n in $(seq 600); do grep -qs waiting out && break; sleep .1; done; kill $worker; cat out;"
    said = sif_host.sh(f"{RUN.replace('sagemath.sif', 'none.sif')} {ready}", user=USER)
    assert "images/none.sif is not there; setup makes Sage's" in said
    said = sif_host.sh(f"{RUN} rm work/job.sh; {ready}", user=USER)
    assert "the script /home/sage/notebooks/job.sh is not there in the image" in said
    said = sif_host.sh(f"printf x >bad.sif; {RUN.replace(SIF, '/home/researcher/bad.sif')} {ready}", user=USER)
    assert "apptainer can't run commands in the image /home/researcher/bad.sif" in said
