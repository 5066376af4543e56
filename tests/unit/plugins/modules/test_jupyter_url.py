# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The module jupyter_url as a real process, a server that wants a token, and stand-ins for what a WSL distribution has."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.tests.unit.module_process import run_module

pytest.importorskip("ansible.module_utils.basic")

TOKEN = "abc/&%+ 1"
QUOTED = "abc%2F%26%25%2B%201"


class Jupyter(http.server.BaseHTTPRequestHandler):
    """What Jupyter says of its status: nothing without the token."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"token {QUOTED.replace('%2F', '/')}"
        self.send_response(404 if self.path != "/api/status" else 200 if known else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_what: Any) -> None:
        pass


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def jupyter(port: int) -> Iterator[Callable[[], None]]:
    """Start the server."""
    servers: list[http.server.HTTPServer] = []

    def start() -> None:
        servers.append(http.server.HTTPServer(("127.0.0.1", port), Jupyter))
        threading.Thread(target=servers[0].serve_forever).start()

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def call(tmp_path: Path, port: int) -> Callable[..., dict[str, Any]]:
    """Run the module."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "jupyter.token").write_text(TOKEN + "\n")

    def run(check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {"root": str(tmp_path), "port": port, "wait": 20, **options, "_ansible_check_mode": check}
        # A proxy that would be asked, were it not for this host itself.
        environment = {"PATH": f"{tmp_path / 'tools'}:/usr/bin:/bin", "http_proxy": "http://127.0.0.1:9"}
        return run_module("jupyter_url", arguments, tmp_path, **environment)

    return run


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / "tools" / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_it_waits_and_says_the_address(call: Any, jupyter: Any, port: int) -> None:
    thread = threading.Timer(1.0, jupyter)
    thread.start()
    found = call()
    thread.join()
    assert found["msg"] == found["url"] == f"http://127.0.0.1:{port}/?token={QUOTED}"
    assert not found["changed"] and not found["opened"]


def test_what_is_wrong_is_said_with_the_next_step(call: Any, jupyter: Any, tmp_path: Path, port: int) -> None:
    token = tmp_path / "etc" / "jupyter.token"
    assert "does not answer on 127.0.0.1" in call(wait=0)["msg"] and "journalctl" in call(wait=0)["msg"]
    jupyter()
    token.write_text("another")
    refused = call()
    assert (
        refused["failed"]
        and f"refuses the token in {token}" in refused["msg"]
        and "another" not in refused["msg"].replace("another one", "")
    )
    token.write_text("")
    assert call()["msg"] == f"the token {token} is empty; remove it, and run setup.yml for a new one"
    token.unlink()
    token.mkdir()
    why = f"the token can't be read: {token}: Is a directory; run this as the batch user (-e sagequeue_user=NAME)"
    assert call()["msg"] == why
    token.rmdir()
    assert "Jupyter does not run here" in call()["msg"]
    assert "no token /nowhere/token" in call(token_file="/nowhere/token")["msg"]


def test_what_is_not_jupyter_is_not_taken_for_it(call: Any, jupyter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Jupyter, "do_GET", lambda self: self.send_error(500))
    jupyter()
    assert "no Jupyter that is ready (status 500)" in call(wait=0)["msg"]


def test_it_opens_the_browser_of_windows(call: Any, jupyter: Any, tmp_path: Path) -> None:
    jupyter()
    opened = tmp_path / "opened"
    assert "this host is no WSL distribution" in call(open=True)["msg"]
    tool(tmp_path, "uname", "echo 6.6.87.2-microsoft-standard-WSL2")
    tool(tmp_path, "systemd-detect-virt", "echo wsl")
    nothing = call(open=True)
    assert not nothing["opened"] and "is interop off" in nothing["msg"] and nothing["url"] in nothing["msg"]
    # explorer.exe says 1 when all is well.
    tool(tmp_path, "explorer.exe", f'printf "%s|" explorer "$@" > {opened}; exit 1')
    found = call(open=True)
    assert found["opened"] and opened.read_text() == f"explorer|{found['url']}|"
    tool(tmp_path, "cmd.exe", f'printf "%s|" cmd "$@" > {opened}')
    call(open=True, check=True)
    assert opened.read_text().startswith("explorer")
    assert call(open=True)["msg"].endswith("is open in the browser of Windows")
    assert opened.read_text() == f"cmd|/d|/c|start||{found['url']}|"
    tool(tmp_path, "wslview", "echo broken >&2; exit 7")
    assert call(open=True)["opened"]
    for broken in ("cmd.exe", "explorer.exe"):
        tool(tmp_path, broken, "exit 3")
    assert "wslview: exit status 7; cmd.exe: exit status 3; explorer.exe: exit status 3" in call(open=True)["msg"]
    # A container on WSL has its kernel.
    tool(tmp_path, "systemd-detect-virt", "echo docker")
    assert "this host is no WSL distribution" in call(open=True)["msg"]
