# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Every operation on a queue, in a process of its own that strace can watch and kill; and what must be true whatever happened to it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import tarfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import backup, batch, definitions, job, jobset, owner, restore
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.kill import kill
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import PLACES, Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Claim, Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.rebuild import Rebuild
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host, wait_for

# Values that a shell would not leave as they are.
ODD = {"X": 'it\'s $(touch pwned) "ü" `x`; *', "EMPTY": ""}
NEW = {"X": "another", "Z": "1"}
MALFORMED = "this is no job\n"
# Jobs that are enqueued as files each; here a batch has from LEAST jobs on, and CHUNK of them become files at a time.
BATCH, LEAST, CHUNK = 24, 30, 8
GATE = "STOP requested by a test"
OK = {"REASON": "ok", "ATTEMPTS": "1", "EXIT_STATUS": "0"}
BAD = {"REASON": "exit_status", "DETAIL": "exit status 3", "ATTEMPTS": "3", "EXIT_STATUS": "3"}

# Where a job may be found, and with which values of its own; None: nowhere, or a text that is no job's.
Places = dict[str, Any]
# What every queue here holds beside what an operation is about.
STANDING: dict[str, Places] = {"waits": {"pending": ODD}, "old": {"done": ODD}, "bad": {"failed": ODD}}


class World:
    """A jobset's queue on a file system in memory (unless told otherwise), filled anew for each try."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.jobset = host.define(stride=4, recoveries=50)
        self.layout = Layout(str(host.root), "t")
        self.folders = [os.path.dirname(self.layout.base), *self.layout.folders(), str(host.work)]
        self.live: Claim | None = None
        self.holder: owner.Holder | None = None

    def clear(self) -> None:
        """Empty all folders; they stay, and so do the descriptors on them."""
        if self.holder:
            self.holder.release()
        self.live = self.holder = None
        for folder in self.folders:
            for entry in os.scandir(folder):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
        self.host.script("exec sleep 600\n")

    def fill(self, operation: Operation, live: bool) -> None:
        """Make the queue that the operation is tried on; with a job that this process holds, if live."""
        self.clear()
        with Queue(self.layout, self.jobset) as queue:
            self.holder = owner.Holder(self.layout.workers, "live")
            for name, state, result in (("old", "done", OK), ("bad", "failed", BAD), ("live", "", {})):
                if state or live:
                    queue.enqueue([(name, ODD)])
                    self.live = queue.claim(self.holder)
                    assert self.live and self.live.name == name
                    if state:
                        queue.finish(self.live, state, result)
            if not live:
                self.holder.release()
                self.holder = self.live = None
            queue.enqueue([("waits", ODD)])
        operation.prepare(self)

    def enqueue(self, *names: str) -> None:
        """Enqueue more jobs."""
        with Queue(self.layout, self.jobset) as queue:
            queue.enqueue([(name, ODD) for name in names])

    def dead_claim(self, then: Callable[[Queue, Claim], None] = lambda queue, claim: None) -> None:
        """Let a process that then dies claim the next job, and do something with it."""
        pid = os.fork()
        if pid == 0:
            try:
                queue = Queue(self.layout, self.jobset)
                claim = queue.claim(owner.Holder(self.layout.workers, "dead"))
                assert claim
                then(queue, claim)
                os.kill(os.getpid(), signal.SIGKILL)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL


@dataclasses.dataclass
class Operation:
    """One operation. Jobs that it says nothing of stay where they are.

    Attributes:
        run: what is killed or cut short; it gets the queue and what begin returned.
        begin: what its process does before.
        prepare: what is done to the queue before that process starts.
        before: where jobs are before it, and may be as long as it is not acknowledged.
        after: where jobs are after it.
        worker: it is a real worker's, which is told to stop while it runs the job waits.
        holds: whether more than that is true; it gets the world, and whether it was acknowledged.
    """

    run: Callable[[Queue, Any], Any]
    begin: Callable[[Queue], Any] = lambda queue: None
    prepare: Callable[[World], None] = lambda world: None
    before: dict[str, Places] = dataclasses.field(default_factory=dict)
    after: dict[str, Places] = dataclasses.field(default_factory=dict)
    worker: bool = False
    holds: Callable[[World, bool], bool] = lambda world, acknowledged: True


def _worker(queue: Queue) -> tuple[owner.Holder, Claim]:
    holder = owner.Holder(queue.layout.workers, "victim")
    claim = queue.claim(holder)
    assert claim and claim.name == "waits"
    return holder, claim


def _two_more(world: World) -> None:
    with Queue(world.layout, world.jobset) as queue:
        queue.enqueue([("more1", ODD), ("more2", ODD)])


def _finished(queue: Queue) -> tuple[owner.Holder, Claim]:
    began = _worker(queue)
    queue.finish(began[1], "done", OK)
    return began


def _finish_several(queue: Queue, began: list[Claim]) -> None:
    for claim, state, result in zip(began, ("done", "failed", "pending"), (OK, BAD, {"REASON": "gate", "DETAIL": "closed"})):
        queue.end(claim, state, result)
    queue.commit()


def _holder(queue: Queue) -> tuple[owner.Holder]:
    return (owner.Holder(queue.layout.workers, "victim"),)


def _orphans(world: World) -> None:
    """Every kind of orphan that recovery knows."""
    with Queue(world.layout, world.jobset) as queue:
        world.dead_claim()
        queue.enqueue([("written", ODD)])
        done = {**job.tidy(OK), "RESULT": "done"}
        world.dead_claim(lambda queue, claim: queue._overwrite("running", claim.name, {**claim.values, **done, "CLAIM": claim.id}))
        queue.enqueue([("noted", ODD)])
        world.dead_claim(lambda queue, claim: queue.end(claim, "done", OK))
        queue.enqueue([("nonsense", {})])
        world.dead_claim(lambda queue, claim: world.host.put("running", claim.name, MALFORMED) and None)
        world.host.put("running", "bare", job.render(ODD).decode())
        queue.enqueue([("stale", ODD)])
        world.dead_claim(lambda queue, claim: queue._rename(claim.name, "running", "pending"))


def _recovered(world: World, _acknowledged: bool) -> bool:
    noted = world.host.values("noted")
    anew = noted.get("DETAIL") == "the host has started anew since"
    return _kept(world, True) and world.host.values("waits")["RECOVERIES"] == "1" and (noted["RESULT"] == "done" or anew)


def _recover(queue: Queue, _began: Any) -> None:
    recover(queue, make(queue.layout, queue.jobset))


def _forced(queue: Queue, _began: Any) -> None:
    queue.enqueue([("old", NEW), ("bad", NEW), ("new", NEW)], force=True)


def _kept(world: World, _acknowledged: bool) -> bool:
    """A malformed file is still there as it was."""
    places = [world.host.path(state, "nonsense") for state in ("pending", "running")]
    places += [Path(world.layout.malformed, entry) for entry in os.listdir(world.layout.malformed)]
    return any(path.exists() and path.read_text(encoding="utf-8") == MALFORMED for path in places)


def _gate_text(world: World) -> str | None:
    path = Path(world.jobset.gate)
    return path.read_text(encoding="utf-8") if path.exists() else None


def _closed(world: World, acknowledged: bool) -> bool:
    text = _gate_text(world)
    return (text is None and not acknowledged) or bool(text and text.startswith("STOP requested by test at ") and text.endswith("Z\n"))


_ENQUEUED = [f"new{number}" for number in range(BATCH)]
_BATCHED = [f"new{number}" for number in range(4 * CHUNK)]


def _batched(world: World, finished: int = 0) -> None:
    """Enqueue jobs as one batch, with nothing else pending; and finish some of them."""
    with Queue(world.layout, world.jobset) as queue:
        queue.remove(["waits"])
        queue.enqueue([(name, NEW) for name in _BATCHED])
        assert len(os.listdir(world.layout.batches)) == 1
        holder = owner.Holder(world.layout.workers, "earlier")
        for _job in range(finished):
            claim = queue.claim(holder)
            assert claim
            queue.finish(claim, "done", OK)
        holder.release()


_WAITS: dict[str, Places] = {"waits": {"absent": None}, **{name: {"pending": NEW} for name in _BATCHED}}


_HALF = _BATCHED[: CHUNK // 2]


def _half_done(queue: Queue) -> tuple[owner.Holder]:
    """Work until it is time to make more files of the batch."""
    (holder,) = _holder(queue)
    # What is listed right after the folder held has changed is not kept.
    time.sleep(0.1)
    for name in _HALF:
        claim = queue.claim(holder) if queue.look() else None
        assert claim and claim.name == name
        queue.finish(claim, "done", OK)
    return (holder,)


def _held(world: World) -> None:
    with Queue(world.layout, world.jobset) as queue:
        assert queue.hold(["waits"], "test")[0].new_state == "held"


def _killed(world: World, acknowledged: bool) -> bool:
    """What was killed says so and by whom; and no request is left once it is."""
    values = world.host.values("waits")
    left = [entry for entry in os.listdir(world.layout.run) if entry.startswith("kill.")]
    said = values.get("REASON") == "killed" and values["DETAIL"].startswith("by test at ")
    return not left and (said if world.host.states()["waits"] == "failed" else not acknowledged)


def _archive(world: World) -> str:
    return os.path.join(world.layout.root, "backup", "t.tar.gz")


def _whole_or_none(world: World, acknowledged: bool) -> bool:
    """An archive is there whole, or not at all; one that was acknowledged is there."""
    if not os.path.exists(_archive(world)):
        return not acknowledged
    with tarfile.open(_archive(world)) as tar:
        names = tar.getnames()
    return names[-1] == "manifest.json" and {"queue/pending/waits.env", "queue/done/old.env", "queue/failed/bad.env"} <= set(names)


def _emptied(world: World) -> None:
    """Another jobset, u, has no jobs, but an archive of when it had."""
    if not os.path.exists(os.path.join(world.layout.root, "u.tar.gz")):
        world.host.define("u")
        with world.host.queue("u") as queue:
            queue.enqueue([(name, ODD) for name in ("u1", "u2", "u3")])
            world.host.dead_claimer("u")
            queue.close_gate("test")
            backup.backup(queue, os.path.join(world.layout.root, "u.tar.gz"))
    shutil.rmtree(os.path.join(world.layout.root, "var", "u"))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(world.host.work, "u_stop.txt"))
    world.host.define("u")


def _restore(world_root: str) -> dict[str, Any]:
    with Queue(Layout(world_root, "u"), definitions.load(world_root, "u")) as queue:
        return restore.restore(queue, os.path.join(world_root, "u.tar.gz"))


def _restored(world: World, acknowledged: bool) -> bool:
    """Run again, a restore that was killed ends right; no job waits before the gate is closed."""
    there = world.host.states("u")
    right = not there or os.path.exists(os.path.join(world.host.work, "u_stop.txt"))
    changed = _restore(world.layout.root)["changed"]
    return right and not (acknowledged and changed) and world.host.states("u") == {"u1": "running", "u2": "pending", "u3": "pending"}


def _rebuild(world_root: str, jobset_: jobset.Jobset) -> Rebuild:
    found = Rebuild(world_root, [], "", "")
    # Its own jobs run as processes, which need no image.
    found.jobsets = {"t": jobset_}
    return found


def _rebuild_whole(queue: Queue, _began: Any) -> None:
    """What the module's calls do one after another, each with no more than what is on disk."""
    _rebuild(queue.layout.root, queue.jobset).begin({"t"})
    _rebuild(queue.layout.root, queue.jobset).retry()
    _rebuild(queue.layout.root, queue.jobset).end()


