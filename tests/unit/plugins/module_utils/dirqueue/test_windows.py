# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""How Windows names a file of ours, with stand-ins for what a WSL distribution has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import report, wsl


def test_windows_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tool(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.delenv("WSL_DISTRO_NAME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert report.said("/home/anna/t.html") == "The report is /home/anna/t.html"
    tool("uname", "echo 6.6.87.2-microsoft-standard-WSL2")
    tool("systemd-detect-virt", "echo wsl")
    tool("wslpath", "exit 1")
    assert wsl.windows_path("/home/anna/t.html") == ""
    monkeypatch.setenv("WSL_DISTRO_NAME", "Debian")
    assert wsl.windows_path("/home/anna/t.html") == "\\\\wsl.localhost\\Debian\\home\\anna\\t.html"
    tool("wslpath", "printf '%s\\n' '\\\\wsl.localhost\\Ubuntu\\home\\anna\\t.html'")
    assert (
        report.said("/home/anna/t.html") == "The report is /home/anna/t.html; in Windows open \\\\wsl.localhost\\Ubuntu\\home\\anna\\t.html"
    )
    tool("systemd-detect-virt", "echo docker")
    assert wsl.windows_path("/home/anna/t.html") == ""
