# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The worker: the real program, real jobs, real signals."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import joblog


def test_a_job_that_succeeds(host: Any) -> None:
    host.script('echo "out $JOB_OFFSET of $*"; echo err >&2\nenv | grep ^SAGEQUEUE_ | sort\n')
    host.define(stride=8, args="--graph rook", environment={"MODE": "fast"})
    host.queue().enqueue(host.queue().jobset.offset_jobs([3]))
    said = host.work_off()
    values = host.values("t_off3")
    assert host.states() == {"t_off3": "done"}
    assert (values["REASON"], values["EXIT_STATUS"], values["ATTEMPTS"], values["WORKER"]) == ("ok", "0", "1", "t-1")
    assert float(values["DURATION_S"]) > 0 and values["STARTED_AT"] < values["ENDED_AT"] and int(values["PEAK_MEMORY_KIB"]) > 100
    log = host.log("t_off3")
    assert "out 3 of --graph rook --stride 8 --offset 3" in log and "err" in log
    for line in (f"SAGEQUEUE_CLAIM={values['CLAIM']}", "SAGEQUEUE_JOB=t_off3", "SAGEQUEUE_ATTEMPT=1", "SAGEQUEUE_GATE=t_stop.txt"):
        assert line in log
    assert "attempt 1 of t_off3, worker t-1" in log and "done: ok" in log
    (line,) = host.history()
    assert (line["job"], line["result"], line["reason"], line["claim"]) == ("t_off3", "done", "ok", values["CLAIM"])
    assert "job t_off3: done after" in said
    assert os.listdir(host.root / "var/t/run/workers") == [] and host.owners() == []


NASTY = ["$(touch pwned)", "`touch pwned`", "; touch pwned", "a 'b' \"c\" \\n", " lead and trail ", "-e", "*"]
NASTY += ["äöü 日本 😀", "", "x=y=z", "{b}"]


def test_values_reach_the_job_exactly(host: Any) -> None:
    host.script("import json, os, sys\njson.dump([sys.argv[1:], os.environ['JOB_A'], os.environ['E']], open('got', 'w'))\n", "job.py")
    host.define(script="job.py", command=[sys.executable], args=["{a}", "plain"], environment={"E": "$(touch pwned) 'ä'"})
    for value in NASTY:
        host.queue().enqueue([("a", {"A": value})], force=True)
        host.work_off()
        assert json.loads((host.work / "got").read_text()) == [[value, "plain"], value, "$(touch pwned) 'ä'"]
        (host.work / "got").unlink()
    assert not list(host.base.rglob("pwned"))


@pytest.mark.parametrize(
    ("script", "reason", "key", "value"),
    [("exit 3", "exit_status", "EXIT_STATUS", "3"), ("kill -9 $$", "signal", "SIGNAL", "9"), ("kill -11 $$", "signal", "SIGNAL", "11")],
)
def test_a_job_that_fails(host: Any, script: str, reason: str, key: str, value: str) -> None:
    host.script(f"echo x >> ran\n{script}\n")
    host.define(attempts=2)
    host.queue().enqueue([("a", {})])
    said = host.work_off()
    assert "worker t-1 starts" in said and "job a: attempt 1" in said and "job a: attempt 2" in said
    values = host.values("a")
    assert host.states() == {"a": "failed"}
    assert (values["REASON"], values[key], values["ATTEMPTS"]) == (reason, value, "2") and values["DETAIL"].endswith(", attempt 2 of 2")
    assert (host.work / "ran").read_text() == "x\nx\n"
    assert [(line["result"], line["attempts"]) for line in host.history()] == [("pending", "1"), ("failed", "2")]


def test_a_job_that_takes_too_long(host: Any) -> None:
    host.script("trap '' TERM\nsh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &\nwhile :; do sleep 0.1; done\n")
    host.define(timeout=0.5, grace=0.3, attempts=1)
    host.queue().enqueue([("a", {})])
    host.work_off()
    assert host.states() == {"a": "failed"} and host.values("a")["REASON"] == "timeout"
    assert "longer than 0.5 s" in host.values("a")["DETAIL"] and host.alive("a") == []


