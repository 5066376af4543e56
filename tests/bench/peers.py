#!/usr/bin/env python3
# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What a user would pick instead, each the way it is meant to be used and as durable as it can be.

usage: peers.py NAME FOLDER JOBS

Puts jobs into the queue of a peer, then has them run by its workers, two at a time, and prints as JSON the seconds that both took
(null: there is no such thing as putting). A job is /bin/true. The folder must be empty; what was started is gone at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

WORKERS = 2
TRUE = "/bin/true"
HUEY = "SAGEQUEUE_BENCH_HUEY"


def run_job() -> None:
    """Run one job, by the cheapest way that Python has."""
    assert os.waitpid(os.posix_spawn(TRUE, [TRUE], os.environ), 0)[1] == 0


if HUEY in os.environ:
    from huey import SqliteHuey

    # The consumer imports this module, and finds both.
    tasks = SqliteHuey(filename=os.environ[HUEY], fsync=True)

    @tasks.task()
    def job() -> None:
        run_job()
        # What tells that it is done: huey's own results would cost it more.
        fd = os.open(os.environ[HUEY] + ".done", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, b".")
        os.close(fd)


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextlib.contextmanager
def running(*words: str, **more: Any) -> Iterator[subprocess.Popen[Any]]:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def wait_for(what: Callable[[], Any]) -> None:
    while not what():
        time.sleep(0.002)


def workers(name: str, folder: Path) -> None:
    """Run the loop of a worker, which the user of a mere library writes, in so many processes, to their end."""
    processes = [subprocess.Popen([sys.executable, __file__, "worker", name, str(folder)]) for _ in range(WORKERS)]
    assert [process.wait() for process in processes] == [0] * WORKERS


def dirq(folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """One file per job, renamed into place; it syncs nothing."""
    from dirq.QueueSimple import QueueSimple

    queue = QueueSimple(str(folder / "queue"))
    put = timed(lambda: [queue.add(f"{number}") for number in range(jobs)])
    assert queue.count() == jobs
    seconds = timed(lambda: workers("dirq", folder))
    assert queue.count() == 0
    return put, seconds


def dirq_worker(folder: Path) -> None:
    from dirq.QueueSimple import QueueSimple

    queue = QueueSimple(str(folder / "queue"))
    for name in queue:
        if queue.lock(name):
            queue.get(name)
            run_job()
            queue.remove(name)


def persist_queue(folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """Rows of an SQLite database, one transaction each, acknowledged when done. Its workers are threads: it locks no other process out."""
    from persistqueue import Empty, SQLiteAckQueue

    queue = SQLiteAckQueue(str(folder / "queue"), multithreading=True, auto_commit=True)
    put = timed(lambda: [queue.put(f"{number}") for number in range(jobs)])

    def work() -> None:
        with contextlib.suppress(Empty):
            while True:
                item = queue.get(block=False)
                run_job()
                queue.ack(item)

    threads = [threading.Thread(target=work) for _ in range(WORKERS)]
    seconds = timed(lambda: [thread.start() for thread in threads] + [thread.join() for thread in threads])
    assert queue.acked_count() == jobs
    return put, seconds


def huey(folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """Rows of an SQLite database that syncs, and its own consumer with processes."""
    put = timed(lambda: [job() for _ in range(jobs)])
    done = Path(os.environ[HUEY] + ".done")
    began = time.perf_counter()
    words = [sys.executable, "-m", "huey.bin.huey_consumer", "peers.tasks", "-w", str(WORKERS), "-k", "process", "--no-periodic", "--quiet"]
    with running(*words, cwd=folder, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}):
        wait_for(lambda: done.exists() and done.stat().st_size == jobs)
        return put, time.perf_counter() - began


def beanstalkd(folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """A server with a log that it syncs after each change, and a client in Python."""
    import greenstalk

    address = str(folder / "socket")
    with running("beanstalkd", "-b", str(folder), "-f", "0", "-l", f"unix:{address}"):
        wait_for(lambda: os.path.exists(address))
        with greenstalk.Client(address) as client:
            put = timed(lambda: [client.put(f"{number}") for number in range(jobs)])
            seconds = timed(lambda: workers("beanstalkd", folder))
            assert client.stats()["cmd-delete"] == jobs
    return put, seconds


def beanstalkd_worker(folder: Path) -> None:
    import greenstalk

    with greenstalk.Client(str(folder / "socket")) as client, contextlib.suppress(greenstalk.TimedOutError):
        while True:
            reserved = client.reserve(timeout=0)
            run_job()
            client.delete(reserved)


def held(folder: Path, put: Callable[[list[str]], Any], wait: Callable[[], Any], jobs: int) -> tuple[Optional[float], float]:
    """Put jobs by one call of a command each, behind as many as run at once and wait for a file; then let them go."""
    gate = folder / "go"
    for _ in range(WORKERS):
        put(["/bin/sh", "-c", f"until [ -e '{gate}' ]; do sleep 0.01; done"])
    putting = timed(lambda: [put([TRUE]) for _ in range(jobs)])
    gate.touch()
    return putting, timed(wait)


def nq(folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """A file and a waiting process per job; it syncs nothing. One queue runs one job at a time: there are two."""
    queues = [folder / str(number) for number in range(WORKERS)]
    turn = iter(range(10**9))

    def put(words: list[str]) -> None:
        subprocess.run(["nq", "-q", *words], check=True, env={**os.environ, "NQDIR": str(queues[next(turn) % WORKERS])})

    def wait() -> None:
        for queue in queues:
            subprocess.run(["nq", "-w"], check=True, env={**os.environ, "NQDIR": str(queue)})

    return held(folder, put, wait, jobs)


def task_spooler(folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """A server that keeps its jobs in memory, and a waiting process per job."""
    limits = {"TS_SLOTS": str(WORKERS), "TS_MAXFINISHED": "10", "TS_MAXCONN": str(jobs + 100)}
    environment = {**os.environ, "TS_SOCKET": str(folder / "socket"), "TMPDIR": str(folder), **limits}

    def tsp(*words: str) -> None:
        subprocess.run(["tsp", *words], check=True, env=environment, stdout=subprocess.DEVNULL)

    try:
        return held(folder, lambda words: tsp(*words), lambda: tsp("-w"), jobs)
    finally:
        tsp("-K")


def parallel(_folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """Keeps no queue: its jobs come from standard input."""
    words = ["parallel", "--will-cite", "-j", str(WORKERS), "-n", "1", TRUE]
    return None, timed(lambda: subprocess.run(words, input="\n".join(map(str, range(jobs))), text=True, check=True))


def xargs(_folder: Path, jobs: int) -> tuple[Optional[float], float]:
    """Keeps no queue either."""
    words = ["xargs", "-P", str(WORKERS), "-n", "1", TRUE]
    return None, timed(lambda: subprocess.run(words, input="\n".join(map(str, range(jobs))), text=True, check=True))


PEERS = {
    "xargs": xargs,
    "beanstalkd": beanstalkd,
    "persist-queue": persist_queue,
    "huey": huey,
    "dirq": dirq,
    "task-spooler": task_spooler,
    "nq": nq,
    "parallel": parallel,
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    if name == "worker":
        {"dirq": dirq_worker, "beanstalkd": beanstalkd_worker}[sys.argv[2]](Path(sys.argv[3]))
    elif name == "huey" and HUEY not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, HUEY: str(folder / "huey.db")})
    else:
        print(json.dumps(PEERS[name](folder, int(sys.argv[3]))))


if __name__ == "__main__":
    # A huey task is known by its module's name, which is not to be __main__.
    import peers

    peers.main()
