# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The program sagequeue: arguments, output, exit statuses."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import signal
import stat
import subprocess
import sys
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import carriers
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import signal_carriers
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import NotReady


def test_version_and_usage(host: Any) -> None:
    assert host.sagequeue("--version").stdout.startswith("sagequeue 0.")
    assert host.sagequeue().returncode == host.sagequeue("dance").returncode == 2


def test_the_root_is_above_the_programs_folder(host: Any, tmp_path: Any) -> None:
    host.define("rook")
    assert json.loads(host.sagequeue("progress", "--json").stdout)[0]["jobset"] == "rook"
    link = tmp_path / "sagequeue-link"
    link.symlink_to(host.program)
    ran = subprocess.run([sys.executable, str(link), "progress", "rook"], capture_output=True, text=True, cwd="/", check=True)
    assert ran.stdout.startswith("rook [")
    assert (
        host.sagequeue("--root", str(tmp_path / "other"), "progress").stderr == "sagequeue: no jobset is defined on this host; run setup\n"
    )


@pytest.mark.parametrize("instance", ["rook", "rook-", "rook-x", "-1x"])
def test_bad_instances(host: Any, instance: str) -> None:
    ran = host.sagequeue("worker", "--", instance)
    assert ran.returncode == 78 and "is not JOBSET-NUMBER" in ran.stderr and "Traceback" not in ran.stderr


def test_a_jobset_with_dashes(host: Any) -> None:
    host.define("rook-r3-b")
    host.script("true\n")
    assert host.sagequeue("worker", "rook-r3-b-12", "--until-idle").returncode == 0


@pytest.mark.parametrize(
    ("words", "status"), [(["worker", "rok-1"], 78), (["recover", "rok"], 78), (["progress", "rok"], 1), (["progress", "../x"], 1)]
)
def test_unknown_jobsets(host: Any, words: list[str], status: int) -> None:
    host.define("rook")
    ran = host.sagequeue(*words)
    assert ran.returncode == status and ran.stderr.startswith("sagequeue: ") and "Traceback" not in ran.stderr
    if "../x" not in words:
        assert "jobset rok is not defined on this host; did you mean rook?" in ran.stderr


def test_recover(host: Any) -> None:
    host.define("t")
    host.put("running", "a")
    ran = host.sagequeue("recover", "t")
    assert ran.returncode == 0 and "job a: running -> pending (orphan" in ran.stdout
    assert host.sagequeue("recover", "t").stdout == ""


def test_recovering_again_and_again_outlives_what_is_wrong(host: Any) -> None:
    host.define("t")
    queue = host.queue()
    definition = host.root / "etc/jobsets/t.json"
    text = definition.read_text(encoding="utf-8")
    definition.write_text("{", encoding="utf-8")
    words = [sys.executable, str(host.program), "recover", "t", "--every", "0.1"]
    # Who runs these tests in the background may have it ignored.
    obeys = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(words, env=host.environment, stdout=subprocess.PIPE, text=True, preexec_fn=obeys)
    host.processes.append(process)
    assert process.stdout and "jobset t" in process.stdout.readline()
    host.put("running", "a")
    definition.write_text(text, encoding="utf-8")
    assert any("job a: running -> pending" in line for line in process.stdout) and queue.locate("a") == "pending"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_one_broken_jobset_does_not_hide_the_others(host: Any) -> None:
    host.define("good")
    host.define("bad")
    (host.root / "etc/jobsets/bad.json").write_text("\x1b{", encoding="utf-8")
    ran = host.sagequeue("progress", "--follow", "--json")
    assert [one["jobset"] for one in json.loads(ran.stdout)] == ["good"]
    assert ran.returncode == 1 and ran.stderr.startswith("sagequeue: jobset bad") and "\x1b" not in ran.stderr


def test_following_on_a_terminal_writes_over_what_it_has_shown(host: Any, wait_for: Any) -> None:
    host.script("touch up; while ! test -e go; do sleep 0.05; done\n")
    host.define("t")
    host.queue().enqueue([("a", {})])
    # Of a size that nobody has set, as on a serial console.
    ours, its = pty.openpty()
    words = [sys.executable, str(host.program), "progress", "t", "--follow", "--interval", "0.1"]
    process = subprocess.Popen(words, env={**host.environment, "TERM": "xterm"}, stdout=its)
    host.processes.append(process)
    os.close(its)
    shown = os.read(ours, 4096)
    worker = host.worker("t-1")
    wait_for((host.work / "up").exists)
    (host.work / "go").touch()
    # Until nobody has the other end any more.
    with contextlib.suppress(OSError):
        while True:
            shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(30) == 0
    host.stop(worker)
    assert b"\x1b[J" in shown and b"A\r\x1b[K" in shown, "the cursor goes up, and what was there is cleared"
    assert shown.rstrip().endswith(b"jobset t has ended: all 1 jobs are done")


