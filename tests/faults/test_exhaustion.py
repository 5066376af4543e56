# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Nothing is lost when the host runs out of space, inodes, quota, open files or memory, at any amount that is left.

Each file system is a real one, mounted for the test, and left with so many blocks or inodes. Each operation is tried with
nothing left, with a little more, and so on until it has worked twice. Where it fails, it must say why and change
nothing by halves; with room again, the same call must work.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions, job, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Claim, Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.known import make
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.unit.batch_host import REPOSITORY, Host, wait_for

_BLOCK = 4096


class Space:
    """What runs short: a real file system at a folder, of which a test says how much is left."""

    unit = 1
    reasons = (errno.ENOSPC,)

    def __init__(self, folder: Path, size: int = 0) -> None:
        self.folder = folder
        self.image = folder.parent / "image"
        self.size = size
        folder.mkdir()

    def command(self, *words: str) -> None:
        """Run a command of root's; skip the test where that is refused."""
        if not shutil.which(words[0]):
            pytest.skip(f"{words[0]} is not installed")
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{' '.join(words)}: {done.stderr.strip()}")

    def mount(self) -> None:
        raise NotImplementedError

    def leave(self, room: int) -> None:
        """Let so many units be left."""
        raise NotImplementedError

    def free(self) -> None:
        """Let plenty be left."""
        raise NotImplementedError

    def unmount(self) -> None:
        for _attempt in range(50):
            if subprocess.run(["umount", str(self.folder)], capture_output=True, check=False).returncode == 0:
                return
            time.sleep(0.1)
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


class Tmpfs(Space):
    """Blocks of a small tmpfs."""

    what = "size"

    def mount(self) -> None:
        self.command("mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=100000,mode=700", "none", str(self.folder))

    def used(self) -> int:
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def leave(self, room: int) -> None:
        self.command("mount", "-o", f"remount,{self.what}={self.used() + room * _BLOCK}", str(self.folder))

    def free(self) -> None:
        self.command("mount", "-o", "remount,size=64m,nr_inodes=100000", str(self.folder))


class TmpfsInodes(Tmpfs):
    """Inodes of a small tmpfs."""

    def leave(self, room: int) -> None:
        found = os.statvfs(self.folder)
        self.command("mount", "-o", f"remount,nr_inodes={found.f_files - found.f_ffree + room}", str(self.folder))


class Ext4(Space):
    """Blocks of an ext4."""

    make = ("mkfs.ext4", "-q", "-m", "0", "-b", str(_BLOCK), "-N", "8192")
    size = 48 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, type(self).size)
        self.ballast = folder / "ballast"

    def mount(self) -> None:
        with open(self.image, "wb") as file:
            file.truncate(self.size)
        self.command(*self.make, str(self.image))
        self.command("mount", "-o", "loop", str(self.image), str(self.folder))
        for kept in Path("/sys/fs/ext4").glob("*/reserved_clusters"):
            # What ext4 keeps for its own use is part of what is left.
            device = os.stat(self.folder).st_dev
            if (Path("/sys/dev/block") / f"{os.major(device)}:{os.minor(device)}").resolve().name == kept.parent.name:
                kept.write_text("0", encoding="ascii")

    def leave(self, room: int) -> None:
        grown = -1
        while grown != 0:
            # What waits to be written has reserved more than it will take.
            self.command("sync", "--file-system", str(self.folder))
            with open(self.ballast, "ab") as file:
                began = end = os.fstat(file.fileno()).st_size
                step = self.size
                while step >= _BLOCK:
                    try:
                        os.posix_fallocate(file.fileno(), end, step)
                        end += step
                    except OSError as exc:
                        assert exc.errno == errno.ENOSPC
                        step //= 2
                grown = end - began
        with open(self.ballast, "ab") as file:
            file.truncate(max(0, end - room * _BLOCK * self.unit))
            os.fsync(file.fileno())

    def free(self) -> None:
        with open(self.ballast, "ab") as file:
            file.truncate(0)


class Ext4Inodes(Ext4):
    """Inodes of an ext4."""

    make = ("mkfs.ext4", "-q", "-m", "0", "-b", str(_BLOCK), "-N", "512")

    def leave(self, room: int) -> None:
        self.ballast.mkdir(exist_ok=True)
        held = sorted(self.ballast.iterdir())
        more = os.statvfs(self.folder).f_ffree - room
        for number in range(max(0, more)):
            (self.ballast / f"{len(held) + number:06}").touch()
        for path in held[more:] if more < 0 else []:
            path.unlink()

    def free(self) -> None:
        self.leave(400)


