# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The queue_* modules, each as a real process with its arguments on stdin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.tests.unit.module_process import COLLECTIONS, run_module

pytest.importorskip("ansible.module_utils.basic")


@pytest.fixture
def call(host: Any) -> Callable[..., dict[str, Any]]:
    """Run a module; the result says whether it failed."""

    def run(module: str, /, check: bool = False, **options: Any) -> dict[str, Any]:
        if module != "queue_program":
            options.setdefault("root", str(host.root))
        options = {name: value for name, value in options.items() if value is not None}
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        result = run_module(module, arguments, host.base)
        result.pop("invocation", None)
        return result

    return run


def agree(predicted: dict[str, Any], real: dict[str, Any]) -> None:
    """Check that check mode said what the real run did."""
    for key in ("changed", "jobs", "diff"):
        assert predicted.get(key) == real.get(key), key


DEFINITION = {"script": "job.sh", "command": "/bin/sh", "stride": 4, "environment": {"TOKEN": "s3cret"}}


def define(call: Any, host: Any, check: bool = False, **more: Any) -> dict[str, Any]:
    return call("queue_jobset", check, name="t", definition={**DEFINITION, "workdir": str(host.work), **more})


def test_define(call: Any, host: Any) -> None:
    predicted = define(call, host, check=True)
    assert not (host.root / "var").exists() and not (host.root / "etc").exists()
    real = define(call, host)
    agree(predicted, real)
    assert real["changed"] and real["path"] == str(host.root / "etc/jobsets/t.json")
    assert real["definition"]["stride"] == 4 and real["definition"]["supervisor"] == "systemd"
    assert not define(call, host)["changed"]
    changed = define(call, host, check=True, stride=8)
    assert changed["changed"] and '"stride": 4' in changed["diff"]["before"] and '"stride": 8' in changed["diff"]["after"]


def test_secrets_are_not_shown(call: Any, host: Any) -> None:
    first = define(call, host)
    second = define(call, host, environment={"TOKEN": "n3w"})
    assert second["changed"] and second["diff"]["before"] != second["diff"]["after"]
    assert "TOKEN" in str(first) and not any(secret in str([first, second]) for secret in ("s3cret", "n3w"))
    assert "n3w" in (host.root / "etc/jobsets/t.json").read_text()


def test_secrets_are_an_option_of_their_own(call: Any, host: Any) -> None:
    first = define(call, host)
    real = call("queue_jobset", name="t", definition={**DEFINITION, "workdir": str(host.work)}, secrets={"KEY": "c4nary"})
    other = call("queue_jobset", name="t", definition={**DEFINITION, "workdir": str(host.work)}, secrets={"KEY": "c4nary2"})
    assert first["changed"] and real["changed"] and other["changed"] and other["diff"]["before"] != other["diff"]["after"]
    assert "KEY" in str(other["definition"]["secrets"]) and "c4nary" not in str([real, other])
    path = host.root / "etc/jobsets/t.json"
    assert "c4nary2" in path.read_text() and path.stat().st_mode & 0o777 == 0o600
    refused = define(call, host, secrets={"KEY": "c4nary3"})
    assert refused["failed"] and "give them as the option secrets" in refused["msg"] and "c4nary3" not in str(refused)
    refused = call("queue_jobset", name="t", definition=DEFINITION, secrets={"PATH": "c4nary4"})
    assert refused["failed"] and "podman obeys" in refused["msg"] and "c4nary4" not in str(refused)


def test_a_bad_definition_changes_nothing(call: Any, host: Any) -> None:
    failed = define(call, host, strid=4)
    assert failed["failed"] and "jobset t: unknown key 'strid'; did you mean stride?" in failed["msg"]
    assert not (host.root / "etc").exists()


def test_forget(call: Any, host: Any) -> None:
    define(call, host)
    host.queue().enqueue([("a", {})])
    predicted = call("queue_jobset", True, name="t", state="absent")
    agree(predicted, call("queue_jobset", name="t", state="absent"))
    assert predicted["changed"] and not call("queue_jobset", name="t", state="absent")["changed"]
    assert host.states() == {"a": "pending"}
    outside = host.root / "x.json"
    outside.write_text("{}", encoding="utf-8")
    assert call("queue_jobset", name="../../x", state="absent")["failed"] and outside.exists()


