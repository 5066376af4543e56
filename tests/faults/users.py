# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Tests with more than one user: run as root, the program is another user's, whom permissions hold back as any ordinary one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Callable

from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host

ROOT = os.geteuid() == 0
# Ids that no account of the machine has.
UID, OTHER = 61234, 61235
# The batch user's Python: the tests' own may lie in a home that others can't enter.
PYTHON = "/usr/bin/python3" if ROOT else sys.executable


def give(host: Host) -> None:
    """Give all that is not given away to the batch user."""
    if ROOT:
        for folder, names, files in os.walk(host.base):
            for path in [folder, *(os.path.join(folder, name) for name in names + files)]:
                if os.lstat(path).st_uid == 0:
                    os.lchown(path, UID, UID)


def start(
    host: Host, *words: str, uid: int = UID, program: str = "", umask: int = -1, python: bool = False
) -> subprocess.Popen[str]:
    """Start the program, or Python with its library, as the batch user or as another; what it says is in stdout."""
    program = program or str(host.program)
    process = subprocess.Popen(
        [PYTHON, *([] if python else [program]), *words],
        env={"PATH": os.environ["PATH"], "HOME": str(host.base), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": program},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="surrogateescape",
        cwd="/",
        umask=umask,
        **({"user": uid, "group": uid, "extra_groups": []} if ROOT else {}),
    )
    host.processes.append(process)
    return process


def as_user(uid: int, call: Callable[[], Any], umask: int = 0o022) -> str:
    """Make a call in a child process of a user; return what went wrong, or an empty text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "killed"
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            os.chdir("/")
            call()
            said = ""
        except BaseException as exc:
            said = f"{type(exc).__name__}: {exc}"
        finally:
            os.write(write, said.encode("utf-8", "replace"))
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text