@pytest.mark.parametrize("polite", [True, False])
def test_sigterm_puts_the_job_back_and_ends_all_of_it(host: Any, wait_for: Any, polite: bool) -> None:
    trap = "trap 'touch asked; exit 0' TERM" if polite else "trap 'touch asked' TERM"
    host.script(f"{trap}\nsetsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' &\ntouch up\nwhile :; do sleep 0.1; done\n")
    host.define(grace=1, attempts=1)
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: (host.work / "up").exists() and len(host.alive("a")) > 2)
    worker.terminate()
    assert worker.wait(8) == 0
    assert (host.work / "asked").exists()
    assert host.states() == {"a": "pending"} and host.alive("a") == [] and host.owners() == []
    values = host.values("a")
    assert (values["REASON"], values["DETAIL"], values["ATTEMPTS"]) == ("worker_stopped", "SIGTERM", "0")
    assert "worker t-1 stops (SIGTERM)" in host.said()


def test_an_idle_worker_stops_at_once(host: Any, wait_for: Any) -> None:
    host.script("")
    host.define()
    worker = host.worker()
    wait_for(lambda: "starts" in host.said() and os.listdir(host.root / "var/t/run/workers"))
    worker.send_signal(signal.SIGINT)
    assert worker.wait(10) == 0 and os.listdir(host.root / "var/t/run/workers") == []


@pytest.mark.parametrize("ending", ["exit 1", "kill -9 $$"])
def test_nothing_of_an_attempt_is_left_when_the_next_begins(host: Any, ending: str) -> None:
    """A wrapper may die and leave the real program; the next attempt must not run beside it."""
    # What was killed may stay a zombie here: its command line is empty then.
    host.script(
        "if test -s first; then grep -q . /proc/$(cat first)/cmdline && touch twice; exit 0; fi\n"
        f"setsid sleep 300 &\necho $! > first\n{ending}\n"
    )
    host.define(attempts=3)
    host.queue().enqueue([("a", {})])
    host.work_off()
    assert host.states() == {"a": "done"} and host.values("a")["ATTEMPTS"] == "2"
    assert not (host.work / "twice").exists() and host.alive("a") == []


def test_what_a_job_left_when_it_was_done_ends_before_it_is_redone(host: Any) -> None:
    host.script(
        "if test -s first; then grep -q . /proc/$(cat first)/cmdline && touch twice; exit 0; fi\nsetsid sleep 300 &\necho $! > first\n"
    )
    host.define()
    host.queue().enqueue([("a", {})])
    host.work_off()
    assert host.states() == {"a": "done"} and host.alive("a") != []
    host.queue().enqueue([("a", {})], force=True)
    host.work_off()
    assert host.states() == {"a": "done"} and not (host.work / "twice").exists() and host.alive("a") == []


def test_a_gate_closed_while_a_job_runs(host: Any) -> None:
    host.script('echo "STOP requested by test" > "$SAGEQUEUE_GATE"\n')
    host.define()
    host.queue().enqueue([("a", {}), ("b", {})])
    host.work_off()
    assert host.states() == {"a": "pending", "b": "pending"}
    assert (host.values("a")["REASON"], host.values("a")["ATTEMPTS"]) == ("gate", "0") and "REASON" not in host.values("b")


def test_a_failure_under_a_closed_gate_is_a_failure(host: Any) -> None:
    host.script('echo "STOP requested by test" > "$SAGEQUEUE_GATE"; exit 3\n')
    host.define(attempts=1)
    host.queue().enqueue([("a", {})])
    host.work_off()
    assert host.states() == {"a": "failed"}


