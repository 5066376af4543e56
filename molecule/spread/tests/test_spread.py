"""A jobset over three hosts that boot systemd: every policy's outcome, operator commands, a host that dies in mid-run and comes back."""

from __future__ import annotations

import pytest


def test_jobs_run_on_all_hosts_and_progress_adds_them_up(site):
    play = site.play("enqueue", jobset="quick", spread="sequential")
    assert play.result("Decide which host gets which job")["said"][0].startswith("quick: 9 enqueued: 3 on ")
    said = site.play("progress", jobset="quick", follow=True, interval=2).said
    assert "9/9 done" in said
    for host in site.hosts:
        assert len(site.holds(host, "quick", "done")) == 3
    assert sorted(name for host in site.hosts for what, name in site.ledger(host) if what == "begin") == [f"quick_off{n}" for n in range(9)]
    again = site.play("enqueue", jobset="quick")
    assert "9 were left alone" in again.said


def test_real_sage_jobs(site):
    for host in site.hosts:
        site.give_notebook(host, "~/Jupyter")
    site.play("enqueue", jobset="sage", spread="sequential")
    site.until_all("sage", done=3, seconds=400)
    for host in site.hosts:
        log = site.on(host, "cat ~/sagequeue/var/sage/log/sage_off*.log")
        assert log.count("verdict=UNSAT") == 3 and "verdict=SAT" not in log


def test_operator_commands_and_a_host_that_is_drained(site):
    first, second, third = site.hosts
    site.changes = {second: {"max_jobs_allowed": 3}}
    site.write_inventory()
    site.enqueue("long", "part[01-12]", 600, spread="smart")
    found = site.until_all("long", running=6, pending=6)
    assert [row["running"] for row in found["hosts"]] == [2, 2, 2]
    assert [row["pending"] for row in found["hosts"]][1] == 1
    for command in ("status", "logs", "journal", "list", "report", "diag", "verify", "metrics"):
        assert site.play(command, jobset="long").said
    assert site.play("requeue_running", jobset="long").changed == []
    # A killed job's worker takes another one, unless the gate is shut; it is shut on all hosts, and opened on all.
    site.play("request_stop", jobset="long")
    killed = site.holds(first, "long", "running")[0]
    site.play("kill", jobset="long", jobs=killed, sagequeue_hosts=first)
    site.until_all("long", running=5, failed=1)
    site.play("clear_stop", jobset="long")
    site.until_all("long", running=6)
    site.play("retry_failed", jobset="long")
    site.play("priority", jobset="long", jobs=killed, priority=7, sagequeue_hosts=first)
    site.play("disable", jobset="long")
    site.play("enable", jobset="long")
    site.play("restart", jobset="long")
    site.until_all("long", running=6, pending=6, failed=0)
    assert killed in site.holds(first, "long", "running")
    # What a host has lost it gets back from its archive.
    archive = {"file": "/home/researcher/long.tar.gz", "sagequeue_hosts": second}
    held = sorted(name for state in ("pending", "running") for name in site.holds(second, "long", state))
    site.play("backup", jobset="long", **archive)
    site.play("stop", jobset="long", sagequeue_hosts=second)
    site.play("purge_queue", jobset="long", confirm="long", sagequeue_hosts=second)
    site.play("restore", jobset="long", **archive)
    assert site.holds(second, "long", "pending") == held
    site.play("start", jobset="long", sagequeue_hosts=second)
    site.until_all("long", running=6, pending=6)
    waiting = site.holds(third, "long", "pending")
    site.play("hold", jobset="long", jobs=waiting[0], sagequeue_hosts=third)
    site.changes = {third: {"drained": True}}
    site.write_inventory()
    said = site.play("move", jobset="long", **{"from": third}).said
    assert "what is held stays" in said and "still run there" in said
    assert site.holds(third, "long", "pending") == [] and site.holds(third, "long", "held") == waiting[:1]
    # What runs there goes back to pending, and moves, too.
    site.play("stop", jobset="long", sagequeue_hosts=third)
    site.play("release", jobset="long", jobs=waiting[0], sagequeue_hosts=third)
    site.play("move", jobset="long", **{"from": third})
    assert [site.holds(third, "long", state) for state in ("pending", "held", "running")] == [[], [], []]
    names = [name for host in site.hosts[:2] for state in ("pending", "running") for name in site.holds(host, "long", state)]
    assert sorted(names) == [f"part{n:02}" for n in range(1, 13)]
    # It gets none, also not from enqueue, until it is said that it may.
    site.enqueue("long", "more[1-3]", 600)
    assert site.holds(third, "long", "pending") == []
    site.changes = {}
    site.write_inventory()
    site.play("stop", jobset="long")
    for host in site.hosts:
        site.play("purge_queue", jobset="long", confirm="long", sagequeue_hosts=host)
    assert sum(site.look("long")["counts"].values()) == 0


def test_a_host_that_dies_in_mid_run_and_comes_back(site):
    first, victim, third = site.hosts
    site.enqueue("long", "job[01-12]", 40, spread="sequential")
    site.until_all("long", running=6, pending=6)
    running, pending = site.holds(victim, "long", "running"), site.holds(victim, "long", "pending")
    assert len(running) == 2 and len(pending) == 2
    site.host("kill", victim)
    # Nothing moves by itself, and no job is placed anew that might be there.
    refused = site.play("enqueue", jobset="long", jobs_file=str(site.folder / "long.jobs"), ok=False)
    assert refused.rc == 0 and "12 were left alone" in refused.said
    other = site.folder / "other.jobs"
    other.write_text("other[1-2] SECONDS=1\n")
    refused = site.play("enqueue", jobset="long", jobs_file=str(other), ok=False)
    assert refused.rc != 0 and "does not say where other1 and 1 more would be" in refused.errors
    refused = site.play("move", jobset="long", ok=False, **{"from": victim})
    assert refused.rc != 0 and "-e lost=true" in refused.errors
    moved = site.play("move", jobset="long", lost=True, **{"from": victim})
    assert all(name in moved.said for name in running) and "may have been running there" in moved.said
    site.play("enqueue", jobset="long", jobs_file=str(other))
    # All but the two that ran there are done without it.
    site.until_all("long", done=12, seconds=400)
    done = sorted(name for host in (first, third) for name in site.holds(host, "long", "done"))
    assert done == sorted([*(f"job{n:02}" for n in range(1, 13) if f"job{n:02}" not in running), "other1", "other2"])
    # Its workers start with it, and what moved is theirs as well: that is seen, and what still waits there is taken off.
    site.host("up", victim)
    found = site.until(lambda: (seen := site.look("long"))["twice"] and seen, 120, "the host answers")
    assert set(found["twice"]) == set(pending) and "is back" in "\n".join(found["said"])
    site.play("move", jobset="long", back=victim)
    assert site.holds(victim, "long", "pending") == [] or set(site.holds(victim, "long", "pending")) <= set(running)
    site.until_all("long", done=14, seconds=400)
    assert all(name in site.holds(victim, "long", "done") for name in running)
    assert {row["host"]: row["note"] for row in site.look("long")["hosts"]}[first] == ""


@pytest.mark.parametrize("policy", ["random", "frugal"])
def test_other_policies(site, policy):
    site.play("purge_queue", jobset="quick", confirm="quick")
    play = site.play("enqueue", jobset="quick", spread=policy, offsets=[0, 1])
    assert "quick: 2 enqueued" in play.result("Decide which host gets which job")["said"][0]
    site.until_all("quick", done=2, seconds=120)
    if policy == "frugal":
        assert sorted(len(site.holds(host, "quick", "done")) for host in site.hosts) == [0, 0, 2]
