"""Workers under a real HTCondor: what holds under every engine, nodes that die, go, or are drained; and jobs without a shared folder."""

from __future__ import annotations

from cluster_tests import EveryEngine


class TestHtcondor(EveryEngine):
    pass


def test_an_evicted_job_is_put_back_and_its_worker_comes_again(site):
    site.fresh("long")
    site.enqueue("long", [600, 600, 600])
    site.until_counts("long", running=3, seconds=60)
    # A worker of the test before may not have left yet.
    site.sh("""condor_vacate_job $(condor_q -constraint 'SagequeueJobset == "long"' -af ClusterId | head -1)""")
    site.until(lambda: any(line["reason"] == "worker_stopped" for line in site.history("long")), 60, "a job is put back")
    site.until_counts("long", running=3, seconds=120)
    site.play("stop", jobset="long")
    assert {line["reason"] for line in site.history("long")} == {"worker_stopped"}


def test_a_node_that_dies_in_mid_run(site):
    site.fresh("long")
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


def test_a_node_is_taken_away_and_locked_out_while_jobs_run(site):
    site.fresh("long")
    site.enqueue("long", [60, 60, 60])
    site.until_counts("long", running=3, seconds=60)
    outsider = site.busy("long")
    # Drained, its line deleted, the key rotated: it has the old token still, and is not let in.
    site.play("drain", node=outsider)
    lost = len([line for line in site.history("long") if line["reason"] == "orphan"])
    site.nodes = [name for name in site.hosts[1:] if name != outsider]
    site.write_inventory()
    assert "Its key is new" in site.play("pool", rotate_key=True).said
    site.until(lambda: outsider not in site.sh("condor_status -startd -af Machine"), 120, "it is not in the pool any more")
    site.host("exec", outsider, "systemctl", "restart", "condor")
    site.until_counts("long", done=3, seconds=400)
    assert outsider not in site.sh("condor_status -startd -af Machine")
    # No job was lost, none ran twice at once, and the new key has ended none.
    assert len([line for line in site.history("long") if line["reason"] == "orphan"]) == lost
    for job in ("long_0", "long_1", "long_2"):
        runs = sorted((begin, end) for name, _host, begin, end in site.ledger() if name == job)
        assert all(first[1] and first[1] <= second[0] for first, second in zip(runs, runs[1:])), runs
    # One line and one command bring it in again.
    del site.nodes
    site.write_inventory()
    site.play("pool")
    assert outsider in site.sh("condor_status -startd -af Machine")
    assert site.play("pool").changed == []


def test_a_drained_node_keeps_no_job(site):
    site.fresh("long")
    site.enqueue("long", [20, 20, 20])
    site.until_counts("long", running=3, seconds=60)
    node = site.busy("long")
    site.play("drain", node=node)
    assert node not in site.sh("condor_q -af RemoteHost")
    site.until_counts("long", done=3, seconds=200)
    site.play("drain", node=node, resume=True)
    site.until(lambda: "Drained" not in site.sh("condor_status -af State"), 60, "it takes jobs again")


# What it is sent, it says; what it makes, it brings back: also how often it has begun, which only an attempt before it can have told it.
FAR = """\
cat data/common "own/$SAGEQUEUE_JOB"
[ "$TOKEN" = "it's a secret" ] || exit 9
ls /home/researcher/far 2>/dev/null && exit 8
begun=$(($(cat "state_$SAGEQUEUE_JOB" 2>/dev/null) + 1)); echo "$begun" >"state_$SAGEQUEUE_JOB"
mkdir -p out/of; echo "$SAGEQUEUE_CLAIM $begun" >"out/of/$SAGEQUEUE_JOB"; echo no >scratch
[ "$JOB_FAILS" ] && [ "$begun" -lt 2 ] && exit 7
. /shared/work/job.sh
"""


def far(site, seconds, **more):
    """Enqueue jobs that take their files along, which take so many seconds each."""
    names = [f"far_{n}" for n in range(len(seconds))]
    site.play("purge_queue", jobset="far", confirm="far")
    site.sh("rm -f /shared/sagequeue/var/far/log/*")
    site.sh("rm -rf ~/far /shared/work/ledger; mkdir -p ~/far/data ~/far/own; echo common >~/far/data/common")
    site.sh(f"cat >~/far/job.sh <<'E'\n{FAR}E\nfor job in {' '.join(names)}; do echo \"own $job\" >~/far/own/$job; done")
    listed = site.folder / "far.jobs"
    lines = [f"{name} SECONDS={s} {' '.join(f'{k}={v}' for k, v in more.items())}" for name, s in zip(names, seconds)]
    listed.write_text("".join(f"{line.strip()}\n" for line in lines))
    site.play("enqueue", jobset="far", jobs_file=str(listed))
    return names


def value(site, name, key):
    """The value of a key of a finished job."""
    return site.sh(f"sed -n 's/^{key}=//p' /shared/sagequeue/var/far/queue/*/{name}.env")


