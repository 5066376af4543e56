# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What the older shell scripts left, taken over: a tree, an environment file and units as they had them, a real worker in bash."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import adopt, adopt_workers, jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.unit.batch_host import wait_for
from ansible_collections.sagequeue.batch.tests.unit.plugins.module_utils.dirqueue.test_backup import _in_memory  # noqa: F401
from ansible_collections.sagequeue.batch.tests.unit.plugins.modules.test_queue_modules import call  # noqa: F401

# Claims as theirs did: renames first, then writes its record; obeys SIGTERM only between two jobs, and takes any end for a result.
WORKER = """
shutdown=0
trap 'shutdown=1' TERM
while [ "$shutdown" = 0 ]; do
    job=$(find "$PENDING_DIR" -maxdepth 1 -type f -name '*.env' -print -quit)
    [ -n "$job" ] || { sleep 0.1; continue; }
    base=$(basename "$job")
    mv "$job" "$RUNNING_DIR/$base"
    printf 'OWNER_PID=%s\\nOWNER_WORKER_ID=1\\nOWNER_TS=2026-04-26T17:38:29-04:00\\n' $$ > "$RUNNING_DIR/$base.owner"
    offset=$(grep '^OFFSET=' "$RUNNING_DIR/$base" | cut -d= -f2)
    bash "$PROJECT_ROOT/run.sage" --stride 8 --offset "$offset" | tee -a "$LOG_DIR/${LOG_PREFIX}_off$offset.log"
    rm -f "$RUNNING_DIR/$base.owner"
    mv "$RUNNING_DIR/$base" "$FAILED_DIR/$base"
done
"""

# Knows what is enabled by the links, what is active by a file; stopping a unit sends SIGTERM to all its processes, as systemd does.
SYSTEMCTL = """#!/bin/bash
home=$(dirname "$0")
echo "$*" >> "$home/calls"
case "$2" in
    list-units) cat "$home/active" 2>/dev/null ;;
    disable)
        shift 3
        for unit; do rm -f "$HOME"/.config/systemd/user/*.wants/"$unit"; done
        rm -f "$home/active"
        for pid in $(cat "$home/pids" 2>/dev/null); do
            children=$(pgrep -P "$pid")
            kill -TERM "$pid" $children
            while [ -n "$(tr -d '\\0' <"/proc/$pid/cmdline")" ]; do sleep 0.1; done
        done ;;
esac
"""


