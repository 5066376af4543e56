# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The storm itself: starts workers, recoverers and enqueuers, kills them, starts them anew, opens and closes the gate.

A program of its own, so that it can be process 1 of a pid namespace: then what it leaves ends with it, at once.

python storm.py CONFIG              the storm, until every job is done
python storm.py CONFIG enqueue 0    one of its enqueuers
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from typing import Any

# The zipped program is on PYTHONPATH.
from dirqueue import definitions, owner
from dirqueue.layout import Layout
from dirqueue.queue import Queue

# Exit statuses: the limit was reached; the host "crashed" and is to be started anew.
STUCK, CRASHED = 2, 3


def jobs(config: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """Return the storm's jobs: most end at once, some are long enough to be struck, some leave a child behind."""
    dice = random.Random(config["seed"])
    made = []
    for number in range(config["jobs"]):
        seconds = dice.uniform(0.05, 0.5) if dice.random() < 0.2 else 0.0
        made.append((f"job_{number}", {"SLEEP": f"{seconds:.3f}" if seconds else "", "LEAVE": "0.2" if dice.random() < 0.05 else ""}))
    return made


def enqueue(config: dict[str, Any], which: int) -> None:
    """Enqueue two thirds of the jobs in slices, the one from the front, the other from the back: a third is tried by both."""
    mine = jobs(config) if which == 0 else jobs(config)[::-1]
    mine = mine[: (2 * len(mine) + 2) // 3]
    dice = random.Random(config["seed"] + 1 + which)
    with (
        Queue(Layout(config["root"], "t"), definitions.load(config["root"], "t")) as queue,
        open(f"{config['base']}/acknowledged.{which}", "ab", buffering=0) as acknowledged,
    ):
        while mine:
            size = dice.choice((1, 5, 15, 40, 100))
            part, mine = mine[:size], mine[size:]
            new = [change.name for change in queue.enqueue(part) if change.old_state is None]
            acknowledged.write("".join(f"{name}\n" for name in new).encode())
            # Whoever was killed and begins again is soon where it was.
            time.sleep(len(new) * config["pace"])


class Storm:
    """One storm, or what lies between two boots of it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.layout = Layout(config["root"], "t")
        self.queue = Queue(self.layout, definitions.load(config["root"], "t"))
        self.dice = random.Random(config["seed"] + 100 * config["boot"])
        self.alive: dict[int, list[str]] = {}
        self.again: list[tuple[float, list[str]]] = []
        self.said = open(f"{config['base']}/said.txt", "ab")  # noqa: SIM115
        self.events = open(f"{config['base']}/events.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def event(self, what: str, **more: Any) -> None:
        line = {"what": what, "boot": self.config["boot"], "time": time.clock_gettime(time.CLOCK_BOOTTIME), **more}
        self.events.write(json.dumps(line) + "\n")

    def start(self, words: list[str]) -> None:
        outputs = [(os.POSIX_SPAWN_DUP2, self.said.fileno(), 1), (os.POSIX_SPAWN_DUP2, self.said.fileno(), 2)]
        environment = {**os.environ, **self.config["environment"], "STORM_BOOT": str(self.config["boot"])}
        pid = os.posix_spawn(sys.executable, [sys.executable, *words], environment, file_actions=outputs)
        self.alive[pid] = words
        self.event("start", kind=words[1], pid=pid, ticks=owner.process_start(pid))

    def reap(self, again: bool) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                # As process 1 we are also told of jobs whose worker has died.
                words = self.alive.pop(pid, None)
                if words and again and (words[1] != sys.argv[1] or status):
                    self.again.append((time.monotonic() + self.dice.uniform(0, 0.3), words))
                if words and os.WIFEXITED(status) and os.WEXITSTATUS(status):
                    self.event("failed", words=words, status=os.WEXITSTATUS(status))

    def records(self) -> list[dict[str, str]]:
        """Return the owner records that are there."""
        return [record for record in (self.queue.owner_of(name) for name in self.queue.recorded()) if record]

    def strike(self) -> None:
        """Kill one of the workers, half the time one that holds a job, or of the others; now and then with SIGTERM, not SIGKILL."""
        kind = self.dice.choices(("worker", "recover", sys.argv[1]), (18, 2, 1))[0]
        struck = [pid for pid, words in self.alive.items() if words[1] == kind]
        if kind == "worker" and self.dice.random() < 0.5:
            holders = {record.get("OWNER_PID") for record in self.records()}
            struck = [pid for pid in struck if str(pid) in holders] or struck
        if struck:
            pid = self.dice.choice(struck)
            number = signal.SIGKILL if self.dice.random() < 0.9 else signal.SIGTERM
            os.kill(pid, number)
            self.event("kill", kind=kind, pid=pid, signal=int(number))

    def turn_gate(self) -> float:
        """Open or close the gate; return for how long it stays so."""
        if self.queue.open_gate():
            self.event("open")
            return self.dice.expovariate(1 / self.config["open"])
        self.queue.close_gate("the storm")
        self.event("close")
        return self.dice.uniform(0.02, 0.4)

    def run(self) -> int:
        config, program = self.config, self.config["program"]
        self.event("boot", left=self.records())
        for number in range(config["workers"]):
            self.start([program, "worker", f"t-{number}"])
        for every in (0.2, 0.3, 0.4):
            self.start([program, "recover", "t", "--every", str(every)])
        for which in (0, 1):
            self.start([__file__, sys.argv[1], "enqueue", str(which)])
        began = time.monotonic()
        kill_at, gate_at, look_at = began, began + 1, began
        done, hours, struck = 0, 0, 0
        while done < config["jobs"]:
            now = time.monotonic()
            self.reap(True)
            for entry in [entry for entry in self.again if entry[0] <= now]:
                self.again.remove(entry)
                self.start(entry[1])
            # No more than one kill for so many jobs done: on a busy machine none would be left to start anew.
            if now >= kill_at and done + 50 >= config["jobs_per_kill"] * struck:
                struck += 1
                self.strike()
                kill_at = now + self.dice.expovariate(1 / config["kill_every"])
            if now >= gate_at:
                gate_at = now + self.turn_gate()
            if now >= look_at:
                look_at = now + 0.25
                done = len(self.queue.entries("done"))
                if now - began > config["limit"]:
                    return self.end(STUCK)
            # Not while the gate keeps everybody idle.
            if config["crash_at"] is not None and done >= config["crash_at"] and len(self.queue.recorded()) > 2:
                self.event("crash")
                os._exit(CRASHED)
            if config["clock"] and hours < 3 and done >= config["jobs"] * (hours + 1) / 4:
                hours += 1
                with open(config["clock"], "r+b") as file:
                    file.write((-3600 * hours).to_bytes(8, sys.byteorder, signed=True))
                self.event("set back")
            if config["last_pid"]:
                with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
                    file.write(str(config["last_pid"]))
            time.sleep(0.005)
        return self.end(0)

    def end(self, status: int) -> int:
        self.queue.open_gate()
        for pid in self.alive:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while self.alive and time.monotonic() < deadline:
            self.reap(False)
            time.sleep(0.01)
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
            self.event("did not stop", pid=pid, words=self.alive[pid])
        self.event("end", status=status)
        return status


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as text:
        read = json.load(text)
    if len(sys.argv) > 2:
        enqueue(read, int(sys.argv[3]))
        sys.exit(0)
    if read["pid_max"]:
        # Never the machine's own.
        assert os.getpid() == 1
        with open("/proc/sys/kernel/pid_max", "w", encoding="ascii") as limit:
            limit.write(str(read["pid_max"]))
        # The first 300 pids of a namespace are given out once only.
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as last:
            last.write("300")
    sys.exit(Storm(read).run())
