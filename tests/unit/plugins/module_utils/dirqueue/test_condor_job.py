# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The runner condor_job and its keeper: real workers, real kills, the real script of the node, with a stand-in for HTCondor's commands.

What the stand-in says is what HTCondor 23.9 says. The real one runs them in molecule/htcondor.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import recovery
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import NotReady, QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners import condor_job
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.base import Command
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.unit.batch_host import wait_for

# condor_submit, condor_q and condor_rm by name. Each job is a folder below POOL, and a process that runs it as a starter does.
POOL = '''\
import json, os, sys, time
from pathlib import Path
pool = Path(__file__).resolve().parent / "pool"
def event(log, number, job, text):
    with open(log, "a") as file:
        file.write("%03d (%03d.000.000) %s %s\\n...\\n" % (number, job, time.strftime("%Y-%m-%d %H:%M:%S"), text))
def submit(path):
    import subprocess
    lines = [line.partition("=") for line in open(path) if "=" in line]
    given = {key.strip(): value.strip() for key, _is, value in lines}
    if "bad" in given:
        print("ERROR: on Line 1: bad"); sys.exit(1)
    while (pool / "slow").exists():
        time.sleep(0.01)
    job = len(list(pool.glob("job*"))) + 1
    folder = pool / ("job%d" % job); (folder / "scratch").mkdir(parents=True)
    (folder / "ad").write_text(json.dumps([given["+" + key].strip('"') for key in ("SagequeueBase", "SagequeueClaim", "SagequeueJob")]))
    event(given["log"], 0, job, "Job submitted from host: <127.0.0.1:9618>")
    (folder / "status").write_text("1")
    (folder / "given").write_text(json.dumps(given))
    # As a daemon of HTCondor's has nothing of who submits a job.
    more = {"env": {"PATH": os.environ["PATH"]}, "start_new_session": True, "stdout": -3, "stderr": -3}
    subprocess.Popen([sys.executable, "-IS", __file__, str(job)], **more)
    print("%d.0 - %d.0" % (job, job))
def run(job):
    import re, shutil, subprocess
    folder = pool / ("job%d" % job); given = json.loads((folder / "given").read_text())
    while (pool / "full").exists():
        time.sleep(0.05)
    for name in filter(None, given["transfer_input_files"].split(", ")):
        source, target = Path(given["initialdir"]) / name, folder / "scratch" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    with open(given["output"], "wb") as out, open(given["error"], "wb") as err:
        more = {"env": {"PATH": os.environ["PATH"]}, "start_new_session": True, "cwd": folder / "scratch"}
        process = subprocess.Popen([shutil.copy(given["executable"], folder / "scratch")], stdout=out, stderr=err, **more)
    (folder / "pid").write_text(str(process.pid)); (folder / "status").write_text("2")
    event(given["log"], 1, job, "Job executing on host: <10.0.0.1:9618?alias=n1>\\n\\tSlotName: slot1_1@n1")
    code = process.wait()
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    if (folder / "removed").exists():
        event(given["log"], 9, job, "Job was aborted.\\n\\tvia condor_rm (by user t)")
    else:
        shutil.copy(folder / "scratch" / ".sagequeue.tar", re.search("=(.*)\\"", given["transfer_output_remaps"]).group(1))
        text = "Normal termination (return value %d)" % code if code >= 0 else "Abnormal termination (signal %d)" % -code
        text = "(%d) %s\\n\\tMemory (MB)          :        3        1      1024" % (code >= 0, text)
        event(given["log"], 5, job, "Job terminated.\\n\\t" + text)
    (folder / "status").unlink()
verb, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if len(words) == 1 and words[0].isdigit():
    sys.exit(run(int(words[0])))
if (pool / "down").exists():
    print("-- Failed to fetch ads", file=sys.stderr); sys.exit(1)
if verb == "condor_submit":
    submit(words[-1])
elif verb == "condor_q":
    for folder in pool.glob("job*"):
        if (folder / "status").exists() and (folder / "ad").exists():
            base, claim, name = json.loads((folder / "ad").read_text())
            if json.dumps(base) in words[1]:
                print(folder.name[3:], 0, (folder / "status").read_text(), claim, name)
else:
    for one in words:
        folder = pool / ("job" + one.split(".")[0])
        if not (folder / "status").exists():
            sys.exit("Job %s not found" % one)
        (folder / "removed").touch(); (folder / "status").write_text("3")
        os.kill(int((folder / "pid").read_text()), 15)
'''


