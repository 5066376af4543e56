"""The two short jobsets, run to their last job by workers under systemd, in real Sage."""

from __future__ import annotations

import itertools
import json

import pytest


@pytest.fixture(scope="module", autouse=True)
def enqueued(site):
    for jobset in ("petersen", "petersen_r4"):
        play = site.play("enqueue", jobset=jobset)
        assert "Put the jobs into the queue" in play.changed
    return site


def test_petersen_is_done(site):
    site.until_counts("petersen", done=4, seconds=400)
    found = site.progress("petersen")
    assert found["counts"] == {"pending": 0, "running": 0, "done": 4, "failed": 0}
    assert not found["gate"]["closed"]
    logs = site.sh("cat ~/sagequeue/var/petersen/log/petersen_off*.log")
    assert logs.count("verdict=UNSAT") == 36
    assert "verdict=SAT" not in logs


def test_petersen_ran_in_the_container_under_systemd(site):
    history = site.sh("cat ~/sagequeue/var/petersen/run/history.jsonl")
    assert {json.loads(line)["result"] for line in history.splitlines()} == {"done"}
    assert site.sh("systemctl --user is-active sagequeue-petersen.target sagequeue-worker@petersen-1.service") == "active\nactive"
    assert '"runner": "podman_exec"' in site.sh("cat ~/sagequeue/etc/jobsets/petersen.json")


def test_enqueue_again_leaves_the_jobs_alone(site):
    play = site.play("enqueue", jobset="petersen")
    assert play.changed == []
    assert "petersen_off0" in play.said


def test_petersen_r4_is_solved(site):
    gate = site.until(lambda: site.progress("petersen_r4")["gate"] if site.progress("petersen_r4")["gate"]["solved"] else None,
                      120, "petersen_r4 is solved")
    assert gate["by"] == "program"
    site.until_counts("petersen_r4", running=0, seconds=60)
    said = site.play("progress", jobset="petersen_r4").said
    assert "solved" in said
    assert gate["solved_by"] in said
    assert site.sh(f"ls ~/sagequeue/var/petersen_r4/queue/done/{gate['solved_by']}.env")


def test_the_witness_is_one(site):
    """Checked from the definition of the problem, without a line of the notebook and without Sage."""
    log = site.sh(f"cat {site.progress('petersen_r4')['gate']['log']}")
    witness = json.loads(next(line.split("WITNESS ", 1)[1] for line in log.splitlines() if "WITNESS " in line))
    vertices = list(itertools.combinations(range(5), 2))
    adjacency = [[int(not set(u) & set(v)) for v in vertices] for u in vertices]
    size = len(vertices)
    perm = [row.index("1") for row in witness["P"]]
    assert sorted(perm) == list(range(size))
    assert all(row.count("1") == 1 for row in witness["P"])
    moved = [[adjacency[perm[a]][perm[b]] for b in range(size)] for a in range(size)]
    total = [[0] * (size - 1) for _ in range(size - 1)]
    for k in range(size):
        kept = [n for n in range(size) if n != k]
        for i, j in itertools.product(range(size - 1), repeat=2):
            total[i][j] ^= moved[kept[i]][kept[j]]
    assert ["".join(map(str, row)) for row in total] == witness["B"]
    assert rank(total) <= 4


def rank(rows):
    """The rank over GF(2)."""
    basis = []
    for number in (int("".join(map(str, row)), 2) for row in rows):
        for other in basis:
            number = min(number, number ^ other)
        if number:
            basis.append(number)
    return len(basis)
