# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Windows around a WSL distribution: whether there is one, how it names our files, its browser."""

from __future__ import annotations

import os
import re
import subprocess

# Seconds for one program; Windows may be slow to answer.
_SECONDS = 15.0
# What opens an address in the user's browser. Over ssh Windows' folders are not on PATH. explorer.exe exits 1 when all is well.
_OPENERS = (
    (["wslview"], (0,)),
    (["cmd.exe", "/d", "/c", "start", ""], (0,)),
    (["/mnt/c/Windows/System32/cmd.exe", "/d", "/c", "start", ""], (0,)),
    (["explorer.exe"], (0, 1)),
    (["/mnt/c/Windows/explorer.exe"], (0, 1)),
)


def _said(*argv: str) -> str:
    """Return the first line that a program says, empty where it can't be run or fails."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip().partition("\n")[0].strip() if done.returncode == 0 else ""


def is_wsl() -> bool:
    """Tell whether this is a WSL distribution: the kernel says so, and it is no container in one, which has the same kernel."""
    return re.search("microsoft|wsl", _said("uname", "-r"), re.IGNORECASE) is not None and _said("systemd-detect-virt") in ("wsl", "")


def windows_path(path: str) -> str:
    """Return how Windows names a file of this distribution; empty where this is none, or it can't be told."""
    if not is_wsl():
        return ""
    told = _said("wslpath", "-w", path)
    name = os.environ.get("WSL_DISTRO_NAME", "")
    by_name = "\\\\wsl.localhost\\" + name + path.replace("/", "\\") if name else ""
    return told if told.startswith("\\\\") else by_name


def open_address(address: str) -> str:
    """Open an address in the Windows user's browser; return why that could not be done, or an empty text."""
    if not is_wsl():
        return "this host is no WSL distribution"
    tried = []
    for words, well in _OPENERS:
        try:
            # cmd.exe complains of a folder that Windows has no letter for.
            where = "/mnt/c" if os.path.isdir("/mnt/c") else "/"
            call = [*words, address]
            done = subprocess.run(call, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, cwd=where, check=False)
        except FileNotFoundError:
            continue
        except (OSError, subprocess.SubprocessError) as exc:
            tried.append(f"{words[0]}: {getattr(exc, 'strerror', '') or 'no answer'}")
            continue
        if done.returncode in well:
            return ""
        tried.append(f"{words[0]}: exit status {done.returncode}")
    return "; ".join(tried) or "neither wslview nor cmd.exe nor explorer.exe can be found: is interop off (/etc/wsl.conf)?"
