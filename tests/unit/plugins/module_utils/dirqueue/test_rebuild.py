# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The queues' part in building an image anew: gates, what still runs, and which failures the image is to blame for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import rebuild
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.rebuild import Rebuild
from ansible_collections.sagequeue.batch.tests.unit.batch_host import wait_for

IMAGE = "localhost/x:1"
TRACE = "Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\n    import pycryptosat\n"
FEATURE = "sage.features.FeatureNotPresentError: pycryptosat is not available.\nImporting Solver failed: No module named 'pycryptosat'\n"
SHIPPED = "[2026-11-21T14:29:29+00:00] ERROR the SAT backend cryptominisat is not installed in this Sage: No module named 'pycryptosat'"

# What a program prints and exits with, and whether the image is to blame for it.
ENDS = [
    (TRACE + "ModuleNotFoundError: No module named 'pycryptosat'", 1, True),
    (TRACE + "ImportError: libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /x/pycryptosat.so)", 1, True),
    (TRACE + "ImportError: /x/pycryptosat.cpython-312.so: undefined symbol: _ZN4CMSat", 1, True),
    (TRACE + "X\n\nDuring handling of the above exception, another exception occurred:\n\n" + TRACE + FEATURE, 1, True),
    ("case 1\n" + SHIPPED, 2, True),
    (SHIPPED + "\n\n", 2, True),
    ("the job can't be started: [Errno 0] no such program: '/sage/sage'", 127, True),
    ("Error: crun: executable file `/sage/sage` not found: No such file or directory: OCI runtime attempted to invoke", 127, True),
    # Something else came after it, or in its place.
    (SHIPPED + "\nusing picosat instead\nValueError: no solution", 2, False),
    (TRACE + "ModuleNotFoundError: No module named 'pycryptosat'\n" + TRACE + "ValueError: 3", 1, False),
    (TRACE + "ModuleNotFoundError: No module named 'pycryptosat'" + "\nmore" * 10 + "\ndisk full", 1, False),
    (TRACE + "ModuleNotFoundError: No module named 'networkx'", 1, False),
    ("Traceback (most recent call last):\n  File \"a.py\", line 1\n    solve()  # pycryptosat is not installed\nValueError: 1", 1, False),
    ("pycryptosat found a contradiction", 1, False),
    ("sh: 1: frobnicate: not found", 127, False),
    ("", 1, False),
]


def test_which_failures_the_image_is_to_blame_for(host: Any) -> None:
    host.define(attempts=2, stride=4)
    queue = host.queue()
    for number, (printed, status, blamed) in enumerate(ENDS):
        # The attempt before failed in the other way: only the last one counts.
        for attempt, (words, code) in enumerate([("ValueError: 1" if blamed else SHIPPED, 2), (printed, status)], 1):
            (host.work / f"words.{number}.{attempt}").write_text(words, encoding="utf-8")
            (host.work / f"code.{number}.{attempt}").write_text(str(code), encoding="utf-8")
    host.script("part=$JOB_N.$SAGEQUEUE_ATTEMPT; cat words.$part; exit $(cat code.$part)\n")
    queue.enqueue([(f"n{number}", {"N": str(number)}) for number in range(len(ENDS))])
    host.work_off()
    found = [(printed, int(host.values(f"n{number}")["EXIT_STATUS"])) for number, (printed, _status, _blamed) in enumerate(ENDS)]
    assert found == [(printed, status) for printed, status, _blamed in ENDS]
    judged = [(printed, rebuild.blames_image(queue, f"n{number}")) for number, (printed, _status, _blamed) in enumerate(ENDS)]
    assert judged == [(printed, blamed) for printed, _status, blamed in ENDS]
    # And only those are retried.
    one = Rebuild(str(host.root), [], IMAGE, "sagemath")
    one.jobsets = {"t": queue.jobset}
    blamed = {"t": sorted(f"n{number}" for number, (_printed, _status, blamed) in enumerate(ENDS) if blamed)}
    assert one.blaming() == blamed and [change.name for change in one.retry(check=True)] == blamed["t"]
    assert set(host.states().values()) == {"failed"} and not rebuild.blames_image(queue, "none")
    # Of a log that is not that attempt's, nothing is known.
    log = Path(queue.layout.log, "n0.log")
    log.write_text(re.sub("claim [0-9a-f]+", "claim " + "0" * 32, log.read_text()))
    assert not rebuild.blames_image(queue, "n0")
    one.retry()
    assert {name for name, state in host.states().items() if state == "pending"} == set(blamed["t"]) - {"n0"} and one.blaming() == {}


def test_a_job_that_was_killed_or_timed_out_is_not_blamed(host: Any) -> None:
    host.define(attempts=1, timeout=1, grace=1)
    queue = host.queue()
    host.script(f"echo \"{SHIPPED}\"; sleep 60\n")
    queue.enqueue([("a", {})])
    host.work_off()
    assert host.values("a")["REASON"] == "timeout" and not rebuild.blames_image(queue, "a")


