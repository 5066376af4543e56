# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Hostile and broken entries in every folder: refused by name, left as they are, and the good jobs are worked off.

Run as root, the program runs as another user, whom permissions hold back as they hold back an ordinary one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.faults.users import OTHER, ROOT, UID, give, start
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host

# Memory (KiB) and seconds in which the program has to get by, whatever lies in the queue: a gigabyte must not be read.
MEMORY, SECONDS = 80_000, 20
GIGABYTE = 1 << 30


class Target:
    """A file and a folder outside the queue that nobody may touch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "precious.env"
        folder.mkdir()
        self.file.write_text("TEXT=precious\n")
        os.chown(folder, UID if ROOT else -1, -1)
        os.chown(self.file, UID if ROOT else -1, -1)
        self.before = self._now()

    def _now(self) -> tuple[object, ...]:
        found = self.file.stat()
        return sorted(os.listdir(self.folder)), self.file.read_text(), found.st_mtime_ns, found.st_mode, found.st_uid

    def check(self) -> None:
        assert self._now() == self.before


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, GIGABYTE)


def _closed(path: Path) -> None:
    path.write_text("TEXT=x\n")
    path.chmod(0)


def _foreign(path: Path) -> None:
    path.write_text("TEXT=x\n")
    path.chmod(0o644)
    os.chown(path, OTHER, OTHER)


# What is no regular file of the user's own, with one name...
ODD: dict[str, Callable[[Path, Target], object]] = {
    "a dangling link": lambda path, target: path.symlink_to("/nowhere/at/all"),
    "a link to a file": lambda path, target: path.symlink_to(target.file),
    "a link to a folder": lambda path, target: path.symlink_to(target.folder),
    "a link to itself": lambda path, target: path.symlink_to(path),
    "a FIFO": lambda path, target: os.mkfifo(path),
    "a socket": lambda path, target: _socket(path),
    "a folder": lambda path, target: path.mkdir(),
}
if ROOT:
    ODD["a link to /etc/shadow"] = lambda path, target: path.symlink_to("/etc/shadow")
    ODD["a device"] = lambda path, target: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    ODD["another user's file"] = lambda path, target: _foreign(path)
ODD["a hard link"] = lambda path, target: os.link(target.file, path)
ODD["a file without permissions"] = lambda path, target: _closed(path)
# ... and what is one, with contents that can't be understood.
BROKEN: dict[str, Callable[[Path, Target], object]] = {
    "a gigabyte in one line": lambda path, target: _sparse(path),
    "bytes that are not UTF-8": lambda path, target: path.write_bytes(b"TEXT=\xff\xfe\n"),
    "NULs": lambda path, target: path.write_bytes(b"TEXT=a\0b\n"),
    "a deep nesting": lambda path, target: path.write_bytes(b"[" * 300_000),
    "nothing": lambda path, target: path.write_bytes(b""),
    "no text": lambda path, target: path.write_bytes(b"\x1b]0;title\x07\r\n\x80=;$(id)\n"),
}
# Without --long, the others stand for these.
RARER = ("a dangling link", "a link to a folder", "a link to itself", "a socket", "a link to /etc/shadow", "no text", "NULs")
# Names that no job has, for files that would be fine otherwise.
NAMES = [
    b"new\nline.env", b"-leading.env", b"...env", b".hidden.env", b"sp ace.env", b"$(touch pwned).env", b"\xff\xfe.env", b"\x1b[31mred.env",
    b"q'uo\"te.env", b"x" * 251 + b".env", b"no suffix", "grün.env".encode(), b".env", b"..env", b"a;b.env", b"a.env.bak",
]  # fmt: skip


@pytest.fixture
def guarded(program: Path) -> Iterator[Host]:
    """A host whose files belong to a user other than root, where that can be had."""
    base = Path(tempfile.mkdtemp(prefix="sagequeue-hostile-", dir="/tmp"))
    base.chmod(0o755)
    made = Host(base, program)
    made.script('printf "%s" "$JOB_TEXT" > "out.$SAGEQUEUE_JOB"\n')
    with contextlib.closing(made):
        yield made
    shutil.rmtree(base)


def said(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for the program's end, and check that it got by with little time and memory and without a traceback."""
    assert process.stdout
    signal.signal(signal.SIGALRM, lambda _number, _frame: process.kill())
    signal.alarm(SECONDS)
    text = process.stdout.read()
    signal.alarm(0)
    _pid, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    process.stdout.close()
    assert "Traceback" not in text, text
    assert process.returncode == status, text
    assert used.ru_maxrss < MEMORY, f"{used.ru_maxrss} KiB"
    return text


