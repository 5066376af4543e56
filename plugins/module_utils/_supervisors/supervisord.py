# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""supervisord, for hosts that systemd does not run. It is spoken to as its own supervisorctl does, by XML-RPC over its socket."""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import socket
import subprocess
import time
import xmlrpc.client
from typing import Any

from .._host import Host
from ..dirqueue import joblog
from ..dirqueue.errors import QueueError
from ..dirqueue.jobset import Jobset
from . import Supervisor, instances, stop_wait

_DAEMON = """\
; Ansible managed
[unix_http_server]
file={root}/run/supervisor.sock
chmod=0700

[supervisord]
logfile={root}/log/supervisord.log
logfile_maxbytes=1MB
logfile_backups=1
pidfile={root}/run/supervisord.pid
childlogdir={root}/log
directory={root}
identifier=sagequeue
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{root}/run/supervisor.sock

[include]
files=supervisor.d/*.conf
"""

# One program per worker, not one with numprocs: supervisord restarts a whole group when its size changes.
_PROGRAM = """
[program:{program}]
command="{root}/bin/sagequeue" {words}
{stop}autostart={autostart}
autorestart=true
startretries=1000000
stopasgroup=false
killasgroup=false
redirect_stderr=true
stdout_logfile={root}/log/{program}.log
stdout_logfile_maxbytes=1MB
stdout_logfile_backups=1
environment=HOME="{home}",USER="{user}"
"""

_STOP = """\
; The worker alone gets the signal: it passes it on to its job, and puts the job back.
stopwaitsecs={seconds}
"""

# Faults that only say that something is as it should be already: ALREADY_STARTED, NOT_RUNNING, ALREADY_ADDED.
_AS_WANTED = (60, 70, 90)
_RUNNING = ("RUNNING", "STARTING", "BACKOFF")


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket of the file system."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.host)


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over a socket of the file system."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> _Connection:
        if not self._connection[1]:
            self._connection = host, _Connection(self._path)
        return self._connection[1]  # type: ignore[return-value]


def _programs(jobset: Jobset) -> list[str]:
    return [*instances(jobset), f"recover@{jobset.name}"]


