#!/usr/bin/env python3
# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Measures the engines: jobs of the queue against jobs of the engine's own; and what very many workers ask of a file server.

usage: scale.py [PART...]                 of slurm, htcondor, simulation, nfs; all of them if none is named

What is measured is kept in docs/scale.json, part by part, and docs/scale.md is written from that. An engine's part needs the hosts
of its molecule scenario, which ./run-tests --scale brings up; nfs starts machines as the tests of the NFS server do.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import report
from ansible_collections.sagequeue.batch.plugins.modules import queue_program
from cluster_site import Cluster
from machines import Host, Machine

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = int(os.environ.get("SAGEQUEUE_SCALE_JOBS", "1000"))
ROUNDS = int(os.environ.get("SAGEQUEUE_SCALE_ROUNDS", "3"))
SLOTS = 8
PAGE, ROWS = REPOSITORY / "docs/scale.md", REPOSITORY / "docs/scale.json"
# Requests per second that the tables hold the demand against.
SERVER = 20_000

# How each engine is given the workers of a jobset, as its supervisor does it, and jobs of its own; and how their end is seen.
_NUMBERS = ", ".join(map(str, range(1, SLOTS + 1)))
ENGINES = {
    "slurm": (
        f"sbatch --parsable --array=1-{SLOTS}%{SLOTS} /shared/sagequeue/etc/slurm/bench.sh",
        "id=$(sbatch --parsable --array=0-$((JOBS - 1)) --output=/shared/work/out/%a.log --mem=64 --wrap /bin/true)",
        'while [ -n "$(squeue --noheader --jobs=$id 2>/dev/null)" ]; do sleep 0.5; done',
    ),
    "htcondor": (
        f"condor_submit -terse /shared/sagequeue/etc/htcondor/bench.sub -queue 'number in ({_NUMBERS})'",
        "rm -f /shared/work/log; printf '%s\\n' universe=vanilla executable=/bin/true transfer_executable=false should_transfer_files=NO "
        "initialdir=/shared/work log=/shared/work/log 'output=/shared/work/out/$(Process).log' request_memory=64 "
        '"queue $JOBS" >/shared/work/own.sub; condor_submit -terse /shared/work/own.sub',
        "condor_wait /shared/work/log >/dev/null",
    ),
}
_DONE = "/shared/sagequeue/var/bench/queue/done"
_HISTORY = "/shared/sagequeue/var/bench/run/history.jsonl"


def measure(engine: str) -> list[dict[str, Any]]:
    """Return an engine's rows."""
    workers, own, ended = ENGINES[engine]
    keys = {
        "script": "true.sh",
        "command": ["/bin/true"],
        "workdir": "/shared/work",
        "workers": SLOTS,
        "stride": JOBS,
        "idle": 2,
        "memory": "64M",
    }
    seconds: dict[str, list[float]] = {"workers": [], "own": []}
    with tempfile.TemporaryDirectory() as folder:
        site = Cluster(engine, Path(folder), {"bench": keys})
        site.sh("touch /shared/work/true.sh; mkdir -p /shared/work/out")
        gone = "squeue --noheader --name=sagequeue.bench" if engine == "slurm" else "condor_q -af ClusterId"
        for _ in range(ROUNDS):
            fill(site)
            # The folder of done jobs is looked at, since it costs nobody else anything.
            seconds["workers"].append(timed(site, workers, f"while [ $(ls {_DONE} | wc -l) -lt {JOBS} ]; do sleep 0.1; done"))
            site.until(lambda: site.sh(f"wc -l <{_HISTORY}") == str(JOBS), 60, "each has run once")
            site.until(lambda: not site.sh(gone), 120, "all workers have left")
            seconds["own"].append(timed(site, f"JOBS={JOBS}; {own}", ended))
            assert int(site.sh("ls /shared/work/out | wc -l")) == JOBS
            site.sh("rm -r /shared/work/out; mkdir /shared/work/out")
            print(f"{engine}: {seconds}", flush=True)
    rows = []
    for way, what in (("workers", f"{SLOTS} workers, each an engine's job"), ("own", "an engine's job each, submitted by one call")):
        took = statistics.median(seconds[way])
        rows.append(
            {
                "name": f"{engine}_{way}",
                "engine": engine,
                "what": what,
                "jobs": JOBS,
                "slots": SLOTS,
                "seconds": round(took, 2),
                "jobs_per_second": round(JOBS / took, 1),
                "overhead_ms": round(took * SLOTS / JOBS * 1000, 1),
            }
        )
    for row in rows:
        row["ratio"] = round(row["jobs_per_second"] / rows[1]["jobs_per_second"], 2)
    return rows


def fill(site: Cluster) -> None:
    """Give the jobset an empty queue, and all its jobs."""
    code = """import os, sys; sys.path.insert(0, '/shared/sagequeue/bin/sagequeue'); os.umask(0o077)
from dirqueue import definitions; from dirqueue.layout import Layout; from dirqueue.queue import Queue
layout = Layout('/shared/sagequeue', 'bench'); layout.create(); queue = Queue(layout, definitions.load(layout.root, 'bench'))
queue.enqueue(queue.jobset.offset_jobs(range(queue.jobset.stride)))
"""
    site.sh("rm -rf /shared/sagequeue/var/bench; python3 - <<'E'\n" + code + "E")


