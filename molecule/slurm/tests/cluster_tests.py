"""What holds under every engine: jobs, real Sage jobs on the nodes, every operator command, also after a stop."""

from __future__ import annotations


class EveryEngine:
    """Each test goes on from what the one before it has left."""

    def test_jobs_run_on_the_nodes_and_workers_leave(self, site):
        site.enqueue("quick", [1] * 12)
        site.until_counts("quick", done=12, seconds=60)
        runs = site.ledger()
        assert len(runs) == 12 and {host for _job, host, _begin, _end in runs} <= set(site.hosts[1:])
        site.until(lambda: not site.queued(), 60, "all workers have left")
        states = site.states("quick")
        assert len(states) == 4 and all("COMPLETED" in words for words in states.values()), states
        # They come back with the next job, and no more of them than there are jobs.
        assert site.enqueue("quick", [1] * 12).changed == []
        before = len(site.queued("quick", ended=True))
        site.enqueue("quick", [1] * 13)
        site.until_counts("quick", done=13, seconds=60)
        assert len(site.queued("quick", ended=True)) == before + 1

    def test_real_sage_jobs(self, site):
        """Each node runs the Sage that setup has put below the root, on the controller."""
        site.give_notebook(site.name, "/shared/work")
        site.play("enqueue", jobset="sage")
        site.until_counts("sage", done=3, seconds=400)
        logs = site.sh("cat /shared/sagequeue/var/sage/log/sage_off*.log")
        assert logs.count("verdict=UNSAT") == 9 and "verdict=SAT" not in logs
        assert "3/3 done; 9 cases" in site.play("progress", jobset="sage", depth="cases").said

    def test_operator_commands(self, site):
        site.enqueue("long", [600, 600, 600, 600, 600])
        site.until_counts("long", running=3, pending=2, seconds=60)
        states = site.states("long")
        assert all(words[0] == "RUNNING" and words[1] in site.hosts for words in states.values()), states
        asked = site.ad("long")
        assert {key: asked[key] for key in site.asked} == site.asked
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

    def test_after_a_stop_the_commands_go_on_and_nobody_comes(self, site):
        archive = "/shared/work/long.tar.gz"
        site.play("stop", jobset="long")
        assert not site.queued("long")
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
        assert not site.queued("long")
        site.play("disable", jobset="long")
        assert "do not come back" in site.play("status", jobset="long").said
        site.play("start", jobset="long")
        site.until_counts("long", running=3, seconds=60)
        assert not site.comes_back("long")
        site.play("enable", jobset="long")
        assert site.comes_back("long")
        site.play("restart", jobset="long")
        site.until_counts("long", running=3, pending=3, seconds=60)
        # Written while they run; put back into a queue that has lost all.
        site.play("backup", jobset="long", file=archive)
        site.fresh("long")
        site.play("restore", jobset="long", file=archive)
        assert not site.queued("long")
        site.until_counts("long", running=0, pending=6, seconds=60)
        site.play("start", jobset="long")
        site.until_counts("long", running=3, pending=3, seconds=60)

    def test_a_failed_job_that_is_retried_brings_a_worker_back(self, site):
        site.sh("touch /shared/work/fails")
        site.jobsets["quick"].update(script="fails.sh", attempts=1)
        site.write_inventory()
        site.sh("echo '! test -e fails' >/shared/work/fails.sh")
        site.play("enqueue", jobset="quick", offsets=[0])
        site.until_counts("quick", failed=1, seconds=60)
        site.until(lambda: not site.queued("quick"), 60, "all workers have left")
        site.sh("rm /shared/work/fails")
        site.play("retry_failed", jobset="quick")
        site.until_counts("quick", failed=0, seconds=60)
        site.until_counts("quick", pending=0, running=0, seconds=60)
