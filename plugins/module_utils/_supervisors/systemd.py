# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""systemd --user: a jobset is a target with its workers, and a timer that recovers orphans."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess

from .._host import Host
from ..dirqueue.errors import QueueError
from ..dirqueue.jobset import Jobset
from . import Supervisor, instances, stop_wait

_WORKER = """\
# Ansible managed
[Unit]
Description=Sagequeue worker %i
# Only an order, not a need: a container that stops must not end the workers of other jobsets.
After={container}.service
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart="{program}" worker %i
Restart=always
RestartSec=1
# The worker alone gets the signal: it passes it on to its job, and puts the job back.
KillMode=mixed
# A job that is killed for want of memory must not take its worker with it, which records why the job ended.
OOMPolicy=continue
TimeoutStopSec={stop_wait}
Slice=sagequeue.slice
"""

_RECOVER = """\
# Ansible managed
[Unit]
Description=Put orphans of the jobset %i back to pending

[Service]
Type=oneshot
ExecStart="{program}" recover %i
Slice=sagequeue.slice
"""

_SLICE = """\
# Ansible managed
[Unit]
Description=All sagequeue workers

[Slice]
{settings}"""

_TARGET = """\
# Ansible managed
[Unit]
Description=Workers of the jobset {name}
# Before: to stop the target is to wait until its workers have stopped.
{workers}Wants=sagequeue-recover@{name}.timer
PropagatesStopTo=sagequeue-recover@{name}.timer
{container}
[Install]
WantedBy=default.target
"""

_TIMER = """\
# Ansible managed
[Unit]
Description=Look for orphans of the jobset {name}

[Timer]
OnActiveSec={every}
OnUnitActiveSec={every}
AccuracySec=1
Unit=sagequeue-recover@{name}.service
"""


def _unit(instance: str) -> str:
    return f"sagequeue-worker@{instance}.service"


def _target(jobset: Jobset) -> str:
    return f"sagequeue-{jobset.name}.target"


def _timer(jobset: Jobset) -> str:
    return f"sagequeue-recover@{jobset.name}.timer"


