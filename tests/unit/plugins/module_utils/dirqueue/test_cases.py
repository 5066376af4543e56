# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""How far jobs are inside: state files of every shape, rates, and whether the range of the time left is honest."""

from __future__ import annotations

import heapq
import json
import os
import random
import socket
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, cases, progress, progress_text
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import MalformedJob, QueueError

PATTERN = "state_{graph}_r{rank}_stride{stride}_off{offset}.txt"
ROOK = {"args": "--graph rook --rank=3 --resume --stop_file {gate_file}", "stride": 8, "cases": 455, "state_file": PATTERN}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("448 graph=rook rank=3 stride=8 off=0 sat=\n", 448),
        ("\ufeff17\r\n", 17),
        ("2026-11-21 10:00 case 12, of 455", 12),
        ("last=96", 96),
        ("-1", -1),
        ("(7)", 7),
        ("", None),
        ("none yet", None),
        ("9" * 400, None),
    ],
)
def test_the_number_of_a_state_file(text: str, number: int | None) -> None:
    if number is not None:
        assert cases.number_in(text) == number
        return
    with pytest.raises(ValueError, match="holds no number"):
        cases.number_in(text)


def test_where_the_state_file_is(host: Any) -> None:
    jobset = host.define(**ROOK)
    assert jobset.state_path("t_off7", {"OFFSET": "7"}) == "state_rook_r3_stride8_off7.txt"
    assert jobset.state_path("x", {"OFFSET": "7", "RANK": "4"}) == "state_rook_r4_stride8_off7.txt", "a job's own key goes first"
    jobset = host.define(args=["--max-n", "{n}", "--resume", "--graph"], state_file="{jobset}/{max_n}/{job}")
    assert jobset.state_path("a", {"N": "5"}) == "t/5/a"
    for values in ({"N": ".."}, {"N": ""}, {"N": "../../../x"}, {}):
        with pytest.raises(MalformedJob, match="^its state file '.*' is not a file's name relative to workdir|asks for"):
            jobset.state_path("a", values)
    for pattern in ("/etc/passwd", "../x", "a/../../x", "x/"):
        with pytest.raises(QueueError, match="jobset t: state_file is '.*'; it must be a file's name relative to workdir"):
            host.define(state_file=pattern)


@pytest.mark.parametrize(
    ("text", "keys", "done", "why"),
    [
        ("450 graph=rook", {}, 57, ""),
        ("2", {}, 1, ""),
        ("-1", {}, 0, ""),
        ("57 1234", {"state_counts": True}, 57, ""),
        ("58", {"state_counts": True}, None, "says that 58 cases of 57 are done"),
        ("3", {}, None, "says 3, which is no case of this part"),
        ("0", {}, None, "says 0, which is no case of this part"),
        ("458", {}, None, "says that 58 cases of 57 are done"),
        ("458", {"cases": 0}, 58, ""),
        ("\0\x1b[J", {}, None, "holds no number"),
        ("1" * 70_000, {}, None, "is larger than 65536 bytes"),
    ],
)
def test_what_a_state_file_says(host: Any, text: str, keys: dict[str, Any], done: int | None, why: str) -> None:
    jobset = host.define(**{**ROOK, **keys})
    (host.work / "state_rook_r3_stride8_off2.txt").write_text(text, encoding="utf-8")
    found = cases.part(jobset, "t_off2", {"OFFSET": "2"})
    assert found.done == done and found.total == (57 if jobset.cases else None)
    assert found.why == (f"state_rook_r3_stride8_off2.txt {why}" if why else "")