def test_enqueue(call: Any, host: Any) -> None:
    define(call, host)
    predicted = call("queue_enqueue", True, jobset="t")
    assert host.states() == {}
    real = call("queue_enqueue", jobset="t")
    agree(predicted, real)
    assert [(job["name"], job["old_state"], job["new_state"], job["changed"]) for job in real["jobs"]] == [
        (f"t_off{number}", None, "pending", True) for number in range(4)
    ]
    assert real["diff"]["after"].splitlines()[3] == "t_off3: pending" and real["counts"]["pending"] == 4
    again = call("queue_enqueue", jobset="t", offsets=[1, 2])
    assert not again["changed"] and again["msg"] == "0 enqueued; 2 left alone: already pending"


def test_enqueue_jobs_of_ones_own(call: Any, host: Any) -> None:
    define(call, host)
    call("queue_enqueue", jobset="t", jobs=[{"name": "a", "values": {"TITLE": "any $(text)", "N": 3}}])
    assert host.values("a")["TITLE"] == "any $(text)" and host.values("a")["N"] == "3"
    listed = host.base / "jobs.txt"
    listed.write_text("# mine\nb TITLE='x y'\nc\n", encoding="utf-8")
    assert call("queue_enqueue", jobset="t", jobs_file=str(listed))["changed"]
    assert host.values("b")["TITLE"] == "x y" and set(host.states()) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobset": "tt"}, "jobset tt is not defined on this host; did you mean t?"),
        ({"jobset": "t", "offsets": [0, 4]}, "offset 4 is outside the stride; offsets go from 0 to 3"),
        ({"jobset": "t", "jobs": [{"name": "a", "values": {"low": 1}}]}, "'low' is not a key"),
        ({"jobset": "t", "jobs_file": "/nowhere/jobs"}, "/nowhere/jobs"),
        ({"jobset": "t", "jobs_file": sys.executable}, f"{sys.executable} is not UTF-8; nothing was enqueued"),
        ({"jobset": "t", "jobs": [], "offsets": [1]}, "mutually exclusive"),
    ],
)
def test_a_bad_enqueue_changes_nothing(call: Any, host: Any, options: dict[str, Any], message: str) -> None:
    define(call, host)
    failed = call("queue_enqueue", **options)
    assert failed["failed"] and message in failed["msg"] and host.states() == {}


def test_gate(call: Any, host: Any) -> None:
    define(call, host)
    predicted = call("queue_gate", True, jobset="t", state="closed", by="anna")
    assert predicted["changed"] and predicted["gate"]["closed"] and not (host.work / "t_stop.txt").exists()
    real = call("queue_gate", jobset="t", state="closed", by="anna")
    assert real["changed"] and real["diff"] == predicted["diff"] and "STOP requested by anna" in real["gate"]["text"]
    assert not call("queue_gate", jobset="t", state="closed")["changed"]
    assert call("queue_gate", True, jobset="t", state="open")["changed"] and (host.work / "t_stop.txt").exists()
    assert call("queue_gate", jobset="t", state="open")["changed"] and not call("queue_gate", jobset="t", state="open")["changed"]


def test_info(call: Any, host: Any) -> None:
    define(call, host)
    host.queue().enqueue([("a", {"X": "1"}), ("b", {})])
    host.dead_claimer()
    found = call("queue_info", jobset="t", jobs=True)
    assert not found["changed"] and found["counts"] == {"pending": 1, "running": 1, "done": 0, "failed": 0}
    (running,) = found["running"]
    assert (running["name"], running["alive"], running["worker"]) == ("a", False, "t-dead") and "is gone" in running["why_orphan"]
    assert running["since"] and running["claim"] and not found["gate"]["closed"]
    assert [(job["name"], job["state"]) for job in found["jobs"]] == [("b", "pending"), ("a", "running")]
    assert found["line"] in found["text"]


def test_recover(call: Any, host: Any) -> None:
    define(call, host, recoveries=2)
    host.queue().enqueue([("a", {}), ("b", {})])
    host.dead_claimer()
    host.put("running", "bad", "nonsense\n")
    host.put("running", "often", "RECOVERIES=1\n")
    predicted = call("queue_recover", True, jobset="t")
    assert set(host.states().values()) == {"pending", "running"}
    real = call("queue_recover", jobset="t")
    assert {job["name"]: job["new_state"] for job in real["jobs"]} == {"a": "pending", "bad": "failed", "often": "failed"}
    assert [(job["name"], job["new_state"]) for job in predicted["jobs"]] == [(job["name"], job["new_state"]) for job in real["jobs"]]
    assert predicted["diff"] == real["diff"] and predicted["changed"]
    assert not call("queue_recover", jobset="t")["changed"]