class Supervisord(Supervisor):
    """A supervisord of the user's own, in a virtual environment below the root."""

    name = "supervisord"

    def __init__(self, host: Host, jobsets: list[Jobset], check: bool) -> None:
        super().__init__(host, jobsets, check)
        self._config = os.path.join(host.root, "etc", "supervisord.conf")
        self._socket = os.path.join(host.root, "run", "supervisor.sock")
        self._pidfile = os.path.join(host.root, "run", "supervisord.pid")
        self._server = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(self._socket)).supervisor

    def _call(self, verb: str, *words: Any) -> Any:
        try:
            return getattr(self._server, verb)(*words)
        except xmlrpc.client.Fault as exc:
            if exc.faultCode in _AS_WANTED:
                return None
            raise QueueError(f"supervisord can't do {verb} {' '.join(map(str, words))}: {exc.faultString}") from exc
        except OSError as exc:
            reason = exc.strerror or type(exc).__name__
            raise QueueError(f"supervisord does not answer at {self._socket} ({reason}): run setup, which starts it") from exc

    def _runs(self) -> bool:
        try:
            return bool(self._server.getPID())
        except (OSError, xmlrpc.client.Error):
            return False

    def _states(self, jobsets: list[Jobset]) -> dict[str, dict[str, Any]]:
        """Return what supervisord knows of some jobsets' programs, by name."""
        # Only in check mode may it be missing: setup has not been there yet.
        if self.check and not self._runs():
            return {}
        names = {jobset.name for jobset in jobsets}
        found = {}
        for info in self._call("getAllProcessInfo"):
            head, mark, tail = info["name"].rpartition("-")
            if (tail.isdecimal() and head in names) or (info["name"].startswith("recover@") and info["name"][8:] in names):
                found[info["name"]] = info
        return found

    def _conf(self, name: str) -> str:
        return os.path.join(self.host.root, "etc", "supervisor.d", f"{name}.conf")

    def prepare(self) -> None:
        for folder in ("etc/supervisor.d", "run", "log"):
            path = os.path.join(self.host.root, folder)
            if not os.path.isdir(path) and self.acts([path], "absent", "a folder"):
                os.makedirs(path, mode=0o700)
        user = "user=root\n" if os.getuid() == 0 else ""
        self.write(self._config, _DAEMON.format(root=self.host.root.replace("%", "%%"), user=user), 0o600)
        # It dies with the container that holds it; with it, the jobsets that are enabled come back.
        if not self._runs() and self.acts(["supervisord"], "stopped", "running"):
            program = os.path.join(self.host.root, "supervisor", "bin", "supervisord")
            done = subprocess.run([program, "-c", self._config], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise QueueError(f"{program} does not start: {(done.stderr or done.stdout).strip()}")

    def _text(self, jobset: Jobset, autostart: bool) -> str:
        root, home = (path.replace("%", "%%") for path in (self.host.root, self.host.home))
        stop = _STOP.format(seconds=stop_wait(jobset, self.host))
        text = "; Ansible managed\n"
        for program in _programs(jobset):
            worker = not program.startswith("recover@")
            text += _PROGRAM.format(
                program=program,
                root=root,
                words=f"worker {program}" if worker else f"recover {jobset.name} --every {jobset.recover_every}",
                stop=stop if worker else "",
                autostart=str(autostart).lower(),
                home=home,
                user=pwd.getpwuid(os.getuid()).pw_name,
            )
        return text

    def _enabled(self, jobset: Jobset) -> bool:
        try:
            with open(self._conf(jobset.name), encoding="utf-8") as file:
                return "\nautostart=true\n" in file.read()
        except FileNotFoundError:
            return False

    def define(self, jobsets: list[Jobset]) -> None:
        for jobset in jobsets:
            self.write(self._conf(jobset.name), self._text(jobset, self._enabled(jobset)), 0o600)
        states = self._states(jobsets)
        wanted = [program for jobset in jobsets for program in _programs(jobset)]
        surplus = sorted(states.keys() - set(wanted))
        self._act("stop", [program for program in surplus if states[program]["statename"] in _RUNNING])
        # Only these: a program that is merely changed would be restarted. It takes its new settings with the next restart.
        if self.acts(surplus, "a program", "absent"):
            for program in surplus:
                self._call("removeProcessGroup", program)
        new = [program for program in wanted if program not in states]
        if self.acts(new, "absent", "a program"):
            self._call("reloadConfig")
            for program in new:
                self._call("addProcessGroup", program)
        running = {name.rpartition("-")[0] for name, info in states.items() if info["statename"] in _RUNNING}
        self._act("start", [program for program in new if program.rpartition("-")[0] in running])

    def enable(self, jobsets: list[Jobset], on: bool) -> None:
        others = [jobset for jobset in jobsets if self._enabled(jobset) != on]
        self.needs(others, [self._conf(jobset.name) for jobset in others])
        # supervisord reads it when it starts the next time.
        for jobset in others:
            self.write(self._conf(jobset.name), self._text(jobset, on), 0o600)

    def _act(self, verb: str, programs: list[str]) -> None:
        """Start or stop programs, all at the same time; return when they have stopped, or have been started."""
        words = ("stopped", "running") if verb == "start" else ("running", "stopped")
        if not self.acts(programs, *words):
            return
        for program in programs:
            self._call(f"{verb}Process", program, False)
        wait = 30 + max([self.host.stop_margin, *(stop_wait(jobset, self.host) for jobset in self.jobsets)])
        end = time.monotonic() + wait
        while verb == "stop":
            left = [info["name"] for info in self._call("getAllProcessInfo") if info["statename"] == "STOPPING"]
            left = [program for program in programs if program in set(left)]
            if not left:
                return
            if time.monotonic() > end:
                raise QueueError(f"after {wait} s these have not stopped yet: {', '.join(left)}; see {self.host.root}/log/supervisord.log")
            time.sleep(0.02)

    def start(self, jobsets: list[Jobset]) -> None:
        states = self._states(jobsets)
        self._act("start", [name for name, info in states.items() if info["statename"] not in _RUNNING])

    def stop(self, jobsets: list[Jobset]) -> None:
        states = self._states(jobsets)
        self._act("stop", [name for name, info in states.items() if info["statename"] in _RUNNING])

    def forget(self, jobsets: list[Jobset]) -> None:
        runs = self._runs()
        if runs:
            self.stop(jobsets)
        for jobset in jobsets:
            self.remove(self._conf(jobset.name))
        programs = sorted(self._states(jobsets)) if runs else []
        if self.acts(programs, "a program", "absent"):
            self._call("reloadConfig")
            for program in programs:
                self._call("removeProcessGroup", program)

    def gone(self) -> None:
        if self._runs() and self.acts(["supervisord"], "running", "stopped"):
            self._call("shutdown")
            end = time.monotonic() + 120
            while os.path.exists(self._pidfile):
                if time.monotonic() > end:
                    raise QueueError(f"supervisord has not ended after 120 s: {self._pidfile} is still there")
                time.sleep(0.1)
        for name in ("supervisor", "etc/supervisor.d", "etc/supervisord.conf"):
            path = os.path.join(self.host.root, name)
            if os.path.isdir(path) and self.acts([path], "a folder", "absent"):
                shutil.rmtree(path)
            elif os.path.isfile(path):
                self.remove(path)

    def running(self, jobsets: list[Jobset]) -> list[str]:
        states = self._states([jobset for jobset in jobsets if jobset in self.jobsets])
        return sorted({name.rpartition("-")[0] for name, info in states.items() if info["statename"] in _RUNNING} - {""})

    def status(self, jobsets: list[Jobset]) -> list[str]:
        enabled = [f"{jobset.name}: with supervisord {'enabled' if self._enabled(jobset) else 'disabled'}" for jobset in jobsets]
        return enabled + [f"{name:32} {info['statename']:9} {info['description']}" for name, info in self._states(jobsets).items()]

    def journal(self, jobsets: list[Jobset], lines: int) -> list[str]:
        patterns = [pattern for jobset in jobsets for pattern in (f"{jobset.name}-[0-9]*.log", f"recover@{jobset.name}.log")]
        return joblog.ends(os.path.join(self.host.root, "log"), patterns, lines)
