# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Owners, alive and dead, judged with real processes."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import engine, job, owner

HOLD = (
    "import sys\nfrom dirqueue import owner\n"
    "holder = owner.Holder(sys.argv[1], 't-1')\n"
    "print(holder.record('c1').decode(), flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    made = tmp_path / "workers"
    made.mkdir()
    return str(made)


def held(host: Any, folder: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = host.python(HOLD, folder)
    return process, job.parse("".join(itertools.takewhile(str.strip, process.stdout)).encode())


def test_a_living_holder(host: Any, folder: str) -> None:
    process, record = held(host, folder)
    assert owner.why_dead(record, folder) == ""
    assert record["OWNER_PID"] == str(process.pid)
    assert record["OWNER_BOOT"] == owner.boot_id() and record["OWNER_CLAIM"] == "c1"
    assert os.listdir(folder) == [record["OWNER_LOCK"]]


def test_a_stopped_holder_lives(host: Any, folder: str) -> None:
    import signal

    process, record = held(host, folder)
    process.send_signal(signal.SIGSTOP)
    assert owner.why_dead(record, folder) == ""
    process.send_signal(signal.SIGCONT)


def test_a_killed_holder_is_dead_at_once(host: Any, folder: str) -> None:
    process, record = held(host, folder)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert owner.process_start(process.pid) == "", "a zombie counts as gone"
    assert "is gone" in owner.why_dead(record, folder)
    process.wait()
    assert "is gone" in owner.why_dead(record, folder)


def test_a_pid_that_is_another_program_now(host: Any, folder: str) -> None:
    process, record = held(host, folder)
    process.kill()
    process.wait()
    with subprocess.Popen(["sleep", "60"]) as later:
        for other in (os.getpid(), later.pid):
            assert "is now another program" in owner.why_dead({**record, "OWNER_PID": str(other)}, folder)
        later.kill()


@pytest.mark.parametrize("digit", "0f")
def test_another_boot(host: Any, folder: str, digit: str) -> None:
    _process, record = held(host, folder)
    assert "started anew" in owner.why_dead({**record, "OWNER_BOOT": digit * 8 + "-0000-0000-0000-000000000000"}, folder)


@pytest.mark.parametrize(
    "where",
    [{key: value} for key, values in {
        "OWNER_HOST": ("-", "~"), "OWNER_MACHINE": ("-", "~"), "OWNER_PIDNS": ("pid:[1]", "pid:[9999999999]")
    }.items() for value in values],
)  # fmt: skip
def test_where_pids_mean_nothing_the_lock_decides(host: Any, folder: str, where: dict[str, str]) -> None:
    process, record = held(host, folder)
    record = {**record, **where}
    assert owner.why_dead(record, folder) == ""
    process.kill()
    process.wait()
    assert owner.why_dead(record, folder) == "its lock is free"
    os.unlink(os.path.join(folder, record["OWNER_LOCK"]))
    assert owner.why_dead(record, folder) == "its lock is free"


def test_those_who_look_do_not_take_each_other_for_the_owner(host: Any, folder: str) -> None:
    process, record = held(host, folder)
    process.kill()
    process.wait()
    with open(os.path.join(folder, record["OWNER_LOCK"]), "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert owner.why_dead({**record, "OWNER_HOST": "elsewhere"}, folder) == "its lock is free"


@pytest.mark.parametrize("missing", ["OWNER_PID", "OWNER_CLAIM"])
def test_an_incomplete_record(host: Any, folder: str, missing: str) -> None:
    _process, record = held(host, folder)
    del record[missing]
    assert owner.why_dead(record, folder) == "the owner record is incomplete"


@pytest.mark.parametrize("pid", ["", "x", "-1", "0", "٣"])
def test_a_pid_that_is_none(host: Any, folder: str, pid: str) -> None:
    _process, record = held(host, folder)
    assert owner.why_dead({**record, "OWNER_PID": pid}, folder) == "the owner record is incomplete"


def test_a_lock_outside_the_folder_is_not_looked_at(host: Any, folder: str) -> None:
    _process, record = held(host, folder)
    assert owner.why_dead({**record, "OWNER_LOCK": "../workers/" + record["OWNER_LOCK"]}, folder) == "the owner record is incomplete"


@pytest.mark.parametrize("lease", ["", "soon", "nan", "-1", "1e99", "9" * 400, "1\u0664"])
def test_a_lease_that_is_none(host: Any, folder: str, lease: str) -> None:
    record = owner.parse(owner.Holder(folder, "t-1", 60, "slurm --help 0").record("c"))
    assert record["OWNER_LEASE"] == "60.000" and owner.why_dead(record, folder) == ""
    assert owner.why_dead({**record, "OWNER_LEASE": lease}, folder) == "the owner record is incomplete"
    # Nor is an engine asked for what can't be its name of a worker.
    assert not engine.runs(record["OWNER_ENGINE"])



@pytest.mark.parametrize("data", [None, b"", b"\xff", b"OWNER_PID", b"OWNER_PID=1\nOWNER_PID=2\n", b"x" * 100_000])
def test_an_unreadable_record(folder: str, data: bytes | None) -> None:
    assert owner.parse(data) == {}
    assert owner.why_dead(owner.parse(data), folder) == "no readable owner record"


def test_the_older_scripts_record(tmp_path: Path, folder: str, wait_for: Any) -> None:
    script = tmp_path / "sagequeue-worker.sh"
    script.write_text("read wait\n", encoding="utf-8")
    with subprocess.Popen(["/bin/sh", str(script)], stdin=subprocess.PIPE) as process:
        record = owner.parse(f"OWNER_PID={process.pid}\nOWNER_WORKER_ID=3\nOWNER_TS=2024-01-01T00:00:00Z\n".encode())
        wait_for(lambda: owner.why_dead(record, folder) == "")
        process.kill()
        process.wait()
        assert "gone or is no longer a sagequeue-worker.sh" in owner.why_dead(record, folder)
    assert "no longer a sagequeue-worker.sh" in owner.why_dead({"OWNER_PID": str(os.getpid())}, folder)


def test_who_has_no_descriptors_left_takes_nobody_for_dead(host: Any, folder: str) -> None:
    _process, record = held(host, folder)
    for known in (record, {**record, "OWNER_HOST": "elsewhere"}):
        judged = host.python(
            "import resource, sys\nfrom dirqueue import owner\nimport json\n"
            "record, folder = json.loads(sys.argv[1]), sys.argv[2]\n"
            "owner.why_dead(record, folder)\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))\n"
            "try:\n    print(owner.why_dead(record, folder) or 'alive')\n"
            "except OSError:\n    print('unknown')\n",
            json.dumps(known),
            folder,
        )
        assert judged.stdout.read().strip() in ("alive", "unknown")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_look_at_a_lock_takes_nobody_elsewhere_for_dead(host: Any, folder: str) -> None:
    process, record = held(host, folder)
    process.kill()
    process.wait()
    for known, said in (({**record, "OWNER_HOST": "elsewhere"}, "alive"), (record, f"process {process.pid} is gone")):
        judged = host.python(
            "import json, os, sys\nfrom dirqueue import owner\n"
            "record, folder = json.loads(sys.argv[1]), sys.argv[2]\n"
            "owner.why_dead(record, folder)\n"
            "os.setuid(65534)\n"
            "print(owner.why_dead(record, folder) or 'alive')\n",
            json.dumps(known),
            folder,
        )
        assert judged.stdout.read().strip() == said


@pytest.mark.parametrize("runs_its_program", [True, False])
def test_a_child_of_the_dead_that_is_about_to_run_its_program_is_waited_for(host: Any, folder: str, runs_its_program: bool) -> None:
    process, record = held(host, folder)
    process.kill()
    process.wait()
    # As long as it has not, it has its parent's lock.
    with open(os.path.join(folder, record["OWNER_LOCK"]), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = threading.Timer(0.3, lock.close)
        if runs_its_program:
            runs.start()
            assert "is gone" in owner.why_dead(record, folder)
            runs.join()
        else:
            assert owner.why_dead(record, folder) == ""


def test_to_look_at_one_who_lives_takes_no_time(host: Any, folder: str) -> None:
    _process, record = held(host, folder)
    began = time.monotonic()
    for known in 10 * [record, {**record, "OWNER_HOST": "elsewhere"}]:
        assert owner.why_dead(known, folder) == "" and owner.living(folder) == ["t-1"]
    assert time.monotonic() - began < 10


def test_on_the_same_host_a_free_lock_says_enough_however_long_the_lease(folder: str) -> None:
    holder = owner.Holder(folder, "t-1", lease=60)
    in_a_container = {**job.parse(holder.record("c1")), "OWNER_PIDNS": "pid:[1]"}
    assert owner.why_dead(in_a_container, folder) == ""
    os.close(holder._fd)
    assert owner.why_dead(in_a_container, folder) == "its lock is free"


def test_nobody_else_may_open_a_lock_and_its_note_is_the_last(folder: str) -> None:
    before = os.umask(0)
    try:
        holder = owner.Holder(folder, "t-1")
    finally:
        os.umask(before)
    lock = Path(folder, holder.lock)
    assert lock.stat().st_mode & 0o7777 == 0o600 and lock.read_text() == ""
    holder.note("waits for its container\n")
    holder.note("works\n")
    assert lock.read_text() == "works\n"
    holder.note("")
    assert lock.read_text() == ""
    holder.release()


def test_clean_passes_by_whatever_stays(host: Any, folder: str) -> None:
    process, record = held(host, folder)
    process.kill()
    process.wait()
    dead = [f"t-{number}.0.lock" for number in range(20)]
    named = {f"n-{number}.0.lock" for number in range(20)}
    for name in (*dead, *named):
        shutil.copy(os.path.join(folder, record["OWNER_LOCK"]), os.path.join(folder, name))
    for number in range(20):
        Path(folder, f"note {number}").touch()
        Path(folder, f"l-{number}.0.lock").symlink_to("note 0")
    owner.clean(folder, named, lambda text: None)
    left = os.listdir(folder)
    assert named < set(left) and len(left) == 60 and not set(dead) & set(left)


def test_clean_removes_the_locks_of_the_dead_only(host: Any, folder: str) -> None:
    _alive, living = held(host, folder)
    dead, gone = held(host, folder)
    named, record = held(host, folder)
    for process in (dead, named):
        process.kill()
        process.wait()
    Path(folder, "something else").write_text("", encoding="utf-8")
    said: list[str] = []
    owner.clean(folder, {record["OWNER_LOCK"]}, said.append)
    assert set(os.listdir(folder)) == {living["OWNER_LOCK"], record["OWNER_LOCK"], "something else"}
    assert said == [f"removed the lock of a dead worker, {gone['OWNER_LOCK']}"]
    assert owner.why_dead(living, folder) == ""


def test_holders_that_start_while_others_clean(host: Any, folder: str) -> None:
    cleaner = host.python(
        "import sys, threading\nfrom dirqueue import owner\n"
        "done = threading.Event()\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), done.set())).start()\n"
        "print('up', flush=True)\n"
        "while not done.is_set():\n    owner.clean(sys.argv[1], set(), lambda text: None)\n",
        folder,
    )
    assert cleaner.stdout.readline() == "up\n"
    for _round in range(300):
        holder = owner.Holder(folder, "t-1")
        assert os.path.exists(os.path.join(folder, holder.lock)), "its lock file is the one that others look at"
        holder.release()
    cleaner.stdin.close()
    assert cleaner.wait(30) == 0


def test_release_leaves_nothing(folder: str) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    owner.Holder(folder, "t-1").release()
    assert os.listdir(folder) == [] and len(os.listdir("/proc/self/fd")) == open_before


def test_a_jobs_process_does_not_keep_its_workers_lock(host: Any, folder: str) -> None:
    process = host.python(
        "import subprocess, sys\nfrom dirqueue import owner\n"
        "holder = owner.Holder(sys.argv[1], 't-1')\n"
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)\n"
        "print(child.pid); print(holder.record('c1').decode(), flush=True)\n"
        "sys.stdin.read()\n",
        folder,
    )
    child = process.stdout.readline()
    text = "".join(itertools.takewhile(str.strip, process.stdout))
    process.kill()
    process.wait()
    try:
        assert owner.why_dead({**job.parse(text.encode()), "OWNER_HOST": "elsewhere"}, folder) == "its lock is free"
    finally:
        os.kill(int(child), 9)


def test_a_commands_name_can_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "60"]) as process:
        assert owner.process_start(process.pid).isdigit()
        process.kill()


def test_when_a_process_started() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with subprocess.Popen(["sleep", "60"]) as process:
        started = int(owner.process_start(process.pid)) / os.sysconf("SC_CLK_TCK")
        process.kill()
    assert before - 1 < started < time.clock_gettime(time.CLOCK_BOOTTIME) + 1


def test_a_process_that_ends_while_it_is_looked_at_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:

        def late(path: str, **more: Any) -> Any:
            file = open(path, **more)  # noqa: SIM115
            process.kill()
            process.wait()
            return file

        monkeypatch.setattr(owner, "open", late, raising=False)
        assert owner.process_start(process.pid) == ""


def test_where_namespaces_are_not_shown_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "readlink", fail)
    assert owner.pid_namespace() == ""