@pytest.fixture
def pool(host: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a host the commands of HTCondor; return the pool's folder."""
    folder: Path = host.base / "condor"
    (folder / "pool").mkdir(parents=True)
    for verb in ("condor_submit", "condor_q", "condor_rm"):
        (folder / verb).write_text(f"#!{sys.executable} -IS\n{POOL}")
        (folder / verb).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    host.environment["PATH"] = os.environ["PATH"]
    return folder / "pool"


def define(host: Any, **keys: Any) -> None:
    host.define(**{"runner": "condor_job", "supervisor": "systemd", "workers": 8, "grace": 1, "recover_every": 1, **keys})


SENT = "{}, which jobs are to be sent, is not there; put it there, or correct the jobset"


@pytest.mark.parametrize(
    ("missing", "why"), [("work", "the folder {} (workdir) is not there; make it"), ("work/job.sh", SENT), ("work/in", SENT)]
)
def test_nothing_is_sent_where_something_is_missing(host: Any, pool: Path, missing: str, why: str) -> None:
    host.script("true\n")
    (host.work / "in").touch()
    define(host, inputs=["in", "{file}"])
    runner = make(host.queue().layout, host.queue().jobset)
    assert runner.ready()
    (host.base / missing).rename(host.base / "away")
    with pytest.raises(NotReady, match=re.escape(why.format(host.base / missing))):
        runner.ready()


def starts(pool: Path) -> list[str]:
    """Which jobs HTCondor was given, one for each time."""
    return sorted(json.loads((folder / "ad").read_text())[2] for folder in pool.glob("job*"))


def test_jobs_get_their_files_and_send_back_what_they_made(host: Any, pool: Path) -> None:
    host.script(
        'cat data/in "$JOB_FILE"; echo "err $E" >&2; mkdir -p new/deep; echo "$JOB_X $*" >"new/deep/a $JOB_X"\n'
        'echo no >data/in; exit $JOB_X'
    )
    (host.work / "data").mkdir()
    (host.work / "data" / "in").write_text("common\n")
    for number in range(3):
        (host.work / f"own{number}").write_text(f"own {number}\n")
    define(host, inputs=["data", "{file}"], args=["it's {x}"], attempts=1, environment={"E": "a 'b' $(touch pwned)"})
    host.queue().enqueue([(f"j{number}", {"X": str(number), "FILE": f"own{number}"}) for number in range(3)])
    host.queue().enqueue([("lost", {"X": "1", "FILE": "not there"}), ("odd", {"X": "1", "FILE": "../x"})])
    said = host.work_off()
    assert host.states() == {"j0": "done", "j1": "failed", "j2": "failed", "lost": "failed", "odd": "failed"}, said
    assert (host.work / "new/deep/a 2").read_text() == "2 it's 2\n"
    # What it was sent is not sent back, unless it is asked for.
    assert (host.work / "data" / "in").read_text() == "common\n"
    log = host.log("j1")
    for text in ("common\nown 1\nerr a 'b' $(touch pwned)\n", "HTCondor runs it on n1 as", "failed: exit_status: exit status 1"):
        assert text in log
    values = host.values("j2")
    assert (values["EXIT_STATUS"], values["ATTEMPTS"], values["PEAK_MEMORY_KIB"], values["WORKER"]) == ("2", "1", "3072", "t-1")
    assert "is not there; put it there, and retry the job" in host.values("lost")["DETAIL"]
    assert host.values("odd")["REASON"] == "malformed_job"
    assert sorted(os.listdir(host.work)) == ["data", "job.sh", "new", "own0", "own1", "own2"]
    assert not os.listdir(host.root / "var/t/run/condor") and not host.owners() and not list(host.base.rglob("pwned"))


def test_named_outputs_and_the_state_file(host: Any, pool: Path) -> None:
    host.script('echo x >>state; echo r >r.txt; echo s >s.log; mkdir d; echo t >d/t; [ "$(wc -l <state)" -ge 2 ]')
    define(host, outputs=["*.txt", "d"], state_file="state", attempts=3)
    host.queue().enqueue([("a", {})])
    host.work_off()
    # Its second attempt went on from the state file of the first.
    assert host.states() == {"a": "done"} and host.values("a")["ATTEMPTS"] == "2"
    assert sorted(os.listdir(host.work)) == ["d", "job.sh", "r.txt", "state"]


def test_the_gate_of_a_job_that_found_the_answer(host: Any, pool: Path) -> None:
    host.script('[ "$JOB_OFFSET" = 1 ] && echo "off=1 stride=3" >"$SAGEQUEUE_GATE"; sleep 0.5')
    define(host, stride=3, outputs=["nothing"])
    host.queue().enqueue(host.queue().jobset.offset_jobs())
    host.work_off()
    assert host.states()["t_off1"] == "done" and host.values("t_off1")["REASON"] == "solved"


def test_the_next_worker_picks_up_what_runs(host: Any, pool: Path) -> None:
    host.script(f'echo began; while [ ! -e {host.base}/go ]; do sleep 0.05; done; echo "$SAGEQUEUE_CLAIM" >"$SAGEQUEUE_JOB.out"')
    define(host)
    host.queue().enqueue([(f"j{n}", {}) for n in range(4)])
    worker = host.worker()
    wait_for(lambda: len(list(pool.glob("job*/pid"))) == 4)
    claims = {name: host.queue().owner_of(name)["OWNER_CLAIM"] for name in host.states()}
    worker.kill()
    worker.wait()
    # Recovery, by the timer or a person, leaves them alone.
    assert host.sagequeue("recover", "t").returncode == 0
    assert set(host.states().values()) == {"running"}
    # They have ended by themselves when the next one comes.
    (host.base / "go").touch()
    wait_for(lambda: not list(pool.glob("job*/status")))
    said = host.work_off()
    assert set(host.states().values()) == {"done"}, said
    assert starts(pool) == ["j0", "j1", "j2", "j3"]
    assert {name: (host.work / f"{name}.out").read_text().strip() for name in claims} == claims
    assert "RECOVERIES" not in host.values("j0") and host.values("j0")["ATTEMPTS"] == "1"
    assert "picked up" in host.log("j0") and host.log("j0").count("began") == 1


def test_killed_at_each_step(host: Any, pool: Path) -> None:
    """At any moment from the claim to the last rename: every job is done, and none was run twice at once."""
    host.script(
        textwrap.dedent(f"""
        mkdir {host.base}/busy.$SAGEQUEUE_JOB || {{ echo "$SAGEQUEUE_JOB" >>{host.base}/twice; exit 0; }}
        sleep 0.3; echo "$SAGEQUEUE_CLAIM" >"$SAGEQUEUE_JOB.out"; rmdir {host.base}/busy.$SAGEQUEUE_JOB
        """)
    )
    define(host, recoveries=1000, attempts=1)
    for turn in range(5):
        host.queue().enqueue([(f"j{turn}_{n}", {}) for n in range(2)])
        worker = host.worker()
        with pytest.raises(Exception):  # noqa: B017
            worker.wait(0.3 + turn * 0.25)
        worker.kill()
        worker.wait()
    host.work_off()
    assert len(host.states()) == 10 and set(host.states().values()) == {"done"}
    assert not (host.base / "twice").exists()
    for name in host.states():
        assert (host.work / f"{name}.out").read_text().strip() == host.values(name)["CLAIM"]


def test_killed_while_it_submits(host: Any, pool: Path) -> None:
    host.script("true")
    define(host)
    host.queue().enqueue([("a", {})])
    (pool / "slow").touch()
    worker = host.worker()
    wait_for(lambda: host.alive("a"))
    worker.kill()
    worker.wait()
    # What it left is about to submit the job. Whoever looks whether it has ends that first.
    assert host.sagequeue("recover", "t").returncode == 0
    assert host.states() == {"a": "pending"} and not host.alive("a")
    (pool / "slow").unlink()
    host.work_off()
    assert host.states() == {"a": "done"} and starts(pool) == ["a"]


def test_stopped_by_the_operator(host: Any, pool: Path) -> None:
    host.script("trap 'exit 1' TERM; while :; do sleep 0.05; done")
    define(host)
    host.queue().enqueue([("a", {}), ("b", {})])
    worker = host.worker()
    wait_for(lambda: len(list(pool.glob("job*/pid"))) == 2)
    # SIGTERM, as when the host shuts down, leaves them where they are.
    host.stop(worker)
    assert "2 jobs go on in HTCondor; the next worker picks them up" in host.said()
    assert set(host.states().values()) == {"running"} and len(list(pool.glob("job*/status"))) == 2
    queue = host.queue()
    runner = make(queue.layout, queue.jobset)
    (pool / "down").touch()
    with pytest.raises(NotReady, match=r"condor_q failed: .*; see whether HTCondor runs on this host \(systemctl status condor\)"):
        recovery.put_back(queue, runner)
    (pool / "down").unlink()
    assert sorted(recovery.put_back(queue, runner)) == ["a", "b"]
    assert not list(pool.glob("job*/status"))
    assert host.states() == {"a": "pending", "b": "pending"}
    assert host.values("a")["REASON"] == "worker_stopped" and host.values("a")["ATTEMPTS"] == "0" and not host.owners()


def test_kill_and_time_out(host: Any, pool: Path) -> None:
    host.script('[ "$JOB_LONG" ] || exit 0; while :; do sleep 0.05; done')
    define(host, attempts=1)
    host.queue().enqueue([("a", {"LONG": "1"})])
    worker = host.worker()
    wait_for(lambda: list(pool.glob("job*/pid")))
    assert host.sagequeue("kill", "t", "a").returncode == 0
    assert host.states() == {"a": "failed"} and host.values("a")["REASON"] == "killed"
    # Counted from when it runs.
    define(host, attempts=1, timeout=1)
    host.queue().enqueue([("b", {"LONG": "1"})])
    wait_for(lambda: host.states()["b"] == "failed")
    assert host.values("b")["REASON"] == "timeout"
    host.stop(worker)
    # Of a dead worker, too.
    define(host, attempts=1)
    host.queue().enqueue([("c", {"LONG": "1"})])
    worker = host.worker()
    wait_for(lambda: len(list(pool.glob("job*/pid"))) == 3)
    worker.kill()
    worker.wait()
    assert host.sagequeue("kill", "t", "c").returncode == 0
    assert host.states()["c"] == "failed" and not list(pool.glob("job*/status"))


def test_htcondor_is_away_or_does_not_want_them(host: Any, pool: Path) -> None:
    host.script("true")
    define(host, engine_options={"bad": "1"})
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: "HTCondor does not take the jobs of jobset t: ERROR: on Line 1: bad" in host.said())
    (pool / "down").touch()
    wait_for(lambda: "condor_q failed: -- Failed to fetch ads" in host.said())
    define(host)
    (pool / "down").unlink()
    wait_for(lambda: host.states() == {"a": "done"})
    host.stop(worker)