def _blaming(world: World) -> None:
    """A job has failed because the image lacks something."""
    claim = job.parse(world.host.path("failed", "bad").read_bytes())["CLAIM"]
    text = f"[x] attempt 3 of bad, worker dead, claim {claim}\nModuleNotFoundError: No module named 'pycryptosat'\n"
    Path(world.layout.log, "bad.log").write_text(text, encoding="utf-8")


def _blaming_and_closed(world: World) -> None:
    _blaming(world)
    Path(world.jobset.gate).write_text(GATE, encoding="utf-8")


def _as_it_was(gate: str | None) -> Callable[[World, bool], bool]:
    def holds(world: World, acknowledged: bool) -> bool:
        """Run again, a rebuild that was killed leaves the gate as it was before the first."""
        right = not acknowledged or _gate_text(world) == gate
        right = right and (_gate_text(world) in (None, GATE) or Rebuild(world.layout.root, [], "", "").begun)
        with Queue(world.layout, world.jobset) as queue:
            _rebuild_whole(queue, None)
        left = [entry for entry in os.listdir(os.path.join(world.layout.root, "var")) if entry.startswith("rebuild")]
        return right and _gate_text(world) == gate and not left and world.host.states()["bad"] == "pending"

    return holds


OPERATIONS: dict[str, Operation] = {
    "rebuild": Operation(run=_rebuild_whole, prepare=_blaming, after={"bad": {"pending": ODD}}, holds=_as_it_was(None)),
    "rebuild with a closed gate": Operation(
        run=_rebuild_whole,
        prepare=_blaming_and_closed,
        after={"bad": {"pending": ODD}},
        holds=_as_it_was(GATE),
    ),
    "backup": Operation(
        run=lambda queue, _began: backup.backup(queue, os.path.join(queue.layout.root, "backup", "t.tar.gz")),
        prepare=lambda world: shutil.rmtree(os.path.join(world.layout.root, "backup"), ignore_errors=True),
        holds=_whole_or_none,
    ),
    "restore": Operation(run=lambda queue, _began: _restore(queue.layout.root), prepare=_emptied, holds=_restored),
    "enqueue one": Operation(
        run=lambda queue, _began: queue.enqueue([("new", NEW)]),
        before={"new": {"absent": None}},
        after={"new": {"pending": NEW}},
    ),
    "enqueue a batch": Operation(
        run=lambda queue, _began: queue.enqueue([(name, NEW) for name in _ENQUEUED]),
        before={name: {"absent": None} for name in _ENQUEUED},
        after={name: {"pending": NEW} for name in _ENQUEUED},
    ),
    "enqueue again by force": Operation(
        run=_forced,
        before={"new": {"absent": None}},
        after={"old": {"pending": NEW}, "bad": {"pending": NEW}, "new": {"pending": NEW}},
    ),
    "claim": Operation(run=lambda queue, began: queue.claim(*began), begin=_holder),
    "claim a malformed job": Operation(
        run=lambda queue, began: queue.claim(*began),
        begin=_holder,
        prepare=lambda world: os.utime(world.host.put("pending", "nonsense", MALFORMED), (1, 1)),
        before={"nonsense": {"pending": None}},
        after={"nonsense": {"failed": None, "pending": None}},
        holds=_kept,
    ),
    # Into a file that was an owner record before.
    "claim another": Operation(
        run=lambda queue, began: queue.claim(began[0]),
        begin=_finished,
        prepare=_two_more,
        before={"waits": {"done": ODD, "pending": ODD}, "more1": {"pending": ODD}, "more2": {"pending": ODD}},
        after={"waits": {"done": ODD}},
    ),
    "finish several at once": Operation(
        run=_finish_several,
        begin=lambda queue: [_worker(queue)[1], *(queue.claim(owner.Holder(queue.layout.workers, "victim")) for _job in range(2))],
        prepare=_two_more,
        before={"more1": {"pending": ODD}, "more2": {"pending": ODD}},
        after={"waits": {"done": ODD}, "more1": {"failed": ODD}, "more2": {"pending": ODD}},
        holds=lambda world, acknowledged: not acknowledged or world.host.values("more2").get("REASON") == "gate",
    ),
    "finish ok": Operation(run=lambda queue, began: queue.finish(began[1], "done", OK), begin=_worker, after={"waits": {"done": ODD}}),
    "finish failed": Operation(
        run=lambda queue, began: queue.finish(began[1], "failed", BAD), begin=_worker, after={"waits": {"failed": ODD}}
    ),
    "put back for the gate": Operation(
        run=lambda queue, began: queue.finish(began[1], "pending", {"REASON": "gate", "DETAIL": "closed"}),
        begin=_worker,
        holds=lambda world, acknowledged: not acknowledged or world.host.values("waits").get("REASON") == "gate",
    ),
    "put back on SIGTERM": Operation(
        run=lambda queue, began: None,
        worker=True,
        holds=lambda world, acknowledged: not acknowledged or world.host.values("waits").get("REASON") == "worker_stopped",
    ),
    "recover": Operation(
        run=_recover,
        prepare=_orphans,
        before={
            "written": {"done": ODD},
            # A note that was not synced is not to be trusted after a power cut.
            "noted": {"done": ODD, "pending": ODD},
            "nonsense": {"failed": None},
            "bare": {"pending": ODD},
            "stale": {"pending": ODD},
        },
        holds=_recovered,
    ),
    "retry": Operation(run=lambda queue, _began: queue.retry(), after={"bad": {"pending": ODD}}),
    "remove": Operation(
        run=lambda queue, _began: queue.remove(["waits", "old"]),
        after={"waits": {"absent": None}, "old": {"absent": None}},
    ),
    "enqueue many as one file": Operation(
        run=lambda queue, _began: queue.enqueue([(name, NEW) for name in _BATCHED]),
        before={name: {"absent": None} for name in _BATCHED},
        after={name: {"pending": NEW} for name in _BATCHED},
    ),
    "claim from a batch": Operation(run=lambda queue, began: queue.claim(*began), begin=_holder, prepare=_batched, before=_WAITS),
    "make files of a batch ahead": Operation(
        run=lambda queue, began: queue.look(),
        begin=_half_done,
        prepare=_batched,
        before={**_WAITS, **{name: {"pending": NEW, "done": NEW} for name in _HALF}},
        after={name: {"done": NEW} for name in _HALF},
    ),
    "claim the last of a batch": Operation(
        run=lambda queue, began: queue.claim(*began),
        begin=_holder,
        prepare=lambda world: _batched(world, 3 * CHUNK),
        before={**_WAITS, **{name: {"done": NEW} for name in _BATCHED[: 3 * CHUNK]}},
        holds=lambda world, acknowledged: not acknowledged or os.listdir(world.layout.batches) == [],
    ),
    "remove from a batch": Operation(
        run=lambda queue, _began: queue.remove(["new3", "new20"]),
        prepare=_batched,
        before=_WAITS,
        after={"new3": {"absent": None}, "new20": {"absent": None}},
    ),
    "remove all of a batch": Operation(
        run=lambda queue, _began: queue.remove(None, ["pending"]),
        prepare=lambda world: _batched(world, 3),
        before={**_WAITS, **{name: {"done": NEW} for name in _BATCHED[:3]}},
        after={name: {"absent": None} for name in _BATCHED[3:]},
    ),
    "hold": Operation(
        run=lambda queue, _began: queue.hold(["waits"], "test"),
        after={"waits": {"held": ODD}},
        holds=lambda world, acknowledged: not acknowledged or world.host.values("waits")["HELD_BY"] == "test",
    ),
    "release": Operation(
        run=lambda queue, _began: queue.release(["waits"]),
        prepare=_held,
        before={"waits": {"held": ODD}},
        after={"waits": {"pending": ODD}},
    ),
    "change the priority": Operation(
        run=lambda queue, _began: queue.prioritize(["waits", "more"], "7"),
        prepare=lambda world: world.enqueue("more"),
        before={"waits": {"pending": ODD}, "more": {"pending": ODD}},
        holds=lambda world, acknowledged: not acknowledged or world.host.values("waits")["PRIORITY"] == "7",
    ),
    "change the priority of held jobs": Operation(
        run=lambda queue, _began: queue.prioritize(["waits"], "-7"), prepare=_held, before={"waits": {"held": ODD}}
    ),
    "pending jobs killed": Operation(
        run=lambda queue, _began: queue.kill(["waits"], "test"), after={"waits": {"failed": ODD}}, holds=_killed
    ),
    "a held job killed": Operation(
        run=lambda queue, _began: queue.kill(["waits"], "test"),
        prepare=_held,
        before={"waits": {"held": ODD}},
        after={"waits": {"failed": ODD}},
        holds=_killed,
    ),
    "an orphan killed": Operation(
        run=lambda queue, _began: kill(queue, ["waits"], "test", wait=0),
        prepare=World.dead_claim,
        before={"waits": {"pending": ODD, "failed": ODD}},
        after={"waits": {"failed": ODD}},
        holds=_killed,
    ),
    "reset": Operation(run=lambda queue, _began: queue.reset(["old", "bad"]), after={"old": {"pending": ODD}, "bad": {"pending": ODD}}),
    "hold jobs of a batch": Operation(
        run=lambda queue, _began: queue.hold(["new3", "new20"]),
        prepare=_batched,
        before=_WAITS,
        after={"new3": {"held": NEW}, "new20": {"held": NEW}},
    ),
    "change the priority of many of a batch": Operation(
        run=lambda queue, _began: queue.prioritize(_BATCHED[4 : BATCH + 4], "7"),
        prepare=lambda world: _batched(world, 2),
        before={**_WAITS, **{name: {"done": NEW} for name in _BATCHED[:2]}},
        holds=lambda world, acknowledged: not acknowledged or world.host.values(_BATCHED[20])["PRIORITY"] == "7",
    ),
    "jobs of a batch killed": Operation(
        run=lambda queue, _began: queue.kill([_BATCHED[1], *_BATCHED[-3:]], "test"),
        prepare=lambda world: _batched(world, 1),
        before={**_WAITS, _BATCHED[0]: {"done": NEW}},
        after={name: {"failed": NEW} for name in [_BATCHED[1], *_BATCHED[-3:]]},
    ),
    "close the gate": Operation(run=lambda queue, _began: queue.close_gate("test"), holds=_closed),
    "open the gate": Operation(
        run=lambda queue, _began: queue.open_gate(),
        prepare=lambda world: Path(world.jobset.gate).write_text(GATE, encoding="utf-8") and None,
        holds=lambda world, _acknowledged: _gate_text(world) in (None, GATE),
    ),
}


