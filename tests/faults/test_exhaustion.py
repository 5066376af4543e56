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
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import job, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Claim, Queue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.recovery import recover
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners import make
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host

_BLOCK = 4096
_PLENTY = 1 << 20


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
        with open(self.ballast, "ab") as file:
            end = os.fstat(file.fileno()).st_size
            step = self.size
            while step >= _BLOCK:
                try:
                    os.posix_fallocate(file.fileno(), end, step)
                    end += step
                except OSError as exc:
                    assert exc.errno == errno.ENOSPC
                    step //= 2
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


def _clear(error: BaseException, host: Host, reasons: tuple[int, ...]) -> str:
    """Check that an error names the thing, the reason and the next step; return its text."""
    assert isinstance(error, (OSError, MemoryError, QueueError)), repr(error)
    text = explain(error, str(host.root))
    assert str(host.root) in text, text
    assert any(f"{os.strerror(reason)}; " in text for reason in reasons), text
    return text


# ---- every operation, at every level of room ------------------------------------------------------------------------


class Deed:
    """One operation on a queue: what it needs, the call, and whether what is there then can be true."""

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
        assert "nothing was enqueued" in text or "queue.lock: " in text, text
        assert self.states() == {"pending"}
        assert os.listdir(self.queue.layout.staging) == []

    def worked(self) -> None:
        self.names = ["there", *(f"job_{number}" for number in range(self.many))]
        assert self.states() == {"pending"}
        self.own_values()


class Enqueue24(Enqueue):
    many = 24


class EnqueueHundreds(Enqueue):
    many = 300


class EnqueueAgain(Deed):
    """Redo jobs that are done."""

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


class Malformed(Deed):
    """Claim a job that can't be understood."""

    def prepare(self) -> None:
        self.put("pending", "broken", text="no job at all\n")
        self.holder = owner.Holder(self.queue.layout.workers, "t-1")

    def call(self) -> None:
        assert self.queue.claim(self.holder) is None

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
        assert all("ATTEMPTS" not in self.host.values(name) for name in self.names)
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
    *(Enqueue, Enqueue24, EnqueueHundreds, EnqueueAgain),
    *(ClaimOne, Malformed, Finish, PutBack, Recover, Retry, Remove, CloseGate, OpenGate),
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
        with Queue(host.queue().layout, host.queue().jobset) as queue:
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
        for made in host._queues:
            made.close()
        host._queues.clear()
        many = getattr(deed, "many", 1)
        room += 1 if long or room < 8 else max(1, many // 12)
    return fails


@pytest.mark.parametrize("kind", list(ROWS))
def test_every_operation_at_every_level_of_room(kind: str, tmp_path: Path, program: Path, long: bool) -> None:
    if kind in ("xfs", "btrfs") and not long:
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
        with Queue(short.host.queue().layout, short.host.queue().jobset) as early:
            assert early.entries("pending") == []
            short.host.put("pending", "job_0", "")
            assert early.entries("pending") == ["job_0"]