class Xfs(Ext4):
    """Blocks of an xfs."""

    make = ("mkfs.xfs", "-q")
    size = 320 << 20


class Btrfs(Ext4):
    """Space of a btrfs."""

    make = ("mkfs.btrfs", "-q", "--mixed")
    size = 64 << 20
    unit = 4


class Quota(Btrfs):
    """A quota: that of a subvolume of a btrfs, which binds root, too."""

    size = 256 << 20
    make = ("mkfs.btrfs", "-q")
    reasons = (errno.EDQUOT,)

    def mount(self) -> None:
        super().mount()
        self.command("btrfs", "quota", "enable", str(self.folder))
        self.command("btrfs", "subvolume", "create", str(self.folder / "limited"))
        # The whole of it beside: a limit can't be changed from within it.
        self.whole = self.folder.with_name("whole")
        self.whole.mkdir()
        self.command("mount", "--move", str(self.folder), str(self.whole))
        self.command("mount", "--bind", str(self.whole / "limited"), str(self.folder))

    def leave(self, room: int) -> None:
        shown = ["btrfs", "qgroup", "show", "--raw", "--sync", "-f", str(self.whole / "limited")]
        used = subprocess.run(shown, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()[1]
        self.command("btrfs", "qgroup", "limit", str(int(used) + room * _BLOCK * self.unit), "0/256", str(self.whole))

    def free(self) -> None:
        self.command("btrfs", "qgroup", "limit", "none", "0/256", str(self.whole))

    def unmount(self) -> None:
        super().unmount()
        subprocess.run(["umount", str(self.whole)], check=False)


ROWS = {
    "tmpfs": ("disk full", Tmpfs),
    "tmpfs_inodes": ("out of inodes", TmpfsInodes),
    "ext4": ("disk full", Ext4),
    "ext4_inodes": ("out of inodes", Ext4Inodes),
    "quota": ("quota", Quota),
    "xfs": ("disk full", Xfs),
    "btrfs": ("disk full", Btrfs),
}


class Short:
    """A host whose sagequeue folder, and work folder, lie where something runs short."""

    def __init__(self, host: Host, space: Space) -> None:
        self.host = host
        self.space = space
        # Says to the jobs that they may end; there is always room for it.
        self.go = host.base / "go"


@contextlib.contextmanager
def _short(kind: str, base: Path, program: Path) -> Iterator[Short]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    space = ROWS[kind][1](base / "sagequeue")
    space.mount()
    try:
        host = Host(base, program)
        host.work = host.root / "work"
        host.work.mkdir()
        with contextlib.closing(host):
            yield Short(host, space)
            space.free()
    finally:
        space.unmount()


def _queue(host: Host) -> Queue:
    return Queue(Layout(str(host.root), "t"), definitions.load(str(host.root), "t"))


def _clear(error: BaseException, host: Host, reasons: tuple[int, ...]) -> str:
    """Check that an error names the thing, the reason and the next step; return its text."""
    assert isinstance(error, (OSError, MemoryError, QueueError)), repr(error)
    text = explain(error, str(host.root))
    assert str(host.base) in text or "/proc/" in text, text
    assert any(f"{os.strerror(reason)}; " in text for reason in reasons), text
    return text


# ---- every operation, at every level of room ------------------------------------------------------------------------


class Deed:
    """One operation on a queue: what it needs, the call, and whether what is there then can be true."""

    # From eight units of room on, without --long, so many more at a time.
    step = 1

    def __init__(self, queue: Queue, host: Host) -> None:
        self.queue = queue
        self.host = host
        self.names: list[str] = []

    def prepare(self) -> None:
        """With room: make what the operation needs."""

    def call(self) -> None:
        raise NotImplementedError

    def failed(self, text: str) -> None:
        """Check what is there after a call that failed."""

    def worked(self) -> None:
        """Check what is there after a call that worked."""
        raise NotImplementedError

    def states(self) -> set[str]:
        found = self.host.states()
        assert set(found) == set(self.names), (found, self.names)
        return set(found.values())

    def put(self, state: str, *names: str, text: str = "") -> None:
        for name in names:
            self.host.put(state, name, f"VALUE=of {name}\n{text}")
        self.names += names

    def own_values(self) -> None:
        """The jobs' own values are what they were."""
        for name, state in self.host.states().items():
            assert job.parse(self.host.path(state, name).read_bytes())["VALUE"] == f"of {name}"


class Enqueue(Deed):
    """Enqueue some jobs beside one that is there."""

    many = 1

    def prepare(self) -> None:
        self.put("pending", "there")

    def call(self) -> None:
        self.queue.enqueue([(f"job_{number}", {"VALUE": f"of job_{number}"}) for number in range(self.many)])

    def failed(self, text: str) -> None:
        assert "nothing was enqueued" in text or "can't enqueue" not in text, text
        assert self.states() == {"pending"}
        assert os.listdir(self.queue.layout.staging) == []

    def worked(self) -> None:
        self.names = ["there", *(f"job_{number}" for number in range(self.many))]
        assert self.states() == {"pending"}
        self.own_values()


class Enqueue24(Enqueue):
    many = 24
    step = 5


class EnqueueHundreds(Enqueue):
    many = 300
    step = 60


class EnqueueThousands(Enqueue):
    """Enqueue so many jobs that they become one file."""

    many = 5000
    step = 12

    def failed(self, text: str) -> None:
        super().failed(text)
        assert self.queue.counts()["pending"] == 1
        assert os.listdir(self.queue.layout.batches) == []

    def worked(self) -> None:
        names = [name for name, _values in self.queue.batched()]
        assert names == [f"job_{number}" for number in range(self.many)]
        assert self.states() == {"pending"}


class EnqueueAgain(Deed):
    """Redo jobs that are done."""

    step = 5

    def prepare(self) -> None:
        self.put("done", *(f"job_{number}" for number in range(24)), text="REASON=ok\n")

    def call(self) -> None:
        self.queue.enqueue([(name, {"VALUE": f"of {name}"}) for name in self.names], force=True)

    def failed(self, text: str) -> None:
        # Those that can't be called back are named.
        kept = {name for name, state in self.host.states().items() if state == "done" and "REASON" in self.host.values(name)}
        left = set(re.findall(r"job_[0-9]+", text))
        assert set(self.names) == kept | left, text

    def worked(self) -> None:
        assert self.states() == {"pending"}
        self.own_values()


class ClaimOne(Deed):
    """Claim a job."""

    def prepare(self) -> None:
        self.put("pending", "job_0", "job_1")
        self.holder = owner.Holder(self.queue.layout.workers, "t-1")

    def call(self) -> None:
        claim = self.queue.claim(self.holder)
        assert claim
        self.claim: Claim = claim

    def failed(self, text: str) -> None:
        assert self.states() <= {"pending", "running"}

    def worked(self) -> None:
        assert sorted(self.host.states().values()) == ["pending", "running"]
        assert self.host.owners() == [f"{self.claim.name}.env.owner"]
        self.queue.finish(self.claim, "done", {"REASON": "ok"})
        assert self.host.owners() == []
        self.holder.release()
        self.own_values()


class ClaimOfBatch(ClaimOne):
    """Claim a job of a batch, some of whose jobs become files first."""

    step = 80

    def prepare(self) -> None:
        self.everything = [f"job_{number}" for number in range(1000)]
        self.queue.enqueue([(name, {"VALUE": f"of {name}"}) for name in self.everything])
        self.holder = owner.Holder(self.queue.layout.workers, "t-1")

    def failed(self, text: str) -> None:
        names = [*self.host.states(), *(name for name, _values in self.queue.batched())]
        assert sorted(names) == sorted(self.everything)

    def worked(self) -> None:
        self.failed("")
        assert self.host.owners() == [f"{self.claim.name}.env.owner"]
        self.queue.finish(self.claim, "done", {"REASON": "ok"})
        self.holder.release()
        self.own_values()


class Malformed(Deed):
    """Claim a job that can't be understood."""

    def prepare(self) -> None:
        self.put("pending", "broken", text="no job at all\n")
        self.holder = owner.Holder(self.queue.layout.workers, "t-1")

    def call(self) -> None:
        # A folder that has not changed is read again after a while only.
        wait_for(lambda: self.queue.claim(self.holder) is None and self.states() == {"failed"})

    def failed(self, text: str) -> None:
        assert self.states() <= {"pending", "running"}

    def worked(self) -> None:
        assert self.states() == {"failed"}
        assert self.host.values("broken")["REASON"] == "malformed_job"
        assert "no job at all" in Path(self.host.values("broken")["ORIGINAL"]).read_text(encoding="utf-8")
        assert self.host.owners() == []
        self.holder.release()


class Finish(Deed):
    """Finish a job."""

    state = "done"

    def prepare(self) -> None:
        self.put("pending", "job_0")
        self.holder = owner.Holder(self.queue.layout.workers, "t-1")
        claim = self.queue.claim(self.holder)
        assert claim
        self.claim = claim

    def call(self) -> None:
        self.queue.finish(self.claim, self.state, {"REASON": "ok", "ATTEMPTS": "1"})

    def failed(self, text: str) -> None:
        assert self.states() == {"running"}
        assert (self.queue.owner_of("job_0") or {})["OWNER_CLAIM"] == self.claim.id
        self.own_values()

    def worked(self) -> None:
        assert self.states() == {self.state}
        assert [attempt["claim"] for attempt in self.host.history()].count(self.claim.id) >= 1
        assert self.host.owners() == []
        self.holder.release()
        self.own_values()


class PutBack(Finish):
    """Put a job back to pending."""

    state = "pending"


class Recover(Deed):
    """Recover orphans, with owner records and without."""

    def prepare(self) -> None:
        self.put("pending", "job_0", "job_1")
        holder = owner.Holder(self.queue.layout.workers, "dead-1")
        for _number in range(2):
            claim = self.queue.claim(holder)
            assert claim
            record = self.host.path("running", claim.name).with_suffix(".env.owner")
            record.write_text(re.sub("OWNER_BOOT=.*", "OWNER_BOOT=another", record.read_text(encoding="utf-8")), encoding="utf-8")
        holder.release()
        self.put("running", "job_2", "job_3")

    def call(self) -> None:
        recover(self.queue, make(self.queue.layout, self.queue.jobset))

    def failed(self, text: str) -> None:
        assert self.states() <= {"pending", "running"}
        self.own_values()

    def worked(self) -> None:
        assert self.states() == {"pending"}
        assert {self.host.values(name)["RECOVERIES"] for name in self.names} == {"1"}
        assert self.host.owners() == []
        self.own_values()


class Retry(Deed):
    """Retry failed jobs."""

    def prepare(self) -> None:
        self.put("failed", "job_0", "job_1", "job_2", text="REASON=exit_status\nATTEMPTS=2\n")

    def call(self) -> None:
        self.queue.retry()

    def failed(self, text: str) -> None:
        assert self.states() <= {"failed", "pending"}
        self.own_values()

    def worked(self) -> None:
        assert self.states() == {"pending"}
        assert {self.host.values(name)["ATTEMPTS"] for name in self.names} == {"0"}
        self.own_values()


class Remove(Deed):
    """Remove jobs."""

    def prepare(self) -> None:
        self.put("done", "job_0", "job_1")
        for name in self.names:
            (Path(self.queue.layout.log) / f"{name}.log").write_text("said\n", encoding="utf-8")

    def call(self) -> None:
        self.queue.remove(None, logs=True)

    def failed(self, text: str) -> None:
        assert set(self.host.states()) <= set(self.names)

    def worked(self) -> None:
        assert self.host.states() == {}


class CloseGate(Deed):
    """Close the gate."""

    def call(self) -> None:
        assert self.queue.close_gate("somebody")

    def failed(self, text: str) -> None:
        assert [path.name for path in self.host.work.iterdir()] == ["job.sh"]

    def worked(self) -> None:
        assert self.queue.gate().text.startswith("STOP requested by somebody at ")
        os.unlink(self.queue.jobset.gate)


class OpenGate(Deed):
    """Open the gate."""

    def prepare(self) -> None:
        Path(self.queue.jobset.gate).write_text("found: " + "x" * 5000, encoding="utf-8")

    def call(self) -> None:
        assert self.queue.open_gate()

    def failed(self, text: str) -> None:
        assert Path(self.queue.jobset.gate).exists()

    def worked(self) -> None:
        lines = Path(self.queue.layout.gates).read_text(encoding="utf-8").splitlines()
        assert json.loads(lines[-1])["text"].startswith("found: xx")
        assert not os.path.lexists(self.queue.jobset.gate)


DEEDS: list[type[Deed]] = [
    *(Enqueue, Enqueue24, EnqueueHundreds, EnqueueThousands, EnqueueAgain),
    *(ClaimOne, ClaimOfBatch, Malformed, Finish, PutBack, Recover, Retry, Remove, CloseGate, OpenGate),
]


def _at_every_level(
    host: Host, deed: type[Deed], reasons: tuple[int, ...], long: bool, leave: Callable[[int], Any], free: Callable[[], Any]
) -> int:
    """Try a deed with nothing left, with a little more, until it has worked twice; return how often it failed."""
    fails = worked = room = 0
    while worked < 2:
        assert room < 5000, f"{deed.__name__} never works"
        shutil.rmtree(host.root / "var", ignore_errors=True)
        host.define()
        with _queue(host) as queue:
            done = deed(queue, host)
            done.prepare()
            leave(room)
            try:
                done.call()
                error: Optional[BaseException] = None
            except BaseException as exc:
                error = exc
            # The files that a check opens need some, too.
            if reasons != (errno.ENOSPC,):
                free()
            if error is None:
                worked += 1
            else:
                fails += 1
                worked = 0
                done.failed(_clear(error, host, reasons))
                free()
                done.call()
            free()
            done.worked()
        room += 1 if room < 8 else max(1, deed.step // 10) if long else deed.step
    return fails


@pytest.mark.parametrize("kind", list(ROWS))
def test_every_operation_at_every_level_of_room(kind: str, tmp_path: Path, program: Path, long: bool) -> None:
    if kind not in ("ext4", "tmpfs_inodes", "quota") and not long:
        pytest.skip("with --long")
    row = ROWS[kind][0]
    with _short(kind, tmp_path, program) as short:
        short.host.script("exit 0\n")
        # Each step of a quota takes long.
        for deed in DEEDS if long or kind != "quota" else (Enqueue24, Finish, Recover):
            tries = _at_every_level(short.host, deed, short.space.reasons, long, short.space.leave, short.space.free)
            print(kind, deed.__name__, tries)
            if tries:
                ledger.record(row, tries=tries)


def test_a_btrfs_is_listed_as_it_is_now(tmp_path: Path, program: Path) -> None:
    with _short("btrfs", tmp_path, program) as short:
        short.host.define()
        with _queue(short.host) as early:
            assert early.entries("pending") == []
            short.host.put("pending", "job_0", "")
            assert early.entries("pending") == ["job_0"]


# ---- what can't be left in a certain amount -------------------------------------------------------------------------


def test_a_read_only_file_system(tmp_path: Path, program: Path) -> None:
    """The file system becomes read-only between the operations, and writable again."""
    with _short("ext4", tmp_path, program) as short:
        short.host.script("exit 0\n")
        tries = 0

        def mount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", str(short.space.folder)], check=True)

        for deed in DEEDS:
            shutil.rmtree(short.host.root / "var", ignore_errors=True)
            short.host.define()
            with _queue(short.host) as queue:
                done = deed(queue, short.host)
                done.prepare()
                holder = getattr(done, "holder", None)
                if holder:
                    # Its lock is open for writing, which would keep the file system writable.
                    fd = os.open(Path(queue.layout.workers) / holder.lock, os.O_RDONLY)
                    os.dup2(fd, holder._fd)
                    os.close(fd)
                    fcntl.flock(holder._fd, fcntl.LOCK_EX)
                mount("ro")
                with pytest.raises((OSError, QueueError)) as error:
                    done.call()
                done.failed(_clear(error.value, short.host, (errno.EROFS,)))
                mount("rw")
                done.call()
                done.worked()
                tries += 1
        ledger.record("read-only file system", tries=tries)


@contextlib.contextmanager
def _files_left() -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """Yield what lets this process open only so many files more, and what lets it open plenty."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while fillers:
            os.close(fillers.pop())

    def leave(room: int) -> None:
        highest = max(int(entry) for entry in os.listdir("/proc/self/fd"))
        # No gap must be left below the limit.
        fillers.append(os.open("/dev/null", os.O_RDONLY))
        while fillers[-1] <= highest:
            fillers.append(os.dup(fillers[0]))
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + room, hard))

    try:
        yield leave, free
    finally:
        free()


def test_every_operation_with_every_number_of_open_files(host: Host, long: bool) -> None:
    host.script("exit 0\n")
    with _files_left() as (leave, free):
        for deed in DEEDS:
            tries = _at_every_level(host, deed, (errno.EMFILE,), long, leave, free)
            if tries:
                ledger.record("too many open files", tries=tries)


def _limited(host: Host, option: str, *words: str) -> tuple[int, str]:
    """Run the program with a limit, for 1.5 s at most; return its exit status and what it said."""
    command = ["timeout", "1.5", "prlimit", option, sys.executable, str(host.program), *words]
    done = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("what", ["too many open files", "out of memory"])
def test_the_program_with_little(what: str, host: Host, long: bool) -> None:
    """A worker, recovery and progress, each started with as little as the interpreter itself can start with, or a little more."""
    tries = 0
    commands = [("worker", "t-1", "--until-idle"), ("recover", "t"), ("progress",)]
    levels: list[str]
    if what == "out of memory":
        least = next(mib for mib in range(8, 200) if _limited(host, f"--as={mib << 20}", "--version")[0] == 0)
        levels = [f"--as={(least << 20) + extra * 65536}" for extra in range(0, 160, 1 if long else 40)]
    else:
        least = next(number for number in range(3, 30) if _limited(host, f"--nofile={number}", "--version")[0] == 0)
        levels = [f"--nofile={number}" for number in range(least, least + 16, 1 if long else 5)]
    host.script("exit 0\n")
    for level in levels:
        for command in commands:
            host.define()
            if not host.states():
                host.put("pending", "job_0")
                host.put("running", "job_1")
            status, said = _limited(host, level, *command)
            assert "Traceback" not in said, (level, command, said)
            if status or "; raise" in said:
                tries += 1
                clear = r"(sagequeue|waiting|not_started): .*/.*; (raise|free some memory, or raise) the limit"
                assert re.search(clear, said), (level, command, said)
            assert set(host.states()) == {"job_0", "job_1"}
    host.sagequeue("recover", "t")
    host.work_off()
    assert set(host.states().values()) == {"done"}
    ledger.record(what, tries=tries)


_ENQUEUE_WITH_LITTLE = """
import json, os, resource, sys
from dirqueue import definitions
from dirqueue.errors import explain
from dirqueue.layout import Layout
from dirqueue.queue import Queue
root, levels, step, many = sys.argv[1], *map(int, sys.argv[2:])
queue = Queue(Layout(root, "t"), definitions.load(root, "t"))
for level in range(levels):
    if os.fork():
        os.wait()
        continue
    jobs = [(f"level{level}_{number}", {"VALUE": "x" * 4000}) for number in range(many)]
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + level * step, resource.RLIM_INFINITY))
    said = ""
    try:
        queue.enqueue(jobs)
    except BaseException as exc:
        said = exc
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps([level, said and type(said).__name__, said and explain(said, root)]), flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("many", [900, 3000])
def test_enqueue_with_little_memory(host: Host, long: bool, many: int) -> None:
    host.define()
    queue = host.queue()
    # The jobs alone take 4 MB for a thousand.
    levels = 128 if long else 8
    step = 5000 * many // levels
    process = host.python(_ENQUEUE_WITH_LITTLE, str(host.root), str(levels), str(step), str(many))
    said = process.communicate(timeout=300)[0].splitlines()
    assert len(said) == levels
    there: dict[str, int] = {}
    for name in [*host.states(), *(name for name, _values in queue.batched())]:
        there[name.partition("_")[0]] = there.get(name.partition("_")[0], 0) + 1
    tries = 0
    for line in said:
        level, kind, text = json.loads(line)
        assert there.get(f"level{level}", 0) == (0 if kind else many), line
        if kind:
            tries += 1
            assert kind in ("QueueError", "MemoryError", "OSError") and "; free some memory" in text, line
    assert tries, "there was always enough"
    ledger.record("out of memory", tries=tries)