class Victim:
    """An operation in a process of its own: it waits to be told to begin, and again to run."""

    def __init__(self, world: World, operation: Operation) -> None:
        self.operation = operation
        self.worker: Any = None
        self._told, self._tell = os.pipe()
        self._hear, self._say = os.pipe()
        if operation.worker:
            self.worker = world.host.worker()
            self.pid = self.worker.pid
            wait_for(lambda: world.host.alive("waits"))
            return
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._live(world)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        self._await(b"s")

    def _live(self, world: World) -> None:
        queue = Queue(world.layout, world.jobset)
        os.write(self._say, b"s")
        os.read(self._told, 1)
        began = self.operation.begin(queue)
        os.write(self._say, b"b")
        os.read(self._told, 1)
        self.operation.run(queue, began)
        os.write(self._say, b"acknowledged")
        if began and (len(began) == 2 or not queue.recorded()):
            began[0].release()

    def _await(self, said: bytes) -> None:
        assert select.select([self._hear], [], [], 30)[0] and os.read(self._hear, 1) == said

    def begin(self) -> None:
        if not self.worker:
            os.write(self._tell, b"b")
            self._await(b"b")

    def run(self) -> None:
        if self.worker:
            self.worker.terminate()
        else:
            os.write(self._tell, b"r")

    def end(self) -> tuple[bool, bool]:
        """Wait for its end; return whether it was killed, and whether it had acknowledged."""
        if self.worker:
            code = self.worker.wait(60)
            assert code in (0, -signal.SIGKILL), code
            killed, acknowledged = code != 0, code == 0
        else:
            status = os.waitpid(self.pid, 0)[1]
            assert status in (0, signal.SIGKILL), "the operation failed; see its traceback"
            killed = status != 0
            acknowledged = bool(select.select([self._hear], [], [], 0)[0]) and os.read(self._hear, 100) == b"acknowledged"
        for fd in (self._told, self._tell, self._hear, self._say):
            os.close(fd)
        return killed, acknowledged