@pytest.mark.parametrize("more", ["", "x" * 100_000])
def test_a_solved_jobset(host: Any, more: str) -> None:
    """The job that the gate names is done, the other that stops early goes back, no more are claimed."""
    host.script(
        f"case $JOB_OFFSET in 0) while ! test -e t_stop.txt; do sleep 0.05; done;; "
        f"1) while ! test -e ../sagequeue/var/t/queue/running/t_off0.env; do sleep 0.05; done; "
        f'echo "SAT gidx=1 off=1 stride=3 {more}" > new; mv new t_stop.txt;; esac\n'
    )
    host.define(stride=3)
    host.queue().enqueue(host.queue().jobset.offset_jobs())
    workers = [host.worker(f"t-{number}", "--until-idle") for number in (1, 2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert host.states() == {"t_off0": "pending", "t_off1": "done", "t_off2": "pending"}
    assert (host.values("t_off1")["REASON"], host.values("t_off0")["REASON"]) == ("solved", "gate")
    assert host.values("t_off1")["DETAIL"].startswith("SAT gidx=1 off=1 stride=3")


def test_jobs_that_cannot_be_understood_fail_at_once(host: Any) -> None:
    host.script("touch ran.$SAGEQUEUE_JOB\n")
    host.define(args="{graph}", stride=2)
    for name, text in (("bad", "nonsense\n"), ("lacks", "X=1\n"), ("outside", "GRAPH=g\nOFFSET=2\n"), ("good", "GRAPH=g\nOFFSET=1\n")):
        host.put("pending", name, text)
    host.work_off()
    assert host.states() == {"bad": "failed", "lacks": "failed", "outside": "failed", "good": "done"}
    assert {host.values(name)["REASON"] for name in ("bad", "lacks", "outside")} == {"malformed_job"}
    assert "{graph}" in host.values("lacks")["DETAIL"] and "outside the stride 2" in host.values("outside")["DETAIL"]
    assert [path.name for path in host.work.glob("ran.*")] == ["ran.good"]


def test_a_missing_script_burns_nothing(host: Any, wait_for: Any) -> None:
    host.define(attempts=1)
    host.queue().enqueue([("a", {"X": "1"})])
    before = host.path("pending", "a").read_bytes()
    worker = host.worker()
    wait_for(lambda: "waiting: the script" in host.said())
    assert f"{host.work}/job.sh is not there; put it there" in host.said()
    assert host.path("pending", "a").read_bytes() == before
    host.script("true\n")
    wait_for(lambda: host.states() == {"a": "done"})
    host.stop(worker)
    assert host.values("a")["ATTEMPTS"] == "1" and host.said().count("is not there") == 1


def test_what_goes_away_between_two_jobs_burns_none(host: Any, wait_for: Any) -> None:
    """The program, after the worker has looked whether it is there; the folder to run it in; the folder for logs."""
    host.environment["PATH"] = f"{host.work}:{os.environ['PATH']}"
    host.script('#!/bin/sh\n[ "$SAGEQUEUE_JOB" != a ] || rm prog\n', "prog")
    host.script("true\n")
    (host.work / "prog").chmod(0o755)
    host.define(attempts=1, command=["prog"])
    host.queue().enqueue([("a", {}), ("b", {})])
    worker = host.worker()
    wait_for(lambda: "waiting: the program prog (command) is not there; run setup" in host.said())
    assert host.states() == {"a": "done", "b": "pending"}
    assert (host.values("b")["REASON"], host.values("b")["ATTEMPTS"]) == ("runner_lost", "0")
    assert "can't be started: [Errno 2] No such file" in host.values("b")["DETAIL"]
    host.stop(worker)
    host.work.rename(host.base / "elsewhere")
    worker = host.worker()
    wait_for(lambda: f"waiting: the folder {host.work} (workdir) is not there; make it" in host.said())
    host.stop(worker)
    (host.base / "elsewhere").rename(host.work)
    host.script("#!/bin/sh\n", "prog")
    (host.work / "prog").chmod(0o755)
    host.work_off()
    assert host.states() == {"a": "done", "b": "done"}
    # The folder for logs.
    (host.root / "var/t/log").rename(host.base / "log")
    host.queue().enqueue([("c", {})])
    worker = host.worker()
    wait_for(lambda: "its log can't be opened: " in host.said())
    (host.base / "log").rename(host.root / "var/t/log")
    wait_for(lambda: host.states()["c"] == "done")
    host.stop(worker)
    assert host.values("c")["ATTEMPTS"] == "1"


def test_a_worker_whose_owner_record_was_taken_away_records_nothing(host: Any, wait_for: Any) -> None:
    host.script("touch up; while ! test -e go; do sleep 0.05; done\n")
    host.define()
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for((host.work / "up").exists)
    (host.root / "var/t/queue/running/a.env.owner").unlink()
    (host.work / "go").touch()
    wait_for(lambda: "job a is no longer held by claim" in host.said())
    host.stop(worker)
    assert host.states() == {"a": "running"} and host.history() == []
    assert "orphan" in host.sagequeue("recover", "t").stdout and host.states() == {"a": "pending"}


def test_a_script_that_goes_away_is_no_fault_of_the_job(host: Any, wait_for: Any) -> None:
    host.script("rm job.sh; exit 127\n")
    host.define(attempts=1, recoveries=2)
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: host.history())
    wait_for(lambda: host.states() == {"a": "pending"})
    assert (host.values("a")["REASON"], host.values("a")["ATTEMPTS"]) == ("runner_lost", "0")
    # But not for ever.
    host.script("rm job.sh; exit 127\n")
    wait_for(lambda: host.states() == {"a": "failed"})
    host.stop(worker)
    assert (host.values("a")["REASON"], host.values("a")["ATTEMPTS"]) == ("too_many_recoveries", "0")
    assert host.values("a")["DETAIL"].startswith("lost 2 times, lastly: ")


def test_a_replaced_program_is_taken_up_after_the_job(host: Any, wait_for: Any) -> None:
    host.script("touch up; while ! test -e go; do sleep 0.05; done\n")
    host.define()
    host.queue().enqueue([("a", {}), ("b", {})])
    worker = host.worker()
    wait_for(lambda: (host.work / "up").exists())
    new = host.program.with_suffix(".new")
    new.write_bytes(host.program.read_bytes())
    new.rename(host.program)
    (host.work / "go").touch()
    assert worker.wait(30) == 0
    assert host.states() == {"a": "done", "b": "pending"} and "the program was replaced" in host.said()


def test_a_changed_definition_holds_from_the_next_job_on(host: Any, wait_for: Any) -> None:
    host.script("echo $1 >> got\n")
    host.define(args="first")
    worker = host.worker()
    host.queue().enqueue([("a", {})])
    wait_for(lambda: host.states() == {"a": "done"})
    host.define(args="second")
    wait_for(lambda: "the jobset's definition has changed; it holds from the next job on" in host.said())
    host.queue().enqueue([("b", {})])
    wait_for(lambda: host.states().get("b") == "done")
    host.stop(worker)
    assert (host.work / "got").read_text() == "first\nsecond\n"


def test_another_kind_of_runner_wants_another_kind_of_worker(host: Any, wait_for: Any) -> None:
    """A worker that runs one job at a time is no keeper of many."""
    host.script("true\n")
    host.define()
    worker = host.worker()
    wait_for(lambda: "starts" in host.said())
    host.define(runner="condor_job", supervisor="systemd")
    # Its supervisor starts it again.
    assert worker.wait(30) == 0
    assert "waiting: jobset t has the runner condor_job now\nthe jobset's runner has changed; starting anew\n" in host.said()


def test_a_broken_definition_is_waited_out(host: Any, wait_for: Any) -> None:
    host.script("true\n")
    host.define()
    queue = host.queue()
    worker = host.worker()
    wait_for(lambda: "starts" in host.said())
    path = host.root / "etc/jobsets/t.json"
    path.write_text("{", encoding="utf-8")
    wait_for(lambda: "waiting: jobset t" in host.said())
    queue.enqueue([("a", {})])
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(6)
    assert host.states() == {"a": "pending"}
    host.define()
    wait_for(lambda: host.states() == {"a": "done"})
    path.write_text("{", encoding="utf-8")
    wait_for(lambda: host.said().count("waiting: jobset t") == 2)
    host.stop(worker)


def test_refused_entries_are_named_once(host: Any, wait_for: Any) -> None:
    host.script("true\n")
    host.define()
    for name in ("one", "two", "three"):
        host.path("pending", name).symlink_to("/etc/passwd")
    worker = host.worker()
    wait_for(lambda: all(f"{name}.env" in host.said() for name in ("one", "two", "three")))
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(2)
    host.stop(worker)
    assert host.said().count("refused pending/one.env in the queue: not a regular file") == 1
    assert host.said().count("one.env") == 1 and len(host.said().splitlines()) < 8


def test_without_descriptors_nothing_is_lost_and_nothing_left_running(host: Any, wait_for: Any) -> None:
    host.script("trap '' TERM\ntouch up\nwhile :; do sleep 0.1; done\n")
    host.define(timeout=3, grace=0.2, attempts=1)
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: (host.work / "up").exists())
    before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)[1]))
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(5)
    assert host.states() == {"a": "running"} and host.owners()
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
    wait_for(lambda: host.states() == {"a": "failed"})
    host.stop(worker)
    assert host.values("a")["REASON"] == "timeout" and host.alive("a") == []


