"""Workers under a real Slurm: every operator command, a node that dies in mid-run, a new key, a node drained."""

from __future__ import annotations


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
    site.enqueue("quick", [1] * 13)
    site.until_counts("quick", done=13, seconds=60)


def test_operator_commands(site):
    site.enqueue("long", [600, 600, 600, 600])
    site.until_counts("long", running=3, pending=1, seconds=60)
    states = site.states("long")
    assert all(words[0] == "RUNNING" and words[1] in site.hosts for words in states.values()), states
    job = site.sh("scontrol show job --oneliner $(squeue -h -r -o %i | head -1)")
    assert "Nice=10" in job and "mem=64M" in job and "Requeue=1" in job and "ArrayTaskThrottle=3" in job
    assert site.enqueue("long", [600, 600, 600, 600]).changed == []
    # Fewer workers: the surplus one puts its job back. More: they come.
    for workers in (2, 3):
        site.jobsets["long"]["workers"] = workers
        site.write_inventory()
        site.play("setup", jobset="long")
        site.until_counts("long", running=workers, pending=4 - workers, seconds=60)
    assert "attempt 1 of long_0" in site.play("logs", jobset="long", job="long_0").said
    assert "starts" in site.play("journal", jobset="long").said
    site.play("kill", jobset="long", jobs="long_0")
    site.until_counts("long", failed=1, running=3, seconds=60)
    site.play("stop", jobset="long")
    assert site.sh("squeue --noheader --states=R,PD,CG --name=sagequeue.long") == ""
    counts = site.progress("long")["counts"]
    assert counts == {"pending": 3, "running": 0, "done": 0, "failed": 1}
    assert {line["reason"] for line in site.history("long")} == {"worker_stopped", "killed"}
    # Nobody wakes what the operator has stopped.
    site.play("hold", jobset="long", jobs="long_1")
    site.play("release", jobset="long", jobs="long_1")
    assert site.sh("squeue --noheader --name=sagequeue.long") == ""
    site.play("disable", jobset="long")
    assert "do not come back" in site.play("status", jobset="long").said
    site.play("enable", jobset="long")
    site.play("start", jobset="long")
    site.until_counts("long", running=3, seconds=60)
    site.play("restart", jobset="long")
    site.until_counts("long", running=3, seconds=60)
    site.play("diag", jobset="long")
    site.play("report", jobset="long")
    site.play("stop", jobset="long")


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
    found = site.until(lambda: [line for line in site.history("limited") if line["result"] == "pending"], 120, "its time is up")
    assert found[0]["reason"] == "worker_stopped" and found[0]["duration_s"] < 120
    site.until(lambda: "PENDING" in str(site.states("limited")), 60, "Slurm keeps the worker")
    site.play("stop", jobset="limited")


def test_a_node_that_dies_in_mid_run(site):
    site.play("purge_queue", jobset="long", confirm="long")
    site.sh("rm -f /shared/work/ledger /shared/sagequeue/var/long/run/history.jsonl")
    site.enqueue("long", [40, 40, 40, 40])
    site.until_counts("long", running=3, seconds=60)
    victim = site.busy("long")
    died = float(site.sh("date +%s.%N"))
    lost = {job for job, host, _begin, end in site.ledger() if host == victim and end is None}
    assert lost
    site.host("kill", victim)
    site.until_counts("long", done=4, seconds=400)
    assert {line["job"] for line in site.history("long") if line["reason"] == "orphan"} == lost
    for job in lost:
        first, second = sorted(run[2] for run in site.ledger() if run[0] == job)
        assert second > died > first
    site.host("up", victim)
    site.until(lambda: site.sh("sinfo --noheader --Node --format='%N %t'").count("idle") == 2, 120, "the node is back")


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
    assert site.sh("sinfo --noheader --Node --format='%N %t'").count("idle") == 2
    assert site.play("pool").changed == []


def test_a_drained_node_keeps_no_job(site):
    site.play("purge_queue", jobset="long", confirm="long")
    site.sh("rm -f /shared/work/ledger /shared/sagequeue/var/long/run/history.jsonl")
    site.enqueue("long", [20, 20, 20])
    site.until_counts("long", running=3, seconds=60)
    node = site.busy("long")
    site.play("drain", node=node)
    assert site.sh(f"squeue --noheader --nodelist={node}") == ""
    site.play("start", jobset="long")
    site.until_counts("long", done=3, seconds=200)
    assert not [line for line in site.history("long") if line["reason"] == "orphan"]
    site.play("drain", node=node, resume=True)
    assert "drain" not in site.sh("sinfo --noheader --Node --format='%N %t'")


def test_an_existing_installation_is_left_alone(site):
    site.host("exec", site.hosts[0], "sh", "-c", "echo '# theirs' >>/etc/slurm/slurm.conf")
    site.play("pool", manage_engine=False)
    assert site.sh("tail -1 /etc/slurm/slurm.conf") == "# theirs"
    site.play("teardown", jobset="quick")
    assert "quick.sh" not in site.sh("ls /shared/sagequeue/etc/slurm")
