# MIT licence, see LICENSE.
"""The queue on a real NFS server: machines that are cut off, powered off, and come back. Run by ./run-tests --engines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.owner import believed
from ansible_collections.sagequeue.batch.plugins.modules import queue_program
from machines import HOST, Host, Machine, until

# Notes on the test host, not on the server, when it began and when it was last alive.
SCRIPT = """\
ledger=/var/log/ledger.$SAGEQUEUE_JOB.$$.$(hostname)
date +%s.%N >$ledger
end=$(($(date +%s) + ${JOB_SECONDS:-0}))
while [ "$(date +%s)" -lt "$end" ]; do sleep 0.2; date +%s.%N >>$ledger; done
"""
PYTHON = "import sys; sys.path.insert(0, '/shared/sagequeue/bin/sagequeue')\n" \
    "from dirqueue import definitions, engine, jobset, owner, shared\nfrom dirqueue.layout import Layout\n" \
    "from dirqueue.queue import Queue\nL = Layout('/shared/sagequeue', 't')\n"
LEASE = 10
KEYS = {"script": "job.sh", "command": "/bin/sh", "workdir": "/shared/work", "runner": "process", "grace": 2, "idle": 10000,
        "recover_every": 2, "lease": LEASE}


class Pool:
    def __init__(self) -> None:
        self.host = Host("sagequeue-nfs")
        # One after another: the server first.
        self.server = Machine(self.host, "server", "10.99.0.1")
        self.nodes = [Machine(self.host, f"n{number}", f"10.99.0.1{number}") for number in (1, 2)]
        program = queue_program.packed("/usr/bin/python3", queue_program.sources())
        subprocess.run([HOST, "exec", self.host.name, "sh", "-c", "cat >/program"], input=program, check=True)
        self.nodes[0].sh(f"mkdir -p /shared/sagequeue/bin /shared/work; cp /program /shared/sagequeue/bin/sagequeue; "
                         f"chmod 755 /shared/sagequeue/bin/sagequeue; cat >/shared/work/job.sh <<'E'\n{SCRIPT}E")
        self.python(0, f"j = jobset.Jobset('t', {KEYS!r}); L.create(); definitions.store(L, j)")

    def python(self, node: int, code: str, seconds: float = 60) -> str:
        return self.nodes[node].sh(f"python3 - <<'E'\n{PYTHON}{code}\nE", seconds).strip()

    def enqueue(self, *seconds: float) -> None:
        self.python(1, "q = Queue(L, definitions.load(L.root, 't'))\n"
                       f"q.enqueue([(f'j{{n}}', {{'SECONDS': str(s)}}) for n, s in enumerate({list(seconds)})])")

    def worker(self, node: int, number: int) -> None:
        self.nodes[node].start(f"SAGEQUEUE_ENGINE='none {number} 0' exec /shared/sagequeue/bin/sagequeue worker t-{number} "
                               f">>/var/log/worker.{number} 2>&1")

    def counts(self) -> dict[str, int]:
        """As the server sees it."""
        states = ("pending", "running", "done", "failed")
        said = self.server.sh(f"cd /export/sagequeue/var/t/queue; for s in {' '.join(states)}; do ls $s | grep -c 'env$'; done; true")
        return dict(zip(states, map(int, said.split())))

    def history(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.server.sh("cat /export/sagequeue/var/t/run/history.jsonl").splitlines()]

    def runs(self, job: str) -> dict[str, tuple[float, float]]:
        """By machine: when a job began there, and when it was last alive."""
        found = {}
        for path in self.host.sh(f"ls /var/log/ledger.{job}.* 2>/dev/null", check=False).split():
            times = self.host.sh(f"cat {path}").split()
            found[path.rpartition(".")[2]] = (float(times[0]), float(times[-1]))
        return found

    def clear(self) -> None:
        self.host.sh("rm -f /var/log/ledger.*")
        for node in self.nodes:
            node.sh("pkill -KILL -f 'sagequeue worker'; sleep 1; rm -rf /shared/sagequeue/var", 240, check=False)
        self.python(0, "L.create()")


@pytest.fixture(scope="module")
def whole() -> Iterator[Pool]:
    try:
        yield Pool()
    finally:
        subprocess.run([HOST, "down", "sagequeue-nfs"], check=True)


@pytest.fixture
def pool(whole: Pool) -> Pool:
    whole.clear()
    return whole


def test_the_folder_is_proved_to_hold_a_queue(pool: Pool) -> None:
    asked = pool.nodes[0].start(f"python3 - <<'E'\n{PYTHON}shared.answer('/shared/sagequeue/.proof-1')\nE")
    said = pool.python(1, "print(shared.prove('/shared/sagequeue', '/shared/sagequeue/.proof-1', 'n1'))", 120)
    assert said == "/shared (nfs4) is shared with n1: renames are atomic, locks hold, writes are seen"
    until(lambda: pool.host.sh(f"cat {asked}.rc", check=False) == "0", 30, "the other side has ended")
    assert ".proof" not in pool.nodes[0].sh("ls -A /shared/sagequeue")


@pytest.mark.parametrize(("options", "reason"), [
    ("vers=4.2,actimeo=600,nocto", "was not seen by the other within 5 s"),
    ("vers=4.0", "mounted as NFS 4.0, which may carry a rename out twice"),
])
def test_a_folder_that_cannot_is_refused(pool: Pool, options: str, reason: str) -> None:
    pool.nodes[0].start(f"timeout 30 python3 - <<'E'\n{PYTHON}shared.answer('/shared/sagequeue/.proof-2')\nE")
    until(lambda: ".proof-2" in pool.nodes[0].sh("ls -A /shared/sagequeue"), 30, "the other side is there")
    try:
        pool.nodes[1].sh(f"umount /shared; mount -t nfs4 -o hard,{options} 10.99.0.1:/ /shared; ls /shared/sagequeue/.proof-2")
        local = PYTHON.replace("/shared/sagequeue/bin/sagequeue", "/tmp/program")
        said = pool.nodes[1].sh(f"cp /program /tmp/program; python3 - <<'E' 2>&1 || true\n{local}"
                                "shared.prove('/shared/sagequeue', '/shared/sagequeue/.proof-2', 'n1')\nE", 120)
        assert reason in said, said
    finally:
        pool.nodes[1].sh("umount -l /shared; mount -t nfs4 -o vers=4.2,hard,actimeo=0,lookupcache=none 10.99.0.1:/ /shared")
        pool.nodes[0].sh("rm -rf /shared/sagequeue/.proof-2", check=False)


def test_many_jobs_on_two_machines_run_once_each(pool: Pool) -> None:
    pool.enqueue(*[0] * 60)
    for number in range(4):
        pool.worker(number % 2, number + 1)
    until(lambda: pool.counts()["done"] == 60, 300, "all is done")
    history = pool.history()
    assert sorted(line["job"] for line in history) == sorted(f"j{n}" for n in range(60))
    assert all(len(pool.runs(f"j{n}")) == 1 for n in (0, 30, 59))


@pytest.mark.parametrize("how", ["cut off", "powered off"])
def test_a_machine_that_is_lost_in_mid_run(pool: Pool, how: str) -> None:
    lost, other = pool.nodes
    pool.worker(0, 1)
    pool.enqueue(60)
    until(lambda: pool.runs("j0").get("n1"), 60, "it runs")
    pool.worker(1, 2)
    lost.cut() if how == "cut off" else lost.power_off()
    began, _last = until(lambda: pool.runs("j0").get("n2"), 240, "it runs on the other machine")
    ended = pool.runs("j0")["n1"][1]
    assert ended < began, "it ran on both machines at once"
    assert began - ended > (0 if how == "cut off" else believed(LEASE) - LEASE)
    # It comes back, and takes its part again.
    lost.cut(False) if how == "cut off" else lost.power_on()
    lost.sh("ls /shared/work", 240)
    until(lambda: lost.sh("pgrep -f 'sagequeue worker' || echo none") == "none", 60, "of the lost worker nothing is left")
    pool.worker(0, 3)
    until(lambda: pool.counts()["done"] == 1, 240, "it is done")
    assert [(line["result"], line["reason"]) for line in pool.history()] == [("pending", "orphan"), ("done", "ok")]
    assert pool.runs("j0")["n1"][1] == ended and "nothing was heard of n1" in pool.history()[0]["detail"]


def test_a_worker_that_is_killed_alone_leaves_nothing_behind(pool: Pool) -> None:
    pool.worker(0, 1)
    pool.enqueue(30)
    until(lambda: pool.runs("j0").get("n1"), 60, "it runs")
    pool.worker(1, 2)
    # The worker itself, whose guard goes on, and ends the job.
    pool.nodes[0].sh("kill -9 $(pgrep -of 'sagequeue worker')")
    until(lambda: pool.nodes[0].sh("pgrep -f 'job.sh' || echo none") == "none", 30, "the job has ended")
    began, _last = until(lambda: pool.runs("j0").get("n2"), 240, "it runs on the other machine")
    assert pool.runs("j0")["n1"][1] < began
    until(lambda: pool.counts()["done"] == 1, 240, "it is done")
