# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Which host gets which job; and that no job is ever in two hosts' queues, or in none, whatever is cut short."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import job
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.plugin_utils import spread
from ansible_collections.sagequeue.batch.plugins.plugin_utils.spread import Record, Seat, place

JOBS = [f"j{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("policy", "seats", "count", "expected"),
    [
        # Each in turn, also past one that is full.
        ("sequential", {"a": Seat(1, 0), "b": Seat(1, 9), "c": Seat(1, 0)}, 5, "abcab"),
        ("sequential", {"a": Seat(1, 0), "b": Seat(1, 8, 9), "c": Seat(1, 0)}, 6, "abcaca"),
        # Most free slots; the first of equals; without any, the fewest jobs a worker.
        ("smart", {"a": Seat(2, 0), "b": Seat(4, 0)}, 6, "bbabab"),
        ("smart", {"a": Seat(2, 2), "b": Seat(4, 4)}, 6, "abbabb"),
        ("smart", {"a": Seat(1, 0), "b": Seat(4, 0, 2)}, 5, "bbaaa"),
        # Fewest free slots, but one at least.
        ("frugal", {"a": Seat(4, 0), "b": Seat(2, 0), "c": Seat(2, 2)}, 6, "bbaaaa"),
        ("frugal", {"a": Seat(4, 0), "b": Seat(2, 1)}, 6, "baaaaa"),
        ("frugal", {"a": Seat(1, 1), "b": Seat(3, 3)}, 4, "abbb"),
        # No room, no host.
        ("smart", {"a": Seat(9, 3, 4), "b": Seat(9, 5, 5)}, 3, "a"),
        ("random", {"a": Seat(9, 3, 4), "b": Seat(9, 5, 5)}, 3, "a"),
        ("frugal", {}, 3, ""),
    ],
)
def test_a_policy_places_jobs(policy: str, seats: dict[str, Seat], count: int, expected: str) -> None:
    placed = place(JOBS[:count], seats, policy)
    assert list(placed) == JOBS[: len(expected)]
    assert "".join(placed.values()) == expected


@pytest.mark.parametrize("policy", spread.POLICIES)
def test_limits_hold_and_every_job_that_has_room_is_placed(policy: str) -> None:
    chance = random.Random(policy)
    for _round in range(50):
        seats = {host: Seat(chance.randint(1, 4), chance.randint(0, 6), chance.choice([None, chance.randint(0, 9)])) for host in "abcd"}
        placed = place(JOBS, seats, policy, chance)
        counts = Counter(placed.values())
        assert all(seats[host].limit is None or seats[host].load + counts[host] <= seats[host].limit for host in counts)
        room = [12 if seat.limit is None else max(seat.limit - seat.load, 0) for seat in seats.values()]
        assert len(placed) == min(12, sum(room))


def test_random_reaches_every_host() -> None:
    assert set(place([str(n) for n in range(200)], {host: Seat(1, 0) for host in "abc"}, "random").values()) == set("abc")