def test_jobs_that_share_no_folder_with_the_nodes(site):
    names = far(site, [1] * 8, FAILS=1)
    site.until_counts("far", done=8, seconds=240)
    runs = site.ledger()
    assert len(runs) == 8 and {host for _job, host, _begin, _end in runs} <= set(site.hosts[1:])
    assert sorted(site.sh("cd ~/far; ls; ls out/of").split()) == sorted(
        ["data", "job.sh", "out", "own", *(f"state_{name}" for name in names), *names]
    )
    for name in names:
        # The second attempt has gone on from what the first one sent back.
        assert site.sh(f"cat ~/far/out/of/{name}") == f"{value(site, name, 'CLAIM')} 2"
        log = site.play("logs", jobset="far", job=name).said
        assert f"common\nown {name}" in log and "HTCondor runs it on sagequeue-htcondor-n" in log
    assert value(site, names[0], "ATTEMPTS") == "2"
    # The values of secrets are in no job's ad.
    assert "secret" not in site.sh("condor_history -l -limit 20")
    assert site.sh("ls /shared/sagequeue/var/far/run/condor") == "" == site.sh("condor_q -af ClusterId")


def test_a_submit_host_that_reboots_picks_its_jobs_up_again(site):
    names = far(site, [5, 150, 150, 150, 150])
    # One ends while nobody looks after it.
    site.until_counts("far", done=1, running=4, seconds=60)
    site.until(lambda: len(site.ledger()) == 5, 60, "all have begun")
    ids = site.sh("condor_q -af ClusterId").split()
    site.sh("systemctl --user kill --kill-whom=main --signal=KILL sagequeue-worker@far-1.service")
    picked = "cat /shared/sagequeue/var/far/log/*.log | grep -c 'picked up by' || true"
    site.until(lambda: site.sh(picked) == "4", 60, "they are picked up")
    # Recovery, kill of another, and so on leave them alone.
    site.play("requeue_running", jobset="far")
    for how in (["restart"], ["kill"]):
        site.host(*how, site.name)
        if how == ["kill"]:
            site.host("up", site.name)
        site.until(lambda: site.run("condor_q", check=False).returncode == 0, 60, "HTCondor is there again")
        assert sorted(site.sh("condor_q -af ClusterId").split()) == sorted(ids)
    site.until_counts("far", done=5, seconds=300)
    runs = site.ledger()
    assert len(runs) == 5 and all(end for _job, _host, _begin, end in runs), runs
    for name in names:
        assert site.sh(f"cat ~/far/out/of/{name}") == f"{value(site, name, 'CLAIM')} 1"
        assert value(site, name, "ATTEMPTS") == "1" and value(site, name, "RECOVERIES") == ""
        assert site.sh(f"cat /shared/sagequeue/var/far/log/{name}.log").count(f"own {name}") == 1


def test_operator_commands_on_jobs_that_share_no_folder(site):
    names = far(site, [600, 600, 600])
    site.until(lambda: len(site.ledger()) == 3, 60, "all have begun")
    assert "far-1" in site.play("status", jobset="far").said
    site.play("kill", jobset="far", jobs=names[0])
    assert value(site, names[0], "REASON") == "killed"
    site.play("stop", jobset="far")
    assert site.sh("condor_q -af ClusterId") == ""
    assert site.progress("far")["counts"] == {"pending": 2, "running": 0, "done": 0, "failed": 1}
    assert value(site, names[1], "REASON") == "worker_stopped" and value(site, names[1], "ATTEMPTS") == "0"
    assert all(end for _job, _host, _begin, end in site.ledger())
    site.play("start", jobset="far")
    site.until_counts("far", running=2, seconds=60)
    # On a node that is drained, jobs start anew elsewhere, by HTCondor's own doing.
    site.until(lambda: len(site.ledger()) == 5, 60, "they run again")
    node = site.busy("far")
    site.play("drain", node=node)
    others = set(site.hosts[1:]) - {node}
    site.until(lambda: {host for _job, host, _begin, end in site.ledger() if end is None} == others, 120, "all run elsewhere")
    site.play("drain", node=node, resume=True)
    site.play("request_stop", jobset="far")
    site.play("stop", jobset="far")
    site.play("clear_stop", jobset="far")
    assert site.progress("far")["counts"]["pending"] == 2


def test_an_existing_installation_is_left_alone(site):
    site.host("exec", site.hosts[0], "sh", "-c", "echo '# theirs' >>/etc/condor/config.d/50-sagequeue.conf")
    site.play("pool", manage_engine=False)
    assert site.sh("tail -1 /etc/condor/config.d/50-sagequeue.conf") == "# theirs"
    site.play("teardown", jobset="quick")
    assert "quick.sub" not in site.sh("ls /shared/sagequeue/etc/htcondor")
