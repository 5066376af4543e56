# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which commands and files of a host an archive for a bug report holds, by its folders."""

from __future__ import annotations

import os

# So many lines of a journal or of a container's log are asked for.
_LINES = 500

# Name of the file in the archive -> the command; {root} and {container} are filled in.
HOST = {
    "uname": ["uname", "-a"], "id": ["id"], "processors": ["nproc"], "clock": ["timedatectl"], "virtualisation": ["systemd-detect-virt"],
    "processes": ["ps", "-u", str(os.geteuid()), "-o", "pid,ppid,pgid,stat,lstart,rss,etime,comm"],
}  # fmt: skip
DISK = {"df": ["df", "-hT"], "inodes": ["df", "-i"], "mounts": ["findmnt", "--real"], "quota": ["quota", "-s"]}
CONTAINER = {
    # With its version.
    "podman-info": ["podman", "info"], "containers": ["podman", "ps", "--all"],
    "images": ["podman", "images", "--all"], "secrets": ["podman", "secret", "ls"], "runtime": ["crun", "--version"],
    "logs": ["podman", "logs", "--tail", str(_LINES), "{container}"],
}  # fmt: skip
UNITS = {
    "systemd-version": ["systemctl", "--version"],
    "units": ["systemctl", "--user", "--no-pager", "--full", "list-units", "--all", "sagequeue*", "{container}*"],
    "status": ["systemctl", "--user", "--no-pager", "--lines=0", "status", "sagequeue*", "{container}.service"],
    "timers": ["systemctl", "--user", "--no-pager", "list-timers", "--all"],
    "failed": ["systemctl", "--user", "--no-pager", "--failed"],
    "unit-texts": ["systemctl", "--user", "--no-pager", "cat", "sagequeue*", "{container}.service"],
    "linger": ["loginctl", "user-status", "--no-pager", "--lines=0"],
    "journal": ["journalctl", "--user", "--output=short-iso", "-n", str(_LINES), "--user-unit=sagequeue*", "--user-unit={container}*"],
    "supervisord": ["{root}/supervisor/bin/supervisorctl", "-c", "{root}/etc/supervisord.conf", "status"],
}  # fmt: skip
# These have nothing to say where systemd does not run, as sd_booted(3) finds out.
BOOTED = "/run/systemd/system"
SYSTEMD = ("systemctl", "loginctl", "journalctl", "timedatectl")
WSL = {"version": ["wsl.exe", "--version"], "distributions": ["wsl.exe", "--list", "--verbose"]}
# Folder in the archive -> files that are taken as they are: below the root, below the home, or by their whole path.
FILES = {
    "host": [
        "/etc/os-release", "/proc/version", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/pressure/*", "/proc/self/cgroup",
        "/proc/self/limits",
    ],
    "units": [
        "{root}/etc/supervisord.conf", "{root}/etc/supervisor.d/*.conf", "{root}/log/*.log", "~/.config/systemd/user/sagequeue*",
        "~/.config/systemd/user/sagequeue*/*", "~/.config/containers/systemd/*", "~/.config/containers/*.conf",
    ],
    "wsl": ["/etc/wsl.conf", "/proc/sys/fs/binfmt_misc/WSLInterop*", "/mnt/c/Users/*/.wslconfig"],
}  # fmt: skip