class Systemd(Supervisor):
    """The user's own systemd."""

    name = "systemd"

    def __init__(self, host: Host, jobsets: list[Jobset], check: bool) -> None:
        super().__init__(host, jobsets, check)
        self.units = os.path.join(host.home, ".config", "systemd", "user")
        self._runtime = f"/run/user/{os.getuid()}"
        # Only in check mode may it be missing: setup has not been there yet.
        self._manager = os.path.exists(f"{self._runtime}/systemd/private")

    def _said(self, *words: str) -> list[str]:
        """Run a command of systemd and return its lines."""
        environment = {**os.environ, "XDG_RUNTIME_DIR": self._runtime, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise QueueError(f"{' '.join(words[:3])} failed: {'; '.join(lines[:3]) or done.returncode}; see journalctl --user")
        return done.stdout.splitlines()

    def _systemctl(self, *words: str) -> list[str]:
        if self._manager:
            return self._said("systemctl", "--user", *words)
        if self.check:
            return []
        raise QueueError(
            f"The systemd of this user (uid {os.getuid()}) does not run. Run setup, which makes it stay (role linger); "
            f"if that does not help: systemctl restart user@{os.getuid()}.service, as root."
        )

    def _active(self, jobsets: list[Jobset]) -> tuple[list[str], list[str]]:
        """Return the workers of some jobsets that run, and the names of the jobsets whose target does."""
        lines = self._systemctl(
            *("list-units", "--plain", "--no-legend", "--full", "--state=active,activating,reloading"),
            *("sagequeue-worker@*.service", "sagequeue-*.target"),
        )
        units = {line.split()[0] for line in lines if line}
        names = {jobset.name for jobset in jobsets}
        workers = [match.group(1) for match in map(re.compile(r"sagequeue-worker@(.*)\.service").match, sorted(units)) if match]
        return (
            [worker for worker in workers if worker.rpartition("-")[0] in names],
            [jobset.name for jobset in jobsets if _target(jobset) in units],
        )

    def _shared(self) -> dict[str, str]:
        program = f"{self.host.root.replace('%', '%%')}/bin/sagequeue"
        longest = max([self.host.stop_margin, *(stop_wait(jobset, self.host) for jobset in self.jobsets)])
        return {
            "sagequeue-worker@.service": _WORKER.format(container=self.host.container, program=program, stop_wait=longest),
            "sagequeue-recover@.service": _RECOVER.format(program=program),
            "sagequeue.slice": _SLICE.format(settings="".join(f"{key}={value}\n" for key, value in self.host.slice.items())),
        }

    def prepare(self) -> None:
        self._write(self._shared())

    def _write(self, texts: dict[str, str]) -> None:
        """Write units. A changed one is read again, but no running worker is touched."""
        if not os.path.isdir(self.units) and not self.check:
            os.makedirs(self.units, mode=0o755)
        # All of them, and not only up to the first that has changed.
        changed = [self.write(os.path.join(self.units, unit), text, 0o644) for unit, text in texts.items()]
        if any(changed) and not self.check:
            self._systemctl("daemon-reload")

    def define(self, jobsets: list[Jobset]) -> None:
        # The shared ones know the longest time that a worker takes to stop.
        texts = self._shared()
        for jobset in jobsets:
            units = [_unit(instance) for instance in instances(jobset)]
            workers = "".join(f"Wants={unit}\nBefore={unit}\nPropagatesStopTo={unit}\n" for unit in units)
            container = f"Wants={self.host.container}.service\n" if jobset.runner == "podman_exec" else ""
            texts[_target(jobset)] = _TARGET.format(name=jobset.name, workers=workers, container=container)
            texts[_timer(jobset)] = _TIMER.format(name=jobset.name, every=jobset.recover_every)
        self._write(texts)
        active, running = self._active(jobsets)
        wanted = [instance for jobset in jobsets for instance in instances(jobset)]
        surplus = [instance for instance in active if instance not in set(wanted)]
        # Not waited for: each gives its job back within its grace, all at the same time.
        if self.acts(surplus, "running", "stopped"):
            self._systemctl("stop", "--no-block", *map(_unit, surplus))
        self._fill([jobset for jobset in jobsets if jobset.name in running], active)

    def _fill(self, jobsets: list[Jobset], active: list[str]) -> None:
        """Start what running jobsets lack: new workers, or ones that somebody stopped by hand."""
        lacking = [instance for jobset in jobsets for instance in instances(jobset) if instance not in set(active)]
        if self.acts(lacking, "stopped", "running"):
            self._systemctl("start", "--no-block", *map(_unit, lacking))

    def enable(self, jobsets: list[Jobset], on: bool) -> None:
        others = [jobset for jobset in jobsets if self._enabled(jobset) != on]
        self.needs(others, [os.path.join(self.units, _target(jobset)) for jobset in others])
        words = ("enabled", "disabled")
        if self.acts([jobset.name for jobset in others], words[on], words[not on]):
            self._systemctl("enable" if on else "disable", *map(_target, others))

    def _enabled(self, jobset: Jobset) -> bool:
        return os.path.lexists(os.path.join(self.units, "default.target.wants", _target(jobset)))

    def start(self, jobsets: list[Jobset]) -> None:
        active, running = self._active(jobsets)
        stopped = [jobset for jobset in jobsets if jobset.name not in running]
        if self.acts([jobset.name for jobset in stopped], "stopped", "running"):
            self._systemctl("start", *map(_target, stopped))
        self._fill([jobset for jobset in jobsets if jobset.name in running], active)

    def stop(self, jobsets: list[Jobset]) -> None:
        # A target waits for its workers, and they stop at the same time.
        running = [jobset for jobset in jobsets if jobset.name in self._active(jobsets)[1]]
        if self.acts([jobset.name for jobset in running], "running", "stopped"):
            self._systemctl("stop", *map(_target, running))
        # Those that run without their target.
        left = [] if self.check else self._active(jobsets)[0]
        if self.acts(left, "running", "stopped"):
            self._systemctl("stop", "--no-block", *map(_unit, left))

    def forget(self, jobsets: list[Jobset]) -> None:
        made = [jobset for jobset in jobsets if os.path.exists(os.path.join(self.units, _target(jobset)))]
        self.stop(made)
        self.enable(made, False)
        removed = [self.remove(os.path.join(self.units, unit(jobset))) for jobset in jobsets for unit in (_target, _timer)]
        if any(removed) and not self.check:
            self._systemctl("daemon-reload")

    def gone(self) -> None:
        shared = ("sagequeue-worker@.service", "sagequeue-recover@.service", "sagequeue.slice")
        removed = [self.remove(os.path.join(self.units, unit)) for unit in shared]
        if any(removed) and not self.check:
            self._systemctl("daemon-reload")

    def running(self, jobsets: list[Jobset]) -> list[str]:
        return self._active([jobset for jobset in jobsets if jobset in self.jobsets])[1]

    def status(self, jobsets: list[Jobset]) -> list[str]:
        listed = self._systemctl("list-units", "--all", "--plain", "--no-legend", "--full", "sagequeue-*")
        ours = [pattern for jobset in jobsets for pattern in (_unit(f"{jobset.name}-*"), _timer(jobset))]
        enabled = [f"{jobset.name}: at boot {'enabled' if self._enabled(jobset) else 'disabled'}" for jobset in jobsets]
        found = re.compile("|".join(map(fnmatch.translate, ours)) or r"(?!)")
        return enabled + [line for line in listed if line and found.match(line.split()[0])]

    def journal(self, jobsets: list[Jobset], lines: int) -> list[str]:
        units = [unit for jobset in jobsets for unit in (_unit(f"{jobset.name}-*"), f"sagequeue-recover@{jobset.name}.service")]
        words = ("journalctl", "--user", "--no-pager", "--output=short-iso", f"--lines={lines}")
        return self._said(*words, *(f"--user-unit={unit}" for unit in units)) if units else []