def test_following_ends_when_nothing_more_happens(host: Any) -> None:
    host.script("sleep 0.3\n")
    host.define("t")
    host.queue().enqueue([("a", {}), ("b", {})])
    worker = host.worker("t-1")
    ran = host.sagequeue("progress", "t", "--follow", "--interval", "0.1")
    worker.terminate()
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0 and lines[-2].startswith("t [####") and "2/2 done" in lines[-2]
    assert lines[-1] == "jobset t has ended: all 2 jobs are done"
    assert len(lines) == len(set(lines)), "each state is shown once where there is no terminal"


def test_a_reader_that_goes_away_is_no_error(host: Any) -> None:
    host.define("t")
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([sys.executable, str(host.program), "progress"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_signals_reach_those_that_carry_and_no_others(host: Any, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With descriptors of processes, and on a kernel that has none."""
    if kernel == "old":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    mine, other = (
        subprocess.Popen(["sleep", "60"], env={"TOKEN": f"{host.root}/{which}"}, start_new_session=True) for which in ("mine", "other")
    )
    host.processes += [mine, other]
    wanted = {"TOKEN": f"{host.root}/mine"}
    assert signal_carriers(signal.SIGTERM, wanted, spare_session=mine.pid) == [] == signal_carriers(signal.SIGTERM, {"TOKEN": "x"})
    assert signal_carriers(signal.SIGTERM, wanted) == [mine.pid]
    assert mine.wait(30) == -signal.SIGTERM and other.poll() is None


def test_files_are_private_whatever_the_umask(host: Any) -> None:
    host.script("touch mine\n")
    host.define("t")
    host.put("pending", "a")
    assert host.sagequeue("worker", "t-1", "--until-idle", preexec_fn=lambda: os.umask(0)).returncode == 0
    var = host.root / "var/t"
    for path in (var / "log/a.log", var / "run/history.jsonl", var / "queue/done/a.env"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_carriers(host: Any) -> None:
    process = subprocess.Popen(
        ["sleep", "60"], env={**os.environ, "TOKEN": "x y", "SAGEQUEUE_ROOT": str(host.root)}, start_new_session=True
    )
    words = ["carriers", "TOKEN=x y", f"SAGEQUEUE_ROOT={host.root}"]
    assert host.sagequeue(*words).stdout.split() == [str(process.pid)]
    assert host.sagequeue(*words, "--spare-session", str(process.pid), "--signal", "9").stdout.split() == []
    assert host.sagequeue("carriers", "TOKEN=x", f"SAGEQUEUE_ROOT={host.root}").stdout.split() == []
    assert host.sagequeue("carriers", "TOKEN=y", "or", *words[1:]).stdout.split() == [str(process.pid)]
    none, amid = "is not KEY=VALUE ...", "ends amid its variables"
    for wrong, why in ((["TOKEN"], none), (["or", "A=1"], none), (["A=1", "or"], amid)):
        refused = host.sagequeue("carriers", *wrong, "--signal", "9")
        assert refused.returncode == 1 and refused.stderr == f"sagequeue: {' '.join(wrong)!r} {why}\n"
    assert process.poll() is None
    assert host.sagequeue(*words, "--until-gone").returncode == 0
    assert process.wait(10) == -9


def test_what_does_not_end_is_named(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, "SAGEQUEUE_CLAIM": "x", "SAGEQUEUE_ROOT": str(host.root)})
    monkeypatch.setattr(carriers, "_KILL_WAIT", 0.1)
    # As one that waits for a disk, it does not end by that.
    real = signal_carriers
    monkeypatch.setattr(carriers, "signal_carriers", lambda _number, *wanted, **more: real(0, *wanted, **more))
    why = rf"processes \[{process.pid}\] of a dead worker's job can't be killed; the job stays where it is until they end"
    with pytest.raises(NotReady, match=why):
        carriers.end_carriers({"SAGEQUEUE_CLAIM": "x", "SAGEQUEUE_ROOT": str(host.root)})
    process.kill()
    process.wait()
