# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What is submitted to engines, and workers that come and go with the jobs. Real engines are in molecule/slurm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils import _host
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors import engine as engine_supervisor
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.engine import Engine, Task, ranges
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.known import make
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import engine
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError

ENGINE = "slurm 12_1 0"


def supervisor(host: Any, **keys: Any) -> tuple[Engine, Any]:
    jobset = host.define(supervisor="slurm", **keys)
    known = _host.Host(str(host.root), "/home/a b", "process", "slurm", "", "", {}, 10)
    made = make("slurm", known, [jobset], False)
    assert isinstance(made, Engine)
    return made, jobset


def test_what_slurm_is_told(host: Any) -> None:
    keys = {"memory": "1G", "cpus": 2, "gpus": 1, "partition": "long", "account": "math", "qos": "low", "time_limit": 7265, "grace": 20}
    made, jobset = supervisor(host, **keys, engine_options={"constraint": "a b\"c", "exclusive": ""})
    lines = made.text(jobset, True).splitlines()
    assert lines[0] == "#!/bin/sh"
    wanted = ("job-name=sagequeue.t", f"comment={host.root}", "requeue", "partition=long", "account=math", "qos=low", "time=121:05")
    wanted += ("signal=B:TERM@60", "mem=1024M", "cpus-per-task=2", "gpus=1", 'constraint="a b\\"c"', "exclusive", "export=NIL")
    assert not {f"#SBATCH --{option}" for option in wanted} - set(lines)
    assert "export HOME='/home/a b' " in "\n".join(lines)
    assert lines[-1] == f'exec {host.root}/bin/sagequeue worker "t-$SLURM_ARRAY_TASK_ID"'
    assert "#SBATCH --no-requeue" in made.text(jobset, False)
    for keys, message in (
        ({"engine_options": {"array": "1-9"}}, "engine_options has array, which the supervisor slurm itself needs"),
        ({"time_limit": 60}, "time_limit is 60; at least 102 are needed, the last 42 to end in"),
    ):
        made, jobset = supervisor(host, **keys)
        with pytest.raises(QueueError, match=message):
            made.text(jobset, True)
    assert ranges([7, 1, 2, 3, 9, 10]) == "1-3,7,9-10"


@pytest.mark.parametrize(
    "name, says, fails",
    [
        ("slurm", "", False),
        ("slurm", "12_1: Job has already finished", False),
        ("slurm", "scancel: error: Unable to contact slurm controller", True),
        ("htcondor", "Job 12.0 not found\n\nJob 12.1 not found", False),
        ("htcondor", "Job 12.0 not found\nCan't connect to local queue manager", True),
    ],
)
def test_a_worker_that_has_ended_meanwhile_is_no_failure(
    host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, says: str, fails: bool
) -> None:
    jobset = host.define(supervisor=name)
    made = make(name, _host.Host(str(host.root), "/home/a", "process", name, "", "", {}, 10), [jobset], False)
    assert isinstance(made, Engine)
    for command in ("scancel", "condor_rm"):
        (tmp_path / command).write_text(f"#!/bin/sh\ncat >&2 <<'E'\n{says}\nE\nexit 1\n")
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    task = Task("t", 1, "12_1", "RUNNING", "n1", "", True)
    if fails:
        with pytest.raises(QueueError, match=f"failed: .*{says[-20:]}"):
            made.end([task])
    else:
        made.end([task])
        made.end([task], kill=True)


