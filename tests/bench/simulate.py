#!/usr/bin/env python3
# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Counts what very many workers ask of the file server; prints one JSON value. See scale.py.

usage: simulate.py ROOT WORKERS CLAIMS JOBS     with the program in PYTHONPATH; ROOT must not exist

So many workers are simulated in one process, each by a real queue object with its own view of what is pending; the jobset has so
many jobs, enqueued as one batch. A clock of its own lets them claim and finish in turn, each job taking a random time; all have
claimed before anything is counted. What they do with the folders is the real program's doing, and each call that a file server would
see is counted.
"""

from __future__ import annotations

import copy
import fcntl
import functools
import heapq
import json
import os
import random
import re
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from dirqueue import definitions, jobset, owner  # type: ignore[import-not-found]
from dirqueue.layout import Layout  # type: ignore[import-not-found]
from dirqueue.queue import Queue  # type: ignore[import-not-found]
from dirqueue.recovery import recover  # type: ignore[import-not-found]
from dirqueue.runners.known import make  # type: ignore[import-not-found]

_CALLS = ("stat", "fstat", "access", "open", "read", "write", "pread", "rename", "link", "unlink", "utime", "fsync", "scandir", "listdir")
calls: Counter[str] = Counter()
root, (workers, claims, jobs) = sys.argv[1], map(int, sys.argv[2:])


def count(module: Any, name: str) -> None:
    """Have each call of a function counted, unless it is about a path elsewhere."""
    real = getattr(module, name)

    @functools.wraps(real)
    def counted(*args: Any, **keys: Any) -> Any:
        if not args or not isinstance(args[0], str) or not args[0].startswith("/") or args[0].startswith(root):
            calls[name] += 1
        return real(*args, **keys)

    setattr(module, name, counted)


def requests() -> int:
    """Return how many requests this host has sent to file servers."""
    lines = Path("/proc/self/mountstats").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if re.fullmatch(r"\s+[A-Z_]+: [0-9]+( [0-9]+){7,8}", line))


def spent(times: int, before: Counter[str]) -> float:
    return sum((calls - before).values()) / times


os.umask(0o077)
layout = Layout(root, "t")
layout.create()
keys = {"script": "true", "command": "/bin/true", "workdir": root, "runner": "process", "stride": jobs}
definitions.store(layout, jobset.Jobset("t", keys))
first = Queue(layout, definitions.load(root, "t"))
began = time.perf_counter()
first.enqueue(first.jobset.offset_jobs(range(jobs)))
enqueued = time.perf_counter() - began
holder = owner.Holder(layout.workers, "t-1", 120, "none 1 0")
for name in _CALLS:
    count(os, name)
count(fcntl, "flock")


def another() -> Queue:
    """One more worker's queue: of its own is what it has seen; the descriptors it shares, as a process can't have so many."""
    queue = copy.copy(first)
    queue._names, queue._bad_batches, queue._ended, queue.refused = deque(), set(), {}, {}
    return queue


# When each is done with its job, its queue, and what it has claimed.
turns: list[tuple[float, int, Queue, Any]] = [(0.4 * random.random(), number, another(), None) for number in range(workers)]
heapq.heapify(turns)
before, sent, wall = Counter(calls), 0, 0.0
done = 0
while done < claims:
    when, number, queue, claim = heapq.heappop(turns)
    if claim:
        queue.finish(claim, "done", {"REASON": "ok"})
        done += 1
        if done == claims // 2:
            before, sent, wall = Counter(calls), requests(), time.perf_counter()
    while not (claim := queue.claim(holder)):
        pass
    heapq.heappush(turns, (when + random.uniform(0.5, 1.5), number, queue, claim))
measured = claims - claims // 2
result: dict[str, Any] = {
    "workers": workers,
    "enqueue_s": enqueued,
    "job": spent(measured, before),
    "requests": (requests() - sent) / measured,
    "job_s": (time.perf_counter() - wall) / measured,
    "kinds": {name: number / measured for name, number in sorted((calls - before).items())},
}
for what, act in {
    "renew": holder.touch,
    "ask": lambda: first.kill_request("0" * 32),
    "recover": lambda: recover(first, make(layout, first.jobset, print)),
}.items():
    before = Counter(calls)
    act()
    result[what] = spent(1, before)
began = time.perf_counter()
counts = first.counts()
result["counts_s"] = time.perf_counter() - began
assert counts == {"pending": jobs - claims - workers, "running": workers, "done": claims, "failed": 0}, counts
print(json.dumps(result))
