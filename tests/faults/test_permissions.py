# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Queue and definitions are private to the batch user, whatever the umask is; another user gets nowhere. Real users, real processes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, definitions, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout, Refused
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.faults.users import OTHER, ROOT, UID, as_user, give, start
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host, wait_for

pytest.importorskip("ansible.module_utils.basic")
from ansible.module_utils import basic
from ansible_collections.sagequeue.batch.plugins.modules import queue_enqueue, queue_gate, queue_jobset

pytestmark = pytest.mark.skipif(not ROOT, reason="only root can act as two users")
CANARY = "canary-7e2b"


@pytest.fixture
def shared(program: Path) -> Iterator[Host]:
    """A host in a folder that everybody may enter, with the batch user's folders in it."""
    base = Path(tempfile.mkdtemp(prefix="sagequeue-users-", dir="/tmp"))
    base.chmod(0o755)
    made = Host(base, program)
    made.script(f'echo "$JOB_TEXT $SECRET {CANARY}"; touch started; while [ -e hold ]; do sleep 0.1; done\n')
    with contextlib.closing(made):
        yield made
    shutil.rmtree(base)


def module(main: Callable[[], None], **options: Any) -> None:
    """Run a module's main in this process, as Ansible's wrapper does."""
    basic._ANSIBLE_PROFILE = "legacy"
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode()
    said = sys.stdout = io.StringIO()
    try:
        main()
    except SystemExit as exc:
        if exc.code:
            raise RuntimeError(said.getvalue()) from exc


def definition(host: Host) -> dict[str, Any]:
    return {"script": "job.sh", "command": "/bin/sh", "workdir": str(host.work), "runner": "process", "stride": 2000, "grace": 1}


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_all_is_private_whatever_the_umask(shared: Host, umask: int) -> None:
    host = shared
    give(host)
    root = str(host.root)
    common = {"root": root, "jobset": "t"}
    calls: list[Callable[[], None]] = [
        lambda: module(queue_jobset.main, root=root, name="t", definition=definition(host), secrets={"SECRET": CANARY}),
        lambda: module(queue_enqueue.main, **common, jobs=[{"name": "a", "values": {"TEXT": CANARY}}, {"name": "b"}]),
        # Enough for a batch.
        lambda: module(queue_enqueue.main, **common),
        lambda: module(queue_gate.main, **common, state="closed"),
        lambda: module(queue_gate.main, **common, state="open"),
    ]
    for call in calls:
        assert as_user(UID, call, umask) == ""
    host.put("pending", "bad", "no job\n")
    give(host)
    os.utime(host.path("pending", "bad"), (0, 0))
    worker = start(host, "worker", "t-1", umask=umask)
    wait_for(lambda: len(os.listdir(host.root / "var/t/queue/done")) >= 3 and host.path("failed", "bad").exists())
    worker.terminate()
    assert worker.wait(20) == 0, worker.stdout and worker.stdout.read()
    recovery = start(host, "recover", "t", umask=umask)
    assert recovery.wait(20) == 0, recovery.stdout and recovery.stdout.read()
    looked = 0
    for folder, _names, files in os.walk(host.root):
        inside = Path(folder).relative_to(host.root).parts
        # The root and bin were there before.
        if inside and inside[0] != "bin":
            assert os.stat(folder).st_mode & 0o7777 == 0o700, folder
            for file in files:
                found = os.lstat(os.path.join(folder, file))
                assert (found.st_mode & 0o7777, found.st_uid) == (0o600, UID) or file.startswith("bad."), os.path.join(folder, file)
                looked += 1
    assert looked > 200
    ledger.record("file made under any umask, looked whether it is private", tries=looked)


def _append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"X=1\n")


