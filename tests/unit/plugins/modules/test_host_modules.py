# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What the modules that make a host ready can't do, each as a real process. What they do is in tests/roles and in their targets."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils._bind_mount import Walk
from ansible_collections.sagequeue.batch.plugins.module_utils._bind_mount_rights import BindMountError, Sharing
from ansible_collections.sagequeue.batch.tests.unit.module_process import run_module

pytest.importorskip("ansible.module_utils.basic")

ME = pwd.getpwuid(os.getuid()).pw_name


def call(module: str, folder: Path, limit: str = "unlimited", **options: Any) -> dict[str, Any]:
    """Run a module that may write files of so many blocks; return its result."""
    return run_module(module, options, folder, limit)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[boot]\nsystemd=a\0b\n", "it holds NUL bytes, so it is no text file"),
        (b"\xff\xfe[\0b", "not valid UTF-16: 'utf-16-le' codec can't decode"),
        (b"\xfe\xff\0[b", "not valid UTF-16: 'utf-16-be' codec can't decode"),
    ],
)
def test_a_file_that_is_no_text_is_not_merged_into(tmp_path: Path, text: bytes, why: str) -> None:
    path = tmp_path / "wsl.conf"
    path.write_bytes(text)
    refused = call("wsl_conf", tmp_path, path=str(path), settings=[{"section": "boot", "key": "systemd", "value": "true"}])
    assert refused["failed"] and f"Cannot merge settings into {path}: {why}" in refused["msg"]
    assert refused["msg"].endswith("Repair or remove the file, then run again.") and path.read_bytes() == text


def test_a_setting_that_finds_no_room_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "wsl.conf"
    path.write_text("[boot]\n")
    refused = call("wsl_conf", tmp_path, "0", path=str(path), settings=[{"section": "boot", "key": "systemd", "value": "true"}])
    assert refused["failed"] and refused["msg"] == f"Cannot write {path}: File too large." and path.read_text() == "[boot]\n"


def test_folders_that_cannot_be_shared(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in {
        tmp_path / "file": f"{tmp_path}/file is no folder. Move it away, then run this again.",
        tmp_path / "none" / "inner": f"{tmp_path}/none/inner cannot be made: its parent folder does not exist.",
        tmp_path / "file" / "inner": f"{tmp_path}/file/inner cannot be opened at 'inner': Not a directory.",
        Path("/proc/inner"): "/proc/inner cannot be made: No such file or directory.",
    }.items():
        refused = call("bind_mount_acl", tmp_path, paths=[str(path)], user=ME)
        assert refused["failed"] and refused["msg"] == f"Cannot prepare the bind mounts: {why}"
    odd = call("bind_mount_acl", tmp_path, paths=["/proc/tty"], user=ME)
    assert "/proc/tty lies on a file system that takes no ACLs (" in odd["msg"] and "Use a folder on a Linux file system" in odd["msg"]
    nobody = call("bind_mount_acl", tmp_path, paths=[str(tmp_path)], user="nobody-here")
    why = "the user nobody-here does not exist. Make the user, or name another one."
    assert nobody["msg"] == f"Cannot prepare the bind mounts: {why}"
    odd = call("bind_mount_acl", tmp_path, paths=[str(tmp_path)], user=ME, userns="mapped", uid_map="0 x 1")
    assert odd["msg"] == "Cannot prepare the bind mounts: this is no line of a uid map: '0 x 1'"
    short = call("bind_mount_acl", tmp_path, paths=[str(tmp_path)], user=ME, userns="mapped", uid_map="0 1000 1")
    assert f"the uid map of {ME} has no id for the container's uid 1000. Give the user a range of subordinate ids" in short["msg"]


def test_a_folder_of_root_that_a_user_cannot_share(tmp_path: Path) -> None:
    """Only root may give it to the user, as the role has it done."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setuid(os.getuid() or 65534)
            Walk(Sharing(os.getuid(), os.getgid()), None, check=False).folder("/usr")
        except BindMountError as exc:
            os.write(tell, str(exc).encode())
        finally:
            os._exit(0)
    os.close(tell)
    with open(told, encoding="utf-8") as file:
        assert file.read() == "/usr cannot be changed: Operation not permitted."
    os.waitpid(pid, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_belongs_to_others_is_left_alone_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "theirs").touch()
    os.chown(folder / "theirs", 4321, 4321)
    shared = call("bind_mount_acl", tmp_path, paths=[str(folder)], user=ME)
    assert f"Left alone: {folder}/theirs: it belongs to another user (uid 4321)" in str(shared["warnings"])
    assert (folder / "theirs").stat().st_uid == 4321
    refused = call("bind_mount_acl", tmp_path, paths=[str(folder / "theirs")], user=ME)
    assert "is no folder" in refused["msg"]


def test_a_program_that_cannot_be_put_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, limit, why in (
        ("file/sagequeue", "unlimited", "Not a directory"),
        ("folder", "unlimited", "Is a directory"),
        ("sagequeue", "0", "File too large"),
    ):
        refused = call("queue_program", tmp_path, limit, path=f"{tmp_path}/{path}", python=sys.executable)
        assert refused["failed"] and refused["msg"] == f"can't write the program {tmp_path}/{path}: {why}"
    refused = call("queue_program", tmp_path, path=f"{tmp_path}/sagequeue", python=sys.executable, link=f"{tmp_path}/file/bin/link")
    assert refused["failed"] and refused["msg"] == f"can't make the link {tmp_path}/file/bin/link: Not a directory"
    assert not list(tmp_path.rglob("*.new"))
