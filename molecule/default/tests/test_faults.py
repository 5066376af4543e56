"""What must survive: the death of a worker, a reboot, an operator's change of mind, and bad input."""

from __future__ import annotations

import json
import subprocess

import pytest
from batch_site import HOST

# Long enough to be caught in the act, and with nothing to resume from: what a job did shows in its log.
NAPS = {
    "script": "nap.sh",
    "command": ["/bin/bash"],
    "args": "{gate_file} 15",
    "stride": 4,
    "workers": 2,
    "recover_every": 5,
    "attempts": 1,
}
NAP = """#!/bin/bash
# nap.sh GATE SECONDS --stride S --offset K: ends early, with 0, when the gate closes.
[ -e fail ] && exit 3
for ((n = 0; n < $2; n++)); do
    [ -e "$1" ] && { echo early; exit 0; }
    sleep 1
done
echo slept
"""


@pytest.fixture(scope="module")
def naps(site):
    site.jobsets["naps"] = NAPS
    site.write_inventory()
    subprocess.run([HOST, "exec", site.name, "-u", "researcher", "sh", "-c", "cat >~/Jupyter/nap.sh"],
                   input=NAP, text=True, check=True)
    site.play("setup", jobset="naps")
    yield site
    site.play("teardown", jobset="naps")


@pytest.fixture
def fresh(naps):
    """The jobset naps with four new jobs, two of them running, whatever the test before left."""
    naps.forget("naps", state="fail")
    naps.play("enqueue", jobset="naps")
    naps.until_counts("naps", running=2, seconds=30)
    return naps


def carriers(site, claim):
    """The processes in the container that belong to a claim."""
    return site.sh(
        "podman exec sagemath sh -c"
        f" 'grep -lz SAGEQUEUE_CLAIM={claim} /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3; true'"
    ).split()


def test_kill_9_of_a_worker_in_mid_job(fresh):
    job = fresh.progress("naps")["running"][0]
    assert job["alive"]
    assert fresh.until(lambda: carriers(fresh, job["claim"]), 10, "the job's processes are in the container")
    fresh.run("kill", "-9", job["pid"])

    # Its own supervisor brings the worker back, or the timer runs: either finds the orphan.
    fresh.until(lambda: not carriers(fresh, job["claim"]), 30, "the dead worker's job has ended")

    def came_back():
        attempts = fresh.sh("cat ~/sagequeue/var/naps/run/history.jsonl 2>/dev/null || true").splitlines()
        return [line for line in map(json.loads, attempts) if line["claim"] == job["claim"]]

    (attempt,) = fresh.until(came_back, 30, "the attempt is in the history")
    assert attempt["result"] == "pending", attempt
    fresh.until_counts("naps", done=4, failed=0, seconds=180)
    log = fresh.sh(f"cat ~/sagequeue/var/naps/log/{job['name']}.log")
    assert log.count("slept") == 1


def test_reboot(fresh):
    subprocess.run([HOST, "restart", fresh.name], check=True)
    fresh.until(lambda: fresh.sh("systemctl --user is-active sagemath.service", check=False) == "active", 120,
                "the container is back by itself")
    fresh.until_counts("naps", done=4, failed=0, seconds=240)


def test_power_cut(fresh):
    subprocess.run([HOST, "kill", fresh.name], check=True)
    subprocess.run([HOST, "up", fresh.name], check=True)
    fresh.until_counts("naps", done=4, failed=0, seconds=240)


def test_stop_and_start(fresh):
    claims = [job["claim"] for job in fresh.progress("naps")["running"]]
    fresh.play("stop", jobset="naps")
    assert fresh.progress("naps")["counts"] == {"pending": 4, "running": 0, "done": 0, "failed": 0}
    assert not any(carriers(fresh, claim) for claim in claims)
    reasons = fresh.sh("grep -h ^REASON= ~/sagequeue/var/naps/queue/pending/*.env | sort -u")
    assert reasons == "REASON=worker_stopped"
    assert fresh.play("stop", jobset="naps").changed == []

    fresh.play("start", jobset="naps")
    fresh.until_counts("naps", done=4, seconds=180)


