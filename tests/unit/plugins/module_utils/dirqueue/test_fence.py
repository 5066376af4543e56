# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Workers that share a queue with other hosts: leases, guards and the proof of a shared folder. A real NFS is in tests/nfs."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import engine, job, owner, shared
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carriers
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError

# A holder with a lease of one second, which starts something; the file server can be reached as long as there is a file `reach`.
HOLD = """
import os, subprocess, sys, time
from dirqueue import fence, owner
folder = sys.argv[1]
holder = owner.Holder(folder, "t-1", 1.0, "none 1 0")
touch = holder.touch
def reach():
    if not os.path.exists(folder + "/reach"):
        time.sleep(600)
    touch()
holder.touch = reach
guarded = fence.Fence(holder, 1.0)
print(holder.record("c1").decode(), flush=True)
subprocess.Popen(["sleep", "600"], env={"SAGEQUEUE_HOLDER": holder.lock, "PATH": os.environ["PATH"]}, start_new_session=True)
sys.stdin.readline()
guarded.close()
holder.release()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "workers"
    made.mkdir()
    (made / "reach").touch()
    return made


def held(host: Any, folder: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = host.python(HOLD, str(folder))
    return process, job.parse("".join(itertools.takewhile(str.strip, process.stdout)).encode())


def left(record: dict[str, str]) -> list[int]:
    return carriers({"SAGEQUEUE_HOLDER": record["OWNER_LOCK"]})


@pytest.mark.parametrize("how", ["cut off", "killed", "ended"])
def test_nothing_is_left_of_a_worker_that_is(host: Any, folder: Path, wait_for: Any, how: str) -> None:
    process, record = held(host, folder)
    wait_for(lambda: left(record))
    # It lives on as long as it can renew its lease, also by SIGTERM, which an engine may send to all.
    began = time.monotonic()
    while time.monotonic() < began + 1.5:
        assert process.poll() is None and left(record)
        time.sleep(0.1)
    if how == "cut off":
        (folder / "reach").unlink()
    elif how == "killed":
        process.kill()
    else:
        process.stdin.write("\n")
        process.stdin.close()
    assert process.wait(30) == (0 if how == "ended" else -9)
    wait_for(lambda: not left(record))
    wait_for(lambda: how == "ended" or "lock is free" in owner.why_dead({**record, "OWNER_PIDNS": "other"}, str(folder)))


def test_who_is_silent_on_another_host_is_dead_only_after_its_lease(
    host: Any, folder: Path, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, record = held(host, folder)
    there = {**record, "OWNER_HOST": "elsewhere"}
    assert owner.why_dead(there, str(folder)) == ""
    process.kill()
    process.wait()
    wait_for(lambda: "gone" in owner.why_dead(record, str(folder)))
    lock = folder / record["OWNER_LOCK"]
    now = time.time()
    os.utime(lock, (now, now - owner.believed(1.0) + 5))
    assert owner.why_dead(there, str(folder)) == "", "its lock is free, but its host may not know it yet"
    os.utime(lock, (now, now - owner.believed(1.0) - 1))
    assert "nothing was heard of elsewhere" in owner.why_dead(there, str(folder))
    # The engine knows better, if it says so of this very start.
    monkeypatch.setattr(engine, "_ASK", {"test": (["echo", "RUNNING", "2"], ("RUNNING",)), "gone": (["false"], ("RUNNING",))})
    assert owner.why_dead({**there, "OWNER_ENGINE": "test 1 2"}, str(folder)) == ""
    for other in ("test 1 3", "gone 1 2", "unknown 1 2", ""):
        assert owner.why_dead({**there, "OWNER_ENGINE": other}, str(folder))
    # A lock that is held says more than a silence: its host may have been suspended.
    _process, record = held(host, folder)
    os.utime(folder / record["OWNER_LOCK"], (now, now - 10000))
    assert owner.why_dead({**record, "OWNER_HOST": "elsewhere"}, str(folder)) == ""
    assert not [name for name in os.listdir(folder) if name.startswith(".clock")]


ANSWER = "import sys\nfrom dirqueue import shared\nimport fcntl, os\n{}\nshared.answer(sys.argv[1])\n"


# The first lock is right, and the second is granted although the other has it.
TWICE = """
asked, take = [], shared._Side.take_lock
def granted(side):
    asked.append(side)
    return take(side) or len(asked) == 2
shared._Side.take_lock = granted
"""
# A file that is seen half written, as it is read.
HALVES = """
import io
def halved(path, *how, **more):
    file = open(path, *how, **more)
    return io.StringIO(file.read(7)) if str(path).endswith("/value") else file
shared.open = halved
"""


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("", ""),
        ("fcntl.flock = lambda fd, how: None", "a lock does not keep the other host out"),
        ("rename = os.rename\nos.rename = lambda a, b: None if '/race/' in a else rename(a, b)", "which is not each once"),
        ("shared._Side.take_lock = lambda side: False", "can't lock a file"),
        ("shared._Side.release_lock = lambda side: True", "a lock that the other host has released can't be had"),
        (TWICE, "a lock does not keep the other host out"),
        (HALVES, "a file that was replaced by a rename was seen as 7 bytes of two versions"),
        ("shared._Side.read = lambda side: ['3 bytes of two versions']", "by a rename was seen as 3 bytes of two versions"),
        ("os.geteuid = lambda: 12345", "the batch user has another number there"),
        ("shared._Side.put = lambda side, name, what: None", "was not seen by the other within 5 s"),
    ],
)
def test_a_shared_folder_is_proved(host: Any, broken: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_SEEN", 5 if not why.endswith("5 s") else 0.5)
    root = str(host.root)
    other = host.python(ANSWER.format(broken), f"{root}/.proof-1")
    if why:
        with pytest.raises(QueueError) as caught:
            shared.prove(root, f"{root}/.proof-1", "other")
        assert f"{root} on {os.uname().nodename} can't hold a queue together with other: " in str(caught.value)
        assert why.replace("5 s", "0.5 s") in str(caught.value) and "mount it as NFS 4.1" in str(caught.value)
        other.kill()
        return
    assert "renames are atomic, locks hold, writes are seen" in shared.prove(root, f"{root}/.proof-1", "other")
    assert other.wait(30) == 0
    # Only once, as long as the mount is the same.
    other = host.python(ANSWER.format(""), f"{root}/.proof-2")
    assert "as was proved before" in shared.prove(root, f"{root}/.proof-2", "other")
    assert other.wait(30) == 0
    # With another host it has to be proved again.
    other = host.python(ANSWER.format(""), f"{root}/.proof-3")
    assert "renames are atomic" in shared.prove(root, f"{root}/.proof-3", "a third")
    assert other.wait(30) == 0
    monkeypatch.setattr(shared, "mount_of", lambda _path: ("/x", "nfs4", "rw,vers=4.0,hard"))
    with pytest.raises(QueueError, match="/x is mounted as NFS 4.0, which may carry a rename out twice"):
        shared.prove(root, f"{root}/.proof-4", "other")
    monkeypatch.undo()
    monkeypatch.setattr(shared, "_COMES", 0.3)
    with pytest.raises(QueueError, match="what other writes there is not seen"):
        shared.prove(root, f"{root}/.proof-4", "other")
    # Who answers gives up when nobody asks.
    shared.answer(f"{root}/.proof-5")
    assert ".proof" not in str(os.listdir(root))