def test_what_is_no_state_file_is_named_and_nothing_waits(host: Any) -> None:
    host.define(**{**ROOK, "state_file": "in/state{offset}"})
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    folder = host.work / "in"
    folder.mkdir()
    (host.base / "elsewhere").write_text("8")
    (folder / "state0").symlink_to(host.base / "elsewhere")
    os.mkfifo(folder / "state1")
    (folder / "state2").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "state3"))
    # A container's user, in a map of ids of its own, and one whom nobody can read.
    (folder / "state4").write_text("12")
    os.chown(folder / "state4", 100999, 100999)
    found = {one["offset"]: one for one in progress.summary(queue)["cases"]["parts"]}
    assert {offset: one["why"] for offset, one in found.items() if one["why"]} == {
        str(number): f"in/state{number} is not a regular file" for number in range(4)
    }
    assert found["4"]["done"] == 2 and found["5"]["done"] == 0
    assert "is not a regular file" in progress_text.text(progress.look(queue), 120)
    # A folder that is a link is not followed, either.
    folder.rename(host.base / "in")
    folder.symlink_to(host.base / "in")
    assert cases.part(queue.jobset, "t_off4", {"OFFSET": "4"}).why == "in/state4 is not a regular file"
    assert cases.part(queue.jobset, "x", {"OFFSET": "9"}).why == "OFFSET=9 is outside the stride 8"


def run_of(
    durations: Callable[[], float], parts: int, size: int, hands: int, until: float
) -> tuple[list[tuple[float, int]], list[int], float]:
    """Play a jobset: what was seen of it until some time, the cases left in each part, and how long it took from then on."""
    free = [0.0] * hands
    ends = []
    attempts = []
    left = []
    for _part in range(parts):
        begin = heapq.heappop(free)
        at, done = begin, 0
        for _case in range(size):
            at += durations()
            done += at <= until
        heapq.heappush(free, at)
        ends.append(at)
        left.append(size - done)
        if begin < until:
            attempts.append((min(at, until) - begin, done))
    return attempts, left, max(ends) - until


@pytest.mark.parametrize(("parts", "hands"), [(1, 1), (8, 8), (8, 3)])
@pytest.mark.parametrize("kind", ["exponential", "uneven"])
def test_the_range_is_honest(kind: str, parts: int, hands: int) -> None:
    """8 in 10 runs should end within what was said; of very uneven ones, some fewer."""
    chance = random.Random(1)
    durations = (lambda: chance.expovariate(1)) if kind == "exponential" else (lambda: chance.lognormvariate(-0.72, 1.2))
    within = said = 0
    for _run in range(400):
        attempts, left, took = run_of(durations, parts, 30, hands, until=parts * 30 / hands * chance.uniform(0.1, 0.7))
        rest = [{"job": "", "state": "running", "done": 0, "total": more} for more in left]
        found = cases._left(rest, cases.pace(attempts), hands, "")["seconds_left"]
        if found and took > 0:
            said += 1
            within += found[0] <= took <= found[1]
    assert said > 350 and (0.7 if kind == "exponential" else 0.6) < within / said < 0.95, (within, said)


def test_nothing_is_said_where_too_little_is_known() -> None:
    assert cases.pace([]) is None and cases.pace([(100.0, 2), (0.0, 5)]) is None
    steady, uneven = cases.pace([(100.0, 10), (100.0, 10)]), cases.pace([(100.0, 1), (100.0, 19)])
    assert steady and uneven and steady.seconds == uneven.seconds == 10.0 and (steady.known, steady.spread) == (20, 1.0)
    low, high = steady.range(10)
    assert low < 100 < high and uneven.range(10)[0] < low and uneven.range(10)[1] > high
    assert steady.range(0) == (0, 0)


# Writes where it is into the state file, from the 40th case on, and waits when it has done three.
RESUMES = """
number=$(cat "state_rook_r3_stride8_off$JOB_OFFSET.txt" 2>/dev/null || echo $((JOB_OFFSET - 8)))
for _ in 1 2 3; do
    number=$((number + 8))
    echo "$number graph=rook" > state.new
    mv state.new "state_rook_r3_stride8_off$JOB_OFFSET.txt"
    sleep 0.2
done
echo "three more"
while [ -e hold ]; do sleep 0.05; done
"""