def identity(path: Path) -> tuple[int, ...]:
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns if path.is_file() else 0


# All that an operator can ask for, done as the user: each call's answer, or what it raised.
OPERATE = """
import json, sys
from dirqueue import batch, definitions, owner, progress
from dirqueue.errors import QueueError
from dirqueue.layout import Layout
from dirqueue.queue import Queue
from dirqueue.recovery import recover
from dirqueue.runners.known import make
root = sys.argv[1]
layout, definition = Layout(root, "t"), definitions.load(root, "t")
said = {}
with Queue(layout, definition) as queue:
    names = ["bad-" + state for state in ("pending", "running", "done", "failed")]
    for name, call in {
        "recover": lambda: recover(queue, make(layout, definition)),
        "enqueue": lambda: queue.enqueue([("fresh", {}), *((name, {}) for name in names)], force=True),
        "enqueue many": lambda: queue.enqueue(batch.numbered("many", range(batch.LEAST))),
        "retry": lambda: queue.retry(),
        "retry by name": lambda: queue.retry(names),
        "jobs": lambda: progress.jobs(queue),
        "summary": lambda: progress.summary(queue),
        "remove by name": lambda: queue.remove(names, logs=True),
        "remove": lambda: queue.remove(None, logs=True),
        "close": lambda: queue.close_gate(),
        "gate": lambda: queue.gate(),
        "open": lambda: queue.open_gate(),
    }.items():
        try:
            said[name] = str(call())
        except (QueueError, OSError) as exc:
            said[name] = "%s: %s" % (type(exc).__name__, exc)
print(json.dumps(said))
"""


def operate(host: Host) -> dict[str, str]:
    answers: dict[str, str] = json.loads(said(start(host, "-c", OPERATE, str(host.root), python=True)))
    return answers