def test_request_stop_and_clear_stop(fresh):
    assert fresh.play("request_stop", jobset="naps").changed
    fresh.until_counts("naps", pending=4, running=0, done=0, failed=0, seconds=30)
    gate = fresh.progress("naps")["gate"]
    assert (gate["closed"], gate["by"], gate["solved"]) == (True, "request", False)
    assert fresh.play("request_stop", jobset="naps").changed == []

    fresh.play("clear_stop", jobset="naps")
    fresh.until_counts("naps", running=2, seconds=30)


def test_retry_failed(fresh):
    fresh.sh("touch ~/Jupyter/fail")
    fresh.play("restart", jobset="naps")
    fresh.until_counts("naps", failed=4, seconds=60)
    assert "EXIT_STATUS=3" in fresh.sh("cat ~/sagequeue/var/naps/queue/failed/naps_off0.env")
    fresh.sh("rm ~/Jupyter/fail")
    result = fresh.play("retry_failed", jobset="naps").result("Put a jobset's failed jobs back to pending")
    assert {(job["old_state"], job["new_state"]) for job in result["jobs"]} == {("failed", "pending")}
    fresh.until_counts("naps", done=4, seconds=180)


def test_a_container_for_each_job(naps):
    """The runner podman_run: a container of its own per job, which ends with its worker."""
    naps.jobsets["fresh"] = {**NAPS, "runner": "podman_run", "stride": 2, "grace": 2}
    naps.write_inventory()
    naps.play("enqueue", jobset="fresh")
    try:
        naps.until_counts("fresh", running=2, seconds=30)
        job = naps.progress("fresh")["running"][0]

        def mine():
            return naps.sh(f"podman ps -q --filter label=SAGEQUEUE_CLAIM={job['claim']}").split()

        naps.until(mine, 20, "the job has its container")
        naps.run("kill", "-9", job["pid"])
        naps.until(lambda: not mine(), 30, "the dead worker's container is gone")
        naps.until_counts("fresh", done=2, failed=0, seconds=180)
        assert "slept" in naps.sh(f"cat ~/sagequeue/var/fresh/log/{job['name']}.log")
        assert naps.sh("podman ps -aq --filter label=SAGEQUEUE_JOBSET=fresh") == ""
    finally:
        naps.play("teardown", jobset="fresh")
        del naps.jobsets["fresh"]
        naps.write_inventory()


def test_jobs_wait_for_the_container(fresh):
    fresh.sh("systemctl --user stop sagemath.service")
    fresh.until_counts("naps", pending=4, running=0, seconds=60)
    journal = fresh.sh("journalctl --user -u 'sagequeue-worker@naps-*' --since -60s -o cat", check=False)
    assert "sagemath" in journal
    fresh.sh("systemctl --user start sagemath.service")
    fresh.until_counts("naps", done=4, failed=0, seconds=240)


def test_a_malformed_job_fails_with_its_reason(fresh):
    fresh.sh("echo 'no job at all' >~/sagequeue/var/naps/queue/pending/broken.env")
    fresh.until_counts("naps", failed=1, done=4, seconds=240)
    assert "malformed_job" in fresh.sh("cat ~/sagequeue/var/naps/queue/failed/broken.env")


def refused(site, playbook="enqueue", **variables):
    play = site.play(playbook, ok=False, **variables)
    assert play.rc != 0, "was accepted"
    assert play.changed == []
    return play.errors


def test_unknown_jobset(site):
    said = refused(site, jobset="petersn")
    assert "petersn" in said
    assert "petersen" in said.replace("petersn", "")


@pytest.mark.parametrize(
    ("definition", "wanted"),
    [
        ({"scrpt": "nap.sh"}, ["scrpt", "script"]),
        ({"script": "nap.sh", "stride": 0}, ["stride"]),
        ({"script": "nap.sh", "args": "--stride 4"}, ["--stride"]),
        ({"args": ""}, ["script"]),
    ],
)
def test_bad_definitions(site, definition, wanted):
    said = refused(site, jobset="bad", sagequeue_jobsets={"bad": definition})
    assert all(word in said for word in wanted), said


def test_offsets_outside_the_stride(site):
    before = site.progress("petersen")["counts"]
    said = refused(site, jobset="petersen", offsets=[2, 4])
    assert "4" in said
    assert site.progress("petersen")["counts"] == before


def test_purge_wants_its_confirmation(site):
    before = site.progress("petersen")["counts"]
    assert "confirm" in refused(site, "purge_queue", jobset="petersen")
    assert site.progress("petersen")["counts"] == before
