"""Workers under a real Slurm: what holds under every engine, a node that dies in mid-run, a new key, a node drained."""

from __future__ import annotations

import subprocess
from datetime import datetime

from batch_site import ROOT
from cluster_site import Cluster
from cluster_tests import EveryEngine


class TestSlurm(EveryEngine):
    pass


def nodes(site):
    return site.sh("sinfo --noheader --Node --format='%N %t'")


def test_before_the_time_limit_a_job_is_put_back_and_goes_on(site):
    site.enqueue("limited", [300])
    site.until_counts("limited", running=1, seconds=60)
    found = site.until(lambda: [line for line in site.history("limited") if line["result"] == "pending"], 180, "its time is up")
    assert found[0]["reason"] == "worker_stopped" and found[0]["attempts"] == "0"
    site.until(lambda: "PENDING" in str(site.states("limited")), 60, "Slurm keeps the worker")
    # It would come by itself after two minutes.
    site.play("start", jobset="limited")
    site.until_counts("limited", running=1, seconds=60)
    assert len(site.last_alive()["limited_0"]) == 2 and site.never_two_at_once()
    assert site.sh("squeue --noheader --states=all --Format=RestartCnt --name=sagequeue.limited").split() == ["1"]
    site.play("stop", jobset="limited")


def began_on_two_nodes(site, seconds):
    """Start four jobs; return a node that runs one, and what it runs."""
    site.fresh("long")
    site.enqueue("long", [seconds] * 4)
    site.until_counts("long", running=3, pending=1, seconds=60)
    site.until(lambda: len({host for _job, host, _begin, end in site.ledger() if end is None}) == 2, 60, "both nodes run some")
    victim = site.busy("long")
    return victim, {job for job, host, _begin, end in site.ledger() if host == victim and end is None}


def test_a_node_that_dies_in_mid_run(site):
    victim, lost = began_on_two_nodes(site, 40)
    died = float(site.sh("date +%s.%N"))
    site.host("kill", victim)
    site.until_counts("long", done=4, seconds=400)
    orphans = [line for line in site.history("long") if line["reason"] == "orphan"]
    assert {line["job"] for line in orphans} == lost
    # As docs/engines.md says: 1.25 * 20 + 15 s, or what Slurm takes to notice; and recover_every. Besides, a job of 40 s may be in between.
    back = max(datetime.fromisoformat(line["ended_at"].replace("Z", "+00:00")).timestamp() for line in orphans)
    assert back - died < 40 + 5 + 40 + 60, site.sh("tail -n 15 /shared/sagequeue/log/long-*.log; cat /shared/work/ledger")
    assert site.never_two_at_once()
    assert all(len(site.last_alive()[job]) == 2 for job in lost)
    site.host("up", victim)
    site.until(lambda: "down" not in nodes(site), 120, "the node is back")


def test_a_node_that_is_cut_off_and_comes_back(site):
    """It still reaches the folder, which is the harder case: its jobs run on, and nobody else may take them."""
    victim, lost = began_on_two_nodes(site, 90)
    site.cut(victim)
    try:
        site.until(lambda: f"{victim} down" in nodes(site).replace("*", ""), 120, "Slurm gives it up")
        assert not [line for line in site.history("long") if line["reason"] == "orphan"]
        running = site.sh("ls /shared/sagequeue/var/long/queue/running")
        assert all(f"{job}.env" in running for job in lost)
    finally:
        site.cut(victim, False)
    site.until_counts("long", done=4, seconds=500)
    assert site.never_two_at_once()
    site.until(lambda: "down" not in nodes(site), 120, "the node is back")


def test_a_new_key_locks_out_who_does_not_get_it(site):
    site.nodes = site.hosts[1:2]
    site.write_inventory()
    site.play("pool", rotate_key=True)
    assert site.run("sinfo", check=False).returncode == 0
    outsider = site.host("exec", site.hosts[2], "sh", "-c", "timeout 20 sinfo 2>&1 || true")
    assert "idle" not in outsider, outsider
    # One line and one command bring it in again.
    del site.nodes
    site.write_inventory()
    site.play("pool")
    assert len(nodes(site).split()) == 4 and "down" not in nodes(site)
    assert site.play("pool").changed == []


def test_a_drained_node_keeps_no_job_and_is_taken_away(site):
    node, _jobs = began_on_two_nodes(site, 20)
    site.play("drain", node=node)
    assert site.sh(f"squeue --noheader --nodelist={node}") == ""
    # Without its line it is none of the pool's any more.
    site.nodes = [host for host in site.hosts[1:] if host != node]
    site.write_inventory()
    site.play("pool")
    assert node not in site.sh("sinfo --noheader --Node --format=%N")
    site.play("start", jobset="long")
    site.until_counts("long", done=4, seconds=300)
    assert not [line for line in site.history("long") if line["reason"] == "orphan"] and site.never_two_at_once()
    del site.nodes
    site.write_inventory()
    site.play("pool")
    site.play("drain", node=node, resume=True)
    site.until(lambda: "drain" not in nodes(site) and node in nodes(site), 60, "it may have workers")


def test_real_sage_jobs_in_containers_on_the_nodes(site):
    """The controller builds the image, and makes the file of it that the nodes run by Apptainer, as the user."""
    subprocess.run([str(ROOT / "tests/host/give-sage-base"), site.name], check=True, stdin=subprocess.DEVNULL)
    for host in site.hosts:
        # A mirror that is a copy may be some days old.
        valid = "/etc/apt/apt.conf.d/90-old-mirror"
        site.host("exec", host, "sh", "-c", f"echo 'Acquire::Check-Valid-Until \"false\";' >{valid}")
    site.jobsets["contained"] = {**Cluster.SAGE, "runner": "apptainer"}
    site.write_inventory()
    site.play("pool")
    site.play("setup")
    image = site.sh("podman image inspect --format '{{.Id}}' localhost/sagequeue-sagemath:10.7-pycryptosat")
    assert image in site.sh("cat /shared/sagequeue/images/sagemath.sif.digest")
    # What the jobs without a container have kept would be their own result.
    site.sh("rm -f /shared/work/state_*")
    site.play("enqueue", jobset="contained")
    site.until_counts("contained", done=3, seconds=400)
    logs = site.sh("cat /shared/sagequeue/var/contained/log/contained_off*.log")
    assert logs.count("verdict=UNSAT") == 9 and "verdict=SAT" not in logs
    assert site.sh("stat --format=%U /shared/work/state_petersen_r1_stride3_off0.txt") == "researcher"
    assert site.play("setup").changed == []


def test_an_existing_installation_is_left_alone(site):
    site.host("exec", site.hosts[0], "sh", "-c", "echo '# theirs' >>/etc/slurm/slurm.conf")
    assert site.play("pool", manage_engine=False).changed == []
    assert site.sh("tail -1 /etc/slurm/slurm.conf") == "# theirs"
    site.play("teardown", jobset="quick")
    assert "quick.sh" not in site.sh("ls /shared/sagequeue/etc/slurm")
