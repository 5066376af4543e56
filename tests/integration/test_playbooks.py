# MIT licence, see LICENSE.
"""Every operator command, done, repeated, and in check mode. The tests build on each other, in this order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def house(empty: Any) -> Any:
    """A house after setup."""
    predicted = empty.play("setup", "--check", "--diff")
    assert predicted.rc == 0, predicted.failures
    assert not empty.root.exists()
    first = empty.play("setup")
    assert first.rc == 0, first.failures
    assert first.changed
    return empty


def test_setup_changes_nothing_the_second_time(house: Any) -> None:
    for options in ([], ["--check", "--diff"]):
        again = house.play("setup", *options)
        assert again.rc == 0, again.failures
        assert again.changed == []
    assert "next: ansible-playbook playbooks/enqueue.yml" in again.said()
    assert set(house.programs().values()) == {"STOPPED"}


def test_an_unknown_jobset_is_refused_with_the_nearest(house: Any) -> None:
    result = house.play("start", jobset="quik")
    assert result.rc != 0
    assert "jobset quik is not defined; did you mean quick? (defined are other, quick)" in result.failures[0]


@pytest.mark.parametrize("command", ["start", "progress"])
def test_a_jobset_must_be_named(house: Any, command: str) -> None:
    result = house.play(command)
    assert result.rc != 0
    assert "Name a jobset: -e jobset=NAME; defined are other, quick" in result.failures[0]


def test_bad_offsets_enqueue_nothing(house: Any) -> None:
    result = house.play("enqueue", jobset="quick", offsets="1,9")
    assert result.rc != 0
    assert "9" in result.failures[0]
    assert house.jobs("pending") == []


def test_enqueue_runs_the_jobs(house: Any) -> None:
    predicted = house.play("enqueue", "--check", jobset="quick")
    assert predicted.rc == 0, predicted.failures
    assert "4 would be enqueued" in predicted.said() and "none would be left alone" in predicted.said()
    assert house.jobs("pending") == []
    result = house.play("enqueue", jobset="quick")
    assert result.rc == 0, result.failures
    assert [job["name"] for job in result.result("Put the jobs into the queue")["jobs"]] == [f"quick_off{k}" for k in range(4)]
    house.wait("done", 4)
    # supervisord calls a program RUNNING when it has run for a second.
    assert {name for name, state in house.programs().items() if state in ("STARTING", "RUNNING")} == {"quick-1", "quick-2", "recover@quick"}


def test_enqueue_leaves_alone_what_is_there(house: Any) -> None:
    result = house.play("enqueue", jobset="quick")
    assert result.changed == []
    assert "quick_off0" in result.said()
    forced = house.play("enqueue", jobset="quick", offsets="3", force=True)
    assert forced.result("Put the jobs into the queue")["counts"]
    house.wait("done", 4)


def test_enqueue_takes_a_list_of_jobs(house: Any) -> None:
    jobs = house.folder / "jobs.txt"
    jobs.write_text("# named by hand\nby_hand NOTE='two words' OFFSET=2\n")
    assert house.play("enqueue", "--check", jobset="quick", jobs_file=str(jobs)).rc == 0
    result = house.play("enqueue", jobset="quick", jobs_file=str(jobs))
    assert result.rc == 0, result.failures
    house.wait("done", 5)
    assert (house.root / "var/quick/log/by_hand.log").exists()


def test_progress_status_logs_journal_and_diag_tell(house: Any) -> None:
    assert "5" in house.play("progress", jobset="quick").said()
    status = house.play("status").said()
    assert "quick-1" in status and "other-1" in status
    assert "part 1" in house.play("logs", jobset="quick", job="quick_off1", lines=5).said()
    assert "quick" in house.play("journal", jobset="quick").said()
    page = house.root / "reports" / "quick.html"
    assert house.play("report", "--check", jobset="quick").said() == f"The report would be {page}" and not page.exists()
    assert house.play("report", jobset="quick").said().startswith(f"The report is {page}")
    assert "5 of 5 jobs are done." in page.read_text()
    assert house.play("diag", "--check").rc == 0 and not (house.root / "diag").exists()
    diag = house.play("diag")
    assert diag.rc == 0, diag.failures
    (archive,) = (house.root / "diag").iterdir()
    assert str(archive) in diag.said()
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert {"README.txt", "controller.txt", "host/uname.txt", "units/files/log/quick-1.log", "queues/other/queue.txt"} <= inside
    rebuilt = house.play("rebuild_image")
    assert rebuilt.rc != 0 and "no jobset of this host runs its jobs in the image" in rebuilt.failures[-1]
    jupyter = house.play("jupyter_url")
    assert jupyter.rc != 0 and "Jupyter does not run here" in jupyter.failures[0]


def test_progress_goes_into_jobs_and_follows_to_the_end(house: Any) -> None:
    said = house.play("progress", jobset="quick", depth="jobs", rows=2).said()
    assert "part" in said and "... and 3 more (rows=5 shows all)" in said
    (house.work / "hold").touch()
    house.play("enqueue", jobset="quick", offsets="0", force=True)
    house.wait("running", 1)
    threading.Timer(4, (house.work / "hold").unlink).start()
    followed = house.play("progress", jobset="quick", follow=True, interval=1)
    assert followed.rc == 0 and followed.said().endswith("jobset quick has ended: all 5 jobs are done")
    path = house.folder / "sagequeue.prom"
    assert house.play("metrics", "--check", metrics_path=str(path)).changed and not path.exists()
    assert f"the metrics of 2 jobsets are in {path}" in house.play("metrics", metrics_path=str(path)).said()
    assert 'sagequeue_jobs{jobset="quick",state="done"} 5\n' in path.read_text()


def test_failed_jobs_are_retried(house: Any) -> None:
    (house.work / "fails").write_text("1")
    house.play("enqueue", jobset="quick", offsets="1", force=True)
    house.wait("failed", 1)
    followed = house.play("progress", jobset="quick", follow=True)
    assert followed.rc != 0 and "1 of 5 jobs failed; see logs, then retry_failed" in followed.failures[0]
    (house.work / "fails").unlink()
    assert house.play("retry_failed", "--check", jobset="quick").changed == ["Put a jobset's failed jobs back to pending"]
    assert house.jobs("failed") == ["quick_off1"]
    house.play("retry_failed", jobset="quick")
    house.wait("done", 5)
    assert house.play("retry_failed", jobset="quick").changed == []


def test_single_jobs_are_held_released_killed_and_reset(house: Any) -> None:
    (house.work / "hold").touch()
    house.play("request_stop", jobset="quick")
    assert house.play("reset", jobset="quick", jobs="off[0-3]").result("Say what is true now")["msg"].startswith("4 back to pending")
    assert house.play("hold", "--check", jobset="quick", jobs="off[0,2-3]").said().startswith("3 would be held")
    held = house.play("hold", jobset="quick", jobs="off[0,2-3]")
    assert held.changed and held.said().startswith("3 held") and house.play("hold", jobset="quick", jobs="off0").changed == []
    said = house.play("list", jobset="quick", state="held,done", jobs="off*,by_hand").said().splitlines()
    assert [line.split()[:2] for line in said[1:-1]] == [["by_hand", "done"], *([f"quick_off{n}", "held"] for n in (0, 2, 3))]
    assert "given priority 5" in house.play("priority", jobset="quick", jobs="off3", priority=5).said()
    assert house.play("release", jobset="quick", jobs="off[0,3]").changed
    house.play("clear_stop", jobset="quick")
    house.wait("running", 2)
    assert "quick_off3" in house.jobs("running")
    killed = house.play("kill", jobset="quick", jobs="off3")
    assert killed.rc == 0 and killed.said() == "1 killed" and house.jobs("failed") == ["quick_off3"]
    assert house.play("kill", jobset="quick", jobs="off3").changed == []
    wrong = house.play("kill", jobset="quick", jobs="off[7-9]")
    assert wrong.rc != 0 and "no job matches 'off[7-9]'; there are by_hand, quick_off0" in wrong.failures[0]
    assert "no jobs are named" in house.play("hold", jobset="quick").failures[0]
    (house.work / "hold").unlink()
    house.play("release", jobset="quick", jobs="*off2")
    house.play("reset", jobset="quick", jobs="off3")
    house.wait("done", 5)


def test_a_stop_is_requested_and_cleared(house: Any) -> None:
    assert house.play("request_stop", jobset="quick").changed
    assert house.play("request_stop", jobset="quick").changed == []
    house.play("enqueue", jobset="quick", offsets="0,1", force=True)
    assert house.jobs("pending") == ["quick_off0", "quick_off1"]
    assert house.play("clear_stop", jobset="quick").changed
    assert house.play("clear_stop", jobset="quick").changed == []
    house.wait("done", 5)


def test_a_stop_gives_jobs_back_and_a_start_goes_on(house: Any) -> None:
    (house.work / "hold").touch()
    house.play("enqueue", jobset="quick", force=True)
    house.wait("running", 2)
    assert "its workers would stop; jobs that run would be pending again" in house.play("stop", "--check", jobset="quick").said()
    assert len(house.jobs("running")) == 2
    assert house.play("stop", jobset="quick").changed
    assert house.play("stop", jobset="quick").changed == []
    assert house.jobs("running") == []
    assert len(house.jobs("pending")) == 4
    assert house.play("start", jobset="quick").changed
    assert house.play("start", jobset="quick").changed == []
    house.wait("running", 2)
    assert house.play("restart", jobset="quick").changed
    house.wait("running", 2)


def test_more_and_fewer_workers_leave_the_others_alone(house: Any) -> None:
    kept = (house.root / "var/quick/queue/running").glob("*.owner")
    before = {path.name: path.read_text() for path in kept}
    house.jobsets["quick"]["workers"] = 3
    house.write()
    assert house.play("setup").rc == 0
    house.wait("running", 3)
    house.jobsets["quick"]["workers"] = 2
    house.write()
    assert house.play("setup").rc == 0
    house.wait("running", 2)
    assert "quick-3" not in house.programs()
    assert {path.name: path.read_text() for path in (house.root / "var/quick/queue/running").glob("*.owner")} == before
    assert house.play("setup").changed == []


def test_orphans_are_requeued(house: Any) -> None:
    house.play("disable", jobset="quick")
    pid = int((house.root / "run/supervisord.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    for process in Path("/proc").glob("[0-9]*"):
        # Others come and go meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if f"{house.root}/bin/sagequeue" in (process / "cmdline").read_text():
                os.kill(int(process.name), signal.SIGKILL)
    assert len(house.jobs("running")) == 2
    result = house.play("requeue_running", jobset="quick")
    assert result.rc == 0, result.failures
    assert house.jobs("running") == []
    assert house.play("requeue_running", jobset="quick").changed == []


def test_what_is_enabled_comes_back_with_setup(house: Any) -> None:
    assert house.play("enable", jobset="quick").changed
    assert house.play("enable", jobset="quick").changed == []
    before = sorted(path.name for path in (house.root / "var/quick/queue").rglob("*.env"))
    # Meanwhile the host has lost what runs the workers, and what they run.
    for folder in ("supervisor", "bin"):
        shutil.rmtree(house.root / folder)
    (house.root / "etc/host.json").unlink()
    back = house.play("setup")
    assert back.rc == 0, back.failures
    assert {"Make the virtual environment", "Install supervisord", "Write the program"} < set(back.changed)
    assert sorted(path.name for path in (house.root / "var/quick/queue").rglob("*.env")) == before
    house.wait("running", 2)
    (house.work / "hold").unlink()
    house.wait("done", 5)


def test_a_solved_jobset_says_by_which_job(house: Any) -> None:
    (house.work / "finds").write_text("2")
    house.play("enqueue", jobset="quick", offsets="2", force=True)
    house.wait("done", 5)
    said = house.play("progress", jobset="quick").said()
    assert "solved" in said and "quick_off2" in said and "quick_off2.log" in said


def test_a_queue_is_purged_only_when_confirmed(house: Any) -> None:
    assert house.play("purge_queue", jobset="quick").rc != 0
    assert house.play("purge_queue", jobset="quick", confirm="other").rc != 0
    assert len(house.jobs("done")) == 5
    assert house.play("purge_queue", "--check", jobset="quick", confirm="quick").changed
    assert len(house.jobs("done")) == 5
    assert house.play("purge_queue", jobset="quick", confirm="quick").changed
    assert house.jobs("done") == []
    assert (house.root / "var/quick/log/quick_off1.log").exists()
    assert house.play("purge_queue", jobset="quick", confirm="quick").changed == []


def test_what_left_the_inventory_is_pruned_only_when_asked(house: Any) -> None:
    del house.jobsets["other"]
    house.write()
    result = house.play("setup")
    assert "other" in result.result("Say which are left")["msg"]
    assert "other-1" in house.programs()
    assert house.play("setup", queue_workers_prune=True).rc == 0
    assert "other-1" not in house.programs()
    assert not (house.root / "etc/jobsets/other.json").exists()


def test_teardown_leaves_what_jobs_made(house: Any) -> None:
    assert house.play("teardown", "--check").rc == 0
    assert (house.root / "bin/sagequeue").exists()
    result = house.play("teardown")
    assert result.rc == 0, result.failures
    assert not (house.root / "bin").exists()
    assert not (house.root / "supervisor").exists()
    assert (house.root / "var/quick/log/quick_off1.log").exists()
    assert (house.work / "part.sh").exists()
    again = house.play("teardown")
    assert again.rc == 0, again.failures
    assert again.changed == []
    unsaid = house.play("teardown", jobset="quick", remove_queue=True)
    assert unsaid.rc != 0 and "-e remove_queue=true deletes jobs: say so with -e confirm=quick." in unsaid.failures[0]
    assert (house.root / "var/quick/queue").exists()
    removed = house.play("teardown", jobset="quick", remove_queue=True, confirm="quick", remove_logs=True)
    assert removed.rc == 0, removed.failures
    assert not (house.root / "var/quick/queue").exists()
    assert not (house.root / "var/quick/log").exists()
