"""What must survive: the death of everything that a job needs, an operator's change of mind, and bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time

import pytest
from batch_site import HOST, ROOT

_spec = importlib.util.spec_from_file_location("ledger", ROOT / "tests" / "faults" / "ledger.py")
ledger = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ledger)

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


# A job holds a lock for as long as any process of it lives, and takes it without waiting: so a run that meets an earlier
# one says so itself. It keeps a record of its runs, and ends when it is told to. Times are of the machine's own clock
# since its start, which all that runs on it share.
HELD = """#!/bin/bash
exec 9>>"held.$SAGEQUEUE_JOB"
stamp() { read -r now rest </proc/uptime; echo "$1 $SAGEQUEUE_CLAIM $now" >&9; }
flock -n 9 || { stamp overlap; exit 9; }
stamp start
until [ -e "enough.$SAGEQUEUE_JOB" ]; do sleep 0.1; done
stamp end
"""
REPEATS = 5 if os.environ.get("SAGEQUEUE_FAULTS_LONG") else 1


def uptime():
    with open("/proc/uptime", encoding="ascii") as file:
        return float(file.read().split()[0])


def kill_worker(site, job):
    site.run("kill", "-9", job["pid"])


def kill_starter(site, job):
    """The agent that has started the worker's job in the container, or, after it was lost, the podman that has."""
    pids = f"grep -lsz '^SAGEQUEUE_AGENT=[^ ]* {job['pid']} ' /proc/[0-9]*/environ | cut -d/ -f3"
    site.run("sh", "-c", f"set -- $({pids}) $(pgrep --parent {job['pid']}); kill -9 $*")


def kill_client(site, job):
    """The podman that the worker has started: what it has started in the container knows nothing of its death."""
    killed = site.run("pkill", "-9", "--parent", job["pid"], check=False)
    said = site.sh("journalctl --user -n 60 -o cat | grep -w job", check=False)
    assert killed.returncode == 0, f"the worker has started nothing:\n{said}"


def kill_container(site, _job):
    site.sh("podman kill sagemath")


def kill_user_manager(site, _job):
    site.run("sh", "-c", "kill -9 $(systemctl show --value --property MainPID user@1001.service)")


def kill_host(site, _job):
    subprocess.run([HOST, "kill", site.name], check=True)
    subprocess.run([HOST, "up", site.name], check=True)


@pytest.fixture(scope="module")
def held(site):
    site.jobsets["held"] = {
        "script": "held.sh",
        "command": ["/bin/bash"],
        "workers": 2,
        "enabled": True,
        # Too late to be of help.
        "recover_every": 3600,
        # With a long value of the job's own, this is more than an agent is told: podman exec starts such a job.
        "environment": {"PADDING": "x" * 60_000},
        "attempts": 1000,
        "recoveries": 1000,
    }
    site.write_inventory()
    subprocess.run([HOST, "exec", site.name, "-u", "researcher", "sh", "-c", "cat >~/Jupyter/held.sh"],
                   input=HELD, text=True, check=True)
    site.play("setup", jobset="held")
    yield site
    site.play("teardown", jobset="held")


KILLS = {
    "worker": (kill_worker, 5),
    "agent": (kill_starter, 5),
    "podman exec client": (kill_client, 5),
    "container": (kill_container, 30),
    "user manager": (kill_user_manager, 60),
    "PID 1 of the host": (kill_host, 60),
}


@pytest.mark.parametrize("what", KILLS)
@pytest.mark.parametrize("repeat", range(REPEATS))
def test_kill(held, what, repeat):
    """Two jobs run. What one of them needs is killed; it must run again, by itself, and never twice at once."""
    kill, seconds = KILLS[what]
    names = [f"{what.replace(' ', '_')}_{time.time_ns()}_{number}" for number in range(2)]
    # No other job is pending, so nothing else is run first.
    text = "printf 'OFFSET=0\\nPAD=%050000d\\n' 0" if kill is kill_client else "echo OFFSET=0"
    held.sh("cd ~/sagequeue/var/held/queue && " + " && ".join(f"{text} >pending/{name}.env" for name in names))

    def runs(name, event):
        """Each run of a job that has come so far: event, claim, time."""
        lines = held.sh(f"cat ~/Jupyter/held.{name} 2>/dev/null || true").splitlines()
        return [line.split() for line in lines if line.startswith(event + " ")]

    held.until(lambda: all(runs(name, "start") for name in names), 60, "both jobs run")
    job = next(one for one in held.progress("held")["running"] if one["name"] == names[0])
    began = uptime()
    kill(held, job)
    deadline = time.monotonic() + 240
    while len(runs(names[0], "start")) < 2:
        assert time.monotonic() < deadline, held.sh("journalctl --user -n 60 -o cat", check=False)
        time.sleep(0.2)
    recovery = float(runs(names[0], "start")[1][2]) - began
    print(f"{what}: {recovery:.2f} s")
    assert not carriers(held, job["claim"]), "the run that was killed has left something"

    # What is lost shows in that this is never true.
    held.sh("cd ~/Jupyter && touch " + " ".join(f"enough.{name}" for name in names))
    found = "ls ~/sagequeue/var/held/queue/*/"
    files = [f"{name}.env" for name in names]
    held.until(lambda: set(files) <= set(held.sh("ls ~/sagequeue/var/held/queue/done").split()), 60, "both jobs are done")
    history = [json.loads(line) for line in held.sh("cat ~/sagequeue/var/held/run/history.jsonl").splitlines()]
    done = [line["job"] for line in history if line["result"] == "done"]
    ledger.record(
        f"killed in the container: {what}",
        tries=1,
        lost=sum(len(runs(name, "end")) < 1 for name in names),
        doubled=sum(held.sh(found).split().count(file) - 1 for file in files) + sum(done.count(name) - 1 for name in names),
        overlapped=sum(len(runs(name, "overlap")) for name in names),
        recovery_seconds=recovery,
    )
    assert recovery < seconds


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


def test_reboot(fresh):
    subprocess.run([HOST, "restart", fresh.name], check=True)
    fresh.until(lambda: fresh.sh("systemctl --user is-active sagemath.service", check=False) == "active", 120,
                "the container is back by itself")
    fresh.until_counts("naps", done=4, failed=0, seconds=240)


def test_stop_and_start(fresh):
    claims = [job["claim"] for job in fresh.progress("naps")["running"]]
    fresh.play("stop", jobset="naps")
    assert fresh.progress("naps")["counts"] == {"pending": 4, "running": 0, "done": 0, "failed": 0}
    assert not any(carriers(fresh, claim) for claim in claims)
    reasons = fresh.sh("grep -h ^REASON= ~/sagequeue/var/naps/queue/pending/*.env | sort -u")
    assert reasons == "REASON=worker_stopped"
    # The container has been started anew since workers were killed: of those, podman knows for longer.
    assert fresh.sh("podman inspect --format '{{.ExecIDs}}' sagemath") == "[]"
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