class World:
    """Hosts with queues, some of them out of reach, and commands that may be cut short at any step."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.file, self.chance = str(folder / f"{chance.random()}.json"), chance
        self.queues: dict[str, dict[str, str]] = {host: {} for host in "abc"}
        self.cut_off: set[str] = set()
        self.drained: set[str] = set()
        self.acknowledged: set[str] = set()
        self.purged: set[str] = set()

    def begin(self) -> tuple[Record, dict[str, dict[str, str]], dict[str, int]]:
        held = {host: dict(queue) for host, queue in self.queues.items() if host not in self.cut_off}
        record = Record(self.file, "t")
        record.policy = self.chance.choice(spread.POLICIES)
        record.note(held)
        return record, held, {host: 2 for host in held if host not in self.drained and host not in record.lost()}

    def cut(self) -> bool:
        return self.chance.random() < 0.15

    def put(self, due: dict[str, list[str]]) -> bool:
        for host, lines in due.items():
            if self.cut():
                return False
            # All or none, as enqueue does; and one that is there is left alone.
            for line in lines if host not in self.cut_off else []:
                self.queues[host].setdefault(line.split()[0], "pending")
        return True

    def enqueue(self, names: list[str], limit: Optional[int] = None) -> bool:
        record, held, workers = self.begin()
        silent = dict.fromkeys(self.cut_off, "no answer")
        left = record.enqueue({name: f"{name} A=1" for name in names}, held, silent, workers, dict.fromkeys("abc", limit) if limit else {})
        record.save()
        if not self.cut() and self.put(record.due({host: held[host] for host in workers})):
            self.acknowledged |= {name for name in names if name not in left}
            return True
        return False

    def move(self, source: str, running: bool = False) -> None:
        record, held, workers = self.begin()
        workers.pop(source, None)
        lines = {name: f"{name} A=1" for name, state in held.get(source, {}).items() if state == "pending"}
        take, _left = record.move(source, None, held, lines, workers, {}, running)
        take += [name for name, state in record.away.get(source, {}).items() if held.get(source, {}).get(name) == "pending"]
        record.save()
        if self.cut():
            return
        if take:
            self.work()
            for name in take:
                if self.queues[source].get(name) == "pending":
                    del self.queues[source][name]
                if self.cut():
                    return
            if self.cut():
                # What was taken is not known.
                held.pop(source)
            else:
                held[source] = dict(self.queues[source])
            record = Record(self.file, "t")
            record.note(held)
            record.save()
        self.put(record.due({host: held[host] for host in workers if host in held}))

    def work(self) -> None:
        for queue in self.queues.values():
            for name, state in list(queue.items()):
                if self.chance.random() < 0.2:
                    following = {"pending": "running", "running": self.chance.choice(["done", "failed", "pending"])}
                    queue[name] = following.get(state, state)

    def purge(self) -> None:
        host = self.chance.choice("abc")
        for name, state in list(self.queues[host].items()):
            if state == "done" and self.chance.random() < 0.3:
                del self.queues[host][name]
                self.purged.add(name)

    def places(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for host, queue in self.queues.items():
            for name in queue:
                found.setdefault(name, []).append(host)
        return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here: the disk need not be waited for."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.mark.usefixtures("quick")
def test_no_job_is_in_two_queues_and_none_is_lost(tmp_path: Path) -> None:
    for seed in range(120):
        _no_job_is_in_two_queues_and_none_is_lost(World(tmp_path, random.Random(seed)))


def _no_job_is_in_two_queues_and_none_is_lost(world: World) -> None:
    chance = world.chance
    for _step in range(40):
        act = chance.randrange(8)
        if act <= 1:
            try:
                world.enqueue(chance.sample(JOBS, 4), chance.choice([None, 3]))
            except QueueError as error:
                assert world.cut_off and "can't be asked" in str(error)
        elif act == 2:
            source = chance.choice("abc")
            # One that can't be asked is given up only where that is said: another test.
            if source not in world.cut_off:
                world.move(source)
        elif act == 3:
            world.work()
        elif act == 4:
            world.cut_off = set(chance.sample("abc", chance.choice([0, 0, 1])))
        elif act == 5:
            world.drained = set(chance.sample("abc", chance.choice([0, 1])))
        elif act == 6:
            world.purge()
        else:
            # Somebody enqueues a job there, and the record knows nothing of it.
            name, known = chance.choice(JOBS), Record(world.file, "t").jobs
            if name not in world.places() and name not in known:
                world.queues[chance.choice("abc")][name] = "pending"
        assert all(len(hosts) == 1 for hosts in world.places().values()), world.places()
    world.cut_off, world.drained = set(), set()
    while not world.enqueue([]):
        pass
    assert world.acknowledged - world.purged <= set(world.places())
    assert set(Record(world.file, "t").jobs) >= set(world.places())


@pytest.mark.usefixtures("quick")
def test_a_host_that_was_given_up_comes_back(tmp_path: Path) -> None:
    for seed in range(40):
        _a_host_that_was_given_up_comes_back(World(tmp_path, random.Random(seed)))


def _a_host_that_was_given_up_comes_back(world: World) -> None:
    chance = world.chance
    world.cut = lambda: False  # type: ignore[method-assign]
    world.enqueue(JOBS)
    for _turn in range(2):
        world.work()
    world.begin()[0].save()
    before = {name: state for name, state in world.queues["b"].items()}
    # It goes on unseen for a while, then it is down.
    world.cut_off = {"b"}
    world.work()
    cut_short = chance.random() < 0.3
    if cut_short:
        world.put = lambda due: False  # type: ignore[method-assign]
    world.move("b", running=chance.choice([False, True]))
    world.__dict__.pop("put", None)
    record = Record(world.file, "t")
    assert record.lost() == ["b"]
    moved = {name for name in before if record.jobs[name][0] != "b"}
    assert moved >= {name for name, state in before.items() if state == "pending"}
    assert all(record.jobs[name][0] == "b" for name, state in before.items() if state in ("done", "failed"))
    # New jobs don't wait for it.
    assert cut_short or world.enqueue(["new"])
    if chance.random() < 0.5:
        world.work()
    world.cut_off = set()
    record, held, workers = world.begin()
    assert "b" not in workers
    # Whatever is on both is seen, nothing else is, and it stays with the host that it moved to.
    assert set(record.away.get("b", {})) == moved & set(held["b"])
    assert all(record.jobs[name][0] != "b" for name in record.away.get("b", {}))
    record.hosts["b"].pop("lost")
    record.save()
    world.work = lambda: None  # type: ignore[method-assign]
    world.move("b")
    world.enqueue(["new"])
    twice = {name: hosts for name, hosts in world.places().items() if len(hosts) > 1}
    assert all(world.queues["b"][name] != "pending" for name in twice)
    assert set(world.places()) == {*JOBS, "new"}


def test_what_a_host_holds_that_is_not_in_the_record_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path, random.Random(1))
    world.cut = lambda: False  # type: ignore[method-assign]
    world.queues["c"]["j3"] = "done"
    world.enqueue(JOBS)
    assert world.places()["j3"] == ["c"] and world.queues["c"]["j3"] == "done"


def test_a_record_that_cannot_be_read_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"jobs": {')
    with pytest.raises(QueueError, match="can't be read .* bring it back"):
        Record(str(tmp_path / "t.json"), "t")


def test_one_command_at_a_time(tmp_path: Path) -> None:
    record = str(tmp_path / "records" / "t.json")
    spread.occupy(record, "enqueue")
    spread.occupy(record, "moved")
    code = f"""