def test_a_part_that_goes_on_shows_no_wild_rate(host: Any, wait_for: Callable[..., Any]) -> None:
    host.define(**ROOK)
    host.script(RESUMES)
    (host.work / "hold").touch()
    (host.work / "state_rook_r3_stride8_off1.txt").write_text(str(1 + 8 * 39))
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs([1, 2]))
    before = progress.look(queue)
    assert before["cases"]["done"] == 40 and before["cases"]["seconds_left"] is None
    assert "40/455 cases; the time left is not known yet: too few cases are done" in progress_text.line(before)
    assert "no worker runs" in progress_text.line(before)
    host.worker("t-1")
    wait_for(lambda: "three more" in host.log("t_off1") if (host.root / "var/t/log/t_off1.log").exists() else False)
    found = progress.look(queue)
    first, second = found["cases"]["parts"]
    assert (first["done"], second["done"], found["cases"]["known_from"]) == (43, 0, 3)
    # Three cases in more than 0.6 s: had it done 43 in that time, this would be a quarter of a million.
    assert 0 < first["rate"] < 3 * 3600 / 0.6
    low, high = found["cases"]["seconds_left"]
    assert 0 < low < high and found["workers"] == 1
    text = progress_text.text(found)
    assert "t_off1  running  [######--]  43/57" in text and max(map(len, text.split("\n"))) <= 80, text
    json.dumps(found)
    (host.work / "hold").unlink()
    wait_for(lambda: set(host.states().values()) == {"done"})
    assert [host.values(name)["CASES_DONE"] for name in ("t_off1", "t_off2")] == ["3", "3"]
    assert [line["cases_done"] for line in host.history()] == ["3", "3"]
    # What is done counts as it is, and what ended serves to know the rate of what follows.
    queue.enqueue(queue.jobset.offset_jobs([3]))
    (host.work / "hold").touch()
    wait_for(lambda: host.states()["t_off3"] == "running")
    assert progress.look(queue)["cases"]["known_from"] >= 6
    (host.work / "hold").unlink()
    wait_for(lambda: set(host.states().values()) == {"done"})


def test_a_state_file_that_is_odd_keeps_no_job_from_running(host: Any) -> None:
    host.define(state_file="{nothing}", cases=3)
    host.script("true\n")
    host.put("pending", "a")
    host.work_off()
    assert host.states() == {"a": "done"} and "CASES_DONE" not in host.values("a")
    # One that can't be read at all.
    host.define(state_file="s" * 300, cases=3)
    assert cases.part(host.queue().jobset, "a", {}).why.endswith("can't be read (File name too long)")
    host.define(state_file="{nothing}", cases=3)
    assert "which this job does not have" in progress.look(host.queue())["cases"]["parts"][0]["why"]


def test_many_jobs_wherever_they_are(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch, too; and of too many the rest is left out, and that said."""
    host.define(**{**ROOK, "stride": batch.LEAST, "cases": batch.LEAST})
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    (host.work / "state_rook_r3_stride1000_off7.txt").write_text("7")
    found = progress.look(queue)["cases"]
    assert (len(found["parts"]), found["done"], found["parts"][7]["done"]) == (batch.LEAST, 1, 1) and "too few cases" in found["why"]
    monkeypatch.setattr(cases, "_MOST", 100)
    found = progress.look(queue)["cases"]
    assert len(found["parts"]) == 100 and found["why"] == "there are more than 100 jobs" and found["seconds_left"] is None
    # What ended says how fast it goes, but while nobody works nothing will end.
    queue.close_gate()
    assert progress.look(queue)["cases"]["why"] == "the gate is closed"
    queue.open_gate()
    monkeypatch.undo()
    # What is not known of one part is not known of all.
    path = host.work / "state_rook_r3_stride1000_off7.txt"
    path.rename(host.work / "away")
    path.mkdir()
    assert progress.look(queue)["cases"]["why"] == "how far t_off7 is can't be read"
    path.rmdir()
    (host.work / "away").rename(path)
    line = {"claim": "0" * 32, "result": "done", "duration_s": "60", "cases_done": "50"}
    with open(queue.layout.history, "a", encoding="utf-8") as history:
        history.write(json.dumps(line) + "\n")
    assert progress.look(queue)["cases"]["why"] == "no job is running"


def test_without_their_number_nothing_is_said_of_the_time(host: Any) -> None:
    host.define(**{key: value for key, value in ROOK.items() if key != "cases"})
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    assert progress.look(queue)["cases"]["why"] == "the key cases is not set"
