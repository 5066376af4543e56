# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Hostile and broken entries in every folder: refused by name, left as they are, and the good jobs are worked off.

Run as root, the program runs as another user, whom permissions hold back as they hold back an ordinary one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host

ROOT = os.geteuid() == 0
# Ids that no account of the machine has.
UID, OTHER = 61234, 61235
# The batch user's Python: the tests' own may lie in a home that others can't enter.
PYTHON = "/usr/bin/python3" if ROOT else sys.executable
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


def give(host: Host) -> None:
    """Give all that is not given away to the user."""
    if ROOT:
        for folder, names, files in os.walk(host.base):
            for path in [folder, *(os.path.join(folder, name) for name in names + files)]:
                if os.lstat(path).st_uid == 0:
                    os.lchown(path, UID, UID)


def start(host: Host, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [PYTHON, str(host.program), *words],
        env={"PATH": os.environ["PATH"], "HOME": str(host.base), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(host.program)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="surrogateescape",
        cwd="/",
        **({"user": UID, "group": UID, "extra_groups": []} if ROOT else {}),
    )
    host.processes.append(process)
    return process


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


@pytest.mark.parametrize("kind", [*ODD, *BROKEN])
def test_in_every_folder(guarded: Host, kind: str) -> None:
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
    made["log/logged.log"] = base / "log" / "logged.log"
    for folder, name in (("staging", "left"), ("workers", "t-9.0123456789abcdef.lock"), ("malformed", "kept.1.env")):
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
        named = {name: path for name, path in made.items() if kind != "a hard link" or name.endswith((".env", ".log"))}
        if kind == "a hard link":
            named.pop("run/malformed/kept.1.env")
        for name, path in named.items():
            assert identity(path) == before[name], (name, kind)
            assert name in shown or name.startswith("log/"), (name, shown)
            # A worker says what is in its way. What lies in done, failed and run is not, and a worker need not list it.
            assert name in text or name.startswith(("run/", "done/", "failed/")), (name, text)
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
    ledger.record("hostile entry in a folder of the queue", tries=len(made) + 1)