def test_workers_that_do_not_stop_are_named(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made, jobset = supervisor(host, grace=0)
    monkeypatch.setattr(engine_supervisor, "_SLACK", -100)
    line = f"12|1|RUNNING|n7|None|sagequeue.t|{host.root}"
    for name, text in (("squeue", f"echo '{line}'"), ("scancel", f'echo "$@" >>{tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    why = r"slurm has not stopped t-1 \(RUNNING on n7\): see whether these nodes are up; nothing new starts meanwhile"
    with pytest.raises(QueueError, match=why):
        made.stop([jobset])
    assert "12_1" in (tmp_path / "asked").read_text()


def test_how_workers_are_that_do_not_run(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobset = host.define(supervisor="htcondor", workers=2)
    made = make("htcondor", _host.Host(str(host.root), "/home/a", "process", "htcondor", "", "", {}, 10), [jobset], False)
    ad = {"SagequeueJobset": "t", "ClusterId": 12, "ProcId": 0}
    ended = {**ad, "SagequeueNumber": 1, "JobStatus": 4, "ExitCode": 0}
    waits = {**ad, "SagequeueNumber": 2, "JobStatus": 1, "ProcId": 1}
    for name, found in (("condor_history", ended), ("condor_q", waits)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{json.dumps([found])}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    engine.say_left(host.queue().layout, engine.Engine("htcondor", "12.0", 0), True)
    _head, first, second = made.status([jobset])
    assert first.endswith(" job 12.0 left, as nothing was pending")
    assert second.endswith(" job 12.1 (no machine has taken it yet; condor_q -better-analyze 12.1 says why)")


def test_a_supervisor_that_there_is_not(host: Any) -> None:
    known = _host.Host(str(host.root), "/home/a", "process", "cron", "", "", {}, 10)
    with pytest.raises(QueueError, match="there is no supervisor cron; there are systemd, supervisord, slurm, htcondor"):
        make("cron", known, [], False)


def test_a_worker_leaves_only_when_nothing_waits(host: Any, wait_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host.script("sleep 0.3")
    host.define(idle=0)
    host.queue().enqueue([("a", {}), ("b", {})])
    host.environment["SAGEQUEUE_ENGINE"] = ENGINE
    worker = host.worker()
    assert worker.wait(60) == 0 and host.states() == {"a": "done", "b": "done"}
    # It says so, for those who ask whether another one is needed.
    layout = host.queue().layout
    assert engine.left(layout, ["12_1", "12_2"]) == {"12_1"}
    assert engine.left(layout, ["12_2"], clean=True) == set() == engine.left(layout, ["12_1"])
    # A gate that is closed is nothing to wait for; a job that comes while it leaves, is.
    host.queue().close_gate()
    host.queue().enqueue([("c", {})])
    assert host.worker().wait(60) == 0 and host.states()["c"] == "pending"
    host.queue().open_gate()
    assert host.worker().wait(60) == 0 and host.states()["c"] == "done"


def test_orphans_are_found_by_the_workers_themselves(host: Any, wait_for: Any) -> None:
    host.script("true")
    host.define(idle=600, recover_every=1)
    host.environment["SAGEQUEUE_ENGINE"] = ENGINE
    host.worker()
    wait_for(lambda: "starts" in host.said())
    host.queue().close_gate()
    host.queue().enqueue([("a", {})])
    host.queue().open_gate()
    wait_for(lambda: host.states() == {"a": "done"})
    # One whose worker was killed, while ours is idle.
    host.put("running", "b")
    wait_for(lambda: host.states() == {"a": "done", "b": "done"})
    assert "REASON=ok" in host.path("done", "b").read_text() and host.values("b")["RECOVERIES"] == "1"


def test_of_many_workers_only_one_looks_for_orphans(host: Any) -> None:
    host.define()
    layout = host.queue().layout

    def wait(number: int, restarts: str = "0", kind: str = "slurm") -> float:
        with engine.turn(layout, engine.Engine(kind, f"1_{number}", restarts), 60) as seconds:
            return seconds

    assert wait(1) == 0
    assert 0 < wait(2) <= 60
    # HTCondor counts the first start, too.
    assert wait(2, "1", "htcondor") > 0
    # Who was started anew may be looking for its own job.
    assert wait(3, "1") == 0 == wait(3, "2", "htcondor")
    with pytest.raises(OSError, match="full"), engine.turn(layout, engine.Engine("slurm", "1_4", "1"), 60):
        raise OSError("full")
    assert wait(5) == 0
    # By a clock that is an hour late.
    os.utime(Path(layout.run, "recovered"), (4e9, 4e9))
    assert wait(6) == 60
    with engine.turn(layout, None, 60) as seconds:
        assert seconds == 0


def test_no_more_workers_come_than_there_are_jobs_for(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's commands are stood in for: what it was asked to start is there."""
    tools = host.base / "tools"
    tools.mkdir()
    asked = host.base / "asked"
    asked.touch()
    line = f"1|$n|PENDING|||sagequeue.t|{host.root}"
    for name, text in {
        "sbatch": f'for word; do case $word in --array=*) echo "$word" >>{asked} ;; esac; done',
        "squeue": f'for n in $(sed "s/--array=//; s/%.*//; s/-/ /" {asked} | xargs -rn1 echo); do echo "{line}"; done',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    made, jobset = supervisor(host, workers=4)
    made.define([jobset])
    host.queue().enqueue([("a", {})])
    made.start([jobset])
    # Again and again, as whatever makes jobs pending does.
    made.wake([jobset])
    made.define([jobset])
    assert asked.read_text() == "--array=1%4\n"
    host.queue().enqueue([("b", {})])
    made.wake([jobset])
    assert asked.read_text() == "--array=1%4\n--array=2%4\n"
    # One that runs a job is not there for another.
    host.put("running", "c")
    made.wake([jobset])
    assert asked.read_text().splitlines()[2:] == ["--array=3%4"]


def test_a_job_that_the_engine_ended_with_its_worker_has_not_failed(host: Any, wait_for: Any) -> None:
    host.script("sleep 600")
    host.define(attempts=1)
    host.environment["SAGEQUEUE_ENGINE"] = ENGINE
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    (pid,) = wait_for(lambda: host.alive("a")[:1])
    wait_for(lambda: len(host.alive("a")) == 2)
    for pid in host.alive("a"):
        os.kill(pid, 15)
    worker.terminate()
    assert worker.wait(60) == 0
    assert host.states() == {"a": "pending"} and host.values("a")["REASON"] == "worker_stopped"


def test_a_replaced_program_is_taken_up_in_the_same_place(host: Any, wait_for: Any) -> None:
    """The engine would not start another: the same process goes on with the new program."""
    host.script("true")
    host.define(idle=600)
    host.environment["SAGEQUEUE_ENGINE"] = ENGINE
    worker = host.worker()
    wait_for(lambda: "worker t-1 starts" in host.said())
    new = host.program.with_suffix(".new")
    new.write_bytes(host.program.read_bytes())
    new.chmod(0o755)
    new.rename(host.program)
    wait_for(lambda: host.said().count("worker t-1 starts") == 2)
    host.queue().enqueue([("a", {})])
    wait_for(lambda: host.states() == {"a": "done"})
    host.stop(worker)
    assert "the program was replaced; starting anew" in host.said()


@pytest.mark.parametrize(
    ("scontrol", "instance", "said"),
    [
        ('echo "$@" >asked', "t-1", "slurm starts this worker anew"),
        ("echo no such job >&2; exit 1", "t-1", "slurm can't start this worker anew: no such job"),
        ("", "t-1", "slurm could not be asked to start this worker anew: [Errno 2]"),
        ('echo "$@" >asked', "t-3", "stopped by the operator"),
    ],
)
def test_a_worker_whose_time_is_up_comes_again(host: Any, wait_for: Any, scontrol: str, instance: str, said: str) -> None:
    """As long as the operator wants so many; the engine is told by what stands in for its command here."""
    host.define(idle=600, workers=2)
    tools = host.base / "tools"
    tools.mkdir()
    if scontrol:
        (tools / "scontrol").write_text(f"#!/bin/sh\ncd {host.base}\n{scontrol}\n")
        (tools / "scontrol").chmod(0o755)
    mark = Path(engine.started_mark(str(host.root), "slurm", "t"))
    mark.parent.mkdir()
    mark.touch()
    host.environment.update(SAGEQUEUE_ENGINE=ENGINE, PATH=f"{tools}:/usr/bin:/bin")
    worker = host.worker(instance)
    wait_for(lambda: "starts" in host.said(instance))
    host.stop(worker)
    assert said in host.said(instance)
    if said == "slurm starts this worker anew":
        assert (host.base / "asked").read_text() == "requeue 12_1\n"


@pytest.mark.parametrize(
    ("squeue", "runs"),
    [
        ('echo "RUNNING 0"', True),
        ('echo "SUSPENDED 0"', True),
        ('echo "RUNNING 1"', False),
        ('echo "COMPLETED 0"', False),
        ("true", False),
        ('echo "RUNNING 0"; exit 1', False),
        ("", False),
    ],
)
def test_whether_a_worker_runs_is_asked_of_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, runs: bool) -> None:
    if squeue:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
        (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(engine, "_answers", {})
    assert engine.runs("slurm 12_1 0") is runs
    # For a moment, what was said is believed.
    (tmp_path / "squeue").unlink(missing_ok=True)
    assert engine.runs("slurm 12_1 0") is runs
    assert not engine.runs("slurm 12_1") and not engine.runs("pbs 1 0") and not engine.runs("slurm $(x) 0")


def test_an_engine_that_is_not_here_or_does_not_answer(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made, jobset = supervisor(host)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QueueError, match="There is no squeue here: run this on a host of the slurm pool, or set it up: pool.yml"):
        made.tasks([jobset])
    (tmp_path / "squeue").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setattr(engine_supervisor, "_PATIENCE", 0.2)
    with pytest.raises(QueueError, match="squeue has not answered for 0.2 s: see whether the slurm controller runs"):
        made.tasks([jobset])


def test_what_setup_wrote_down_must_be_whole(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "host.json").write_text("{")
    with pytest.raises(QueueError, match=r"etc/host.json can't be read \(Expecting .*\): run setup, which writes it anew\."):
        _host.of(str(tmp_path), program=False)


def test_htcondor_has_no_partitions(host: Any) -> None:
    jobset = host.define(supervisor="htcondor", partition="long")
    made = make("htcondor", _host.Host(str(host.root), "/home/a", "process", "htcondor", "", "", {}, 10), [jobset], False)
    assert isinstance(made, Engine)
    with pytest.raises(QueueError, match="jobset t: partition is for the supervisor slurm, not htcondor; take it out"):
        made.text(jobset, True)