# ---- workers --------------------------------------------------------------------------------------------------------

_JOB = """\
echo "start $SAGEQUEUE_JOB" >>"$RUNS"
seq 1 20000
while [ ! -e "$GO" ]; do sleep 0.05; done
echo "end $SAGEQUEUE_JOB" >>"$RUNS"
"""


class Work:
    """Two jobs, and a worker amid the first; each runs until go is there, and keeps a record of its runs."""

    def __init__(self, host: Host, **keys: Any) -> None:
        self.host = host
        self.go = host.base / "go"
        self.runs = host.base / "runs"
        self.runs.touch()
        host.script(_JOB)
        host.define(environment={"RUNS": str(self.runs), "GO": str(self.go)}, **keys)
        with _queue(host) as queue:
            queue.enqueue([("job_0", {}), ("job_1", {})])
        self.worker = host.worker()
        log = host.root / "var" / "t" / "log" / "job_0.log"
        wait_for(lambda: log.exists() and log.read_text(encoding="utf-8").endswith("\n20000\n"))

    def still_owned(self, reason: int) -> None:
        """The worker says that it can't record the first job's end, and keeps it."""
        text = os.strerror(reason) + "; "
        wait_for(lambda: "job job_0 is done, but that can't be recorded" in self.host.said() and text in self.host.said())
        assert self.host.states() == {"job_0": "running", "job_1": "pending"}
        assert self.host.owners() == ["job_0.env.owner"]
        assert "end job_0" in self.runs.read_text(encoding="utf-8")

    def all_done(self) -> float:
        """Wait until everything is done as it should be; return after how many seconds the first job was."""
        began = time.monotonic()
        wait_for(lambda: self.host.states()["job_0"] == "done")
        seconds = time.monotonic() - began
        wait_for(lambda: set(self.host.states().values()) == {"done"})
        wait_for(lambda: not self.host.owners())
        assert "Traceback" not in self.host.said(), self.host.said()
        attempts = [(line["job"], line["claim"]) for line in self.host.history() if line["result"] == "done"]
        assert len(set(attempts)) == 2
        return seconds

    def ran_once(self) -> None:
        assert self.runs.read_text(encoding="utf-8").splitlines() == ["start job_0", "end job_0", "start job_1", "end job_1"]


