# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What is said when systemd or supervisord does not do as it is told. What they do is in molecule and tests/integration."""

from __future__ import annotations

import re
import shutil
import socketserver
import tempfile
import threading
import types
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils import _host
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors import supervisord
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.supervisord import Supervisord
from ansible_collections.sagequeue.batch.plugins.module_utils._supervisors.systemd import Systemd
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset

JOBSET = Jobset("t", {"script": "s", "workdir": "/w", "grace": 0})


class _Handler(xmlrpc.server.SimpleXMLRPCRequestHandler):
    """As over TCP, which alone knows of this option."""

    disable_nagle_algorithm = False

    def address_string(self) -> str:
        return "socket"


class _Server(socketserver.ThreadingUnixStreamServer, xmlrpc.server.SimpleXMLRPCDispatcher):
    """XML-RPC over a socket of the file system, as supervisord speaks it."""

    daemon_threads = True
    logRequests = False

    def __init__(self, path: Path) -> None:
        xmlrpc.server.SimpleXMLRPCDispatcher.__init__(self)
        super().__init__(str(path), _Handler)


@pytest.fixture
def root() -> Iterator[Path]:
    """A root whose path is short, as that of its socket must be."""
    folder = Path(tempfile.mkdtemp(prefix="sagequeue-", dir="/tmp"))
    (folder / "run").mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def server(root: Path) -> Iterator[_Server]:
    """A supervisord that says that t-1 runs, and that it can start and end nothing."""
    with _Server(root / "run" / "supervisor.sock") as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        tell(made, "getPID", 1)
        tell(made, "getAllProcessInfo", [{"name": "t-1", "statename": "RUNNING"}])
        yield made
        made.shutdown()


def tell(server: _Server, verb: str, answer: Any) -> None:
    """Have a server answer a verb by a value, or by a fault."""

    def call(*_words: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    server.register_function(call, f"supervisor.{verb}")


def made(root: Path) -> Supervisord:
    # Such a margin leaves it no time at all.
    known = _host.Host(str(root), "/home/a", "process", "supervisord", "", "", {}, -40)
    return Supervisord(known, [JOBSET], False)


def test_what_supervisord_says_is_told(root: Path, server: _Server) -> None:
    tell(server, "stopProcess", xmlrpc.client.Fault(10, "BAD_NAME: t-1"))
    with pytest.raises(QueueError, match=r"^supervisord can't do stopProcess t-1 False: BAD_NAME: t-1$"):
        made(root).stop([JOBSET])
    # It has been stopped already.
    tell(server, "stopProcess", xmlrpc.client.Fault(70, "NOT_RUNNING: t-1"))
    made(root).stop([JOBSET])


def test_workers_that_do_not_stop_are_named(root: Path, server: _Server) -> None:
    tell(server, "getAllProcessInfo", [{"name": "t-1", "statename": "STOPPING"}, {"name": "u-1", "statename": "STOPPING"}])
    why = f"after -10 s these have not stopped yet: t-1; see {root}/log/supervisord.log"
    tell(server, "stopProcess", True)
    with pytest.raises(QueueError, match=re.escape(why)):
        made(root)._act("stop", ["t-1"])


def test_a_supervisord_that_does_not_end(root: Path, server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(server, "shutdown", True)
    (root / "run" / "supervisord.pid").touch()
    # Each look at the clock is an hour after the one before.
    times = iter(range(0, 10**6, 3600))
    monkeypatch.setattr(supervisord, "time", types.SimpleNamespace(monotonic=lambda: next(times), sleep=lambda _seconds: None))
    why = f"supervisord has not ended after 120 s: {root}/run/supervisord.pid is still there"
    with pytest.raises(QueueError, match=re.escape(why)):
        made(root).gone()


def test_a_supervisord_that_does_not_start(root: Path) -> None:
    program = root / "supervisor" / "bin" / "supervisord"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'Error: The directory named as part of the path /none/x.log does not exist' >&2\nexit 2\n")
    program.chmod(0o755)
    why = f"{program} does not start: Error: The directory named as part of the path /none/x.log does not exist"
    with pytest.raises(QueueError, match=re.escape(why)):
        made(root).prepare()


def test_what_systemd_says_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "systemctl").write_text("#!/bin/sh\necho 'Failed to list units: Transport endpoint is not connected' >&2\nexit 1\n")
    (root / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(root), prepend=":")
    user = Systemd(_host.Host(str(root), str(root), "process", "systemd", "", "", {}, 10), [JOBSET], False)
    # As if it ran.
    user._manager = True
    why = "systemctl --user list-units failed: Failed to list units: Transport endpoint is not connected; see journalctl --user"
    with pytest.raises(QueueError, match=why):
        user.running([JOBSET])