def test_jobs_that_htcondor_takes_too_long_to_end(host: Any, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.script("trap 'exit 1' TERM; while :; do sleep 0.05; done")
    define(host)
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: list(pool.glob("job*/pid")))
    host.stop(worker)
    queue = host.queue()
    runner = make(queue.layout, queue.jobset)
    claim = {"SAGEQUEUE_CLAIM": json.loads((pool / "job1" / "ad").read_text())[1]}
    why = r"HTCondor has not ended its jobs 1\.0 yet \(see condor_q\); until it has, they are not run anew"
    with monkeypatch.context() as patched, pytest.raises(NotReady, match=why):
        # No time is left from the first.
        patched.setattr(condor_job, "_SLACK", -queue.jobset.grace - 1)
        runner.end(claim)
    runner.end(claim)
    assert not list(pool.glob("job*/status"))


def test_a_submission_that_comes_to_nothing(host: Any, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.script("true")
    define(host)
    queue = host.queue()
    runner = make(queue.layout, queue.jobset)
    assert isinstance(runner, condor_job.CondorJob)
    command = Command(["true"], {}, -1)
    (pool / "slow").touch()
    monkeypatch.setattr(condor_job, "PATIENCE", 0.3)
    with pytest.raises(NotReady, match=r"condor_submit has not answered for 0.3 s; see whether HTCondor runs \(systemctl status condor\)"):
        runner.submit(command, {"SAGEQUEUE_CLAIM": "c1", "SAGEQUEUE_JOB": "a"}, [], [], [])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotReady, match=r"condor_submit is not installed; run this on a host of the htcondor pool \(pool\.yml makes one\)"):
        without = condor_job.CondorJob(queue.layout, queue.jobset)
        without.submit(command, {"SAGEQUEUE_CLAIM": "c2", "SAGEQUEUE_JOB": "b"}, [], [], [])
    define(host, engine_options={"Executable": "/bin/sh"})
    queue = host.queue()
    runner = make(queue.layout, queue.jobset)
    assert isinstance(runner, condor_job.CondorJob)
    with pytest.raises(QueueError, match="engine_options has Executable, which sagequeue itself needs under htcondor; take it out"):
        runner.submit(command, {"SAGEQUEUE_CLAIM": "c1", "SAGEQUEUE_JOB": "a"}, [], [], [])