@contextlib.contextmanager
def strace(pid: int, *options: str) -> Iterator[None]:
    """Watch a process that waits; once inside, no call of it is missed."""
    tracer = subprocess.Popen(["strace", "-p", str(pid), *options], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr
    line = tracer.stderr.readline()
    if "attached" not in line:
        tracer.wait()
        pytest.skip(f"strace may not watch a process here: {line.strip()}")
    yield
    tracer.stderr.read()
    tracer.wait()


def violations(world: World, operation: Operation, acknowledged: bool, cut: bool = False) -> tuple[int, int, list[str]]:
    """Say what is wrong after recovery: how many jobs are lost and how many doubled, and everything in words."""
    expected: dict[str, Places] = {**STANDING, **({"live": {"pending" if cut else "running": ODD}} if world.live or cut else {})}
    for name in {**operation.before, **operation.after}:
        before = operation.before.get(name, STANDING.get(name, {}))
        expected[name] = operation.after.get(name, before) if acknowledged else {**before, **operation.after.get(name, {})}
    found: dict[str, list[str]] = {}
    for state in PLACES:
        for entry in os.listdir(os.path.join(world.layout.queue, state)):
            if entry.endswith(job.SUFFIX):
                found.setdefault(entry[: -len(job.SUFFIX)], []).append(state)
            elif entry != "live.env.owner" or not world.live:
                found.setdefault(f"(left over: {state}/{entry})", []).append("")
    with Queue(world.layout, world.jobset) as queue:
        waiting = dict(queue.batched())
    for name in waiting:
        found.setdefault(name, []).append("pending")
    lost = doubled = 0
    wrong = [f"{name} in {states} is nothing that was ever enqueued" for name, states in found.items() if name not in expected]
    for name, places in expected.items():
        states = found.get(name, ["absent"])
        if len(states) > 1:
            doubled += 1
            wrong.append(f"{name} is in {states}")
            continue
        state = states[0]
        if state not in places:
            lost += 1
            wrong.append(f"{name} is {state} and not {' or '.join(places)}")
            continue
        if places[state] is None:
            continue
        try:
            values = waiting[name] if name in waiting else job.parse(world.host.path(state, name).read_bytes())
        except job.MalformedJob as exc:
            lost += 1
            wrong.append(f"{name} can't be read: {exc}")
            continue
        if job.own_values(values) != places[state]:
            lost += 1
            wrong.append(f"{name} is {state} with other values: {values}")
        if state in ("done", "failed") and (values.get("RESULT") != state or "REASON" not in values or "ATTEMPTS" not in values):
            lost += 1
            wrong.append(f"{name} is {state} without its result: {values}")
        if name not in waiting and world.host.path(state, name).stat().st_nlink != 1:
            wrong.append(f"{name} has a second name")
    locks = [lock for lock in os.listdir(world.layout.workers) if not (world.holder and lock == world.holder.lock)]
    wrong += [f"the lock {lock} is left over" for lock in locks]
    claims: list[str] = []
    for line in Path(world.layout.history).read_bytes().splitlines() if os.path.exists(world.layout.history) else []:
        # Only a power cut leaves half a line.
        with contextlib.suppress(ValueError) if cut else contextlib.nullcontext():
            claims.append(json.loads(line)["claim"])
    wrong += [f"two lines of history for one attempt: {claim}" for claim in {c for c in claims if claims.count(c) > 1}]
    if not operation.holds(world, acknowledged):
        wrong.append("what the operation is for does not hold")
    return lost, doubled, wrong


def work_off(world: World) -> list[str]:
    """Finish whatever can be; return what is wrong then."""
    with Queue(world.layout, world.jobset) as queue:
        wrong = []
        if world.live and world.holder:
            if queue.why_orphan("live"):
                wrong.append("a live owner is taken for dead")
            queue.finish(world.live, "done", OK)
            world.live = None
        queue.open_gate()
        holder = owner.Holder(world.layout.workers, "after")
        queue.retry()
        queue.release(queue.entries("held"))
        while claim := queue.claim(holder):
            queue.finish(claim, "done", OK)
        holder.release()
        for name, state in world.host.states().items():
            if state != ("failed" if name == "nonsense" else "done"):
                wrong.append(f"{name} can't be worked off: it is {state}; refused: {queue.refused}")
    return wrong


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory, program: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A queue in memory where that is possible: its calls are the same, and there are thousands of tries."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    base = Path("/dev/shm") / f"sagequeue-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        base.mkdir(mode=0o700)
    except OSError:
        base = tmp_path_factory.mktemp("world")
    monkeypatch.setattr(batch, "LEAST", LEAST)
    monkeypatch.setattr(batch, "CHUNK", CHUNK)
    monkeypatch.setattr(batch.Batch.next, "__defaults__", (CHUNK,))
    host = Host(base, program)
    made = World(host)
    try:
        yield made
    finally:
        made.clear()
        host.close()
        shutil.rmtree(base)


__all__ = ["ODD", "OPERATIONS", "PLACES", "STANDING", "Operation", "Victim", "World", "strace", "violations", "work_off", "world"]
