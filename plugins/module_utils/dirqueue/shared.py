# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that a folder which two hosts share can hold a queue for both.

One host answers, the other asks; they have nothing but the folder. It is proved that each sees soon what the other writes, that
a rename is seen whole or not at all and that of two who rename one file only one succeeds, and that locks keep the other out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import re
import shutil
import time
from typing import Any

from . import owner
from .errors import QueueError
from .layout import mount_of, probe

# Seconds within which what one host writes must be seen by the other, and for which the other is waited for at first.
_SEEN = 5.0
_COMES = 60.0
_FILES = 100
_ADVICE = "; mount it as NFS 4.1 or newer, with the options hard,actimeo=0,lookupcache=none, or choose another file system"


class _Side:
    """One host's view of the folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        # Held open, as the queue holds its folders.
        self.fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        os.close(self.lock)
        os.close(self.fd)

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def put(self, name: str, what: Any) -> None:
        with open(self.path(f".{name}"), "w", encoding="utf-8") as file:
            json.dump(what, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(self.path(f".{name}"), self.path(name))

    def get(self, name: str, seconds: float) -> Any:
        """Return what the other has put there; None if that is not seen."""
        deadline = time.monotonic() + seconds
        while True:
            os.lseek(self.fd, 0, os.SEEK_SET)
            if name in os.listdir(self.fd):
                with open(self.path(name), encoding="utf-8") as file:
                    return json.load(file)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)

    def take_lock(self) -> bool:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            return False
        return True

    def release_lock(self) -> bool:
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        return True

    def win(self, mine: str) -> list[str]:
        """Move what there is in race to a folder of its own, against the other; return what this host moved."""
        os.mkdir(self.path(mine))
        names = [str(number) for number in range(_FILES)]
        random.shuffle(names)
        won = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path(f"race/{name}"), self.path(f"{mine}/{name}"))
                won.append(name)
        return won

    def read(self) -> list[str]:
        """Read a file that the other replaces again and again; return what was wrong."""
        wrong = []
        while self.get("enough", 0) is None:
            try:
                with open(self.path("value"), encoding="utf-8") as file:
                    text = file.read()
                if len(text) != 4000 or len(set(text)) != 1:
                    wrong.append(f"{len(text)} bytes of two versions")
            except OSError as exc:
                # Its reader is told that it was replaced.
                if exc.errno != errno.ESTALE:
                    wrong.append(str(exc.strerror))
        return wrong


def _me() -> list[str]:
    return [os.uname().nodename, owner.machine_id(), owner.boot_id()]


def answer(folder: str) -> None:
    """Answer whoever asks in a new folder, until told to stop, or nobody asks any more; then remove it."""
    os.mkdir(folder, 0o700)
    side = _Side(folder)
    try:
        for number in range(1000):
            asked = side.get(f"ask.{number}", _COMES)
            if asked is None or asked[0] == "end":
                return
            found = os.stat(side.path(f"ask.{number}"))
            deeds = {"lock": side.take_lock, "release": side.release_lock, "win": lambda: side.win("theirs"), "read": side.read}
            said = [_me(), found.st_uid == os.geteuid()] if asked[0] == "who" else deeds[asked[0]]()
            side.put(f"reply.{number}", said)
    finally:
        side.close()
        shutil.rmtree(folder, ignore_errors=True)


def prove(root: str, folder: str, other: str) -> str:
    """Ask the host that answers in a folder; return in words what was proved.

    Args:
        root: the queue's root, which holds the folder.
        folder: where the other answers.
        other: its name, for people.
    Raises:
        QueueError: the folder can't hold a queue of both hosts, with the reason and the next step.
    """

    def refuse(why: str) -> QueueError:
        return QueueError(f"{root} on {os.uname().nodename} can't hold a queue together with {other}: {why}{_ADVICE}")

    probe(root)
    point, kind, options = mount_of(root)
    version = re.search(r"\bvers=([0-9.]+)", options)
    if kind.startswith("nfs") and version and tuple(map(int, version.group(1).split("."))) < (4, 1):
        raise refuse(f"{point} is mounted as NFS {version.group(1)}, which may carry a rename out twice")
    deadline = time.monotonic() + _COMES
    while not os.path.isdir(folder):
        if time.monotonic() > deadline:
            raise refuse(f"what {other} writes there is not seen")
        time.sleep(0.1)
    side = _Side(folder)
    # Once proved, that holds as long as the mount is the same.
    proof = os.path.join(root, "etc", "shared", os.uname().nodename)
    known = f"{point} {kind} {options} {owner.machine_id()} {other}\n"
    number = -1

    def ask(deed: str) -> None:
        nonlocal number
        number += 1
        side.put(f"ask.{number}", [deed])

    def reply(seconds: float = _SEEN) -> Any:
        said = side.get(f"reply.{number}", seconds)
        if said is None:
            raise refuse(f"a write of one host was not seen by the other within {seconds:g} s")
        return said

    try:
        with contextlib.suppress(FileNotFoundError), open(proof, encoding="utf-8") as file:
            if file.read() == known:
                ask("end")
                return f"{point} ({kind}) is shared with {other}, as was proved before"
        for _again in range(5):
            ask("who")
            who, same = reply()
        if not same:
            raise refuse("the batch user has another number there")
        ask("lock")
        if not reply():
            raise refuse(f"{other} can't lock a file")
        if side.take_lock():
            raise refuse("a lock does not keep the other host out")
        ask("release")
        reply()
        if not side.take_lock():
            raise refuse("a lock that the other host has released can't be had")
        ask("lock")
        if reply():
            raise refuse("a lock does not keep the other host out")
        side.release_lock()
        os.mkdir(side.path("race"))
        for name in range(_FILES):
            os.close(os.open(side.path(f"race/{name}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        ask("win")
        mine = side.win("mine")
        theirs = reply(_COMES)
        lists = [sorted(os.listdir(side.path(where))) for where in ("mine", "theirs")]
        if sorted([*mine, *theirs]) != sorted(map(str, range(_FILES))) or lists != [sorted(mine), sorted(theirs)]:
            raise refuse(f"of {_FILES} files that both renamed, {len(mine)} and {len(theirs)} were won, which is not each once")
        side.put("value", "x")
        with open(side.path("value"), "w", encoding="utf-8") as file:
            file.write("0" * 4000)
        ask("read")
        for count in range(_FILES):
            with open(side.path(".value"), "w", encoding="utf-8") as file:
                file.write(str(count % 10) * 4000)
            os.rename(side.path(".value"), side.path("value"))
        side.put("enough", True)
        wrong = reply(_COMES)
        if wrong:
            raise refuse(f"a file that was replaced by a rename was seen as {wrong[0]}")
        ask("end")
        os.makedirs(os.path.dirname(proof), mode=0o700, exist_ok=True)
        with open(proof, "w", encoding="utf-8") as file:
            file.write(known)
    finally:
        side.close()
    where = "the same host" if who == _me() else who[0]
    return f"{point} ({kind}) is shared with {where}: renames are atomic, locks hold, writes are seen"
