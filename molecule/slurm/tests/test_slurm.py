"""Workers under a real Slurm: every operator command, a node that dies in mid-run, a new key, a node drained."""

from __future__ import annotations

import subprocess
from datetime import datetime

from batch_site import HOST, ROOT, USER


def test_jobs_run_on_the_nodes_and_workers_leave(site):
    site.enqueue("quick", [1] * 12)
    site.until_counts("quick", done=12, seconds=60)
    runs = site.ledger()
    assert len(runs) == 12 and {host for _job, host, _begin, _end in runs} <= set(site.hosts[1:])
    site.until(lambda: not site.sh("squeue --noheader --array"), 60, "all workers have left")
    states = site.states("quick")
    assert len(states) == 4 and all("COMPLETED" in words for words in states.values()), states
    # They come back with the next job, and no more of them than there are jobs.
    assert site.enqueue("quick", [1] * 12).changed == []
    before = len(workers(site, "quick", "all"))
    site.enqueue("quick", [1] * 13)
    site.until_counts("quick", done=13, seconds=60)
    assert len(workers(site, "quick", "all")) == before + 1


def test_real_sage_jobs(site):
    """Each node runs the Sage that setup has put below the root, on the controller."""
    source = (ROOT / "files/notebooks/rank_boundary_sat_v18.sage").read_text()
    subprocess.run([HOST, "exec", site.name, "-u", USER, "sh", "-c", "cat >/shared/work/rank_boundary_sat_v18.sage"],
                   input=source, text=True, check=True)
    site.play("enqueue", jobset="sage")
    site.until_counts("sage", done=3, seconds=400)
    logs = site.sh("cat /shared/sagequeue/var/sage/log/sage_off*.log")
    assert logs.count("verdict=UNSAT") == 9 and "verdict=SAT" not in logs
    assert "3/3 done; 9 cases" in site.play("progress", jobset="sage", depth="cases").said


def workers(site, jobset, states="R,PD,CG"):
    return site.sh(f"squeue --noheader --array --states={states} --name=sagequeue.{jobset}").splitlines()


def nodes(site):
    return site.sh("sinfo --noheader --Node --format='%N %t'")


def test_operator_commands(site):
    site.enqueue("long", [600, 600, 600, 600, 600])
    site.until_counts("long", running=3, pending=2, seconds=60)
    states = site.states("long")
    assert all(words[0] == "RUNNING" and words[1] in site.hosts for words in states.values()), states
    assert len({words[1] for words in states.values()}) == 2
    job = site.sh("scontrol show job --oneliner $(squeue -h -r -o %i | head -1)")
    assert "Nice=10" in job and "mem=64M" in job and "Requeue=1" in job and "ArrayTaskThrottle=3" in job
    assert site.enqueue("long", [600, 600, 600, 600, 600]).changed == []
    assert "3 running, 2 pending" in site.play("progress", jobset="long").said
    assert "long_4" in site.play("list", jobset="long", state="pending").said
    # Fewer workers: the surplus one puts its job back. More: they come.
    for number in (2, 3):
        site.jobsets["long"]["workers"] = number
        site.write_inventory()
        site.play("setup", jobset="long")
        site.until_counts("long", running=number, pending=5 - number, seconds=60)
    assert "attempt 1 of long_0" in site.play("logs", jobset="long", job="long_0").said
    assert "starts" in site.play("journal", jobset="long").said
    # Those whose owner lives are left alone.
    assert site.play("requeue_running", jobset="long").changed == []
    waiting = next(name for name in ("long_3", "long_4") if name in site.play("list", jobset="long", state="pending").said)
    site.play("hold", jobset="long", jobs=waiting)
    assert waiting in site.play("list", jobset="long", state="held").said
    site.play("request_stop", jobset="long")
    site.play("kill", jobset="long", jobs="long_0")
    site.until_counts("long", failed=1, seconds=60)
    site.until_counts("long", running=2, seconds=60)
    site.play("clear_stop", jobset="long")
    site.until_counts("long", running=3, seconds=60)
    site.play("release", jobset="long", jobs=waiting)
    site.play("priority", jobset="long", jobs=waiting, priority=7)
    site.play("retry_failed", jobset="long")
    site.until_counts("long", running=3, pending=2, failed=0, seconds=60)
    site.play("metrics")
    for name in ("diag", "report", "verify"):
        assert site.play(name, jobset="long").said