@pytest.mark.parametrize("kind", [*ODD, *BROKEN])
def test_in_every_folder(guarded: Host, kind: str, long: bool) -> None:
    if not long and kind in RARER:
        pytest.skip("one of a kind is enough without --long")
    host = guarded
    host.define(attempts=1)
    host.define("other")
    base = host.root / "var" / "t"
    queue, run = base / "queue", base / "run"
    target = Target(host.base / "outside")
    make = (ODD | BROKEN)[kind]
    odd = kind in ODD
    # Jobs that are good, but for the log of one and the owner records of two.
    for name in ("good1", "good2", "logged", "claimed"):
        host.put("pending", name, f"TEXT=$(id) {name}\n")
    host.put("running", "owned", "TEXT=x\n")
    made: dict[str, Path] = {}
    for state in ("pending", "running", "done", "failed"):
        made[f"{state}/bad-{state}.env"] = queue / state / f"bad-{state}.env"
    made["running/claimed.env.owner"] = queue / "running" / "claimed.env.owner"
    made["running/owned.env.owner"] = queue / "running" / "owned.env.owner"
    made["queue/batches/bad.batch"] = queue / "batches" / "bad.batch"
    made["queue/batches/bad.cursor"] = queue / "batches" / "bad.cursor"
    made["log/logged.log"] = base / "log" / "logged.log"
    for folder, name in (("staging", "left"), ("staging", "redo.x"), ("workers", "t-9.0123456789abcdef.lock"), ("malformed", "kept.1.env")):
        made[f"run/{folder}/{name}"] = run / folder / name
    definition = host.root / "etc" / "jobsets" / "broken.json"
    for path in [*made.values(), definition]:
        make(path, target)
    give(host)
    target.before = target._now()
    before = {name: identity(path) for name, path in made.items()}
    # Recovery cleans up staging after an hour; what is hostile stays.
    text = said(start(host, "worker", "t-1", "--until-idle"))
    target.check()
    for name in ("good1", "good2"):
        assert host.path("done", name).exists(), text
        assert (host.work / f"out.{name}").read_text() == f"$(id) {name}"
    shown = said(start(host, "progress", "t"))
    if odd:
        # Owner records and staged files get their names by link(2): there a second name is usual, and may go.
        named = {name: path for name, path in made.items() if kind != "a hard link" or name.endswith((".env", ".log", ".batch"))}
        if kind == "a hard link":
            named.pop("run/malformed/kept.1.env")
        for name, path in named.items():
            assert identity(path) == before[name], (name, kind)
            assert path.name in shown or name.endswith((".log", ".cursor")), (name, shown)
            # A worker says what is in its way. What lies in done, failed and run is not, and a worker need not list it.
            assert path.name in text or name.startswith(("run/", "done/", "failed/")) or name.endswith(".cursor"), (name, text)
        assert host.path("failed", "logged").exists() and "logged.log" in host.path("failed", "logged").read_text()
        for state, name in (("pending", "claimed"), ("running", "owned")):
            assert host.path("done" if kind == "a hard link" else state, name).exists(), text
    else:
        # A file of the queue's own: what can't be understood is failed, and kept as it was.
        assert host.path("failed", "bad-pending").exists() or kind == "nothing"
        assert host.path("done", "claimed").exists() and host.path("done", "owned").exists()
        assert host.path("done", "logged").exists()
    everything = said(start(host, "progress"), 1)
    assert "jobset broken" in everything and "other [" in everything, everything
    answers = operate(host)
    assert not [name for name, answer in answers.items() if answer.startswith(("OSError", "QueueError"))], answers
    target.check()
    if odd:
        for name, path in named.items():
            if name != "log/logged.log":
                assert identity(path) == before[name], (name, kind)
    ledger.record("hostile entry in a folder of the queue", tries=len(made) + 1)


@pytest.mark.parametrize("kind", ODD)
def test_in_place_of_the_queues_own_files(guarded: Host, kind: str, long: bool) -> None:
    """What every worker needs is not there, or is a trap: it says so and waits, and when the thing is gone it goes on."""
    if not long and kind not in ("a link to a file", "a FIFO", "a folder"):
        pytest.skip("one of a kind is enough without --long")
    host = guarded
    host.define(attempts=1)
    base = host.root / "var" / "t"
    target = Target(host.base / "outside")
    host.put("pending", "good", "TEXT=x\n")
    places = [base / "run" / "history.jsonl", base / "run" / "gates.jsonl", base / "run" / "queue.lock", host.work / "t_stop.txt"]
    for path in places:
        ODD[kind](path, target)
    give(host)
    target.before = target._now()
    before = {path: identity(path) for path in places}
    shown = said(start(host, "progress", "t"))
    assert all(path.name in shown for path in places[:3]) and "the gate is closed" in shown, shown
    answers = operate(host)
    assert "queue.lock" in answers["enqueue"] and "queue.lock" in answers["remove"], answers
    assert host.path("pending", "good").exists()
    # A worker says what it waits for, and can be stopped.
    worker = start(host, "worker", "t-1")
    assert worker.stdout
    signal.signal(signal.SIGALRM, lambda _number, _frame: worker.kill())
    signal.alarm(SECONDS)
    line = next(line for line in worker.stdout if "waiting: " in line)
    assert "queue.lock" in line and "refused" in line
    worker.terminate()
    said(worker)
    target.check()
    # A gate that can't be read is a closed one; to open it is to take it away, which follows nothing.
    assert [path for path in places if identity_or_none(path) != before[path]] in ([], [places[3]])
    for path in places:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    said(start(host, "worker", "t-1", "--until-idle"))
    assert host.path("done", "good").exists()
    target.check()
    ledger.record("hostile entry in a folder of the queue", tries=len(places))


def identity_or_none(path: Path) -> object:
    return identity(path) if os.path.lexists(path) else None