def timed(site: Cluster, begin: str, wait: str) -> float:
    """Return the seconds between two moments, by the controller's clock."""
    words = site.sh(f"exec 3>&1 >/dev/null; began=$(date +%s.%N); {begin}; {wait}; echo $began $(date +%s.%N) >&3").split()
    return float(words[1]) - float(words[0])


def simulate() -> list[dict[str, Any]]:
    """Return what the simulated workers ask for, for each number of them."""
    rows = []
    for workers, jobs in ((1, 100_000), (10, 100_000), (100, 100_000), (1000, 1_000_000), (10_000, 10_000_000)):
        folder = Path(tempfile.mkdtemp(dir="/dev/shm")) / "root"
        words = [
            sys.executable,
            str(Path(__file__).with_name("simulate.py")),
            str(folder),
            str(workers),
            str(max(1000, min(2000, workers * 2))),
            str(jobs),
        ]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "plugins/module_utils")}
        try:
            said = subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout
        finally:
            shutil.rmtree(folder.parent)
        rows.append({"name": f"simulated_{workers}", "jobs": jobs, **json.loads(said)})
        print(rows[-1], flush=True)
    return rows


def nfs() -> list[dict[str, Any]]:
    """Return what simulated workers send to a real NFS server."""
    host = Host("sagequeue-scale")
    try:
        Machine(host, "server", "10.99.0.1")
        node = Machine(host, "n1", "10.99.0.11")
        program = queue_program.packed("/usr/bin/python3", queue_program.sources())
        for path, data in (("/program", program), ("/simulate.py", Path(__file__).with_name("simulate.py").read_bytes())):
            subprocess.run([str(REPOSITORY / "tests/host/host"), "exec", host.name, "sh", "-c", f"cat >{path}"], input=data, check=True)
        found = []
        for workers, claims in ((1, 100), (20, 100)):
            said = node.sh(f"cd /; PYTHONPATH=/program python3 /simulate.py /shared/s{workers} {workers} {claims} 1500", 900)
            found.append({"name": f"nfs_simulated_{workers}", **json.loads(said.splitlines()[-1])})
        print(found, flush=True)
        return found
    finally:
        host.down()


def page(rows: list[dict[str, Any]]) -> str:
    """Return the tables."""
    measured = [row for row in rows if "engine" in row]
    text = report.table(
        ["engine", "1,000 jobs as", "seconds", "jobs per second", "overhead per job, ms", "times as many"],
        [
            [
                row["engine"],
                row["what"],
                report.number(row["seconds"]),
                report.number(row["jobs_per_second"]),
                report.number(row["overhead_ms"]),
                f"{row['ratio']:.3g}",
            ]
            for row in measured
        ],
    )
    simulated = [row for row in rows if row["name"].startswith("simulated_")]
    served = [row for row in rows if row["name"].startswith("nfs_simulated_")]
    per_call = served[-1]["requests"] / served[-1]["job"] if served else 1.0
    text += "\n" + report.table(
        ["workers", "calls per job", "requests per job", "requests of one look for orphans", "of all leases, per second"],
        [
            [
                f"{row['workers']:,}",
                report.number(row["job"]),
                report.number(row["job"] * per_call),
                report.number(row["recover"] * per_call),
                report.number(constant(row, per_call)),
            ]
            for row in simulated
        ],
    )
    text += "\n" + report.table(
        ["workers", "jobs of 1 s", "10 s", "1 min", "10 min", "1 h"],
        [
            [f"{row['workers']:,}", *(report.number(demand(row, seconds, per_call)) for seconds in (1, 10, 60, 600, 3600))]
            for row in simulated
        ],
    )
    return text


def constant(row: dict[str, Any], per_call: float) -> float:
    """Return requests per second for leases (120 s: each 20) and for whether a job is to be killed (each 5 s)."""
    return row["workers"] * (row["renew"] / 20 + row["ask"] / 5) * per_call


def demand(row: dict[str, Any], seconds: float, per_call: float) -> float:
    """Return requests per second of so many workers with jobs of so many seconds; orphans are looked for once a minute."""
    return row["workers"] / seconds * row["job"] * per_call + constant(row, per_call) + row["recover"] * per_call / 60


def main(parts: list[str]) -> None:
    known: dict[str, dict[str, Any]] = {}
    if ROWS.exists():
        known = {row["name"]: row for row in json.loads(ROWS.read_text(encoding="utf-8"))}
    facts = report.machine(REPOSITORY)
    for part in parts or [*ENGINES, "simulation", "nfs"]:
        found = measure(part) if part in ENGINES else simulate() if part == "simulation" else nfs()
        known.update((row["name"], {**row, "date": facts["date"], "commit": facts["commit"]}) for row in found)
    rows = list(known.values())
    ROWS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    first, rest = text.split(report.BEGIN)
    PAGE.write_text(first + report.BEGIN + "\n" + page(rows) + "\n" + report.END + rest.split(report.END)[1], encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
