#!/usr/bin/env python3
# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What is measured inside a process of its own that imports dirqueue; prints one JSON value.

usage: ours.py VERB ROOT [JSON...]        with the program, of whatever age, in PYTHONPATH

    define KEYS      nothing: defines the jobset t below ROOT, which all others need
    enqueue N        seconds to enqueue N jobs by one call
    enqueue_each N   ... by N calls
    fill N FILES     nothing: enqueues N jobs, as files whatever their number if FILES is 1
    claims N P       seconds per claim and finish, with P processes that make N each
    done N           nothing: puts N jobs into done, and their lines into the history
    phases           microseconds per job that one worker spends in each phase until all is done
    files N          seconds to make N files, nothing synced: the limit for whoever keeps a file per job
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections import Counter
from typing import Any, Callable

from dirqueue import jobset, owner, worker  # type: ignore[import-not-found]
from dirqueue.joblog import JobLog  # type: ignore[import-not-found]
from dirqueue.layout import Layout  # type: ignore[import-not-found]
from dirqueue.queue import Queue  # type: ignore[import-not-found]
from dirqueue.runners.process import Process  # type: ignore[import-not-found]

try:
    from dirqueue import definitions
except ImportError:
    # An older program.
    definitions = jobset

root = sys.argv[2]
os.umask(0o077)


def define(keys: dict[str, Any]) -> None:
    layout = Layout(root, "t")
    layout.create()
    definitions.store(layout, jobset.Jobset("t", keys))


def opened() -> Queue:
    return Queue(Layout(root, "t"), definitions.load(root, "t"))


def pending(queue: Queue, jobs: int) -> None:
    counts = queue.counts()
    assert counts["pending"] == jobs, counts


def enqueue(jobs: int) -> float:
    queue = opened()
    began = time.perf_counter()
    queue.enqueue(queue.jobset.offset_jobs(range(jobs)))
    seconds = time.perf_counter() - began
    pending(queue, jobs)
    return seconds


def enqueue_each(jobs: int) -> float:
    queue = opened()
    began = time.perf_counter()
    for number in range(jobs):
        queue.enqueue(queue.jobset.offset_jobs([number]))
    seconds = time.perf_counter() - began
    pending(queue, jobs)
    return seconds


def fill(jobs: int, files: int) -> None:
    if files:
        from dirqueue import batch

        batch.LEAST = sys.maxsize
    enqueue(jobs)


def claims(jobs: int, processes: int) -> float:
    """Each opens the queue by itself and makes one claim before the clock starts: a worker lists a folder once, and then works long."""
    ready, go = os.pipe(), os.pipe()
    pids = []
    for number in range(processes):
        pids.append(os.fork())
        if pids[-1]:
            continue
        signal.alarm(600)
        queue = opened()
        holder = owner.Holder(queue.layout.workers, f"t-{number}")
        for turn in range(jobs + 1):
            # None: another is about to have the only one that is listed.
            while not (claim := queue.claim(holder)):
                pass
            queue.finish(claim, "done", {"REASON": "ok"})
            if turn == 0:
                os.write(ready[1], b".")
                os.close(go[1])
                os.read(go[0], 1)
        os._exit(0)
    for _ in pids:
        os.read(ready[0], 1)
    began = time.perf_counter()
    os.close(go[1])
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    seconds = time.perf_counter() - began
    assert not any(ended), ended
    with opened() as queue:
        assert queue.counts()["done"] == (jobs + 1) * processes, queue.counts()
    return seconds / (jobs * processes)


def done(jobs: int) -> None:
    """Only names count where a queue is looked at: the files are empty, as they may be."""
    layout = Layout(root, "t")
    folder = os.open(os.path.join(layout.queue, "done"), os.O_RDONLY)
    for number in range(jobs):
        os.close(os.open(f"t_off{number}.env", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder))
    line = '{"job":"t_off%d","result":"done","claim":"%032x","duration_s":"1.000","worker":"t-1","ended_at":"2026-01-01T00:00:00Z"}\n'
    with open(layout.history, "w", encoding="ascii") as history:
        history.writelines(line % (number, number) for number in range(jobs))


# What one worker does with a job; a function that others of these call has only the rest for its own.
PHASES: list[tuple[str, Any, list[str]]] = [
    ("look and claim", Queue, ["look", "claim"]),
    ("start the process", Process, ["start", "_spawn"]),
    ("wait for its end", worker.Worker, ["_sleep"]),
    ("reap it", Process, ["reap"]),
    ("its log", JobLog, ["__init__", "note", "copy", "started", "close"]),
    ("finish", Queue, ["finish", "end", "commit"]),
    ("sync to disk", os, ["fsync", "fdatasync", "sync"]),
    # Wherever it is called, and whatever its name was.
    *(
        ("sync to disk", module, ["sync_file_system", "_sync_file_system"])
        for name, module in sorted(sys.modules.items())
        if name.startswith("dirqueue.")
    ),
]


def phases() -> dict[str, float]:
    spent: Counter[str] = Counter()
    stack = ["the rest"]
    since = [time.perf_counter()]

    def switch() -> None:
        now = time.perf_counter()
        spent[stack[-1]] += now - since[0]
        since[0] = now

    def counted(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*words: Any, **more: Any) -> Any:
            switch()
            stack.append(phase)
            try:
                return call(*words, **more)
            finally:
                switch()
                stack.pop()

        return wrapper

    for phase, where, names in PHASES:
        for name in names:
            if hasattr(where, name):
                setattr(where, name, counted(phase, getattr(where, name)))
    with opened() as queue:
        jobs = queue.counts()["pending"]
    one = worker.Worker(root, "t", "1", lambda text: print(text, file=sys.stderr), until_idle=True)
    one.log = counted("worker's messages", one.log)
    spent.clear()
    since[0] = time.perf_counter()
    one.run()
    switch()
    with opened() as queue:
        assert queue.counts()["done"] == jobs, queue.counts()
    return {phase: spent[phase] / jobs * 1e6 for phase in sorted(spent, key=lambda phase: -spent[phase])}


def files(jobs: int) -> float:
    folder = os.open(root, os.O_RDONLY)
    began = time.perf_counter()
    for number in range(jobs):
        fd = os.open(f"t_off{number}.env", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        os.write(fd, b"OFFSET=%d\nENQUEUED_AT=2026-01-01T00:00:00Z\n" % number)
        os.close(fd)
    return time.perf_counter() - began


if __name__ == "__main__":
    verbs = {call.__name__: call for call in (define, enqueue, enqueue_each, fill, claims, done, phases, files)}
    print(json.dumps(verbs[sys.argv[1]](*map(json.loads, sys.argv[3:]))))