def test_retry(call: Any, host: Any) -> None:
    define(call, host)
    host.put("failed", "a", "REASON=timeout\nATTEMPTS=3\n")
    host.put("failed", "bad", "REASON=malformed_job\n")
    predicted = call("queue_retry", True, jobset="t")
    agree(predicted, call("queue_retry", jobset="t"))
    assert host.states() == {"a": "pending", "bad": "failed"}
    again = call("queue_retry", jobset="t", jobs=["a"])
    assert not again["changed"] and again["jobs"][0]["reason"] == "left alone: pending"


def test_remove(call: Any, host: Any) -> None:
    define(call, host)
    host.queue().enqueue([("a", {}), ("b", {}), ("c", {})])
    for options in ({}, {"confirm": "T"}, {"states": ["pending"]}):
        failed = call("queue_remove", jobset="t", **options)
        assert failed["failed"] and "needs confirm=t; nothing was removed" in failed["msg"]
    assert len(host.states()) == 3
    one = call("queue_remove", jobset="t", jobs=["a", "nobody"])
    assert [(job["name"], job["new_state"], job["changed"]) for job in one["jobs"]] == [("a", None, True), ("nobody", None, False)]
    predicted = call("queue_remove", True, jobset="t", confirm="t")
    agree(predicted, call("queue_remove", jobset="t", confirm="t"))
    assert predicted["diff"]["before"] == "b: pending\nc: pending\n" and host.states() == {}
    assert not call("queue_remove", jobset="t", confirm="t")["changed"]


def test_control_and_list(call: Any, host: Any) -> None:
    define(call, host)
    call("queue_enqueue", jobset="t")
    for options, word in (
        ({"action": "hold", "jobs": ["off[0-1", "3]"], "by": "anna"}, "3 held"),
        ({"action": "release", "jobs": ["off3"]}, "1 released"),
        ({"action": "priority", "jobs": ["off*"], "priority": -5}, "4 given priority -5"),
        ({"action": "kill", "jobs": ["t_off0", "off2"]}, "2 killed"),
        ({"action": "reset", "jobs": ["off0", "off1"]}, "1 back to pending; 1 left alone: already held"),
    ):
        predicted = call("queue_control", True, jobset="t", **options)
        before = host.states()
        real = call("queue_control", jobset="t", **options)
        agree(predicted, real)
        assert real["changed"] and real["msg"] == word and (before != host.states() or options["action"] == "priority")
        assert not call("queue_control", jobset="t", **options)["changed"]
    assert host.states() == {"t_off0": "pending", "t_off1": "held", "t_off2": "failed", "t_off3": "pending"}
    assert real["counts"] == {"pending": 3, "running": 0, "done": 0, "failed": 1} and predicted["diff"]["after"] == "t_off0: pending\n"
    assert "priority is -5" not in str(call("queue_control", jobset="t", action="priority", jobs=["off1"], priority=3)["diff"])
    assert call("queue_control", jobset="t", action="priority", jobs=["off1"])["msg"].endswith("missing: priority")
    listed = call("queue_list", jobset="t", states=["held", "failed"], limit=1)
    assert (listed["total"], [one["name"] for one in listed["jobs"]], listed["changed"]) == (2, ["t_off1"], False)
    assert "1 of 2 jobs are shown" in listed["text"] and "held by anna" in listed["text"] and call("queue_info", jobset="t")["held"] == 1
    for module in ("queue_retry", "queue_list"):
        assert "no job matches 'off9'; there are t_off0, t_off1" in call(module, jobset="t", jobs=["off9"])["msg"]
    assert call("queue_retry", jobset="t", jobs=["off[2-3]"])["msg"].startswith("1 back to pending; 1 left alone: pending")
    assert call("queue_remove", jobset="t", jobs=["off[0-2]"])["msg"] == "3 removed"
    assert not call("queue_remove", jobset="t", jobs=["off[0-2]"])["changed"] and host.states() == {"t_off3": "pending"}


