#!/usr/bin/env python3
# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Measures the queue beside what the machine can do and what a user would pick instead; run by ./run-tests --bench.

usage: bench.py [WORD...]                 only the contests whose titles have one of these words; then nothing is written to docs

SAGEQUEUE_BENCH_SIZE=0.01                 makes everything so much smaller, for a try; nothing is written to docs
SAGEQUEUE_BENCH_HOSTS=1                   measures on a test host, too: see tests/host/host

Whatever is measured is a real program on a real disk, below the cache folder. All contestants of a contest take turns, round by
round; each starts on a disk that has written what the one before it left. What can't be measured is left out, with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import report
from ansible_collections.sagequeue.batch.tests.unit.batch_host import REPOSITORY, Host, make_program, wait_for

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sagequeue-bench"
PEERS_PYTHON = CACHE / "venv" / "bin" / "python"
SIZE = float(os.environ.get("SAGEQUEUE_BENCH_SIZE", "1"))
HOSTS = os.environ.get("SAGEQUEUE_BENCH_HOSTS") == "1"
# The last commit before what makes the queue fast.
BEFORE = "39f11db"
# Jobs that each peer gets: as many as it works off in a few seconds, or can keep (task-spooler: a connection each).
PEERS = {"beanstalkd": 3000, "persist-queue": 3000, "huey": 3000, "dirq": 3000, "task-spooler": 400, "nq": 400, "parallel": 1000}
WORKERS = 2

# Name of a value -> what was measured, in order.
Values = dict[str, list[float]]
# Measures once, in an empty folder; the names of its values start with its own.
Measure = Callable[[Path], Values]


class Missing(Exception):
    """This can't be measured here; the text says why."""


class Figure(NamedTuple):
    """One line of the result: the worst of some pairs of a value and what it is held against (a value or a number), and its name.

    The ratio is to be at most (or, where more is better, at least) wanted.
    """

    name: str
    unit: str
    pairs: list[tuple[str, str | float, str]]
    wanted: float
    more_is_better: bool = False
    of: Callable[[list[float]], float] = statistics.median


class Contest(NamedTuple):
    """Who takes turns how often, and what that gives."""

    title: str
    rounds: int
    contestants: dict[str, Measure]
    figures: list[Figure]


def scaled(number: int, least: int = 20) -> int:
    return max(least, round(number * SIZE))