def test_the_attempt_may_have_begun_in_an_older_piece_of_the_log(host: Any) -> None:
    host.define(attempts=1, log_size="4K")
    queue = host.queue()
    host.script(f"i=0; while [ $i -lt 90 ]; do echo \"case $i, one more line of the log\"; i=$((i+1)); done; echo \"{SHIPPED}\"; exit 2\n")
    queue.enqueue([(name, {}) for name in "abcdefgh"])
    host.work_off()
    pieces = {name: os.path.exists(os.path.join(queue.layout.log, f"{name}.log.1")) for name in "abcdefgh"}
    assert all(rebuild.blames_image(queue, name) for name in "abcdefgh"), pieces


# ---- gates --------------------------------------------------------------------------------------------------------


def made(host: Any) -> Rebuild:
    """A rebuild as each call of the module makes it: it knows only what is on disk."""
    jobsets = [host.define("t", runner="podman_run", image=IMAGE), host.define("u", runner="podman_exec", stride=2)]
    jobsets += [host.define("v", runner="process"), host.define("w", runner="podman_run", image="localhost/other:1")]
    return Rebuild(str(host.root), jobsets, IMAGE, "sagemath")


def text(host: Any, name: str) -> str | None:
    path = host.work / f"{name}_stop.txt"
    return path.read_text() if path.exists() else None


def test_gates_are_closed_and_opened_as_they_were(host: Any) -> None:
    assert list(made(host).jobsets) == ["t", "u"]
    (host.work / "u_stop.txt").write_text("STOP requested by anna at noon\n")
    assert made(host).begin({"u"}) == ["t"]
    # Whoever comes after one that was killed finds the same, whatever is true by now.
    again = made(host)
    assert again.begun and again.gates() == {"t": True, "u": False}
    assert (again.ran("t", True), again.ran("u", False)) == (False, True)
    assert again.begin(set()) == [] and (text(host, "t") or "").startswith("STOP requested by rebuild_image ")
    assert (text(host, "v"), text(host, "w")) == (None, None)
    # Somebody opened it although jobs must not run now.
    host.queue("t").open_gate()
    assert made(host).drain() == {} and text(host, "t")
    assert made(host).end() == ["t"]
    assert (text(host, "t"), text(host, "u")) == (None, "STOP requested by anna at noon\n")
    assert not made(host).begun and os.listdir(host.root / "var") and not os.path.exists(rebuild.path_of(str(host.root)))
    assert made(host).end() == ["t"]


@pytest.mark.parametrize("closer", ["STOP requested by anna at noon\n", "SAT off=1 stride=4\n"])
def test_a_gate_that_others_closed_meanwhile_stays(host: Any, closer: str) -> None:
    made(host).begin(set())
    (host.work / "t_stop.txt").write_text(closer)
    assert made(host).end() == ["u"]
    assert text(host, "t") == closer


def test_a_jobset_that_no_longer_uses_the_image_is_opened_all_the_same(host: Any) -> None:
    made(host).begin(set())
    jobsets = [host.define("t"), host.define("u", runner="podman_exec")]
    assert Rebuild(str(host.root), jobsets, IMAGE, "sagemath").end() == ["t", "u"]


def test_one_that_was_killed_while_it_opened_is_ended_by_the_next(host: Any) -> None:
    made(host).begin(set())
    half = made(host)
    half.notes["opening"] = True
    half._note()
    host.queue("t").open_gate()
    assert made(host).end() == ["t", "u"]


OPEN = '{"id": "x", "opening": false, "jobsets": {"t": {"open": 1, "ran": true}}}'


@pytest.mark.parametrize("notes", ["", "{", "[]", '{"id": "x"}', '{"id": 1, "opening": false, "jobsets": {}}', OPEN])
def test_notes_that_cannot_be_read_are_named(host: Any, notes: str) -> None:
    made(host)
    Path(rebuild.path_of(str(host.root))).write_text(notes)
    with pytest.raises(QueueError, match="rebuild_image.json can't be read .*, so which gates were open before is not known: .*clear_stop"):
        made(host)
    if notes == OPEN:
        with pytest.raises(QueueError, match="can't be read \\(not what was noted here\\), so which gates"):
            made(host)


def test_jobs_of_dead_workers_are_not_waited_for(host: Any) -> None:
    host.define("t", stride=2)
    one = Rebuild(str(host.root), [host.define("t", stride=2)], IMAGE, "sagemath")
    one.jobsets = {"t": host.define("t", stride=2)}
    host.script("sleep 600\n")
    queue = host.queue()
    queue.enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: host.alive("a"))
    one.begin({"t"})
    assert one.drain() == {"t": ["a"]} and one.waits_for(1) == (0, 1)
    worker.kill()
    worker.wait()
    assert wait_for(lambda: not one.drain()) and host.states() == {"a": "pending"} and not host.alive("a")
    assert one.waits_for(0) == (1, 1)
