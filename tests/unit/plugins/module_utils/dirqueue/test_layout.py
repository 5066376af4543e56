# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Folders, and the file systems that can't hold them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout, mount_of, probe, sync_file_system, write_whole

ROOT = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def mounts(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "mountinfo"
    path.write_text("".join(line + "\n" for line in [ROOT, *lines]), encoding="utf-8")
    return str(path)


def test_folders_are_private_and_made_once(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "deep" / "root"), "t")
    assert layout.missing() == layout.folders()
    assert layout.create() is True
    assert {stat.S_IMODE(os.stat(folder).st_mode) for folder in layout.folders()} == {0o700}
    assert layout.create() is False and layout.missing() == []
    os.rmdir(layout.malformed)
    assert layout.missing() == [layout.malformed] and layout.create() is True


def test_an_older_queue_is_left_as_it_is(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path), "t")
    pending = Path(layout.queue) / "pending"
    pending.mkdir(parents=True, mode=0o755)
    (pending / "t_off0.env").write_text("OFFSET=0\n", encoding="utf-8")
    layout.create()
    assert (pending / "t_off0.env").read_text(encoding="utf-8") == "OFFSET=0\n"
    assert stat.S_IMODE(pending.stat().st_mode) == 0o755


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("", encoding="utf-8")
    with pytest.raises(QueueError, match="can't make .*var"):
        Layout(str(tmp_path), "t").create()


def test_the_mount_that_holds_a_path(tmp_path: Path) -> None:
    info = mounts(
        tmp_path,
        "30 21 0:40 / /mnt/c rw,noatime - 9p C:\\134 rw,aname=drvfs",
        "31 21 0:41 / /mnt/cd rw - xfs /dev/sdb rw",
        "32 21 0:42 / /mnt/a\\040b rw shared:5 master:3 - nfs4 server:/x rw,vers=4.2",
        "33 21 0:43 / /mnt/日本ü rw - 9p D:\\134 rw",
        "34 21 0:44 / /over rw - ext4 /dev/sdc rw",
        "35 34 0:45 / /over rw - tmpfs none rw,size=1k",
    )
    assert mount_of("/mnt/c", info) == ("/mnt/c", "9p", "rw,aname=drvfs")
    assert mount_of("/mnt/c/Users/x", info)[1] == "9p"
    assert mount_of("/mnt/cd/x", info)[1] == "xfs"
    assert mount_of("/mnt/cx", info) == ("/", "ext4", "rw")
    assert mount_of("/mnt/a b/x", info) == ("/mnt/a b", "nfs4", "rw,vers=4.2")
    assert mount_of("/mnt/日本ü/x", info)[1] == "9p"
    assert mount_of("/over/x", info)[1] == "tmpfs", "the later mount covers the earlier"


def test_a_link_is_followed_to_its_mount(tmp_path: Path) -> None:
    info = mounts(tmp_path, f"30 21 0:40 / {tmp_path}/windows rw - 9p C: rw")
    (tmp_path / "windows").mkdir()
    (tmp_path / "link").symlink_to("windows")
    assert mount_of(str(tmp_path / "link" / "x"), info)[1] == "9p"


@pytest.mark.parametrize("kind", ["9p", "drvfs", "cifs", "vfat", "exfat", "vboxsf"])
def test_file_systems_that_cannot_hold_a_queue(tmp_path: Path, kind: str) -> None:
    info = mounts(tmp_path, f"30 21 0:40 / {tmp_path} rw - {kind} x rw")
    with pytest.raises(QueueError) as caught:
        probe(str(tmp_path / "sagequeue"), info)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/sagequeue lies on {tmp_path} ({kind}, ")
    assert "), which can't hold a queue: put sagequeue_root on a local Linux file system" in text


@pytest.mark.parametrize("options", ["rw,nolock", "rw,vers=3,local_lock=all", "rw,vers=3,local_lock=flock"])
def test_nfs_without_locks_between_hosts(tmp_path: Path, options: str) -> None:
    info = mounts(tmp_path, f"30 21 0:40 / {tmp_path} rw - nfs server:/x {options}")
    with pytest.raises(QueueError, match="without locks between hosts"):
        probe(str(tmp_path), info)


def test_a_local_file_system_can(tmp_path: Path) -> None:
    probe(str(tmp_path / "not" / "made" / "yet"))
    assert os.listdir(tmp_path) == []


def test_locks_that_hold_nobody_off_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for second, reason in ((None, "two holders had one lock"), (OSError(errno.ENOLCK, "No locks available"), "No locks available")):
        answers = iter([None, second])

        def flock(_fd: int, _how: int, answers: Iterator[OSError | None] = answers) -> None:
            if error := next(answers):
                raise error

        with monkeypatch.context() as patched, pytest.raises(QueueError, match=f"can't hold a queue: that .* failed .{reason}"):
            patched.setattr(fcntl, "flock", flock)
            probe(str(tmp_path))
        assert os.listdir(tmp_path) == []


def test_a_file_system_that_cannot_be_synced_is_not_taken_for_synced(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    sync_file_system(fd)
    os.close(fd)
    with pytest.raises(OSError, match="syncfs failed") as caught:
        sync_file_system(fd)
    assert caught.value.errno == errno.EBADF


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(QueueError, match="can't hold a queue: that a file can be made failed"):
            probe(str(tmp_path / "x"))
    finally:
        tmp_path.chmod(0o700)


def test_a_file_system_that_is_written_by_nobody() -> None:
    with pytest.raises(QueueError, match="/proc.*can't hold a queue: that a file can be made failed"):
        probe("/proc/sagequeue")


def test_a_file_is_written_whole_in_the_place_of_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.symlink_to(tmp_path / "elsewhere")
    umask = os.umask(0o027)
    try:
        write_whole(str(path), "one\n")
        assert (path.read_text(), stat.S_IMODE(path.lstat().st_mode)) == ("one\n", 0o600) and not path.is_symlink()
        write_whole(str(path), "Größe\n", 0o644)
    finally:
        os.umask(umask)
    assert (path.read_text(encoding="utf-8"), stat.S_IMODE(path.stat().st_mode)) == ("Größe\n", 0o644)
    assert os.listdir(tmp_path) == ["notes"]


def test_killed_while_a_file_is_written_the_old_one_is_there_or_the_new_one(tmp_path: Path, killed_at: Any) -> None:
    path = tmp_path / "notes"
    seen = set()
    for number in range(1, 100):
        path.write_text("old")
        ended = not killed_at(lambda: write_whole(str(path), "new"), number)
        seen.add(path.read_text())
        if ended:
            break
    assert ended and seen == {"old", "new"}


@pytest.mark.parametrize("step", ["open", "fchmod", "fsync", "rename"])
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "notes"
    path.write_text("old")

    def full(*_words: Any, **_more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a name that says nothing")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_whole(str(path), "new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert os.listdir(tmp_path) == ["notes"] and path.read_text() == "old"


def test_a_folder_that_is_not_there_is_told_by_the_files_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(str(tmp_path / "none" / "notes"), "x")
    assert caught.value.filename == str(tmp_path / "none" / "notes")