@pytest.mark.parametrize("folder", ["pending", "running", "done", "failed", "staging", "batches"])
def test_a_folder_that_is_a_link(guarded: Host, folder: str) -> None:
    host = guarded
    host.define()
    host.put("pending", "good", "TEXT=x\n")
    base = host.root / "var" / "t"
    (path,) = (found for found in base.rglob(folder) if found.is_dir())
    outside = host.base / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    give(host)
    before = sorted(os.listdir(outside))
    process = start(host, "progress", "t")
    text = process.communicate(timeout=SECONDS)[0]
    assert "Traceback" not in text
    worker = start(host, "worker", "t-1", "--until-idle")
    text += worker.communicate(timeout=SECONDS)[0]
    assert "Traceback" not in text
    assert sorted(os.listdir(outside)) == before, text
    ledger.record("hostile entry in a folder of the queue", tries=1)


def test_names_that_no_job_has(guarded: Host) -> None:
    host = guarded
    host.define()
    queue = host.root / "var" / "t" / "queue"
    places = [(queue / state, b"") for state in ("pending", "running", "done", "failed", "batches")] + [(queue / "running", b".owner")]
    made = []
    for folder, ending in places:
        for name in NAMES:
            path = os.path.join(os.fsencode(folder), name[: 255 - len(ending)] + ending)
            if folder.name == "batches":
                path = path.replace(b".env", b".batch")[: len(os.fsencode(folder)) + 256]
            with open(path, "wb") as file:
                file.write(b"TEXT=x\n")
            made.append(path)
    host.put("pending", "good", "TEXT=x\n")
    give(host)
    text = said(start(host, "worker", "t-1", "--until-idle"))
    assert host.path("done", "good").exists(), text
    # What a program writes into the gate can steer nobody's terminal either.
    (host.work / "t_stop.txt").write_bytes(b"\x1b]0;title\x07 \xc2\x9b31m off=1 \r\n")
    give(host)
    shown = said(start(host, "progress", "t"))
    steering = (*range(9), *range(11, 32), *range(127, 160))
    assert not [character for character in text + shown if ord(character) in steering] and "title" in shown
    assert shown.count("not a job's name") + shown.count("not a batch's name") == len(made), shown
    answers = operate(host)
    assert not [name for name, answer in answers.items() if answer.startswith(("OSError", "QueueError"))], answers
    assert all(os.path.exists(path) for path in made)
    ledger.record("name that no job has, in a folder of the queue", tries=len(made))


def test_contents_that_are_wrong_by_a_little(guarded: Host) -> None:
    """Job files that are almost right: each is failed with the reason, and kept as it was; none keeps the next one waiting."""
    host = guarded
    host.define(attempts=1, stride=4)
    broken = {
        "no-equals": b"TEXT\n", "lower": b"text=x\n", "twice": b"TEXT=a\nTEXT=b\n", "blank": b" TEXT=a\n", "export": b"export TEXT=a\n",
        "nul": b"TEXT=a\0\n", "latin": b"TEXT=\xe9\n", "utf16": "TEXT=a\n".encode("utf-16"), "large": b"TEXT=" + b"x" * 65_536,
        "no-room": b"TEXT=" + b"x" * 65_000, "offset": b"OFFSET=4\n", "negative": b"OFFSET=-1\n", "arabic": "OFFSET=\u0663\n".encode(),
        "overlong": b"TEXT=\xc0\xaf\n", "surrogate": b"TEXT=\xed\xa0\x80\n", "bom": b"\xef\xbb\xbfTEXT=a\n",
    }  # fmt: skip
    for name, text in broken.items():
        host.path("pending", name).write_bytes(text)
    host.put("pending", "z-good", "TEXT=x\n")
    give(host)
    text = said(start(host, "worker", "t-1", "--until-idle"))
    assert host.path("done", "z-good").exists()
    for name, contents in broken.items():
        answer = host.path("failed", name).read_text()
        assert "REASON=malformed_job" in answer and "DETAIL=" in answer, (name, answer, text)
        kept = [path.read_bytes() for path in (host.root / "var/t/run/malformed").glob(f"{name}.*")]
        # What only this jobset can't run is failed as it is.
        assert kept == [contents] or "OFFSET=" in answer, name
    ledger.record("job file that is wrong by a little", tries=len(broken))