def test_now_sorts_as_text() -> None:
    stamps = [owner.now() for _ in range(1000)]
    assert stamps == sorted(stamps)
    assert len(stamps[0]) == 24 and stamps[0].endswith("Z")


def test_stamps_and_labels_of_holders(folder: str) -> None:
    assert owner.seconds_of("1970-01-02T00:00:00.250Z") == 86400.25 and owner.seconds_of("1970-01-02T00:00:00Z") == 86400
    assert owner.stamp(1.25) == "1970-01-01T00:00:01.250Z" and owner.stamp(86399.9995) == "1970-01-01T23:59:59.999Z"
    assert owner.seconds_of("noon") == owner.seconds_of("") == 0.0
    holders = [owner.Holder(folder, label) for label in ("t-2", "a.b-1")]
    Path(folder, "notes.txt").touch()
    assert owner.living(folder) == ["a.b-1", "t-2"]
    holders[0].release()
    assert owner.living(folder) == ["a.b-1"]
    holders[1].release()
    assert owner.living(folder) == []


def test_how_long_silence_is_believed() -> None:
    """A quarter longer than the lease, by another clock, and what it takes a guard to end everything."""
    assert [owner.believed(lease) for lease in (10, 60, 1000)] == [27.5, 90, 1265]


def test_what_no_holder_makes_is_no_lock_that_is_held(folder: str) -> None:
    holder = owner.Holder(folder, "t-1")
    elsewhere = {**job.parse(holder.record("c1")), "OWNER_HOST": "elsewhere"}
    assert owner.why_dead(elsewhere, folder) == ""
    lock = Path(folder, holder.lock)
    lock.rename(Path(folder, "aside"))
    lock.symlink_to("aside")
    assert owner.why_dead(elsewhere, folder) == "its lock is free"
    lock.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(lock))
        assert owner.why_dead(elsewhere, folder) == "its lock is free"
    holder.release()


def test_a_lease_whose_lock_is_gone_is_over(folder: str) -> None:
    holder = owner.Holder(folder, "t-1", lease=60)
    elsewhere = {**job.parse(holder.record("c1")), "OWNER_HOST": "elsewhere"}
    holder.release()
    assert "nothing was heard of elsewhere for 86400 s, and its lock is free" in owner.why_dead(elsewhere, folder)
