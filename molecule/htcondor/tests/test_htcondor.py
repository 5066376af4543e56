"""Workers under a real HTCondor: every operator command, a node that dies in mid-run, new tokens, a node drained."""

from __future__ import annotations

import json


def queued(site, jobset=""):
    """The ads of the workers that HTCondor has in its queue."""
    said = site.sh(f"condor_q -json {jobset and '-constraint'} {jobset and repr(f'SagequeueJobset == {json.dumps(jobset)}')}")
    return json.loads(said or "[]")


def test_jobs_run_on_the_nodes_and_workers_leave(site):
    site.enqueue("quick", [1] * 12)
    site.until_counts("quick", done=12, seconds=120)
    runs = site.ledger()
    assert len(runs) == 12 and {host for _job, host, _begin, _end in runs} <= set(site.hosts[1:])
    site.until(lambda: not queued(site), 60, "all workers have left")
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
    ad = queued(site, "long")[0]
    assert (ad["RequestMemory"], ad["RequestDisk"], ad["RequestCpus"], ad["JobLeaseDuration"]) == (64, 1024, 1, 60)
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
    assert queued(site, "long") == []
    assert site.progress("long")["counts"] == {"pending": 3, "running": 0, "done": 0, "failed": 1}
    assert {line["reason"] for line in site.history("long")} == {"worker_stopped", "killed"}
    # Nobody wakes what the operator has stopped.
    site.play("hold", jobset="long", jobs="long_1")
    site.play("release", jobset="long", jobs="long_1")
    assert queued(site, "long") == []
    site.play("disable", jobset="long")
    assert "do not come back" in site.play("status", jobset="long").said
    site.play("enable", jobset="long")
    site.play("start", jobset="long")
    site.until_counts("long", running=3, seconds=60)
    # Evicted: the job is put back, and the worker comes again.
    site.sh("condor_vacate_job $(condor_q -af ClusterId | head -1)")
    site.until(lambda: "PENDING" not in str(site.states("long")) and site.progress("long")["counts"]["running"] == 3, 120, "they run again")
    site.play("stop", jobset="long")
    assert not [line for line in site.history("long") if line["reason"] in ("orphan", "signal")]


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
    site.until(lambda: len(set(site.sh("condor_status -startd -af Machine").split())) == 2, 120, "the node is back")


def test_new_tokens_lock_out_who_does_not_get_one(site):
    site.nodes = site.hosts[1:2]
    site.write_inventory()
    site.play("pool", rotate_key=True)
    outsider = site.hosts[2]
    site.host("exec", outsider, "systemctl", "restart", "condor")
    site.until(lambda: outsider not in site.sh("condor_status -startd -af Machine"), 120, "it is not in the pool any more")
    # One line and one command bring it in again.
    del site.nodes
    site.write_inventory()
    site.play("pool")
    assert outsider in site.sh("condor_status -startd -af Machine")
    assert site.play("pool").changed == []


def test_a_drained_node_keeps_no_job(site):
    site.play("purge_queue", jobset="long", confirm="long")
    site.sh("rm -f /shared/work/ledger")
    site.enqueue("long", [20, 20, 20])
    site.until_counts("long", running=3, seconds=60)
    node = site.busy("long")
    site.play("drain", node=node)
    assert node not in site.sh("condor_q -af RemoteHost")
    site.until_counts("long", done=3, seconds=200)
    site.play("drain", node=node, resume=True)
    site.until(lambda: "Drained" not in site.sh("condor_status -startd -af State"), 60, "it takes jobs again")


def test_an_existing_installation_is_left_alone(site):
    site.host("exec", site.hosts[0], "sh", "-c", "echo '# theirs' >>/etc/condor/config.d/50-sagequeue.conf")
    site.play("pool", manage_engine=False)
    assert site.sh("tail -1 /etc/condor/config.d/50-sagequeue.conf") == "# theirs"
    site.play("teardown", jobset="quick")
    assert "quick.sub" not in site.sh("ls /shared/sagequeue/etc/htcondor")