def test_after_a_stop_the_commands_go_on_and_nobody_comes(site):
    archive = "/shared/work/long.tar.gz"
    site.play("stop", jobset="long")
    assert not workers(site, "long")
    assert site.progress("long")["counts"] == {"pending": 5, "running": 0, "done": 0, "failed": 0}
    history = site.history("long")
    assert {line["reason"] for line in history} == {"worker_stopped", "killed"}
    # What was put back is no failed attempt.
    assert {line["attempts"] for line in history if line["reason"] == "worker_stopped"} == {"0"}
    assert "stopped" in site.play("status", jobset="long").said
    assert "worker_stopped" in site.play("logs", jobset="long", job="long_1").said
    assert "stops" in site.play("journal", jobset="long").said
    assert "5 pending" in site.play("progress", jobset="long").said
    site.play("kill", jobset="long", jobs="long_1")
    site.play("retry_failed", jobset="long")
    site.play("hold", jobset="long", jobs="long_1")
    site.play("release", jobset="long", jobs="long_1")
    site.play("request_stop", jobset="long")
    site.play("clear_stop", jobset="long")
    site.play("requeue_running", jobset="long")
    site.enqueue("long", [600] * 6, start=False)
    for name in ("diag", "report", "verify"):
        assert site.play(name, jobset="long").said
    assert not workers(site, "long")
    site.play("disable", jobset="long")
    assert "do not come back" in site.play("status", jobset="long").said
    site.play("start", jobset="long")
    site.until_counts("long", running=3, seconds=60)
    assert "Requeue=0" in site.sh("scontrol show job --oneliner $(squeue -h -r -o %i --name=sagequeue.long | head -1)")
    site.play("enable", jobset="long")
    assert "Requeue=1" in site.sh("scontrol show job --oneliner $(squeue -h -r -o %i --name=sagequeue.long | head -1)")
    site.play("restart", jobset="long")
    site.until_counts("long", running=3, pending=3, seconds=60)
    # Written while they run; put back into a queue that has lost all.
    site.play("backup", jobset="long", file=archive)
    site.fresh("long")
    site.play("restore", jobset="long", file=archive)
    assert not workers(site, "long")
    site.until_counts("long", running=0, pending=6, seconds=60)
    site.play("start", jobset="long")
    site.until_counts("long", running=3, pending=3, seconds=60)


def test_a_failed_job_that_is_retried_brings_a_worker_back(site):
    site.sh("touch /shared/work/fails")
    site.jobsets["quick"].update(script="fails.sh", attempts=1)
    site.write_inventory()
    site.sh("echo '! test -e fails' >/shared/work/fails.sh")
    site.play("enqueue", jobset="quick", offsets=[0])
    site.until_counts("quick", failed=1, seconds=60)
    site.until(lambda: not site.sh("squeue --noheader --array --name=sagequeue.quick"), 60, "all workers have left")
    site.sh("rm /shared/work/fails")
    site.play("retry_failed", jobset="quick")
    site.until_counts("quick", failed=0, seconds=60)
    site.until_counts("quick", pending=0, running=0, seconds=60)


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
    assert back - died < 40 + 5 + 40 + 60
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


def test_an_existing_installation_is_left_alone(site):
    site.host("exec", site.hosts[0], "sh", "-c", "echo '# theirs' >>/etc/slurm/slurm.conf")
    assert site.play("pool", manage_engine=False).changed == []
    assert site.sh("tail -1 /etc/slurm/slurm.conf") == "# theirs"
    site.play("teardown", jobset="quick")
    assert "quick.sh" not in site.sh("ls /shared/sagequeue/etc/slurm")