def logs(host: Any) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (host.root / "var/t/log").iterdir()}


def test_a_log_is_turned_over_and_capped(host: Any) -> None:
    """To the byte: the newest (keep + 1) pieces are the end of what was written."""
    host.script("seq 1 20000; printf 'no newline'\n")
    host.define(log_size="8K", log_keep=2)
    queue = host.queue()
    queue.enqueue([("a", {})])
    host.work_off()
    assert host.states() == {"a": "done"}
    found = logs(host)
    assert sorted(found) == ["a.log", "a.log.1", "a.log.2"] and found["a.log.1"] == found["a.log.2"] == 8192 >= found["a.log"]
    folder = host.root / "var/t/log"
    text = "".join((folder / name).read_text() for name in ("a.log.2", "a.log.1", "a.log"))
    lines = text.splitlines()
    # The first may be half a line.
    numbers = [int(line) for line in lines[1:-2]]
    assert numbers == list(range(20001 - len(numbers), 20001)) and lines[-2] == "no newline" and "done: ok" in lines[-1]
    # Fewer are wanted now, and a kill amid turning over had left a number out.
    (folder / "a.log.4").touch()
    (folder / "a.log.3").touch()
    (folder / "a.log.1").unlink()
    host.define(log_size="8K", log_keep=0)
    queue.enqueue([("a", {})], force=True)
    host.work_off()
    assert list(logs(host)) == ["a.log"] and logs(host)["a.log"] <= 8192 and "done: ok" in host.log("a")
    for piece in ("b.log", "a.log.1", "a.log.3"):
        (folder / piece).touch()
    assert [change.new_state for change in queue.remove(["a"], logs=True)] == [None]
    assert list(logs(host)) == ["b.log"]