def _lock(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def attempts(host: Host, private: list[Path], theirs: Path, pids: list[int], queue: Queue) -> Iterator[tuple[str, Callable[[], object]]]:
    """Return what another user may try."""
    root = str(host.root)
    for path in private:
        yield f"move {path}", lambda path=path: os.rename(path, theirs / "gone")
        if path.is_dir():
            yield f"make a file in {path}", lambda path=path: _append(path / "x.env")
            yield f"link into {path}", lambda path=path: os.link(theirs / "x.env", path / "x.env")
            yield f"list {path}", lambda path=path: os.listdir(path)
        else:
            yield f"read {path}", lambda path=path: path.read_bytes()
            yield f"write {path}", lambda path=path: _append(path)
            yield f"remove {path}", lambda path=path: os.unlink(path)
            yield f"link to {path}", lambda path=path: os.link(path, theirs / "linked")
            if path.suffix == ".lock":
                yield f"lock {path}", lambda path=path: _lock(path)
    for pid in pids:
        yield f"read the environment of {pid}", lambda pid=pid: Path(f"/proc/{pid}/environ").read_bytes()
        yield f"read the memory of {pid}", lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        yield f"list the open files of {pid}", lambda pid=pid: os.listdir(f"/proc/{pid}/fd")
        yield f"signal {pid}", lambda pid=pid: os.kill(pid, signal.SIGTERM)
    yield "read the definition", lambda: definitions.load(root, "t")
    yield "replace the definition", lambda: definitions.store(queue.layout, queue.jobset)
    yield "open the queue and enqueue", lambda: Queue(Layout(root, "t"), queue.jobset).enqueue([("x", {})])
    yield "enqueue through folders that are open", lambda: queue.enqueue([("x", {})])
    yield "claim", lambda: queue.claim(owner.Holder(queue.layout.workers, "t-2"))
    yield "close the gate", lambda: queue.close_gate()


def test_another_user_gets_nowhere(shared: Host) -> None:
    host = shared
    root, base = str(host.root), host.root / "var" / "t"
    (host.work / "hold").touch()
    host.define(secrets={"SECRET": CANARY})
    queue = host.queue()
    give(host)

    def enqueue(jobs: Any) -> None:
        with Queue(queue.layout, queue.jobset) as mine:
            mine.enqueue(jobs)

    assert as_user(UID, lambda: enqueue([("running", {"TEXT": CANARY})]), 0) == ""
    worker = start(host, "worker", "t-1", umask=0)
    # The worker writes down what the job has said a moment later.
    wait_for(lambda: (host.work / "started").exists() and CANARY in host.log("running"))
    for jobs in ([("pending", {"TEXT": CANARY})], batch.listed("".join(f"n{number} TEXT={CANARY}\n" for number in range(batch.LEAST)))):
        assert as_user(UID, lambda jobs=jobs: enqueue(jobs), 0) == ""
    theirs = host.base / "theirs"
    theirs.mkdir()
    program = theirs / "sagequeue"
    shutil.copy(host.program, program)
    (theirs / "x.env").write_text("TEXT=mine\n")
    for path in (theirs, *theirs.iterdir()):
        os.chown(path, OTHER, OTHER)
    private = [Path(folder) / name for top in ("etc", "var") for folder, names, files in os.walk(host.root / top) for name in names + files]
    contents = {path: path.read_bytes() for path in private if path.is_file()}
    assert {"t.json", "running.env", "running.env.owner", "pending.env", "queue.lock", "running.log"} < {path.name for path in contents}
    # Of the loop's sleeps, none.
    pids = [worker.pid, *(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == worker.pid)]
    assert len(pids) >= 2, "worker and job"
    tried = 0
    for opened in (False, True):
        if opened:
            # Private folders keep others out; the files do so by themselves, too.
            for path in [host.root, *(path for path in (host.root / "etc", host.root / "var", *private) if path.is_dir())]:
                path.chmod(0o755)
        tries = [entry for entry in attempts(host, private, theirs, pids, queue) if not (opened and entry[0].startswith("list /tmp"))]
        allowed: list[str] = []

        def try_all(tries: list[tuple[str, Callable[[], object]]] = tries, allowed: list[str] = allowed) -> None:
            for name, call in tries:
                try:
                    call()
                    allowed.append(name)
                except (PermissionError, QueueError, Refused):
                    pass
            raise AssertionError(allowed)

        assert as_user(OTHER, try_all) == "AssertionError: []"
        commands = (["progress"], ["progress", "t"], ["progress", "--json"], ["recover", "t"], ["worker", "t-2", "--until-idle"])
        for words in commands:
            process = start(host, "--root", root, *words, uid=OTHER, program=str(program))
            said = process.communicate(timeout=30)[0]
            assert process.returncode != 0 and "Traceback" not in said and CANARY not in said, said
        tried += len(tries) + len(commands)
    # It is known that the search is not blind: the batch user may do all this.
    assert as_user(UID, lambda: [path.read_bytes() for path in contents]) == ""
    assert as_user(UID, lambda: [Path(f"/proc/{pid}/environ").read_bytes() for pid in pids]) == ""
    assert {path: path.read_bytes() for path in contents} == contents and worker.poll() is None
    (host.work / "hold").unlink()
    wait_for(lambda: (base / "queue" / "done" / "running.env").exists())
    ledger.record("another user tries to read, write, move, lock, enqueue, signal", tries=tried)


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return -1