def test_the_program_as_it_is_put_on_a_host(call: Any, host: Any) -> None:
    path = host.base / "bin"
    path.mkdir()

    def put(check: bool = False) -> dict[str, Any]:
        result: dict[str, Any] = call("queue_program", check, path=str(path / "sagequeue"), python=sys.executable)
        return result

    assert put(check=True)["changed"] and not (path / "sagequeue").exists()
    assert put()["changed"] and not put()["changed"]
    ran = subprocess.run([str(path / "sagequeue"), "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("sagequeue 0.")
    # It is not compiled at each start.
    imported = "import sys; sys.path.insert(0, sys.argv[1]); from dirqueue import cli; print(cli.__file__)"
    assert "cli.pyc" in subprocess.run([sys.executable, "-c", imported, str(path / "sagequeue")], capture_output=True, text=True).stdout
    whole = (path / "sagequeue").read_bytes()
    for spoilt in (whole[:5000], whole.replace(b"#!", b"#! ", 1), whole[:5000] + bytes(100) + whole[5100:]):
        (path / "sagequeue").write_bytes(spoilt)
        assert put()["changed"] and not put()["changed"]
    (path / "sagequeue").write_text("#!/bin/sh\necho older\n", encoding="utf-8")
    assert put()["diff"]["before"] == "older\n"


def test_a_link_to_the_program(call: Any, host: Any) -> None:
    path, link = host.base / "bin" / "sagequeue", host.base / "local" / "bin" / "sagequeue"

    def put(check: bool = False) -> dict[str, Any]:
        result: dict[str, Any] = call("queue_program", check, path=str(path), python=sys.executable, link=str(link))
        return result

    assert f"{link} -> {path}\n" in put(check=True)["diff"]["after"] and not link.parent.exists()
    assert put()["changed"] and os.readlink(link) == str(path) and not put()["changed"]
    assert (link.parent.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o755, 0o700)
    link.unlink()
    link.symlink_to("elsewhere")
    changed = put()
    assert f"{link} -> elsewhere" in changed["diff"]["before"] and os.readlink(link) == str(path)
    link.unlink()
    link.write_text("mine")
    assert f"{link} is there already, and is no link" in put()["msg"] and link.read_text() == "mine"


def test_logs(call: Any, host: Any) -> None:
    define(call, host)
    assert call("queue_logs", jobset="t")["lines"] == ["No job of t has run yet."]
    folder = host.root / "var/t/log"
    for number in range(3):
        # Longer than what is read at once.
        (folder / f"t_off{number}.log").write_text(f"first\n{'x' * 70000}\npart {number}\nhalf a line")
        os.utime(folder / f"t_off{number}.log", (number, number))
    (folder / "t_off0.log").chmod(0o200)
    os.mkfifo(folder / "t_off9.log")
    os.utime(folder / "t_off9.log", (9, 9))
    assert call("queue_logs", jobset="t", job="t_off2", lines=2)["lines"] == [f"==> {folder}/t_off2.log <==", "part 2", "half a line"]
    assert len(call("queue_logs", jobset="t", job="t_off1", lines=3)["lines"][1]) == 70000
    last = call("queue_logs", jobset="t", lines=1, logs=2)["lines"]
    assert last[:2] == [f"==> {folder}/t_off2.log <==", "half a line"] and "refused" in last[3]
    for job, reason in (("t_off8", "no such job has run yet"), ("../../../etc/jobsets/t", "is no job's name")):
        assert reason in call("queue_logs", jobset="t", job=job)["msg"]


def test_a_jobset_must_be_named(call: Any, host: Any) -> None:
    assert "defined are none; run setup" in call("queue_info", jobset="")["msg"]
    define(call, host)
    assert call("queue_info", jobset="")["msg"] == "Name a jobset: -e jobset=NAME; defined are t"


def test_the_root_may_lie_in_the_home_of_the_user_database(call: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    define(call, host)
    other = host.base / "other"
    other.mkdir()
    monkeypatch.setenv("HOME", str(other))
    where = "from ansible_collections.sagequeue.batch.plugins.module_utils import _queue_module as m; import pwd, sys\n"
    where += "pwd.getpwuid = lambda uid: pwd.struct_passwd(('u', 'x', 0, 0, '', sys.argv[1], ''))\n"
    where += "print(m.root_of(sys.argv[2]))"

    def root(given: str) -> str:
        words = [sys.executable, "-c", where, str(host.base), given]
        path = os.pathsep.join([str(COLLECTIONS), os.environ.get("PYTHONPATH", "")])
        return subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True).stdout.strip()

    assert root(str(other / "sagequeue")) == str(host.root)
    (other / "sagequeue").mkdir()
    assert root(str(other / "sagequeue")) == str(other / "sagequeue")
    assert root("/nowhere") == "/nowhere"


def test_holdings_names_every_job_once_and_takes_pending_ones(call: Any, host: Any) -> None:
    define(call, host)
    call("queue_enqueue", jobset="t")
    # A batch, of which none is a file.
    call("queue_enqueue", jobset="t", jobs_list="many[0001-1200] A='x y'\nfirst PRIORITY=7\n")
    call("queue_control", jobset="t", action="hold", jobs=["off1"])
    found = call("queue_holdings", jobset="t", lines=True)
    states = found["states"]
    names = [name for some in states.values() for name in some]
    assert not found["changed"] and len(names) == len(set(names)) == 1205 and found["stride"] == 4
    assert states["held"] == ["t_off1"] and "t_off2" in states["pending"] and "many0007" in states["pending"]
    assert found["lines"]["many0007"] == "many0007 A='x y'" and found["lines"]["t_off2"] == "t_off2 OFFSET=2"
    assert found["lines"]["first"] == "first PRIORITY=7" and "t_off1" not in found["lines"]
    take = ["many0007", "t_off2", "t_off1", "nobody"]
    predicted = call("queue_holdings", True, jobset="t", take=take)
    assert predicted["changed"] and len([name for some in predicted["states"].values() for name in some]) == 1205
    taken = call("queue_holdings", jobset="t", take=take)
    left = {name for some in taken["states"].values() for name in some}
    assert set(names) - left == {"many0007", "t_off2"}


def test_backup_and_restore(call: Any, host: Any) -> None:
    define(call, host)
    call("queue_enqueue", jobset="t")
    predicted = call("queue_backup", True, jobset="t")
    assert predicted["changed"] and predicted["msg"].startswith("would be written: ") and not (host.root / "backup").exists()
    made = call("queue_backup", jobset="t")
    assert made["counts"] == predicted["counts"] == {"pending": 4, "running": 0, "done": 0, "failed": 0}
    assert Path(made["path"]).parent == host.root / "backup" and Path(made["path"]).stat().st_size == made["size"]
    again = call("queue_backup", jobset="t", path=made["path"])
    assert again["failed"] and "is there already; name another file" in again["msg"]
    refused = call("queue_restore", jobset="t", path=made["path"])
    assert refused["failed"] and "has jobs here already (4 pending)" in refused["msg"]
    call("queue_remove", jobset="t", confirm="t")
    predicted = call("queue_restore", True, jobset="t", path=made["path"])
    assert predicted.get("changed"), predicted
    assert predicted["msg"].startswith("would be restored: t as it was at ") and host.states() == {}
    done = call("queue_restore", jobset="t", path=made["path"])
    assert done["changed"] and done["counts"]["pending"] == 4 and done["waiting"] == ""
    assert not call("queue_restore", jobset="t", path=made["path"])["changed"]
    missing = call("queue_restore", jobset="t", path="/none.tar.gz")
    assert missing["failed"] and missing["msg"].startswith("/none.tar.gz: No such file")


def workers(call: Any, host: Any, /, check: bool = True, **more: Any) -> dict[str, Any]:
    """Ask what systemd would have; what really happens there, and under supervisord, is for hosts that have them."""
    known = {"home": str(host.base / "home"), "runner": "process", "supervisor": "systemd", "stop_margin": 4}
    options = {"host": known, "state": "defined", **more}
    return call("queue_workers", check, **{key: value for key, value in options.items() if value is not None})


def test_workers_of_many_jobsets_are_defined_by_one_call(call: Any, host: Any) -> None:
    definitions = {name: {"script": "job.sh", "workers": 3, "grace": grace} for name, grace in (("slow", 20), ("t", 2))}
    result = workers(call, host, definitions=definitions, secrets={"t": {"KEY": "c4nary"}})
    texts = {Path(entry["after_header"]).name: entry["after"] for entry in result["diff"] if "after_header" in entry}
    assert result["changed"] and result["jobsets"] == ["slow", "t"] and "c4nary" not in str(result)
    assert f'"{host.root}/bin/sagequeue" worker %i' in texts["sagequeue-worker@.service"]
    assert "TimeoutStopSec=24\n" in texts["sagequeue-worker@.service"]
    assert all(f"Wants=sagequeue-worker@t-{number}.service\n" in texts["sagequeue-t.target"] for number in (1, 2, 3))
    assert "OnUnitActiveSec=60" in texts["sagequeue-recover@slow.timer"] and '"workers": 3' in texts["slow.json"]
    assert not (host.root / "etc").exists() and not (host.base / "home").exists()
    # Jobsets that are on the host already count, too, however little can be understood of them.
    define(call, host, grace=50)
    (host.root / "etc/jobsets/broken.json").write_text("{")
    result = workers(call, host, definitions={"slow": definitions["slow"]})
    assert "TimeoutStopSec=54\n" in str(result["diff"]).replace("\\n", "\n") and result["left"] == ["broken", "t"]
    assert workers(call, host, state="absent", jobset="broken")["diff"] == [{"before": "(not a definition)\n", "after": ""}]
    assert (host.root / "etc/jobsets/broken.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobset": "tt"}, "jobset tt is not defined; did you mean t? (defined are t). Jobsets are entries of"),
        ({"jobset": "tt"}, "Jobsets are entries of sagequeue_jobsets in the inventory; setup and enqueue bring them to the host."),
        ({"jobset": "tt", "state": "stopped"}, "jobset tt is not defined; did you mean t? (defined are t)"),
        ({"one": True}, "Name a jobset: -e jobset=NAME; defined are t"),
        ({"definitions": {"t": {"script": "job.sh", "secrets": {"A": "b"}}}}, "give them as the option secrets"),
        ({"definitions": {"t": {"script": "job.sh", "supervisor": "init"}}}, "supervisor"),
        ({"host": None, "state": "started"}, "/etc/host.json on this host: run setup first."),
        ({"check": False, "state": "started", "jobset": "t"}, "The systemd of this user"),
        ({"check": False, "enabled": True, "state": None, "jobset": "t"}, "has no workers under systemd yet: run setup"),
    ],
)
def test_what_workers_cannot_be_had_for(call: Any, host: Any, options: dict[str, Any], message: str) -> None:
    define(call, host)
    assert message in workers(call, host, **options)["msg"]
    host.program.unlink()
    if not options.get("check", True):
        assert f"There is no {host.program} on this host: run setup first." in workers(call, host, **options)["msg"]


