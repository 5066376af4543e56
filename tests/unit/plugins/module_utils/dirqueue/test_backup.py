# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Backups of a jobset that is at work, what comes of them elsewhere, and archives that are not sound."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import backup, definitions, job, owner, restore
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host

OK = {"REASON": "ok", "ATTEMPTS": "1"}


@pytest.fixture(name="tmp_path")
def _in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where that is possible: the calls are the same, and there are hundreds of tries."""
    base = Path("/dev/shm") / f"sagequeue-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        base.mkdir(mode=0o700)
    except OSError:
        base = tmp_path
    yield base
    shutil.rmtree(base)


@pytest.fixture
def queue(host: Any) -> Queue:
    host.define(secrets={"KEY": "s3cret"})
    made: Queue = host.queue()
    return made


@pytest.fixture
def elsewhere(tmp_path: Path, program: Path) -> Any:
    """Another host, with the jobset defined and no job in it."""
    made = Host(tmp_path / "elsewhere", program)
    made.define()
    with contextlib.closing(made):
        yield made


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}  # type: ignore[union-attr]


def fill(host: Any, queue: Queue) -> dict[str, str]:
    """Put something of everything into a queue; return where its jobs are."""
    holder = owner.Holder(queue.layout.workers, "t-1")
    for name, state in (("good", "done"), ("bad", "failed"), ("runs", "")):
        queue.enqueue([(name, {"X": 'it\'s "ü"'})])
        claim = queue.claim(holder)
        assert claim and claim.name == name
        (Path(queue.layout.log) / f"{name}.log").write_text(f"of {name}\n", encoding="utf-8")
        if state:
            queue.finish(claim, state, OK)
    queue.enqueue([("b" * 200, {}), ("first", {"PRIORITY": "5"})])
    (host.work / "state_a_0.txt").write_text("17\n", encoding="utf-8")
    os.chmod(host.work / "state_a_0.txt", 0o664)
    (host.work / "other.txt").write_text("no state\n", encoding="utf-8")
    with open(queue.layout.history, "a", encoding="utf-8") as history:
        history.write('{"half a li')
    return {"good": "done", "bad": "failed", "runs": "running", "b" * 200: "pending", "first": "pending"}


def test_there_and_back(host: Any, queue: Queue, elsewhere: Any) -> None:
    states = fill(host, queue)
    queue.close_gate("me")
    path = host.base / "kept" / "t.tar.gz"
    made = backup.backup(queue, str(path), ["state_*"])
    assert made["counts"] == {"pending": 2, "running": 1, "done": 1, "failed": 1} and made["left_out"] == ["KEY"]
    assert path.stat().st_mode & 0o777 == 0o600 and path.stat().st_nlink == 1 and os.listdir(path.parent) == ["t.tar.gz"]
    held = members(path)
    assert not any(b"s3cret" in data for data in held.values()) and "state/other.txt" not in held
    assert json.loads(held["definition.json"])["secrets"] == {"KEY": "(not in the archive)"}
    with pytest.raises(QueueError, match="is there already; name another file"):
        backup.backup(queue, str(path))

    there = elsewhere.queue()
    done = restore.restore(there, str(path))
    assert done["changed"] and done["kept"] == done["aside"] == []
    assert elsewhere.states() == states == host.states() and elsewhere.owners() == []
    for name, state in states.items():
        assert elsewhere.path(state, name).read_bytes() == host.path(state, name).read_bytes()
        assert elsewhere.path(state, name).stat().st_mtime_ns == host.path(state, name).stat().st_mtime_ns
    assert elsewhere.log("good") == "of good\n" and {line["job"] for line in elsewhere.history()} == {"good", "bad"}
    assert (elsewhere.work / "state_a_0.txt").read_text() == "17\n" and (elsewhere.work / "state_a_0.txt").stat().st_mode & 0o777 == 0o664
    assert there.gate() == queue.gate() and (elsewhere.work / "t_stop.txt").stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(there.layout.run)) == sorted(
        ["staging", "workers", "malformed", "queue.lock", "history.jsonl", "restored.json"]
    )
    assert restore.restore(there, str(path)) == {**done, "changed": False, "msg": done["msg"].replace("restored", "restored already")}
    assert [change.new_state for change in recover(there, make(there.layout, there.jobset))] == ["pending"]
    there.open_gate()
    elsewhere.script("exit 0\n")
    elsewhere.work_off()
    assert elsewhere.states() == {**dict.fromkeys(states, "done"), "bad": "failed"}
    assert [line["job"] for line in elsewhere.history()][2:] == ["runs", "first", "runs", "b" * 200]


def test_a_held_job_stays_held(host: Any, queue: Queue, elsewhere: Any) -> None:
    queue.enqueue([("a", {}), ("b", {})])
    queue.hold(["a"], "anna")
    made = backup.backup(queue, str(host.base / "t.tar.gz"), [])
    restore.restore(elsewhere.queue(), str(host.base / "t.tar.gz"))
    assert made["counts"]["pending"] == 2 and elsewhere.states() == {"a": "held", "b": "pending"}
    assert elsewhere.values("a")["HELD_BY"] == "anna"


def test_who_solved_it_is_done_elsewhere(host: Any, queue: Queue, elsewhere: Any) -> None:
    queue.enqueue(queue.jobset.offset_jobs([0]))
    queue.claim(owner.Holder(queue.layout.workers, "t-1"))
    (host.work / "t_stop.txt").write_text("SAT off=0 stride=1\n", encoding="utf-8")
    path = str(host.base / "t.tar.gz")
    backup.backup(queue, path)
    there = elsewhere.queue()
    restore.restore(there, path)
    recover(there, make(there.layout, there.jobset))
    assert elsewhere.states() == {"t_off0": "done"} and elsewhere.values("t_off0")["REASON"] == "solved"


def test_a_batch_goes_along(host: Any, queue: Queue, elsewhere: Any) -> None:
    holder = owner.Holder(queue.layout.workers, "t-1")
    queue.enqueue([(f"j{number}", {"N": str(number)}) for number in range(1200)])
    for _job in range(3):
        claim = queue.claim(holder)
        assert claim
        queue.finish(claim, "done", OK)
    path = str(host.base / "t.tar.gz")
    assert backup.backup(queue, path)["counts"] == {"pending": 1197, "running": 0, "done": 3, "failed": 0} == queue.counts()
    there = elsewhere.queue()
    restore.restore(there, path)
    assert there.counts() == queue.counts()
    there_holder = owner.Holder(there.layout.workers, "t-1")
    names = []
    while len(names) < 300 and (claim := there.claim(there_holder)):
        names.append(claim.name)
        there.finish(claim, "done", OK)
    assert names == [f"j{number}" for number in range(3, 303)]
    assert there.counts() == {"pending": 897, "running": 0, "done": 303, "failed": 0}


def test_backups_while_workers_are_at_it(host: Any, queue: Queue, tmp_path: Path, program: Path, wait_for: Any) -> None:
    """Eight workers claim, finish, fail and give back, somebody enqueues, retries, redoes and removes; each backup holds every job once."""
    host.script("case $JOB_N in *7) exit 3 ;; esac\n")
    host.define(attempts=1)
    steady = {f"j{number}" for number in range(160)}
    queue.enqueue([(name, {"N": name[1:]}) for name in sorted(steady)])
    processes = [host.worker(f"t-{number}") for number in range(8)]
    over = threading.Event()

    def others() -> None:
        with Queue(queue.layout, queue.jobset) as mine:
            turn = 0
            while not over.is_set():
                turn += 1
                mine.enqueue([(f"new{turn}", {"N": "1"})])
                mine.retry()
                mine.enqueue([(f"j{turn % 160}", {"N": "1"})], force=True)
                mine.remove([f"new{turn - 5}"])
                # The lock is for others, too.
                over.wait(0.02)

    thread = threading.Thread(target=others)
    thread.start()
    made = []
    try:
        # On a busy machine workers take their time to begin.
        wait_for(lambda: queue.counts()["done"])
        while len(made) < 12 or (len(made) < 24 and queue.counts()["done"] < 100):
            made.append(tmp_path / f"{len(made)}.tar.gz")
            backup.backup(queue, str(made[-1]))
    finally:
        over.set()
        thread.join()
        for process in processes:
            process.kill()
    seen: Counter[str] = Counter()
    for path in made:
        found = [name.split("/")[1:] for name in members(path) if name.startswith("queue/")]
        names = [entry[: -len(job.SUFFIX)] for _state, entry in found]
        seen.update(state for state, _entry in found)
        assert len(names) == len(set(names)) and steady <= set(names), steady - set(names)
        for name, data in members(path).items():
            if name.startswith("queue/"):
                assert "ENQUEUED_AT" in job.parse(data) and (data.count(b"RESULT=pending") == 0 or "/done/" not in name)
            if name == "run/history.jsonl":
                assert all(json.loads(line) for line in data.splitlines())
    assert set(seen) >= {"pending", "running", "done"}
    # Each is brought back on a host of its own, and worked off there; the last one by a real worker.
    for number, path in enumerate(made):
        there = Host(tmp_path / f"there{number}", program)
        with contextlib.closing(there):
            there.define()
            there.script("exit 0\n")
            with there.queue() as restored:
                assert restore.restore(restored, str(path))["changed"]
                before = there.states()
                recover(restored, make(restored.layout, restored.jobset))
                if path != made[-1]:
                    holder = owner.Holder(restored.layout.workers, "t-1")
                    while claim := restored.claim(holder):
                        restored.finish(claim, "done", OK)
            if path == made[-1]:
                there.work_off()
            assert there.states() == {name: "failed" if state == "failed" else "done" for name, state in before.items()}


def test_a_job_that_moves_back_while_a_snapshot_is_taken_is_not_missed(host: Any, queue: Queue, monkeypatch: Any) -> None:
    fill(host, queue)
    threads: list[threading.Thread] = []

    def retry() -> None:
        with Queue(queue.layout, queue.jobset) as mine:
            mine.retry()

    def entries(state: str) -> list[str]:
        found = Queue.entries(queue, state)
        if state == "pending":
            threads.append(threading.Thread(target=retry))
            threads[0].start()
            # It can't, as long as the lock is held.
            threads[0].join(0.3)
        return found

    monkeypatch.setattr(queue, "entries", entries)
    found = queue.snapshot()
    threads[0].join()
    assert found.states["bad"] == "failed" and host.states()["bad"] == "pending"
    assert queue.copy("bad", "failed") == (
        "pending",
        host.path("pending", "bad").stat().st_mtime_ns,
        host.path("pending", "bad").read_bytes(),
    )


def test_a_job_that_moves_back_while_it_is_looked_for_is_found(host: Any, queue: Queue, monkeypatch: Any) -> None:
    fill(host, queue)

    def why_refused(state: str, name: str) -> str:
        try:
            return Queue.why_refused(queue, state, name)
        except FileNotFoundError:
            if state == "pending":
                with Queue(queue.layout, queue.jobset) as mine:
                    mine.retry()
            raise

    assert queue.copy("none", "done") is None
    monkeypatch.setattr(queue, "why_refused", why_refused)
    copied = queue.copy("bad", "running")
    assert copied and copied[0] == "pending"


def test_a_job_that_is_about_to_be_redone_is_not_taken_for_done(host: Any, queue: Queue) -> None:
    fill(host, queue)
    host.put("done", "good", "ENQUEUED_AT=x\nRESULT=pending\n")
    (Path(queue.layout.staging) / "redo.0").write_text("good\n", encoding="utf-8")
    assert queue.copy("good", "done") == ("pending", host.path("pending", "good").stat().st_mtime_ns, b"ENQUEUED_AT=x\nRESULT=pending\n")


def test_a_backup_that_is_killed_leaves_none(host: Any, queue: Queue, killed_at: Callable[..., bool]) -> None:
    fill(host, queue)
    path, number, whole = host.base / "kept" / "t.tar.gz", 0, 0
    while True:
        number += 1
        killed = killed_at(lambda: backup.backup(queue, str(path), ["state_*"]), number)
        if path.exists():
            whole += killed
            assert set(members(path)) >= {"archive.json", "manifest.json", "state/state_a_0.txt"}
            path.unlink()
        if not killed:
            break
    assert number > 20 and whole
    backup.backup(queue, str(path))
    assert os.listdir(path.parent) == ["t.tar.gz"]


def test_a_restore_that_is_killed_ends_right_when_it_is_run_again(host: Any, queue: Queue, elsewhere: Any, killed_at: Any) -> None:
    states = fill(host, queue)
    queue.close_gate("me")
    path = str(host.base / "t.tar.gz")
    backup.backup(queue, path, ["state_*"])
    number, amid = 0, 0
    killed = True
    while killed:
        number += 1
        shutil.rmtree(elsewhere.root / "var")
        shutil.rmtree(elsewhere.work)
        elsewhere.work.mkdir()
        elsewhere.define()

        def once() -> None:
            with Queue(Layout(str(elsewhere.root), "t"), definitions.load(str(elsewhere.root), "t")) as there:
                restore.restore(there, path)

        killed = killed_at(once, number)
        amid += 0 < len(elsewhere.states()) < len(states)
        with Queue(Layout(str(elsewhere.root), "t"), definitions.load(str(elsewhere.root), "t")) as there:
            # Workers may be at it already: nothing is pending before all else is there, and no job before what it finds when it starts.
            placed = elsewhere.states()
            if placed:
                assert there.gate().closed and len(elsewhere.history()) == 2 and elsewhere.log("runs") == "of runs\n"
                assert (elsewhere.work / "state_a_0.txt").read_text() == "17\n"
            if "pending" in placed.values():
                assert set(states) - set(placed) <= {name for name, state in states.items() if state == "pending"}
            restore.restore(there, path)
            assert elsewhere.states() == states and there.gate() == queue.gate()
            assert elsewhere.log("good") == "of good\n" and len(elsewhere.history()) == 2
            assert (elsewhere.work / "state_a_0.txt").read_text() == "17\n"
            left = set(os.listdir(there.layout.run)) - {"staging", "workers", "malformed", "queue.lock", "history.jsonl", "restored.json"}
            assert all(entry.endswith(".new") for entry in left), left
            assert sorted(os.listdir(elsewhere.work)) == ["state_a_0.txt", "t_stop.txt"]
    assert number > 40 and amid


def test_a_restore_goes_into_a_queue_without_jobs_alone(host: Any, queue: Queue, elsewhere: Any) -> None:
    fill(host, queue)
    path = str(host.base / "t.tar.gz")
    backup.backup(queue, path, ["state_*"])
    there = elsewhere.queue()
    there.enqueue([("mine", {})])
    with pytest.raises(QueueError, match=r"has jobs here already \(1 pending\).*purge_queue.*nothing was changed"):
        restore.restore(there, path)
    assert elsewhere.states() == {"mine": "pending"}
    there.remove(None)
    (elsewhere.work / "state_a_0.txt").write_text("5\n", encoding="utf-8")
    with pytest.raises(QueueError, match=r"1 state files that differ .*\(state_a_0.txt\).*keep_state_files"):
        restore.restore(there, path)
    assert elsewhere.states() == {}
    (Path(there.layout.log) / "good.log").write_text("older\n", encoding="utf-8")
    predicted = restore.restore(there, path, keep_state_files=True, check=True)
    assert predicted["changed"] and elsewhere.states() == {}
    done = restore.restore(there, path, keep_state_files=True)
    assert done["kept"] == [str(elsewhere.work / "state_a_0.txt")] and (elsewhere.work / "state_a_0.txt").read_text() == "5\n"
    assert elsewhere.log("good") == "of good\n" and [Path(one).read_text() for one in done["aside"]] == ["older\n"]
    # What was removed meanwhile comes back by a second restore.
    holder = owner.Holder(there.layout.workers, "x")
    recover(there, make(there.layout, there.jobset))
    holder.release()
    there.remove(None)
    assert restore.restore(there, path, keep_state_files=True)["changed"] and len(elsewhere.states()) == 5


def forged(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], Any]) -> Path:
    """Write an archive anew with something changed in it."""
    entries = []
    with tarfile.open(path) as tar:
        for member in tar:
            entries.append((member, tar.extractfile(member).read()))  # type: ignore[union-attr]
    change(entries)
    out = path.with_name("forged.tar.gz")
    with tarfile.open(out, "w:gz", format=tarfile.GNU_FORMAT) as tar:
        for member, data in entries:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return out


def _named(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _inserted(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"x") -> Any:
    return lambda entries: entries.insert(2, (_named(name, kind, target), data))


def _replaced(name: str, data: bytes) -> Any:
    def change(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries[:] = [(member, data if member.name == name else old) for member, old in entries]

    return change


def _timeless(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    listed = json.loads(entries[-1][1])
    listed["files"]["queue/done/good.env"][2] = "noon"
    entries[-1] = (entries[-1][0], json.dumps(listed).encode())


HOSTILE: dict[str, tuple[Any, str]] = {
    "absolute": (_inserted("/tmp/pwned"), "'/tmp/pwned' is nothing that a backup holds"),
    "above": (_inserted("state/../../pwned"), "is nothing that a backup holds"),
    "the folder above": (_inserted("state/.."), "is nothing that a backup holds"),
    "another file of the queue": (_inserted("run/queue.lock"), "is nothing that a backup holds"),
    "an owner record": (_inserted("queue/running/x.env.owner"), "is nothing that a backup holds"),
    "link": (_inserted("state/x", tarfile.SYMTYPE, "/etc"), "'state/x' is a link, not a plain file"),
    "hard link": (_inserted("state/x", tarfile.LNKTYPE, "archive.json"), "'state/x' is a hard link"),
    "device": (_inserted("log/x", tarfile.CHRTYPE), "'log/x' is a device"),
    "FIFO": (_inserted("log/x", tarfile.FIFOTYPE), "'log/x' is a FIFO"),
    "folder": (_inserted("log", tarfile.DIRTYPE), "'log' is a folder"),
    "sparse": (_inserted("log/x", tarfile.GNUTYPE_SPARSE), "of a kind that no backup writes"),
    "long name": (_inserted("log/" + "x" * 5000), "of a kind that no backup writes"),
    "large job": (_inserted("queue/pending/x.env", data=b"x" * 70000), "queue/pending/x.env has 70000 bytes; at most 65536"),
    "not in the manifest": (_inserted("queue/pending/x.env"), "queue/pending/x.env is not as manifest.json says"),
    "job twice": (_inserted("queue/done/runs.env"), "the job runs is in two states"),
    "member twice": (_inserted("archive.json"), "archive.json is in it twice"),
    "changed job": (_replaced("queue/done/good.env", b"X=1\n"), "queue/done/good.env is not as manifest.json says"),
    "job missing": (
        lambda entries: entries.remove(next(e for e in entries if e[0].name == "queue/done/good.env")),
        "queue/done/good.env is missing, which manifest.json names",
    ),
    "not a regular name": (_inserted("queue/pending/.env"), "is nothing that a backup holds"),
    "manifest twice": (lambda entries: entries.append(entries[-1]), "manifest.json is there twice, or too large"),
    "no time": (_timeless, "queue/done/good.env has no time"),
    "no id": (_replaced("archive.json", b'{"format": 1, "jobset": "t", "id": "../x"}'), "archive.json has no id"),
    "no manifest": (lambda entries: entries.pop(), "no manifest.json, so it was cut short"),
    "manifest is a list": (_replaced("manifest.json", b"[]"), "manifest.json is not what a backup writes"),
    "manifest has nonsense": (_replaced("manifest.json", b'{"files": {"gate": 3}}'), "is not as manifest.json says|is missing"),
    "manifest is deep": (_replaced("manifest.json", b"[" * 100000), "is no whole archive|too large"),
    "head comes second": (lambda entries: entries.insert(0, entries.pop(1)), "archive.json does not come first"),
    "other format": (_replaced("archive.json", b'{"format": 2}'), "it has the format 2, and this release knows 1"),
    "other jobset": (
        _replaced("archive.json", b'{"format": 1, "jobset": "u", "id": "' + b"0" * 32 + b'"}'),
        "it is of the jobset 'u', not of t",
    ),
}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_hostile_archive_changes_nothing(host: Any, queue: Queue, elsewhere: Any, what: str) -> None:
    fill(host, queue)
    path = host.base / "t.tar.gz"
    backup.backup(queue, str(path), ["state_*"])
    change, reason = HOSTILE[what]
    with Queue(Layout(str(elsewhere.root), "t"), definitions.load(str(elsewhere.root), "t")) as there:
        with pytest.raises(QueueError, match=reason) as error:
            restore.restore(there, str(forged(path, change)))
        assert "nothing was changed" in str(error.value)
        assert elsewhere.states() == {} and os.listdir(elsewhere.work) == [] and os.listdir(there.layout.log) == []
        assert sorted(os.listdir(there.layout.run)) == ["malformed", "staging", "workers"]


def test_what_is_no_archive_or_not_whole(host: Any, queue: Queue, elsewhere: Any) -> None:
    fill(host, queue)
    path = host.base / "t.tar.gz"
    backup.backup(queue, str(path))
    data = path.read_bytes()
    there = elsewhere.queue()
    longer = gzip.compress(gzip.decompress(data) + bytes(3 << 20))
    (host.base / "bad.tar.gz").write_bytes(longer)
    with pytest.raises(QueueError, match=r"bad\.tar\.gz can't be restored: it goes on after its end; nothing was changed"):
        restore.restore(there, str(host.base / "bad.tar.gz"))
    bombs = [longer, b"", b"nonsense" * 100, gzip.compress(b"nonsense" * 1000)]
    for bad in [*bombs, *(data[:cut] for cut in range(1, len(data), len(data) // 40)), data[:-20] + b"x" + data[-19:]]:
        (host.base / "bad.tar.gz").write_bytes(bad)
        with pytest.raises(QueueError, match="nothing was changed"):
            restore.restore(there, str(host.base / "bad.tar.gz"))
        assert elsewhere.states() == {} and sorted(os.listdir(there.layout.run)) == ["malformed", "staging", "workers"]


def test_what_becomes_shorter_meanwhile_is_not_kept(host: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(host, queue)
    whole_lines = backup._whole_lines

    def meanwhile(fd: int, size: int) -> int:
        found = whole_lines(fd, size)
        os.truncate(queue.layout.history, found - 1)
        return found

    monkeypatch.setattr(backup, "_whole_lines", meanwhile)
    with pytest.raises(QueueError, match="history.jsonl became shorter while it was read; nothing was written; run the backup again"):
        backup.backup(queue, str(host.base / "t.tar.gz"))
    assert not list(host.base.glob("*.gz*"))


def test_what_is_refused_is_named(host: Any, queue: Queue) -> None:
    fill(host, queue)
    host.put("pending", "link").unlink()
    host.path("pending", "link").symlink_to("/etc/passwd")
    host.put("done", "large", "X=" + "x" * 70000)
    (host.work / "state_link").symlink_to("/etc/passwd")
    os.link(host.work / "other.txt", host.work / "state_linked")
    made = backup.backup(queue, str(host.base / "t.tar.gz"), ["state_*"])
    assert made["refused"] == {
        "pending/link.env": "not a regular file",
        "done/large.env": "larger than 65536 bytes",
        "state/state_linked": "refused, has a second name (a hard link)",
    }
    assert sum(made["counts"].values()) == 5
    assert "; 3 refused: " in backup.described(made) and "done/large.env: larger than 65536 bytes" in backup.described(made)
    with pytest.raises(QueueError, match="is not a pattern of names"):
        backup.backup(queue, str(host.base / "u.tar.gz"), ["../x"])


def test_on_the_command_line(host: Any, queue: Queue, elsewhere: Any) -> None:
    fill(host, queue)
    path = str(host.base / "t.tar.gz")
    made = host.sagequeue("backup", "t", path, "--state-files", "state_*")
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{path}: 2 pending, 1 running, 1 done, 1 failed; without the values of the secrets KEY\n"
    done = elsewhere.sagequeue("restore", "t", path)
    assert done.returncode == 0, done.stderr
    assert "job runs: running -> pending" in done.stdout and "restored: t as it was at 20" in done.stdout
    again = elsewhere.sagequeue("restore", "t", str(host.base / "none.tar.gz"))
    assert again.returncode == 1 and "none.tar.gz: No such file" in again.stderr