def test_removed_by_somebody(host: Any, pool: Path) -> None:
    host.script(f'mkdir {host.base}/first 2>/dev/null || exit 0; while :; do sleep 0.05; done')
    define(host)
    host.queue().enqueue([("a", {})])
    worker = host.worker()
    wait_for(lambda: (host.base / "first").exists())
    os.system(f"{pool.parent}/condor_rm 1.0")
    wait_for(lambda: host.states() == {"a": "done"})
    assert host.values("a")["RECOVERIES"] == "1"
    assert any("via condor_rm" in line.get("detail", "") for line in host.history())
    host.stop(worker)


def test_what_a_definition_may_not_say() -> None:
    def refused(**keys: Any) -> str:
        with pytest.raises(QueueError) as error:
            Jobset("t", {"script": "a", "runner": "condor_job", "supervisor": "systemd", **keys})
        return str(error.value)

    assert "its supervisor is systemd or supervisord, not slurm" in refused(supervisor="slurm")
    assert "inputs are for the runner condor_job, not process" in refused(runner="process", inputs=["a"])
    for name in ("/etc/passwd", "../x", "a//b", "a/", "a,b", " a"):
        assert "it must be a name relative to workdir" in refused(inputs=[name])
    assert "script is '../a'" in refused(script="../a")