class Old:
    """A project of the older scripts, and a home."""

    def __init__(self, base: Path) -> None:
        self.home, self.project = base / "home", base / "home" / "src"
        self.var = self.project / "var" / "rook_r3"
        for folder in ("queue/pending", "queue/running", "queue/done", "queue/failed", "log", "run"):
            (self.var / folder).mkdir(parents=True)
        (self.project / "bin").mkdir()
        (self.home / "Jupyter").mkdir()
        (self.home / "bin").mkdir()
        (self.project / "bin" / "sagequeue-worker.sh").write_text(WORKER, encoding="utf-8")
        (self.project / "run.sage").write_text("echo started; sleep 600 & wait\n", encoding="utf-8")
        self.environment = {
            **{f"{state.upper()}_DIR": str(self.var / "queue" / state) for state in ("pending", "running", "done", "failed")},
            **{"PROJECT_ROOT": str(self.project), "JOBSET": "rook_r3", "LOG_DIR": str(self.var / "log"), "LOG_PREFIX": "rook"},
        }
        env = self.home / ".config" / "sagequeue" / "sagequeue.env"
        env.parent.mkdir(parents=True)
        lines = [f"{key}={value}\n" for key, value in self.environment.items()]
        lines += ["\n", "# theirs\n", "SERVICE=sagemath\n", "CONTAINER_WORKDIR=/sage\n", "SAGE_BIN=./sage\n", "STRIDE=8\n"]
        lines += ["SCRIPT=/home/sage/notebooks/run.sage\n", "STOP_FILE_CONT=/home/sage/notebooks/rook_r3_stop.txt\n"]
        lines += [f"STOP_FILE_HOST={self.home}/Jupyter/rook_r3_stop.txt\n", "SLEEP_EMPTY=2\n", "COMPOSE_FILE=$HOME/compose.yml\n"]
        lines += ['SAGE_BASE_ARGS="--graph rook --note \\"a b\\" --resume --stop_file /home/sage/notebooks/rook_r3_stop.txt"\n']
        env.write_text("".join(lines), encoding="utf-8")
        self.put("pending", 0)
        self.put("pending", 1, "ATTEMPTS=2\nLAST_RETRY_TS=2026-04-26T17:00:00-04:00\n")
        self.put("done", 2, end="\r\n")
        self.put("failed", 3, "ATTEMPTS=3\n")
        self.put("running", 4)
        (self.var / "queue/running/rook_r3_off4.env.owner").write_text("OWNER_PID=4194300\nOWNER_WORKER_ID=2\n", encoding="utf-8")
        (self.var / "queue/failed/rook_r3_off5.env").write_text("no job\n", encoding="utf-8")
        (self.var / "queue/failed/rook_r3_off3.env.tmp.Ab3d").write_text("OFFSET=3\n", encoding="utf-8")
        (self.var / "queue/pending/rook_r3_off6.env").symlink_to("/etc/passwd")
        (self.var / "log" / "rook_off2.log").write_text("UNSAT\n", encoding="utf-8")

    def put(self, state: str, offset: int, more: str = "", end: str = "\n") -> None:
        path = self.var / "queue" / state / f"rook_r3_off{offset}.env"
        path.write_text(f"OFFSET={offset}{end}ENQUEUED_AT=2026-04-26T16:0{offset}:00-04:00{end}{more}", encoding="utf-8", newline="")
        os.utime(path, ns=(10**18 + offset, 10**18 + offset))

    def units(self, *names: str, pids: tuple[int, ...] = ()) -> None:
        """Enable units, with a systemctl that knows of them."""
        program = self.home / "bin" / "systemctl"
        program.write_text(SYSTEMCTL, encoding="utf-8")
        program.chmod(0o755)
        for name in names:
            wants = self.home / ".config/systemd/user" / ("timers.target.wants" if name.endswith("timer") else "default.target.wants")
            wants.mkdir(parents=True, exist_ok=True)
            (wants / name).symlink_to("/nonexistent")
        (self.home / "bin" / "active").write_text("".join(f"{name} loaded active running x\n" for name in names), encoding="utf-8")
        (self.home / "bin" / "pids").write_text(" ".join(map(str, pids)), encoding="utf-8")

    @contextlib.contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start a worker of theirs."""
        words = ["bash", str(self.project / "bin" / "sagequeue-worker.sh"), "1"]
        with subprocess.Popen(words, env={**os.environ, **self.environment}, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def files(self) -> dict[str, str]:
        """Return every file below the project's var, by its path."""
        return {str(path.relative_to(self.var)): os.readlink(path) if path.is_symlink() else path.read_bytes().decode()
                for path in sorted(self.var.rglob("*")) if path.is_symlink() or path.is_file()}  # fmt: skip


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Old]:
    made = Old(tmp_path)
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.setenv("PATH", f"{made.home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    yield made
    for pid, words in list(adopt_workers._processes()):
        if any(str(made.home) in word for word in words) and pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


STATES = {
    **{"rook_r3_off0": "pending", "rook_r3_off1": "pending", "rook_r3_off2": "done"},
    **{"rook_r3_off3": "failed", "rook_r3_off4": "running"},
}
REFUSED = {
    "queue/failed/rook_r3_off5.env": "line 1 is not KEY=VALUE with a key of capitals, digits and underscores",
    "queue/failed/rook_r3_off3.env.tmp.Ab3d": "not a job's name",
    "queue/pending/rook_r3_off6.env": "refused, not a regular file",
}


def test_taken_over_from_another_folder(call: Any, host: Any, old: Old) -> None:  # noqa: F811
    old.units("sagequeue@1.service", "sagequeue@2.service", "sagequeue-recover.timer", "sagequeue-container.service")
    before = old.files()
    predicted = call("queue_adopt", True, source=str(old.project))
    assert predicted["changed"] and old.files() == before and not (host.root / "var").exists()
    assert predicted["jobsets"][0]["refused"] == REFUSED and len(predicted["units"]) == 4
    done = call("queue_adopt", source=str(old.project))
    assert done["units"] == ["sagequeue-recover.timer", "sagequeue-container.service", "sagequeue@1.service", "sagequeue@2.service"]
    [one] = done["jobsets"]
    assert one["jobs"] == predicted["jobsets"][0]["jobs"] == {"pending": 2, "running": 1, "done": 1, "failed": 1}
    assert one["refused"] == REFUSED and one["logs"] == 1 and not one["in_place"] and one["interrupted"] == []
    assert host.states("rook_r3") == STATES and host.owners("rook_r3") == []
    assert host.values("rook_r3_off1", "rook_r3") == {
        **{"OFFSET": "1", "ENQUEUED_AT": "2026-04-26T16:01:00-04:00", "ATTEMPTS": "2", "LAST_RETRY_TS": "2026-04-26T17:00:00-04:00"}
    }
    assert host.values("rook_r3_off2", "rook_r3")["OFFSET"] == "2" and host.log("rook_r3_off2", "rook_r3") == "UNSAT\n"
    assert host.path("pending", "rook_r3_off1", "rook_r3").stat().st_mtime_ns == 10**18 + 1
    # Nothing is lost: what was taken over lies aside, what was not lies where it was.
    after = old.files()
    moved = {path: text for path, text in before.items() if path not in after}
    assert {path.replace("queue/", "adopted/") for path in moved} - {"log/rook_off2.log"} <= set(after) and len(moved) == 7
    assert all(after[path.replace("queue/", "adopted/")] == text for path, text in moved.items() if path.startswith("queue/"))
    assert not list((old.home / ".config/systemd/user").glob("*.wants/*"))

    assert done["definition_file"] == str(host.root / "adopted" / "rook_r3.yml")
    assert Path(done["definition_file"]).read_text(encoding="utf-8") == done["definition"]
    yaml = pytest.importorskip("yaml")
    wanted = yaml.safe_load(done["definition"])["sagequeue_jobsets"]["rook_r3"]
    assert wanted == {
        **{"script": "run.sage", "stride": 8, "workers": 2, "runner": "podman_exec", "command": ["/sage/sage"], "container": "sagemath"},
        **{"args": ["--graph", "rook", "--note", "a b", "--resume", "--stop_file", "{gate_file}"], "gate_file": "rook_r3_stop.txt"},
        **{"workdir": f"{old.home}/Jupyter", "container_workdir": "/home/sage/notebooks"},
    }
    again = call("queue_adopt", source=str(old.project))
    assert not again["changed"] and again["msg"].startswith("nothing is left to do\nrook_r3 has 2 pending, 1 running, 1 done, 1 failed\n")
    assert again["jobsets"][0]["refused"] == REFUSED

    host.define("rook_r3", stride=8)
    queue = host.queue("rook_r3")
    assert [change.new_state for change in recover(queue, make(queue.layout, queue.jobset))] == ["pending"]
    host.script("exit 0\n")
    host.work_off("rook_r3-1")
    assert host.states("rook_r3") == {**dict.fromkeys(STATES, "done"), "rook_r3_off3": "failed"}


def test_taken_over_where_it_is(call: Any, old: Old, host: Any) -> None:  # noqa: F811
    before = old.files()
    (old.home / ".config/sagequeue/sagequeue.env").unlink()
    predicted = call("queue_adopt", True, source=str(old.project), root=str(old.project))
    assert predicted["changed"] and old.files() == before
    done = call("queue_adopt", source=str(old.project / "var"), root=str(old.project))
    assert done["jobsets"][0]["in_place"] and done["jobsets"][0]["counts"] == {"pending": 2, "running": 1, "done": 1, "failed": 2}
    assert "no definition was found for rook_r3: add it to sagequeue_jobsets" in done["msg"]
    changed = {path for path, text in old.files().items() if before.get(path) != text}
    assert {path for path in changed if not path.startswith("run/")} == {"queue/done/rook_r3_off2.env"}
    assert not call("queue_adopt", source=str(old.project), root=str(old.project))["changed"]


@pytest.mark.parametrize("unit", [True, False])
def test_a_worker_that_lives_is_ended_first(call: Any, host: Any, old: Old, unit: bool) -> None:  # noqa: F811
    with old.worker() as worker:
        running = old.var / "queue/running"
        wait_for(lambda: any(path.read_text().startswith("OWNER_PID=") for path in running.glob("rook_r3_off[01].env.owner")))
        name = next(path.name[: -len(".env.owner")] for path in running.glob("rook_r3_off[01].env.owner"))
        wait_for(lambda: list((old.var / "log").glob("rook_off[01].log")))
        if unit:
            old.units("sagequeue@1.service", pids=(worker.pid,))
        predicted = call("queue_adopt", True, source=str(old.project), wait=0.5)
        assert predicted["jobsets"][0]["interrupted"] == [name] and worker.poll() is None
        done = call("queue_adopt", source=str(old.project), wait=2)
        assert not done.get("failed"), done
        assert worker.wait(30) is not None
    # The unit's worker has said that the job failed, because it was stopped; the other was killed and could say nothing.
    assert done["units"] == (["sagequeue@1.service"] if unit else []) and host.states("rook_r3")[name] == ("pending" if unit else "running")
    assert sorted(host.states("rook_r3")) == sorted(STATES) and host.values(name, "rook_r3")["OFFSET"] == name[-1]
    assert not call("queue_adopt", source=str(old.project))["changed"]


def test_what_outlives_its_worker_must_end_first(call: Any, host: Any, old: Old) -> None:  # noqa: F811
    """As a program in a container does. Who failed only because of the stop is remembered until then."""
    with old.worker() as worker:
        wait_for(lambda: list((old.var / "log").glob("rook_off[01].log")))
        [path] = wait_for(lambda: list((old.var / "queue/running").glob("rook_r3_off[01].env.owner")))
        name = path.name[: -len(".env.owner")]
        old.units("sagequeue@1.service", pids=(worker.pid,))
        words = ["bash", "-c", "sleep 600 & wait", "/home/sage/notebooks/run.sage", "--stride", "8", "--offset", name[-1], str(old.home)]
        with subprocess.Popen(words) as program:
            refused = call("queue_adopt", source=str(old.project))
            assert refused["failed"] and f"programs of its jobs still run: pid {program.pid} ({name})" in refused["msg"]
            assert not (host.root / "var").exists() and (old.var / f"queue/failed/{name}.env").exists()
            program.kill()
        worker.wait(30)
    done = call("queue_adopt", source=str(old.project))
    assert host.states("rook_r3")[name] == "pending" and done["jobsets"][0]["interrupted"] == [name]
    assert not call("queue_adopt", source=str(old.project))["changed"]


def test_killed_at_any_point_and_run_again(host: Any, old: Old, killed_at: Any) -> None:
    import shutil

    backup = old.project / "as_it_was"
    shutil.copytree(old.var, backup, symlinks=True)
    [older] = adopt.find(str(old.project))
    number, killed = 0, True
    while killed:
        number += 1
        for folder in (old.var, host.root / "var"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(backup, old.var, symlinks=True)
        host.define("rook_r3", stride=8)
        queue = host.queue("rook_r3")
        killed = killed_at(lambda: adopt.take_over(queue, older, "rook") and None, number)  # noqa: B023
        adopt.take_over(queue, older, "rook")
        assert host.states("rook_r3") == STATES and host.log("rook_r3_off2", "rook_r3") == "UNSAT\n"
        assert host.values("rook_r3_off1", "rook_r3")["ATTEMPTS"] == "2"
        assert {path for path in old.files() if path.startswith("queue/")} <= set(REFUSED) | {"queue/running/rook_r3_off4.env.owner"}
        assert not any(adopt.take_over(queue, older, "rook")["jobs"].values())
        queue.close()
    assert number > 40


def test_another_job_of_the_same_name_stays(call: Any, host: Any, old: Old) -> None:  # noqa: F811
    host.define("rook_r3", stride=8)
    host.queue("rook_r3").enqueue([("rook_r3_off0", {"OFFSET": "7"})])
    done = call("queue_adopt", source=str(old.project))
    assert done["jobsets"][0]["refused"]["queue/pending/rook_r3_off0.env"] == "the jobset has another job of this name, pending"
    assert (old.var / "queue/pending/rook_r3_off0.env").exists() and host.values("rook_r3_off0", "rook_r3")["OFFSET"] == "7"


def test_one_jobset_by_its_folder_with_a_log_that_is_here_already(call: Any, host: Any, old: Old) -> None:  # noqa: F811
    assert [older.name for older in adopt.find(str(old.var))] == ["rook_r3"]
    host.define("rook_r3", stride=8)
    log = host.root / "var/rook_r3/log/rook_r3_off2.log"
    log.write_text("of another run\n", encoding="utf-8")
    done = call("queue_adopt", source=str(old.project))
    assert done["jobsets"][0]["refused"]["log/rook_off2.log"] == "there is a log rook_r3_off2.log already"
    assert log.read_text(encoding="utf-8") == "of another run\n" and (old.var / "log/rook_off2.log").exists()


def test_what_is_not_theirs_is_refused(call: Any, host: Any, old: Old, tmp_path: Path) -> None:  # noqa: F811
    refused = call("queue_adopt", source=str(tmp_path))
    assert refused["failed"] and "has no var/JOBSET/queue/pending, nor is it such a var: name the folder" in refused["msg"]
    assert call("queue_adopt", source="")["msg"] == "Name the folder of the older scripts: -e from=PATH"
    env = old.home / ".config/sagequeue/sagequeue.env"
    text = env.read_text(encoding="utf-8")
    with pytest.raises(QueueError, match="the environment file of the older scripts says nothing of SCRIPT, STRIDE"):
        adopt.definition({"JOBSET": "x", "STOP_FILE_HOST": "/x"}, 1)
    for line, reason in {
        "SCRIPT=$(touch pwned)": "a shell would put something else in the place of \\$ or ` in SCRIPT",
        "STRIDE=many": "stride is 'many'; it must be a number",
        "SAGE_BASE_ARGS='--offset 3'": "args has --offset",
        "JOBSET='rook": "the value of JOBSET has no end",
        "nonsense": "is not KEY=VALUE",
    }.items():
        env.write_text(text + line + "\n", encoding="utf-8")
        with pytest.raises(QueueError, match=reason):
            jobset.Jobset("rook_r3", adopt.definition(adopt.environment(str(env)), 1))
    env.write_bytes(b"JOBSET=\xff\n")
    with pytest.raises(QueueError, match="can't be read: not UTF-8"):
        adopt.environment(str(env))
    # One that says nothing of a container.
    plain = adopt.definition({"JOBSET": "x", "SCRIPT": "run.sage", "STRIDE": "2", "STOP_FILE_HOST": "/w/x_stop.txt"}, 0)
    assert (plain["script"], plain["workdir"], plain["gate_file"], plain["workers"]) == ("run.sage", "/w", "x_stop.txt", 2)
    assert "container_workdir" not in plain
    env.write_text(text + "nonsense\n", encoding="utf-8")
    refused = call("queue_adopt", source=str(old.project))
    assert refused["failed"] and refused["msg"].endswith("is not KEY=VALUE") and not (host.root / "var").exists()


@pytest.mark.parametrize(
    ("verb", "why"),
    [
        ("list-units", "the units sagequeue@1.service are enabled, but systemctl --user can't be asked: no bus; nothing was changed"),
        ("disable", "can't stop and disable sagequeue@1.service: no bus; no job was taken over"),
    ],
)
def test_units_that_cannot_be_stopped_keep_their_jobs(call: Any, host: Any, old: Old, verb: str, why: str) -> None:  # noqa: F811
    old.units("sagequeue@1.service")
    systemctl = old.home / "bin" / "systemctl"
    systemctl.write_text(SYSTEMCTL.replace("case", f"[ $2 != {verb} ] || {{ echo no bus >&2; exit 1; }}\ncase", 1), encoding="utf-8")
    before = old.files()
    refused = call("queue_adopt", source=str(old.project))
    assert refused["failed"] and refused["msg"] == why and old.files() == before and not (host.root / "var").exists()