@pytest.mark.parametrize("kind", list(ROWS))
def test_a_worker_that_cant_record_a_result(kind: str, tmp_path: Path, program: Path, long: bool) -> None:
    if kind not in ("ext4", "tmpfs_inodes", "quota") and not long:
        pytest.skip("with --long")
    row, reasons = ROWS[kind][0], ROWS[kind][1].reasons
    with _short(kind, tmp_path, program) as short:
        work = Work(short.host)
        short.space.leave(0)
        work.go.touch()
        work.still_owned(reasons[0])
        if long:
            time.sleep(5)
            work.still_owned(reasons[0])
        short.space.free()
        ledger.record(row, tries=1, recovery_seconds=work.all_done())
        work.ran_once()


def test_a_worker_that_starts_on_a_full_disk(tmp_path: Path, program: Path) -> None:
    """It ends, and says why, until there is room: its supervisor starts it again and again."""
    with _short("ext4_inodes", tmp_path, program) as short:
        short.host.script("exit 0\n")
        short.host.define()
        short.host.put("pending", "job_0")
        short.space.leave(0)
        assert short.host.worker().wait(30) == 1
        assert re.search(r"^sagequeue: /.*: No space left on device; free some", short.host.said()), short.host.said()
        assert short.host.states() == {"job_0": "pending"}
        short.space.free()
        short.host.work_off()
        assert short.host.states() == {"job_0": "done"}
        ledger.record("out of inodes", tries=1)