def run(words: list[str], seconds: float = 1200, **more: Any) -> str:
    """Run a command and return what it printed; whatever it has started goes with it."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True, start_new_session=True, **more
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        # What is left: first in a way that lets it clean up.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, number)
                process.wait(10)
    if process.returncode != 0:
        print(errors or output, file=sys.stderr)
        last = (errors or output).strip().splitlines()[-1:]
        named = " ".join(Path(word).name for word in words[:4])
        raise RuntimeError(f"{named} ... ended with {process.returncode}: {''.join(last)}")
    return output


# ---- the queue -----------------------------------------------------------------------------------------------------


@functools.cache
def sources(commit: str) -> Path | None:
    """Return the folder with the program's sources as of a commit; None for an empty text: as they are."""
    if not commit:
        return None
    try:
        folder = Path(tempfile.mkdtemp(dir=SCRATCH))
        archive = subprocess.run(
            ["git", "-C", str(REPOSITORY), "archive", commit, "plugins/module_utils/dirqueue"], capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
        return folder / "plugins" / "module_utils" / "dirqueue"
    except (OSError, subprocess.CalledProcessError) as exc:
        raise Missing(f"commit {commit} is not in this checkout's history") from exc


@contextlib.contextmanager
def house(folder: Path, commit: str = "", **keys: Any) -> Iterator[Host]:
    """A batch user's host whose jobs of the jobset t do nothing."""
    with contextlib.closing(Host(folder, make_program(folder / "program", sources(commit)))) as host:
        host.script("", "job.sh")
        standard = {"script": "job.sh", "command": ["/bin/true"], "workdir": str(host.work), "runner": "process", "stride": 10**6}
        ours(host, "define", {**standard, **keys})
        yield host


def ours(host: Host, verb: str, *words: Any) -> Any:
    """Measure in a process of its own."""
    os.sync()
    return json.loads(run([sys.executable, str(HERE / "ours.py"), verb, str(host.root), *map(json.dumps, words)], env=host.environment))


def intake(verb: str, title: str, jobs: int, commit: str = "") -> Measure:
    def measure(folder: Path) -> Values:
        with house(folder, commit) as host:
            seconds = ours(host, verb, scaled(jobs))
            return {title: [scaled(jobs) / seconds], f"{title}: seconds": [seconds]}

    return measure


def drain(title: str, jobs: int = 10_000, commit: str = "") -> Measure:
    def measure(folder: Path) -> Values:
        with house(folder, commit) as host:
            ours(host, "fill", scaled(jobs), 0)
            os.sync()
            began = time.perf_counter()
            workers = [host.worker(f"t-{number}", "--until-idle") for number in range(WORKERS)]
            assert [worker.wait() for worker in workers] == [0] * WORKERS, host.said("t-0")
            seconds = time.perf_counter() - began
            assert sum(entry.endswith(".env") for entry in os.listdir(host.path("done", "x").parent)) == scaled(jobs)
            return {title: [scaled(jobs) / seconds]}

    return measure


def peer(name: str, jobs: int) -> Measure:
    def measure(folder: Path) -> Values:
        command = {"task-spooler": "tsp", "beanstalkd": "beanstalkd", "nq": "nq", "parallel": "parallel", "xargs": "xargs"}.get(name)
        if command and not shutil.which(command):
            raise Missing(f"{name} is not installed")
        if not PEERS_PYTHON.exists():
            raise Missing(f"{PEERS_PYTHON} is not there: run ./run-tests --bench")
        os.sync()
        put, drained = json.loads(run([str(PEERS_PYTHON), str(HERE / "peers.py"), name, str(folder), str(scaled(jobs))], 300))
        return {f"{name}: drain": [scaled(jobs) / drained], **({f"{name}: put": [scaled(jobs) / put]} if put else {})}

    return measure


def claims(title: str, depth: int, files: bool, processes: int) -> Measure:
    def measure(folder: Path) -> Values:
        with house(folder) as host:
            # The least depth stays what it is: some of its jobs are claimed.
            ours(host, "fill", scaled(depth, 1000), int(files))
            return {title: [ours(host, "claims", 480 // processes, processes) * 1e6]}

    return measure


def phases(title: str, commit: str = "") -> Measure:
    def measure(folder: Path) -> Values:
        with house(folder, commit) as host:
            ours(host, "fill", scaled(1000), 0)
            return {f"{title}: {phase}": [spent] for phase, spent in ours(host, "phases").items()}

    return measure


def workers(folder: Path) -> Values:
    """A worker after a thousand jobs; four that are idle; a job for one of them."""
    found: Values = {"workers: latency": []}

    def cpu_seconds() -> float:
        tasks = [task for process in host.processes for task in Path(f"/proc/{process.pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    with house(folder, command=["/bin/sh"]) as host:
        host.script("date +%s.%N >> out")
        printed = host.work / "out"

        def lines() -> list[str]:
            return printed.read_text().splitlines() if printed.exists() else []

        ours(host, "fill", scaled(1000), 0)
        host.worker("t-1")
        wait_for(lambda: len(lines()) == scaled(1000) and "running" not in host.states().values(), 120)
        status = Path(f"/proc/{host.processes[0].pid}/status").read_text()
        found["workers: resident"] = [megabytes("VmRSS", status)]
        for number in (2, 3, 4):
            host.worker(f"t-{number}")
        time.sleep(3)
        began, spent = time.perf_counter(), cpu_seconds()
        time.sleep(max(2, 20 * min(1, SIZE)))
        found["workers: idle"] = [(cpu_seconds() - spent) / (time.perf_counter() - began) * 100]
        queue = host.queue()
        for number in range(scaled(20, 5)):
            time.sleep(0.7)
            before = len(lines())
            queue.enqueue([(f"t_late{number}", {"OFFSET": "0"})])
            returned = time.time()
            wait_for(lambda seen=before: len(lines()) > seen)
            found["workers: latency"].append((float(lines()[-1]) - returned) * 1000)
    return found


def megabytes(line: str, status: str) -> float:
    """Read a line of /proc/PID/status."""
    return int(re.findall(rf"^{line}:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024 / 1e6


# It is run as Ansible runs it on a host, and says at its end how much memory it had.
INFO = """
import atexit, runpy, sys
atexit.register(lambda: sys.stderr.write(open("/proc/self/status").read()))
runpy.run_module("ansible_collections.sagequeue.batch.plugins.modules.queue_info", run_name="__main__")
"""


def info(title: str, verb: str, *more: int) -> Measure:
    def measure(folder: Path) -> Values:
        found: Values = {f"{title}: seconds": [], f"{title}: MB": []}
        with house(folder) as host:
            ours(host, verb, scaled(1_000_000), *more)
            os.sync()
            for _turn in range(3):
                began = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", INFO],
                    input=json.dumps({"ANSIBLE_MODULE_ARGS": {"root": str(host.root), "jobset": "t"}}),
                    env={**os.environ, "PYTHONPATH": str(REPOSITORY / "playbooks" / "collections")},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[f"{title}: seconds"].append(time.perf_counter() - began)
                found[f"{title}: MB"].append(megabytes("VmHWM", done.stderr))
                assert sum(json.loads(done.stdout)["counts"].values()) == scaled(1_000_000), done.stdout[:300]
        return found

    return measure


# ---- the playbooks -------------------------------------------------------------------------------------------------

# In an order in which each finds what it needs.
COMMANDS: dict[str, list[str]] = {
    "status": [],
    "progress": ["jobset=quick"],
    "logs": ["jobset=quick", "job=quick_off1"],
    "journal": ["jobset=quick"],
    "diag": [],
    "enqueue": ["jobset=quick"],
    "retry_failed": ["jobset=quick"],
    "requeue_running": ["jobset=quick"],
    "request_stop": ["jobset=quick"],
    "clear_stop": ["jobset=quick"],
    "disable": ["jobset=quick"],
    "enable": ["jobset=quick"],
    "stop": ["jobset=quick"],
    "start": ["jobset=quick"],
    "restart": ["jobset=quick"],
}
EMPTY = [{"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.ping": {}}]}]
# What runs on the controller: no module is sent anywhere.
NO_MODULES = ("debug", "set_fact", "assert", "fail", "meta", "include_role", "import_role", "include_tasks", "import_tasks", "include_vars")
NO_MODULES += ("validate_argument_spec",)


def load(path: str) -> Any:
    """Import a file that is not in a package."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], REPOSITORY / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def modules(events: list[dict[str, Any]]) -> int:
    """Count the module executions of a run, one per item of a loop."""
    count = 0
    for event in events:
        data = event["event_data"]
        if event["event"] == "runner_on_ok" and data["task_action"].rpartition(".")[2] not in NO_MODULES:
            count += len(data["res"].get("results", [0]))
    return count


@contextlib.contextmanager
def batch_home() -> Iterator[Any]:
    """The embedded default: supervisord, the runner process, no Sage. Its setup has not run."""
    # In /tmp: the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="sagequeue-bench-", dir="/tmp"))
    try:
        yield load("tests/integration/conftest.py").House(folder)
    finally:
        pid = folder / "q" / "run" / "supervisord.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
            wait_for(lambda: not pid.exists(), 60)
        shutil.rmtree(folder)


def setups(title: str, home: Any) -> Values:
    """Set the host up, and once more."""
    found: Values = {}
    for turn in ("first", "again"):
        began = time.perf_counter()
        result = home.play("setup")
        if result.rc:
            raise RuntimeError(f"setup failed: {result.failures}")
        found[f"{title}: setup {turn}"] = [time.perf_counter() - began]
        found[f"{title}: setup {turn}, modules"] = [modules(result.events)]
    return found


def playbooks(title: str, home: Any, rounds: int, commands: dict[str, list[str]]) -> Values:
    """Time some playbooks beside an empty one, in turns."""
    found: Values = {}
    (home.folder / "empty.yml").write_text(json.dumps(EMPTY))
    # PYTHONUNBUFFERED, say, has Python read byte by byte what Ansible sends to it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for _round in range(rounds):
        for name, variables in {"empty": [], **commands}.items():
            playbook = home.folder / "empty.yml" if name == "empty" else REPOSITORY / "playbooks" / f"{name}.yml"
            words = ["ansible-playbook", "-i", str(home.folder / "inventory"), str(playbook)]
            began = time.perf_counter()
            run(
                [*words, *(word for pair in variables for word in ("-e", pair))],
                env={**environment, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
                cwd=REPOSITORY,
            )
            found.setdefault(f"{title}: {name}", []).append(time.perf_counter() - began)
    return found


def commands(rounds: int) -> Measure:
    def measure(_folder: Path) -> Values:
        with batch_home() as home:
            found = setups("commands", home)
            if home.play("enqueue", jobset="quick").rc:
                raise RuntimeError("enqueue failed")
            home.wait("done", 4)
            return {**found, **playbooks("commands", home, rounds, COMMANDS)}

    return measure


# Claims the jobs that are pending, all of them by a worker that is dead then.
ORPHANS = """
import sys
from dirqueue import definitions, owner
from dirqueue.layout import Layout
from dirqueue.queue import Queue
root, jobs = sys.argv[1], int(sys.argv[2])
for name in definitions.defined(root):
    with Queue(Layout(root, name), definitions.load(root, name)) as queue:
        queue.enqueue(queue.jobset.offset_jobs(range(jobs)))
        holder = owner.Holder(queue.layout.workers, f"{name}-dead")
        assert sum(1 for _ in range(jobs) if queue.claim(holder)) == jobs
"""


def scale(jobsets: int, workers: int, rounds: int) -> Measure:
    """Many jobsets with many workers, all defined and none started; then as many orphans as there are workers."""

    def measure(folder: Path) -> Values:
        with batch_home() as home:
            home.jobsets = {f"set{k}": {**home.jobsets["quick"], "workers": workers, "stride": workers} for k in range(jobsets)}
            home.write()
            found = {**setups("scale", home), **playbooks("scale", home, rounds, {"status": [], "progress": ["jobset=set0"]})}
            make_program(folder / "program")
            environment = {**os.environ, "PYTHONPATH": str(folder / "program")}
            run([sys.executable, "-c", ORPHANS, str(home.root), str(workers)], env=environment)
            found.update(playbooks("scale", home, 1, {"requeue_running": ["jobset=set0"]}))
            began = time.perf_counter()
            for name in home.jobsets:
                run([str(home.root / "bin" / "sagequeue"), "recover", name])
            found["scale: recover, all jobsets"] = [time.perf_counter() - began]
            assert len(home.jobs("pending", "set1")) == workers, "not all were recovered"
            return found

    return measure


# ---- a test host ---------------------------------------------------------------------------------------------------


def needs_hosts() -> None:
    if not HOSTS:
        raise Missing("it needs a test host, which SAGEQUEUE_BENCH_HOSTS=1 asks for")


def exec_costs(_folder: Path) -> Values:
    """The roles' own test measures that."""
    needs_hosts()
    printed = run(["pytest", "-s", "-q", "tests/roles/runners", "-k", "costs"], cwd=REPOSITORY)
    means = re.findall(r"(agent|crun exec|podman exec): ([0-9.]+) ms", printed)
    if not means:
        raise Missing("the test of the runners printed no figures: it was left out there")
    return {f"container: {name}": [float(value)] for name, value in means}


def host_setup(folder: Path) -> Values:
    """A bare host that boots systemd, made a batch host by setup, with a container; and the same again."""
    import ansible_runner

    needs_hosts()
    host = load("tests/roles/conftest.py").Host(f"bench-{os.getpid()}", folder)
    script = str(REPOSITORY / "tests" / "host" / "host")
    found: Values = {}
    try:
        run([script, "up", host.name])
        run([str(REPOSITORY / "tests" / "host" / "give-sage-base"), host.name])
        inventory = folder / "inventory"
        inventory.mkdir()
        (inventory / "hosts.yml").write_text(json.dumps({"sagequeue": {"hosts": {host.name: host.connection()}}}))
        (inventory / "group_vars").symlink_to(REPOSITORY / "inventories" / "local" / "group_vars")
        for title in ("first", "again"):
            private = folder / title
            private.mkdir()
            began = time.perf_counter()
            result = ansible_runner.run(
                private_data_dir=str(private),
                project_dir=str(REPOSITORY / "playbooks"),
                playbook="setup.yml",
                inventory=str(inventory),
                # As in molecule/default/converge.yml: no registry is needed.
                extravars={
                    "sage_image_base": "localhost/sagequeue-sage-base:latest",
                    "sage_image_ca_bundle": "/etc/ssl/certs/ca-certificates.crt",
                },
                envvars={"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
                quiet=True,
            )
            seconds = time.perf_counter() - began
            events = [event for event in result.events if event["event"].startswith("runner_on_")]
            if result.rc:
                raise RuntimeError(f"setup failed: {[event for event in events if event['event'] == 'runner_on_failed']}"[:600])
            # The image's build is not meant.
            told = [event["event_data"] for event in events]
            built = sum(data.get("duration", 0) for data in told if data.get("role", "").endswith("sage_image"))
            found[f"host: setup {title}"] = [seconds - built if title == "first" else seconds]
            found[f"host: setup {title}, modules"] = [modules(events)]
            found[f"host: setup {title}, role sage_image"] = [built]
    finally:
        with contextlib.suppress(RuntimeError):
            run([script, "down", host.name])
    return found


# ---- the table -----------------------------------------------------------------------------------------------------

DEPTHS = {
    "batch of 1,000": (1000, False),
    "batch of 1,000,000": (1_000_000, False),
    "1,000 files": (1000, True),
    "100,000 files": (100_000, True),
}


def depth_figure(processes: int) -> Figure:
    names = {kind: f"claim, {kind}, {processes} at a time" for kind in DEPTHS}
    pairs = [("batch of 1,000,000", "batch of 1,000"), ("100,000 files", "1,000 files")]
    return Figure(
        f"claim_depth_{processes}w",
        "us per claim and finish",
        [(names[deep], names[shallow], f"{shallow} pending instead of {deep}") for deep, shallow in pairs],
        1.3,
    )


def contests() -> list[Contest]:
    def rounds(number: int) -> int:
        return number if SIZE >= 1 else min(number, 2)

    million, hundred, floor = "enqueue 1,000,000", "enqueue 100,000", "one file per job"
    return [
        Contest(
            "intake and drain",
            rounds(3),
            {
                million: intake("enqueue", million, 1_000_000),
                hundred: intake("enqueue", hundred, 100_000),
                floor: intake("files", floor, 100_000),
                "enqueue one by one": intake("enqueue_each", "enqueue one by one", 2000),
                "drain": drain("drain"),
                "xargs": peer("xargs", 10_000),
                **{name: peer(name, jobs) for name, jobs in PEERS.items()},
            },
            [
                Figure("intake_1m", "jobs/s", [(million, floor, "one file per job, nothing synced")], 10, True),
                Figure("intake_100k", "jobs/s", [(hundred, floor, "one file per job, nothing synced")], 10, True),
                *(Figure(f"intake_vs_{name}", "jobs/s", [(hundred, f"{name}: put", f"{name}, put")], 1, True) for name in PEERS),
                Figure("drain_vs_xargs", "jobs/s", [("drain", "xargs: drain", "xargs -P2")], 1, True),
                *(Figure(f"drain_vs_{name}", "jobs/s", [("drain", f"{name}: drain", f"{name}, two at a time")], 1, True) for name in PEERS),
            ],
        ),
        Contest(
            "before and after",
            rounds(3),
            {
                "before: enqueue 100,000": intake("enqueue", "before: enqueue 100,000", 100_000, BEFORE),
                "before: drain": drain("before: drain", 5000, BEFORE),
                "phases": phases("phases"),
                "phases before": phases("phases before", BEFORE),
            },
            [],
        ),
        Contest(
            "claims at depth",
            rounds(3),
            {
                title: claims(title, depth, files, processes)
                for processes in (1, 16)
                for kind, (depth, files) in DEPTHS.items()
                for title in [f"claim, {kind}, {processes} at a time"]
            },
            [depth_figure(1), depth_figure(16)],
        ),
        Contest(
            "workers",
            rounds(3),
            {"workers": workers},
            [
                Figure("worker_rss", "MB", [("workers: resident", 20.0, "wanted: under 20 MB")], 1),
                Figure("idle_cpu", "% of a core", [("workers: idle", 0.1, "wanted: four idle workers under 0.1 %")], 1),
                Figure("start_latency", "ms, the worst", [("workers: latency", 100.0, "wanted: within 100 ms")], 1, of=max),
            ],
        ),
        Contest(
            "queue_info",
            1,
            {"info, batch": info("info, batch", "fill", 0), "info, done": info("info, done", "done")},
            [
                Figure("info_1m_rss", "MB", [(f"info, {what}: MB", 200.0, "wanted: under 200 MB") for what in ("batch", "done")], 1),
                Figure("info_1m_time", "s", [(f"info, {what}: seconds", 3.0, "wanted: under 3 s") for what in ("batch", "done")], 1),
            ],
        ),
        Contest(
            "playbooks",
            1,
            {"commands": commands(rounds(5))},
            [
                Figure(
                    "command_vs_empty",
                    "s",
                    [(f"commands: {name}", "commands: empty", f"{name}.yml against a playbook with one ping") for name in COMMANDS],
                    1.5,
                ),
                *([] if HOSTS else [Figure("setup_rerun_time", "s", [("commands: setup again", 15.0, "wanted: under 15 s (local)")], 1)]),
            ],
        ),
        Contest("scale", 1, {"scale": scale(scaled(32, 2), scaled(64, 2), rounds(3))}, []),
        Contest(
            "test host",
            1,
            {"container": exec_costs, "host": host_setup},
            [
                Figure("exec_vs_crun", "ms", [("container: agent", "container: crun exec", "crun exec")], 1),
                Figure("setup_first_time", "s", [("host: setup first", 90.0, "wanted: under 90 s without the image's build")], 1),
                *([Figure("setup_rerun_time", "s", [("host: setup again", 15.0, "wanted: under 15 s")], 1)] if HOSTS else []),
            ],
        ),
    ]


def hold(contest: Contest, values: Values, trouble: dict[str, str]) -> None:
    """Let all contestants of a contest take their turns."""
    for number in range(contest.rounds):
        for name, measure in contest.contestants.items():
            if name in trouble:
                continue
            # It stays until the end: to delete a million files is to disturb who comes next.
            folder = Path(tempfile.mkdtemp(dir=SCRATCH))
            began = time.monotonic()
            try:
                for label, found in measure(folder).items():
                    values.setdefault(label, []).extend(found)
                print(f"{contest.title}, round {number + 1} of {contest.rounds}: {name}: {time.monotonic() - began:.1f} s", flush=True)
            # One that fails must not take the others with it: its figures are left out, and the page says so.
            except Exception as exc:
                late = f"it had not come to its end after {exc.timeout:g} s" if isinstance(exc, subprocess.TimeoutExpired) else ""
                trouble[name] = late or (str(exc) if isinstance(exc, Missing) else f"{type(exc).__name__}: {exc}")
                print(f"{contest.title}: {name} is left out: {trouble[name]}", flush=True)


def result(figure: Figure, values: Values, trouble: dict[str, str]) -> dict[str, Any]:
    """Return a figure: that of the worst pair.

    Raises:
        Missing: a value of it was not measured.
    """
    found = []
    for own, other, name in figure.pairs:
        for label in (own, other):
            if isinstance(label, str) and label not in values:
                # The names of a measure's values start with its own.
                reasons = [text for title, text in trouble.items() if label == title or label.startswith(f"{title}:")]
                raise Missing(reasons[0] if reasons else f"there is no {label.partition(': ')[2]} with {label.partition(':')[0]}")
        mine = figure.of(values[own])
        theirs = statistics.median(values[other]) if isinstance(other, str) else other
        found.append({"ours": mine, "reference": theirs, "reference_name": name, "ratio": mine / theirs})
    worst = (min if figure.more_is_better else max)(found, key=lambda pair: float(pair["ratio"]))
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in worst.items()}
    return {"name": figure.name, "unit": figure.unit, **rounded}


def main() -> None:
    words = sys.argv[1:]
    chosen = [contest for contest in contests() if not words or any(word in contest.title for word in words)]
    values: Values = {}
    trouble: dict[str, str] = {}
    machine = report.machine(SCRATCH)
    machine["file system"] += DISK
    for contest in chosen:
        hold(contest, values, trouble)
    figures, missing = [], {}
    for figure in (figure for contest in chosen for figure in contest.figures):
        try:
            wanted = f"{'at least' if figure.more_is_better else 'at most'} {figure.wanted:g}"
            figures.append({**result(figure, values, trouble), "wanted": wanted})
        except Missing as exc:
            missing[figure.name] = str(exc)
    whole = SIZE == 1 and not words
    folder = REPOSITORY / "docs" if whole else CACHE / "try"
    report.write(folder, REPOSITORY / "docs" / "performance.md", machine, figures, missing, trouble, values)
    plotted = subprocess.run([str(PEERS_PYTHON), str(HERE / "plot.py"), str(folder)], input=json.dumps(values), text=True, check=False)
    print(f"{folder}/performance.md and performance.json are written" + ("" if plotted.returncode else ", and performance.svg"))


@contextlib.contextmanager
def journalled(folder: Path) -> Iterator[str]:
    """Mount an ext4 as distributions make it over the folder, if that lies on one without a journal; yields what was done, in words.

    That one makes a file the slower the more were deleted in the last minutes, for it goes through all of them each time. A
    user's disk has a journal; some virtual machines for tests have none.
    """
    device = os.stat(folder).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True).stdout.strip()
    plain = kind == "ext2/ext3" and not list(Path("/proc/fs/jbd2").glob(f"{block}-*"))
    if not plain or os.geteuid() != 0:
        yield ", without a journal" if plain else ""
        return
    image = folder.with_name(folder.name + ".ext4")
    try:
        subprocess.run(["truncate", "--size", "16G", str(image)], check=True)
        # For millions of small files; what mkfs leaves to be done later would be done while others are measured.
        subprocess.run(["mkfs.ext4", "-q", "-i", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
        yield ", with a journal, in a file on an ext4 without one"
    finally:
        subprocess.run(["umount", "--quiet", "--lazy", str(folder)], check=False)
        image.unlink(missing_ok=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    CACHE.mkdir(parents=True, exist_ok=True)
    # Of a run that was killed.
    for left in CACHE.glob("run-*"):
        if left.is_mount():
            subprocess.run(["umount", str(left)], check=True)
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as scratch, journalled(Path(scratch)) as DISK:
        SCRATCH = Path(scratch)
        main()