def test_enqueue_defines_what_it_is_told(call: Any, host: Any) -> None:
    definition = {**DEFINITION, "workdir": str(host.work)}
    failed = call("queue_enqueue", jobset="t", definition=definition)
    assert "run setup first" in failed["msg"] and not (host.root / "etc").exists()
    (host.root / "etc").mkdir()
    known = {"home": "/", "runner": "process", "supervisor": "supervisord", "image": "", "container": "", "slice": {}, "stop_margin": 0}
    (host.root / "etc/host.json").write_text(json.dumps(known))
    first = call("queue_enqueue", jobset="t", definition=definition, secrets={"KEY": "c4nary"})
    assert first["changed"] and first["counts"]["pending"] == 4 and "c4nary" not in str(first) and len(first["diff"]) == 2
    again = call("queue_enqueue", jobset="t", definition=definition, secrets={"KEY": "c4nary"})
    assert not again["changed"] and host.queue().jobset.supervisor == "supervisord"
    (host.root / "etc/host.json").write_text("{}")
    assert "can't be read" in call("queue_enqueue", jobset="t", definition=definition)["msg"]
    assert "supervisord" in (host.root / "etc/jobsets/t.json").read_text()


def test_workers_info(call: Any, host: Any) -> None:
    define(call, host, supervisor="supervisord")
    assert "run setup first" in call("queue_workers_info")["msg"]
    known = {"home": "/", "runner": "process", "supervisor": "supervisord", "image": "", "container": "", "slice": {}, "stop_margin": 0}
    (host.root / "etc/host.json").write_text(json.dumps(known))
    found = call("queue_workers_info", jobset="t", lines=5)
    assert "supervisord does not answer" in found["workers"][0] and found["queues"] == ["t [------------------------------] 0/0 done"]
    assert "Name a jobset" in call("queue_workers_info", one=True)["msg"]