import sys
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.plugin_utils import spread
try:
    spread.occupy({record!r}, "other")
except QueueError as error:
    print(error)
"""
    # Its parent is this process, and ours is another one.
    run = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout
    assert f"moved (process {os.getppid()} on " in said and "wait until it has ended" in said
    # The one before is gone.
    gone = {**json.loads(Path(f"{record}.lock").read_text()), "start": "1"}
    Path(f"{record}.lock").write_text(json.dumps(gone))
    assert subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout == ""
    other = {**gone, "host": "elsewhere"}
    Path(f"{record}.lock").write_text(json.dumps(other))
    with pytest.raises(QueueError, match=r"if it has, remove .*t\.json\.lock"):
        spread.occupy(record, "enqueue")
    # A file is where the folder of the records should be.
    with pytest.raises(QueueError, match="File exists; name another folder for the record of what is where: -e spread_record=FOLDER"):
        spread.occupy(f"{record}.lock/t", "enqueue")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job[01-03]", ["job01", "job02", "job03"]),
        ("job[8-11]", ["job8", "job9", "job10", "job11"]),
        ("a[1,3]b[0-1].x", ["a1b0.x", "a1b1.x", "a3b0.x", "a3b1.x"]),
        ("plain", ["plain"]),
    ],
)
def test_a_name_in_a_list_takes_ranges(text: str, expected: list[str]) -> None:
    found: list[Any] = list(job.parse_list([f"{text} A=1"]))
    assert [name for name, _values in found] == expected
    assert all(values == {"A": "1"} for _name, values in found)


@pytest.mark.parametrize(
    ("text", "why"),
    [("j[3-1]", "ends before it begins"), ("j[1-", "can't be a name"), ("j[0-9999999]", "stands for more than"), ("j[a]", "can't")],
)
def test_a_bad_range_is_refused(text: str, why: str) -> None:
    with pytest.raises(QueueError, match=why):
        list(job.parse_list([text]))


def test_a_record_that_cannot_be_written_places_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record = Record(str(tmp_path / "none" / "t.json"), "t")
    record.path = str(tmp_path / "file" / "t.json")
    with pytest.raises(QueueError, match="file/t.json.*: Not a directory; no job was placed"):
        record.save()
