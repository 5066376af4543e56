# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Many workers, recoverers and enqueuers side by side, killed at random, while the gate opens and closes.

Each job keeps a record of its runs, which nobody else writes: a line at its start, one at its end. It holds a lock on
that file for as long as any process of it lives, and takes it without waiting. So a run that meets an earlier one still
alive says so itself, also when the earlier one was killed and wrote no end.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import job
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carriers, end_carriers
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host, wait_for

# Times are of /proc/uptime, which no change of the clock touches.
JOB = """\
exec 9>>"$STORM_RUNS/$SAGEQUEUE_JOB"
flock -n 9 || { echo "overlap $SAGEQUEUE_CLAIM" >&9; exit; }
read -r now rest </proc/uptime
echo "start $SAGEQUEUE_CLAIM $STORM_BOOT $now $$ $PPID" >&9
if [ -n "$JOB_LEAVE" ]; then setsid sleep "$JOB_LEAVE" & fi
[ -z "$JOB_SLEEP" ] || sleep "$JOB_SLEEP"
read -r now rest </proc/uptime
echo "end $SAGEQUEUE_CLAIM $STORM_BOOT $now" >&9
"""
CRASHED = 3
# A clock that all who load this library share, and that can be set: the machine's own and as many seconds as a file says.
# libfaketime can't serve: unless it sets the monotonic clock, too, which no set clock does, it breaks clock_nanosleep(2).
CLOCK = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static const volatile long *seconds;
__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("STORM_CLOCK"), O_RDONLY);
    seconds = mmap(NULL, sizeof *seconds, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (seconds && !status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *seconds;
    return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    int status = clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return status;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


class Run(NamedTuple):
    """One run of a job, as its record has it; ended: None if it was killed."""

    claim: str
    boot: int
    started: float
    pid: int
    worker: int
    ended: float | None


class Storm:
    """A storm over one host: run it (as often as it crashes), then check what is left."""

    def __init__(self, host: Host, jobs: int, workers: int, **more: Any) -> None:
        self.host = host
        self.names = [f"job_{number}" for number in range(jobs)]
        self.runs_folder = host.base / "runs"
        self.runs_folder.mkdir()
        host.script(JOB)
        host.define(environment={"STORM_RUNS": str(self.runs_folder)}, attempts=10**6, recoveries=10**6)
        self.config: dict[str, Any] = {
            "root": str(host.root),
            "base": str(host.base),
            "program": str(host.program),
            "jobs": jobs,
            "workers": workers,
            "seed": int(os.environ.get("STORM_SEED", time.time_ns() % 10**6)),
            "boot": 0,
            "kill_every": 0.2,
            "jobs_per_kill": 10,
            "open": 2.0,
            "pace": 0.004,
            "limit": 60 + jobs / 4,
            "crash_at": None,
            "pid_max": 0,
            "last_pid": 0,
            "clock": "",
            "environment": {"STORM_BASE": str(host.base)},
            **more,
        }
        self.config["environment"] = {**self.config["environment"], "STORM_BASE": str(host.base)}

    def rage(self, *wrap: str) -> int:
        """Let the storm rage until every job is done or the host crashes; return the exit status."""
        path = self.host.base / "storm.json"
        path.write_text(json.dumps(self.config), encoding="utf-8")
        try:
            return subprocess.run(
                [*wrap, sys.executable, str(Path(__file__).with_name("storm.py")), str(path)],
                env=self.host.environment,
                timeout=self.config["limit"] + 60,
            ).returncode
        finally:
            # Jobs that were left by workers killed last, and everything if the storm itself was cut short.
            time.sleep(0.3)
            end_carriers({"STORM_BASE": str(self.host.base)})

    def events(self) -> list[dict[str, Any]]:
        """Return what the storm did, in its order."""
        return [json.loads(line) for line in (self.host.base / "events.jsonl").read_text().splitlines()]

    def runs(self) -> tuple[dict[str, list[Run]], int]:
        """Return the runs of each job in their order, and how many overlapped with an earlier one."""
        found: dict[str, list[Run]] = {}
        overlapped = 0
        for name in self.names:
            found[name] = []
            path = self.runs_folder / name
            for words in (line.split() for line in path.read_text().splitlines()) if path.exists() else ():
                if words[0] == "start":
                    found[name].append(Run(words[1], int(words[2]), float(words[3]), int(words[4]), int(words[5]), None))
                elif words[0] == "end" and found[name] and found[name][-1].claim == words[1]:
                    found[name][-1] = found[name][-1]._replace(ended=float(words[3]))
                else:
                    # "overlap", or the end of a run after another one's start.
                    overlapped += 1
        return found, overlapped

    def check(self, fault: str, tries: Counter[str], counted: list[str], boots: Iterable[float] = ()) -> None:
        """Hold every promise against what is left, print what happened, and record it.

        Args:
            fault: its row in the ledger.
            tries: more that was counted.
            counted: which counts are tries.
            boots: seconds from a boot to the next start of a job that the boot before had left.
        """
        host = self.host
        assert wait_for(lambda: not carriers({"STORM_BASE": str(host.base)}))
        # Locks of workers that were killed and never started anew.
        assert host.sagequeue("recover", "t").returncode == 0
        assert not host.owners() and not os.listdir(host.root / "var/t/run/workers")
        said = (host.base / "said.txt").read_text(encoding="utf-8")
        assert "Traceback" not in said, said[said.index("Traceback") :][:3000]
        assert "sagequeue:" not in said, [line for line in said.splitlines() if line.startswith("sagequeue:")]
        events = self.events()
        assert not [event for event in events if event["what"] in ("failed", "did not stop")], events
        runs, overlapped = self.runs()
        states = host.states()
        history = host.history()
        acknowledged = Counter(name for which in (0, 1) for name in (host.base / f"acknowledged.{which}").read_text().splitlines())

        lost = [name for name in self.names if states.get(name) != "done"]
        done = Counter(line["job"] for line in history if line["result"] == "done")
        doubled = [name for name, count in (done + Counter()).items() if count != 1]
        doubled += [name for name, count in acknowledged.items() if count != 1]
        assert set(states) == set(self.names) and len(states) == len(self.names)

        # One line per attempt, and every run is one of them.
        claims = Counter(line["claim"] for line in history)
        assert not [claim for claim, count in claims.items() if count != 1]
        started = {run.claim: run for each in runs.values() for run in each}
        assert set(started) <= set(claims)
        by_job: dict[str, list[dict[str, Any]]] = {}
        for line in history:
            by_job.setdefault(line["job"], []).append(line)
        for name in self.names:
            last = by_job[name][-1]
            values = job.parse(host.path("done", name).read_bytes())
            # What the job's file says is what the history says, and that run came to its end, and none followed.
            assert (last["result"], last["reason"], last["claim"]) == ("done", "ok", values["CLAIM"]), (name, by_job[name])
            assert runs[name][-1].claim == last["claim"] and runs[name][-1].ended is not None, (name, runs[name])
            reasons = Counter(line["reason"] for line in by_job[name])
            assert int(values["ATTEMPTS"]) == reasons["ok"] + reasons["signal"] + reasons["exit_status"], (name, by_job[name])
            assert int(values.get("RECOVERIES", 0)) == reasons["orphan"] + reasons["not_started"], (name, by_job[name])
        assert all(0 <= float(line["duration_s"]) < 120 for line in history if "duration_s" in line)

        reasons = Counter(line["reason"] for line in history)
        kills = [event for event in events if event["what"] == "kill" and event["signal"] == 9]
        tries.update(kills=sum(event["kind"] == "worker" for event in kills))
        tries.update(recoverers=sum(event["kind"] == "recover" for event in kills))
        tries.update(enqueuers=sum(event["kind"] not in ("worker", "recover") for event in kills))
        tries.update({what: sum(event["what"] == what for event in events) for what in ("close", "set back", "crash")})
        # A signal that the storm did not send hit somebody else's job.
        strange = [line for line in history if line["reason"] in ("signal", "exit_status")]
        assert not strange, strange
        times = self.recovery_times(runs, events)
        print(
            f"\n{fault}: {len(self.names)} jobs, {self.config['workers']} workers, {len(started)} runs, {dict(tries)}, {dict(reasons)}; "
            f"killed in mid-job {len(times)}, runs cut short {sum(run.ended is None for run in started.values())}; started again after "
            + (f"{statistics.median(times):.2f} s (median), {max(times):.2f} s (longest)" if times else "-")
            + f"; {events[-1]['time'] - events[0]['time']:.0f} s, seed {self.config['seed']}"
        )
        ledger.record(
            fault,
            tries=sum(tries[key] for key in counted),
            lost=len(lost),
            doubled=len(doubled),
            overlapped=overlapped,
            recovery_seconds=max((*times, *boots), default=None),
        )

    def recovery_times(self, runs: dict[str, list[Run]], events: list[dict[str, Any]]) -> list[float]:
        """Return, for each worker that was killed while its job ran, the seconds from that kill to the job's next start.

        Job and kill find each other by the worker's pid, the job's $PPID. Where the gate was closed meanwhile, for however
        long, it is left out. The wait behind jobs that are older is in it.
        """
        struck: dict[tuple[int, int], list[float]] = {}
        for event in events:
            if event["what"] == "kill" and event["signal"] == 9:
                struck.setdefault((event["boot"], event["pid"]), []).append(event["time"])
        turns = [event for event in events if event["what"] in ("close", "open", "end", "crash")]
        closed = [(turn["time"], following["time"]) for turn, following in zip(turns, turns[1:]) if turn["what"] == "close"]
        times = []
        for each in runs.values():
            for run, following in zip(each, each[1:]):
                if run.boot == following.boot:
                    until = min(following.started, run.ended or following.started)
                    hits = [kill for kill in struck.get((run.boot, run.worker), []) if run.started <= kill <= until]
                    # A gate that was just opened counts as closed: idle workers look at it every 0.1 s.
                    if not any(run.started < end + 0.2 and begin < following.started for begin, end in closed):
                        times += [following.started - kill for kill in hits[:1]]
        return times


def children(pid: int) -> list[int]:
    """Return the pids of a process's children, none if it is gone."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def namespace(*before: str) -> list[str]:
    """Return the command that runs another as process 1 of a pid namespace, with mounts of its own; skip where that can't be."""
    wrap = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    tried = subprocess.run([*wrap, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no pid namespace of its own: {tried.stderr.strip()}")
    return [*wrap, "sh", "-euc", "; ".join([*before, 'exec "$@"']), "sh"]


def test_storm(host: Host, long: bool) -> None:
    """Workers and recoverers are killed at random."""
    storm = Storm(host, 20000 if long else 400, 16 if long else 8, pace=0.009 if long else 0.004)
    assert storm.rage() == 0
    storm.check("storm: workers killed at random", Counter(), ["kills"])


def test_storm_where_pids_come_again(host: Host, long: bool) -> None:
    """The same where the kernel gives a dead worker's pid to another process within seconds."""
    machine = Path("/proc/sys/kernel/pid_max")
    before = machine.read_text()
    version = tuple(int(part) for part in re.findall(r"[0-9]+", platform.release())[:2])
    # Since 6.14 a pid namespace has a kernel.pid_max of its own. Older kernels only let it set where to go on.
    again = {"pid_max": 420 if long else 400} if version >= (6, 14) and not os.environ.get("STORM_LAST_PID") else {"last_pid": 300}
    storm = Storm(host, 4000 if long else 240, 16 if long else 8, **again)
    assert storm.rage(*namespace()) == 0
    assert machine.read_text() == before
    runs, _overlapped = storm.runs()
    pids = Counter(run.pid for each in runs.values() for run in each)
    events = storm.events()
    dead = [(event["pid"], event["time"]) for event in events if event["what"] == "kill" and event["kind"] == "worker"]
    later: dict[int, float] = {event["pid"]: event["time"] for event in events if event["what"] == "start"}
    for run in (run for each in runs.values() for run in each):
        later[run.pid] = max(later.get(run.pid, 0.0), run.started)
    reused = sum(later.get(pid, 0.0) > when for pid, when in dead)
    assert reused, "no pid of a dead worker came again"
    tries = Counter({"job pids that came again": pids.total() - len(pids), "pids of dead workers that came again": reused})
    tries["before the job was recovered"] = sum("is now another program" in line.get("detail", "") for line in host.history())
    storm.check("storm: the same where pids come again", tries, ["kills"])


def test_storm_while_the_clock_is_set_back(host: Host, long: bool) -> None:
    """The same while the clock is set back by an hour, thrice, for everybody at once.

    The machine's own clock stays: workers, recoverers, enqueuers and jobs see the other time. What the kernel stamps itself
    (the times of files and folders, where nobody sets them) stays in the real time.
    """
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler (packages gcc and libc6-dev)")
    library = host.base / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-x", "c", "-", "-o", str(library)], input=CLOCK, text=True, check=True)
    clock = host.base / "clock"
    clock.write_bytes(bytes(8))
    environment = {"LD_PRELOAD": str(library), "STORM_CLOCK": str(clock)}
    storm = Storm(host, 3000 if long else 240, 16 if long else 8, clock=str(clock), environment=environment)
    assert storm.rage() == 0
    # What was put back because of the gate has not begun, and has no end.
    ends = [line["ended_at"] for line in host.history() if "ended_at" in line]
    times = [datetime.fromisoformat(end.replace("Z", "+00:00")).timestamp() for end in ends]
    # The last hour may have been set back when everything had ended.
    assert sum(second < first - 3500 for first, second in zip(times, times[1:])) >= 2, "the clock was not set back"
    storm.check("storm: the same while the clock is set back by an hour", Counter(), ["kills", "set back"])


def test_storm_with_two_boots_in_between(host: Host, long: bool) -> None:
    """The same where all ends at once, twice, and the host starts anew with another boot id.

    Process 1 of a pid namespace exits in mid-storm, and the kernel kills the others. This is no power cut: what was written
    but not synced is still there. That has tests of its own.
    """
    jobs = 3000 if long else 240
    storm = Storm(host, jobs, 16 if long else 8)
    for boot, crash_at in enumerate((jobs // 3, 2 * jobs // 3, None)):
        identity = host.base / f"boot.{boot}"
        identity.write_text(f"{uuid.uuid4()}\n")
        storm.config.update(boot=boot, crash_at=crash_at)
        assert storm.rage(*namespace(f"mount --bind '{identity}' /proc/sys/kernel/random/boot_id")) == (CRASHED if crash_at else 0)
    boots = [event for event in storm.events() if event["what"] == "boot"]
    ends = {line["claim"]: line for line in host.history()}
    runs, _overlapped = storm.runs()
    again = []
    for boot, event in enumerate(boots):
        assert bool(event["left"]) == bool(boot), event
        for record in event["left"]:
            assert record["OWNER_BOOT"] == (host.base / f"boot.{boot - 1}").read_text().strip()
            # A record without a line in the history is of a claim that had not begun, or whose end had not.
            end = ends.get(record["OWNER_CLAIM"])
            if end and end["reason"] == "orphan":
                assert "the host has started anew since" in end["detail"], end
                again += [run.started - event["time"] for run in runs[end["job"]] if run.boot == boot][:1]
    assert again, "no boot left a job behind"
    print(
        f"\nleft by the boot before: {[len(event['left']) for event in boots]}; started again {max(again):.2f} s after the boot (longest)"
    )
    storm.check("storm: the same with two boots in between", Counter(), ["kills", "crash"], again)


def test_a_worker_killed_while_it_starts_a_job(host: Host, long: bool) -> None:
    """Its child is about to run the job, and can't be told yet by what it carries. strace keeps it there for a while."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    host.script('exec 9>>"$SAGEQUEUE_JOB"\nflock -n 9 || { echo overlap >&9; exit; }\necho start >&9\nsleep 2\necho end >&9\n')
    host.define(recoveries=5)
    tries = (0.1, 0.4, 0.8, 1.1, 1.5, 1.9) if long else (1.1,)
    overlapped = lost = 0
    for number, seconds in enumerate(tries):
        name = f"job_{number}"
        host.queue().enqueue([(name, {})])
        delay = ["-e", "trace=execve", "-e", f"inject=execve:delay_enter={int(seconds * 1e6)}"]
        command = ["strace", "-f", "-o", "/dev/null", *delay, sys.executable, str(host.program), "worker", "t-1"]
        tracer = subprocess.Popen(command, env=host.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # strace has children of its own for a moment, but they have none.
            found = wait_for(lambda of=tracer.pid: [(one, two) for one in children(of) for two in children(one)])
            worker, child = found[0]
            os.kill(worker, signal.SIGKILL)
            assert b"SAGEQUEUE_CLAIM" not in Path(f"/proc/{child}/environ").read_bytes(), "too late"

            def is_done(name: str = name) -> bool:
                host.sagequeue("recover", "t")
                host.work_off("t-2")
                return host.states()[name] == "done"

            wait_for(is_done)
        finally:
            end_carriers({"SAGEQUEUE_ROOT": str(host.root)})
            tracer.wait(10)
        said = (host.work / name).read_text().split()
        overlapped += said.count("overlap")
        lost += said[-1] != "end"
    ledger.record("a worker killed between fork and exec of its job", tries=len(tries), lost=lost, overlapped=overlapped)


def test_a_gate_closed_while_a_job_is_claimed(host: Host) -> None:
    """A claimer that saw the gate open looks once more when it has the job. strace holds it in between."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    host.script("touch ran\n")
    host.define()
    queue = host.queue()
    queue.enqueue([("a", {})])
    delay = ["-e", "trace=renameat", "-e", "inject=renameat:delay_enter=1500000:when=1"]
    command = ["strace", "-f", "-o", "/dev/null", *delay, sys.executable, str(host.program), "worker", "t-1", "--until-idle"]
    with subprocess.Popen(command, env=host.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tracer:
        wait_for(host.owners)
        assert queue.close_gate("the test") and host.states() == {"a": "pending"}, "too late"
        assert tracer.wait(30) == 0
    values = host.values("a")
    assert (values["REASON"], values["DETAIL"]) == ("gate", "the gate was closed while it was claimed")
    ledger.record("the gate closed while a job is claimed", tries=1, lost=int(host.states() != {"a": "pending"}))
    assert not (host.work / "ran").exists()