def test_a_file_system_that_an_error_makes_read_only(tmp_path: Path, program: Path) -> None:
    """Amid a job. After the repair the job, whose end could not be recorded, runs again."""
    with _short("ext4", tmp_path, program) as short:
        work = Work(short.host)
        # What is older than that is not at stake.
        subprocess.run(["sync", "-f", str(short.space.folder)], check=True)
        subprocess.run(["mount", "-o", "remount,abort", str(short.space.folder)], check=True)
        work.go.touch()
        work.still_owned(errno.EROFS)
        work.worker.kill()
        work.worker.wait()
        short.space.unmount()
        assert subprocess.run(["e2fsck", "-fy", str(short.space.image)], capture_output=True, check=False).returncode in (0, 1)
        subprocess.run(["mount", "-o", "loop", str(short.space.image), str(short.space.folder)], check=True)
        short.host.worker()
        ledger.record("read-only file system", tries=1, recovery_seconds=work.all_done())


@pytest.mark.parametrize("what", ["too many open files", "out of memory"])
def test_a_worker_with_little_left(what: str, host: Host, long: bool) -> None:
    """The limit comes amid a job, and goes after its end."""
    limit = resource.RLIMIT_NOFILE if what == "too many open files" else resource.RLIMIT_AS
    tries = 0
    for room in range(0, 24, 1 if long else 12):
        if room:
            shutil.rmtree(host.root / "var")
            (host.base / "go").unlink()
            (host.base / "runs").unlink()
            (host.base / "t-1.out").unlink()
        work = Work(host)
        used = len(os.listdir(f"/proc/{work.worker.pid}/fd"))
        if limit == resource.RLIMIT_AS:
            used = int(Path(f"/proc/{work.worker.pid}/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        more = room * 16384 if limit == resource.RLIMIT_AS else room
        before = resource.prlimit(work.worker.pid, limit)
        resource.prlimit(work.worker.pid, limit, (used + more, before[1]))
        work.go.touch()
        time.sleep(1.2)
        states = host.states()
        assert set(states) == {"job_0", "job_1"}
        tries += 1
        if work.worker.poll() is None:
            resource.prlimit(work.worker.pid, limit, before)
            work.all_done()
            work.ran_once()
            host.processes.remove(work.worker)
            work.worker.terminate()
            assert work.worker.wait(30) == 0
        else:
            # It ended, saying why: then its supervisor starts it anew.
            assert re.search("^sagequeue: .*; (free|raise) some", host.said(), re.M), host.said()
            host.work_off()
            work.all_done()
    ledger.record(what, tries=tries)


def _memory_group(name: str, limit: int) -> tuple[Path, list[Path]]:
    """Make a control group with a limit on memory; skip the test where that can't be."""
    for root, file in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(root) / name
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / file).exists():
            (group / file).write_text(str(limit), encoding="ascii")
            return group, [group]
        group.rmdir()
    pytest.skip("no control group with a limit on memory can be made here")


@pytest.mark.parametrize("victim", ["job", "worker"])
def test_the_kernel_kills_for_want_of_memory(victim: str, host: Host) -> None:
    """In a control group that a job's first run has no room in."""
    group, _made = _memory_group(f"sagequeue-test-{os.getpid()}", 96 << 20)
    try:
        runs = host.base / "runs"
        host.script(
            f'echo run >>"{runs}"\n[ "$(grep -c run "{runs}")" -gt 1 ] && exit 0\n'
            f"exec {sys.executable} -c 'import time; time.sleep(0.5); held = bytearray(200 << 20); held[:] = bytes(200 << 20)'\n"
        )
        host.define(attempts=3)
        host.put("pending", "job_0")
        with open(host.base / "t-1.out", "ab") as output:
            worker = subprocess.Popen(
                ["sh", "-c", f'echo $$ >"{group}/cgroup.procs" && exec "$@"', "sh", sys.executable, str(host.program), "worker", "t-1"],
                env=host.environment,
                stdout=output,
                stderr=output,
            )
        host.processes.append(worker)
        wait_for(runs.exists)
        if victim == "worker":
            Path(f"/proc/{worker.pid}/oom_score_adj").write_text("1000", encoding="ascii")
            assert worker.wait(30) == -signal.SIGKILL
            began = time.monotonic()
            host.worker()
        wait_for(lambda: host.states()["job_0"] == "done")
        (first, last) = host.history()
        assert last["result"] == "done"
        if victim == "worker":
            assert first["reason"] == "orphan", first
            ledger.record("out of memory", tries=1, recovery_seconds=time.monotonic() - began)
        else:
            assert (first["reason"], worker.poll()) == ("out_of_memory", None), first
            ledger.record("out of memory", tries=1)
    finally:
        host.close()
        for _attempt in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


# ---- logs -----------------------------------------------------------------------------------------------------------


def test_a_job_that_prints_a_gigabyte(host: Host) -> None:
    host.script("head -c 1000000000 /dev/zero\necho the end\n")
    host.define(log_size="1M", log_keep=2)
    host.put("pending", "job_0")
    began = time.monotonic()
    host.work_off()
    seconds = time.monotonic() - began
    assert host.states() == {"job_0": "done"}
    logs = sorted((host.root / "var" / "t" / "log").iterdir())
    assert [path.name for path in logs] == ["job_0.log", "job_0.log.1", "job_0.log.2"]
    assert all(path.stat().st_size <= 1 << 20 for path in logs), [path.stat().st_size for path in logs]
    assert "the end" in host.log("job_0")
    # 2 s on an idle machine.
    assert seconds < 30
    ledger.record("log that fills the disk", tries=1)


@pytest.mark.parametrize("room", ["while it runs", "after its end"])
def test_a_log_that_fills_the_disk(room: str, tmp_path: Path, program: Path) -> None:
    """It doesn't end the job. Somebody makes room later."""
    with _short("tmpfs", tmp_path, program) as short:
        go, printed = tmp_path / "go", tmp_path / "printed"
        short.host.script(f"head -c 100000000 /dev/zero\n: >{printed}\nwhile [ ! -e {go} ]; do sleep 0.05; done\necho more\n")
        short.host.define(log_size=0)
        short.host.put("pending", "job_0")
        short.host.worker()
        wait_for(printed.exists)
        assert "job_0.log can't be written (No space left on device)" in short.host.said()
        log = short.host.root / "var" / "t" / "log" / "job_0.log"
        if room == "while it runs":
            os.truncate(log, 0)
        go.touch()
        if room == "after its end":
            wait_for(lambda: "can't be recorded" in short.host.said())
            assert short.host.states() == {"job_0": "running"}
            os.truncate(log, 0)
        began = time.monotonic()
        wait_for(lambda: short.host.states() == {"job_0": "done"})
        if room == "while it runs":
            assert re.search(r"\] [0-9]+ bytes of this log are missing here: No space left on device\nmore\n", short.host.log("job_0"))
        ledger.record("log that fills the disk", tries=1, recovery_seconds=time.monotonic() - began)


def test_the_module_on_a_full_disk(tmp_path: Path, program: Path) -> None:
    with _short("ext4", tmp_path, program) as short:
        short.host.define(stride=300)
        short.space.leave(0)
        words = f"jobset=t root={short.host.root} offsets={','.join(map(str, range(300)))}"
        command = ["ansible", "localhost", "-m", "sagequeue.batch.queue_enqueue", "-a", words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert done.returncode != 0 and "FAILED" in said, said
        assert "jobset t: can't enqueue, nothing was enqueued: " in said and "No space left on device; free some space" in said, said
        assert "Traceback" not in said, said
        assert short.host.states() == {}
        ledger.record("disk full", tries=1)