def test_without_a_cap_a_log_grows(host: Any) -> None:
    host.script("seq 1 20000\n")
    host.define(log_size=0)
    host.queue().enqueue([("a", {})])
    host.work_off()
    assert list(logs(host)) == ["a.log"] and "\n1\n" in host.log("a") and "\n20000\n" in host.log("a")


def test_a_log_without_room_says_later_what_it_lacks(small_disk: Any) -> None:
    """What a job prints is dropped, and the job goes on; how much that was is said as soon as there is room again."""
    said: list[str] = []
    small_disk.define()
    path = small_disk.root / "var/t/log/a.log"
    log = joblog.JobLog(str(path), 4096, 2, said.append)
    ballast = small_disk.root / "var/ballast"
    with pytest.raises(OSError, match="No space left"), open(ballast, "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    for _time in range(2):
        log.write(memoryview(b"lost\n" * 2000))
    assert len(said) == 1 and f"{path} can't be written (No space left on device); what the job prints is dropped" in said[0]
    ballast.unlink()
    log.write(memoryview(b"kept\n"))
    log.close()
    # Also when it has ended meanwhile.
    brief = joblog.JobLog(str(path.with_name("b.log")), 0, 0, said.append)
    with pytest.raises(OSError, match="No space left"), open(ballast, "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    brief.note("x" * 9000)
    ballast.unlink()
    brief.close()
    assert path.with_name("b.log").read_text().endswith(" of this log are missing here: No space left on device\n")
    text = path.read_text()
    missing = int(text.split(" bytes of this log are missing here: No space left on device")[0].rpartition(" ")[2])
    assert missing + text.count("lost\n") * 5 == 20_000 and text.endswith("kept\n")


def test_a_daemon_that_keeps_the_log_open_is_not_waited_for(host: Any) -> None:
    host.script("setsid sh -c 'while :; do echo x; done' &\necho last; sleep 0.3; exit $JOB_STATUS\n")
    host.define(attempts=1)
    host.queue().enqueue([("a", {"STATUS": "0"}), ("b", {"STATUS": "1"})])
    host.work_off()
    assert host.states() == {"a": "done", "b": "failed"}
    assert all(float(host.values(name)["DURATION_S"]) < 5 for name in "ab")
    assert all("last\n" in host.log(name) for name in "ab") and host.log("a").endswith("done: ok\n")


def test_a_job_that_closes_its_output_costs_nothing(host: Any, wait_for: Any) -> None:
    host.script("exec >&- 2>&-; touch up; while ! test -e go; do sleep 0.05; done\n")
    host.define()
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: (host.work / "up").exists())

    def ticks() -> int:
        return sum(map(int, Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1.5)
    assert ticks() - before < 15
    (host.work / "go").touch()
    wait_for(lambda: host.states() == {"a": "done"})


def test_a_log_that_is_no_file_starts_nothing(host: Any, wait_for: Any) -> None:
    host.script("touch ran\n")
    host.define()
    queue = host.queue()
    os.mkfifo(host.root / "var/t/log/a.log")
    queue.enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: "not_started" in host.said())
    host.stop(worker)
    assert "a.log is refused, not a regular file" in host.said() and not (host.work / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_while_finishing(host: Any, wait_for: Any) -> None:
    var = host.root / "var"
    var.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(var)], check=False).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        host.script("touch up; while ! test -e go; do sleep 0.05; done\n")
        host.define()
        queue = host.queue()
        queue.enqueue([("a", {})])
        worker = host.worker()
        wait_for(lambda: (host.work / "up").exists())
        ballast = Path(var, "ballast")
        with pytest.raises(OSError, match="No space left"), open(ballast, "wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        (host.work / "go").touch()
        wait_for(lambda: "can't be recorded" in host.said() and "No space left on device" in host.said())
        assert "); trying again" in host.said()
        assert host.states() == {"a": "running"} and queue.why_orphan("a") == ""
        ballast.unlink()
        wait_for(lambda: host.states() == {"a": "done"})
        assert host.values("a")["REASON"] == "ok" and [line["reason"] for line in host.history()] == ["ok"]
        host.stop(worker)
        assert host.said().count("can't be recorded") == 1
    finally:
        host.close()
        subprocess.run(["umount", "--lazy", str(var)], check=True)
