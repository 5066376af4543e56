# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Every operation under a power cut: what it did to the files is recorded, and what a disk may then hold is built and recovered.

A disk holds for sure what was synced. Of the rest it may hold whatever the model of the file system allows, up to any
moment of the operation:

ordered         names change in the order of the calls, and a sync of anything brings all names so far (ext4, XFS)
whole renames   a rename is on the disk or is not; else those of different files come in any order, and a sync of a folder
                brings that folder's names alone (btrfs, and more than it allows)
new name first  each name comes by itself, but an old name goes only after the new one has come (soft updates; no file system
                of Linux with a journal): here a job may show twice, but must not be nowhere, and not be redone when it was done

In all of them data that was not synced is missing, half there, or there. Times of files are not part of it.
"""

from __future__ import annotations

import codecs
import itertools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.faults.operations import (
    ODD,
    OPERATIONS,
    PLACES,
    STANDING,
    Operation,
    Victim,
    World,
    strace,
    violations,
    work_off,
    world,  # noqa: F401
)

MODELS = ("ordered", "whole renames", "new name first")
# Up to how many names that may or may not have changed all combinations are tried, and how many of more; both for each moment.
_ALL, _SOME = 8, 60
# How many states of one operation and model are tried, without --long and with it.
_SHORT, _LONG = 50, 600
_CALLS = "openat,open,creat,write,pwrite64,writev,link,linkat,rename,renameat,renameat2,unlink,unlinkat"
_CALLS += ",ftruncate,truncate,fsync,fdatasync,syncfs"
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"(\.\.\.)?|(?:AT_FDCWD|\d+)<([^>"]*)>')

# What a disk holds: path -> inode and data.
Disk = dict[str, tuple[int, bytes]]


class Event(NamedTuple):
    """One call: its kind (names, data, data over, sync, acknowledged), names set to an inode or removed, whose data or folder, which."""

    kind: str
    names: tuple[tuple[str, Optional[int], int], ...] = ()
    what: Any = None
    data: bytes = b""


def _disk(world: World) -> Disk:  # noqa: F811
    paths = [entry.path for folder in world.folders for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    return {path: (os.stat(path).st_ino, Path(path).read_bytes()) for path in paths}


def record(world: World, operation: Operation, trace: Path) -> tuple[Disk, list[Event]]:  # noqa: F811
    """Run the operation once; return what the disk held before, and what was done to it."""
    world.fill(operation, live=True)
    victim = Victim(world, operation)
    before = _disk(world)
    with strace(victim.pid, "-y", "-s", "100000", "-o", str(trace), "-e", f"trace={_CALLS}"):
        victim.begin()
        victim.run()
        assert victim.end() == (False, True)
    inodes = {path: inode for path, (inode, _data) in before.items()}
    recorded = {inode for path, inode in inodes.items() if os.path.basename(path).startswith("owner.")}
    made = itertools.count(-1, -1)
    events = []
    for line in trace.read_text(encoding="utf-8").splitlines():
        found = re.match(r"(\w+)\((.*)\) += (\d+)", line)
        if not found:
            continue
        call, arguments = found[1], found[2]
        paths: list[str] = []
        folder = ""
        for text, cut, at in _WORD.findall(arguments):
            assert not cut, line
            if at:
                folder = at
            if not at or call in ("write", "fsync", "fdatasync", "syncfs"):
                paths.append(folder if at else os.path.join(folder, codecs.escape_decode(text.encode())[0].decode("utf-8", "replace")))
        if call == "write" and "acknowledged" in arguments and "pipe:" in arguments:
            events.append(Event("acknowledged"))
        if call == "syncfs":
            events.append(Event("sync"))
        if not paths or not paths[0].startswith(str(world.host.base)) or call == "syncfs":
            continue
        path = paths[0]
        if call == "openat":
            if "O_CREAT" in arguments and path not in inodes:
                inodes[path] = next(made)
                events.append(Event("names", ((path, inodes[path], inodes[path]),)))
            assert "O_TRUNC" not in arguments, line
        elif call == "write":
            if path in inodes:
                data = next(codecs.escape_decode(text.encode())[0] for text, _cut, at in _WORD.findall(arguments) if not at)
                # An owner record is written over one that was there before, all others grow.
                over = inodes[path] in recorded
                recorded.update({inodes[path]} if os.path.basename(path).startswith("owner.") else ())
                events.append(Event("data over" if over else "data", what=inodes[path], data=data))
        elif call in ("link", "linkat"):
            inodes[paths[1]] = inodes[path]
            events.append(Event("names", ((paths[1], inodes[path], inodes[path]),)))
        elif call in ("rename", "renameat", "renameat2"):
            inode = inodes[paths[1]] = inodes.pop(path)
            events.append(Event("names", ((paths[1], inode, inode), (path, None, inode))))
        elif call in ("unlink", "unlinkat"):
            events.append(Event("names", ((path, None, inodes.pop(path)),)))
        else:
            assert call in ("fsync", "fdatasync"), line
            events.append(Event("sync", what=inodes.get(path, path)))
    world.holder.release()  # type: ignore[union-attr]
    world.holder = world.live = None
    return before, events


def _kept(model: str, events: list[Event], dice: random.Random) -> Iterator[list[tuple[str, Optional[int], int]]]:
    """Yield each set of changed names that a disk may hold after these events, in the order of the calls."""
    pieces: list[tuple[tuple[str, Optional[int], int], ...]] = []
    needs: list[set[int]] = []
    sure: set[int] = set()
    for event in events:
        if event.kind == "names":
            for piece in [event.names] if model != "new name first" else [(name,) for name in event.names]:
                here = len(pieces)
                paths, inodes = {path for path, _inode, _which in piece}, {which for _path, _inode, which in piece}
                needs.append(set())
                for other in range(here):
                    same_path = any(path in paths for path, _inode, _which in pieces[other])
                    same_inode = model == "whole renames" and any(which in inodes for _path, _inode, which in pieces[other])
                    if model == "ordered" or same_path or same_inode:
                        needs[here].add(other)
                if model == "new name first" and len(event.names) == 2 and piece[0][1] is None:
                    needs[here].add(here - 1)
                pieces.append(piece)
        elif event.kind == "sync":
            if event.what is None or model == "ordered":
                sure.update(range(len(pieces)))
            elif isinstance(event.what, str):
                sure.update(n for n, piece in enumerate(pieces) if any(os.path.dirname(path) == event.what for path, _i, _w in piece))
    for piece_number in range(len(pieces) - 1, -1, -1):
        if piece_number in sure:
            sure |= needs[piece_number]
    free = [number for number in range(len(pieces)) if number not in sure]
    if model == "ordered":
        choices: Any = (free[:count] for count in range(len(free) + 1))
    elif len(free) <= _ALL:
        choices = (set(some) for count in range(len(free) + 1) for some in itertools.combinations(free, count))
    else:
        choices = itertools.chain(
            ([], free), ({number for number in free if dice.random() < share} for share in (dice.random() for _ in range(_SOME)))
        )
    for chosen in choices:
        held = set(sure)
        for number in free:
            if number in chosen and needs[number] <= held:
                held.add(number)
        yield [name for number in sorted(held) for name in pieces[number]]


def disks(model: str, before: Disk, events: list[Event], dice: random.Random) -> Iterator[tuple[bool, Disk]]:
    """Yield each thing that the disk may hold if the power goes, and whether the operation was acknowledged by then."""
    for moment in range(len(events) + 1):
        so_far = events[:moment]
        acknowledged = any(event.kind == "acknowledged" for event in so_far)
        synced = {inode: data for inode, data in before.values()}
        written = dict(synced)
        for event in so_far:
            if event.kind == "data":
                written[event.what] = written.get(event.what, b"") + event.data
            elif event.kind == "data over":
                assert len(written[event.what]) == len(event.data)
                written[event.what] = event.data
            elif event.kind == "sync" and event.what is None:
                synced = dict(written)
            elif event.kind == "sync" and event.what in written:
                synced[event.what] = written[event.what]
        for names in _kept(model, so_far, dice):
            tree = {path: inode for path, (inode, _data) in before.items()}
            for path, inode, _which in names:
                if inode is None:
                    tree.pop(path, None)
                else:
                    tree[path] = inode
            unsure = sorted({inode for inode in tree.values() if synced.get(inode, b"") != written.get(inode, b"")})
            # Of many files alike, all in the same way.
            shares_of: Any = zip(*[(0.0, 0.5, 1.0)] * len(unsure))
            if len(unsure) < 4:
                shares_of = itertools.product((0.0, 0.5, 1.0), repeat=len(unsure))
            for shares in shares_of:
                data = dict(written)
                for inode, share in zip(unsure, shares):
                    old, new = synced.get(inode, b""), written[inode]
                    # What has grown, or was written over.
                    sure = len(old) if new.startswith(old) else 0
                    upto = sure + int((len(new) - sure) * share)
                    data[inode] = new[:upto] + old[upto:]
                yield acknowledged, {path: (inode, data.get(inode, b"")) for path, inode in tree.items()}


def _put(world: World, disk: Disk) -> None:  # noqa: F811
    """Make the queue what the disk holds, on a host that has started anew."""
    world.clear()
    first: dict[int, str] = {}
    for path, (inode, data) in disk.items():
        if inode in first:
            # A malformed file is kept under its inode's number, which would outlive the cut.
            os.link(first[inode], path.replace(f".{inode}.", f".{os.stat(first[inode]).st_ino}."))
            continue
        first[inode] = path
        Path(path).write_bytes(data.replace(owner.boot_id().encode(), b"another-boot"))
        os.chmod(path, 0o600)


# The two models know files alone, and a restore renames a folder.
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("backup", "restore")])
def test_power_cut(world: World, long: bool, tmp_path: Path, name: str) -> None:  # noqa: F811
    operation = OPERATIONS[name]
    dice = random.Random(name)
    before, events = record(world, operation, tmp_path / "trace")
    assert any(event.kind == "acknowledged" for event in events) or operation.worker
    if operation.worker:
        events.append(Event("acknowledged"))
    tries = lost = doubled = 0
    wrong: list[str] = []
    for model in MODELS:
        found: dict[Any, tuple[bool, Disk]] = {}
        for acknowledged, disk in disks(model, before, events, dice):
            found.setdefault((acknowledged, frozenset(disk.items())), (acknowledged, disk))
        states = list(found.values())
        if len(states) > (_LONG if long else _SHORT):
            states = [*dice.sample(states[:-1], (_LONG if long else _SHORT) - 1), states[-1]]
        print(f"{model}: {len(states)} of {len(found)} states")
        for acknowledged, disk in states:
            _put(world, disk)
            with Queue(world.layout, world.jobset) as queue:
                # Nothing runs on a host that has just started.
                recover(queue, SimpleNamespace(end=lambda *wanted: None, lasting=lambda *wanted: set()))  # type: ignore[arg-type]
            if model == "new name first":
                more = _not_promised(world, operation, acknowledged)
            else:
                more = violations(world, operation, acknowledged, cut=True)
                more[2].extend([] if more[1] else work_off(world))
                tries += 1
            lost, doubled = lost + more[0], doubled + more[1]
            wrong += [f"{model}, {acknowledged=}: {text}" for text in more[2]]
    print("\n".join(wrong))
    ledger.record(f"power cut: {name}", tries=tries, lost=lost, doubled=doubled)
    assert not wrong


def _not_promised(world: World, operation: Operation, acknowledged: bool) -> tuple[int, int, list[str]]:  # noqa: F811
    """What must be true even where a job may show twice: none is nowhere, and none that was done is run again."""
    # Also a batch that is refused, for it has a second name, holds its jobs.
    waiting = {line.partition(" ")[0] for path in Path(world.layout.batches).glob("*.batch") for line in path.read_text().splitlines()}
    wrong = []
    done: set[str] = set()
    for name in {**STANDING, "live": {}, **operation.before, **operation.after}:
        before = operation.before.get(name, STANDING.get(name, {"pending": ODD}))
        may = operation.after.get(name, before) if acknowledged else {**before, **operation.after.get(name, {})}
        if "pending" not in may:
            done.add(name)
        if "absent" not in may and name not in waiting and not any(world.host.path(state, name).exists() for state in PLACES):
            wrong.append(f"{name} is nowhere")
    with Queue(world.layout, world.jobset) as queue:
        holder = owner.Holder(world.layout.workers, "after")
        while claim := queue.claim(holder):
            if claim.name in done:
                wrong.append(f"{claim.name} runs again")
            queue.finish(claim, "done", {"REASON": "ok"})
        holder.release()
    return len(wrong), 0, wrong
