#!/usr/bin/env python3
# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Start jobs in a container by the agent, by podman exec and by crun exec, and print as JSON what became of them, or how long they took.

usage: [RUNNER=docker_exec] compare.py PROGRAM CONTAINER FOLDER [ROUNDS]
       RUNNER=apptainer IMAGE=NAME compare.py PROGRAM SIF FOLDER

PROGRAM is the program sagequeue, FOLDER one in the container. With ROUNDS: the seconds of that many no-op jobs, by each way in
turns. Run it as the container's user, on its host. RUNNER=docker_exec has jobs started by that runner and by docker exec,
RUNNER=apptainer by that one and by podman_run; then FOLDER is one on the host.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from typing import Any

sys.path.insert(0, sys.argv[1])
from dirqueue.jobset import Jobset  # type: ignore[import-not-found]
from dirqueue.layout import Layout  # type: ignore[import-not-found]
from dirqueue.runners.base import Command  # type: ignore[import-not-found]
from dirqueue.runners.known import make  # type: ignore[import-not-found]

program, container, folder = sys.argv[1:4]
kind = os.environ.get("RUNNER", "podman_exec")
KINDS = {"podman_exec": ("agent", "podman"), "docker_exec": ("docker_exec", "docker"), "apptainer": ("apptainer", "podman_run")}
ours, client = KINDS[kind]
said: list[str] = []


def runner_of(kind: str, **keys: str) -> Any:
    jobset = Jobset("t", {"script": ".", "command": "sh", "workdir": "/", "runner": kind, "container_workdir": folder, **keys})
    return make(Layout(os.path.dirname(os.path.dirname(os.path.abspath(program))), "t"), jobset, said.append)


if kind == "apptainer":
    runner = runner_of(kind, workdir=folder, container_workdir="/home/sage/notebooks", image=container)
    other = runner_of(client, workdir=folder, container_workdir="/home/sage/notebooks", image=os.environ["IMAGE"])
else:
    runner = runner_of(kind, container=container)
token = runner.ready()
CLAIM = {"SAGEQUEUE_CLAIM": f"compare-{os.getpid()}"}

# What a process inherits, as the process itself sees it; and what of that is no news, because it is another process each time.
FILES = ["status", "limits", "cgroup", "oom_score_adj", "loginuid", "coredump_filter", "mountinfo"]
OTHER = ["Name", "Tgid", "Pid", "PPid", "NStgid", "NSpid", "NSpgid", "NSsid", "SigQ", "voluntary_ctxt_switches"]
OTHER += ["VmPeak", "VmSize", "VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem", "VmData", "VmStk", "VmPTE", "nonvoluntary_ctxt_switches"]
# Nice value, scheduling, whether it leads a session and a group, its terminal.
SHELL = r"""
ulimit -a; umask; pwd; tty; readlink /proc/$$/cwd /proc/$$/root /proc/$$/fd/0 /proc/$$/ns/*; stat -Lc '%F %a' /proc/$$/fd/0
sed 's/.*) //' /proc/$$/stat | { read -r s p g i t tg f a b c d e h j k pr ni rest; echo $pr $ni $((g == $$)) $((i == $$)) $t $tg; }
"""


def filtered(printed: str) -> str:
    return "".join(line for line in printed.splitlines(True) if line.split(":\t")[0] not in OTHER)


CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "environment": (["env", "-0"], {"JOB_A": "ä 'x' $y\nz", "HOME": "/in", "IMAGE_SAYS": "overridden", "EMPTY": ""}),
    "inherited": (["cat", *(f"/proc/self/{file}" for file in FILES)], {}),
    "shell": (["sh", "-c", SHELL], {}),
    "descriptors": (["ls", "/proc/self/fd"], {}),
    "output": (["sh", "-c", r"printf 'a\000\377b'; echo err >&2; echo out; echo reopened >/dev/stderr; head -c 300000 /dev/zero"], {}),
    "no input": (["cat"], {}),
    "words": (["printf", "%s|", "", "a b", "$x", "ä", "\n"], {}),
    "exit 0": (["true"], {}),
    "exit 3": (["sh", "-c", "exit 3"], {}),
    "exit 255": (["sh", "-c", "exit 255"], {}),
    "exit 137": (["sh", "-c", "exit 137"], {}),
    "killed": (["sh", "-c", "kill -9 $$"], {}),
    "segmentation fault": (["sh", "-c", "kill -11 $$"], {}),
    "real-time signal": (["sh", "-c", "kill -40 $$"], {}),
    "broken pipe": (["sh", "-c", "yes | head -n 1; yes 2>&1 | { sleep 0.1; }; echo $?"], {}),
    "no such program": (["no-such-program"], {}),
    "no such file": (["./no-such-file"], {}),
    "a folder": (["/tmp"], {}),
    "not executable": (["/etc/passwd"], {}),
    "no program": (["./not-a-program"], {}),
    "no interpreter": (["./no-interpreter"], {}),
    "a script here": (["./a-script", "x"], {}),
    "a script in PATH": (["a-script"], {"PATH": f"/nowhere:{folder}:/bin:/usr/bin"}),
    "no PATH": (["sh"], {"PATH": ""}),
}


def run(by: str, words: list[str], variables: dict[str, str]) -> tuple[Any, bytes]:
    """Run a command to its end; return how it ended and what it printed."""
    reading, writing = os.pipe()
    command = Command(words, {**variables, **CLAIM}, writing)
    if by == ours:
        running = runner.start(command, CLAIM, token)
        assert not running.session or by != "agent", said
    elif client == "podman_run":
        running = other.start(command, CLAIM, "")
    else:
        running = runner._start([client, "exec", "--workdir", folder], container, command, CLAIM, token)
    os.close(writing)
    printed = b""
    while data := os.read(reading, 65536):
        printed += data
    os.close(reading)
    while not (outcome := runner.reap(running)):
        # Podman's client is a child, whose end is waited for; an agent speaks.
        if running.session:
            os.waitid(os.P_PID, running.session, os.WEXITED | os.WNOWAIT)
        else:
            select.select([running.fileno], [], [])
    return outcome, printed


def crun() -> Any:
    """Return a function that runs a no-op job by crun exec, told to in podman's own namespace, and returns its seconds."""
    whole = subprocess.run(
        ["podman", "inspect", "--format", "{{.Id}}", container], capture_output=True, text=True, check=True
    ).stdout.strip()
    code = (
        "import os, sys, time\n"
        "for line in sys.stdin:\n"
        "    began = time.perf_counter()\n"
        "    words = ['crun', '--root', os.environ['XDG_RUNTIME_DIR'] + '/crun', 'exec', '--cwd', sys.argv[2], sys.argv[1], 'true']\n"
        "    status = os.waitpid(os.posix_spawnp('crun', words, os.environ), 0)[1]\n"
        "    print(status, time.perf_counter() - began, flush=True)\n"
    )
    process = subprocess.Popen(
        ["podman", "unshare", "python3", "-c", code, whole, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def once() -> float:
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        status, seconds = process.stdout.readline().split()
        assert status == "0"
        return float(seconds)

    return once


def timed(by: str) -> float:
    began = time.perf_counter()
    outcome, _printed = run(by, ["true"], {})
    assert outcome.exit_status == 0, outcome
    return time.perf_counter() - began


if len(sys.argv) > 4:
    run_crun = crun()
    run_crun(), timed("agent")
    seconds: dict[str, list[float]] = {"agent": [], "crun exec": [], "podman exec": []}
    for number in range(int(sys.argv[4])):
        seconds["agent"].append(timed("agent"))
        seconds["crun exec"].append(run_crun())
        if number % 10 == 0:
            seconds["podman exec"].append(timed("podman exec"))
    print(json.dumps(seconds))
else:
    found: dict[str, dict[str, Any]] = {}
    for name, (words, variables) in CASES.items():
        found[name] = {}
        for by in (ours, f"{client} exec"):
            outcome, printed = run(by, words, variables)
            if name == "environment":
                # Podman's own order is another each time.
                printed = b"\0".join(sorted(printed.split(b"\0")))
            found[name][by] = [outcome.exit_status, outcome.signal, filtered(printed.decode("latin-1"))]
    print(json.dumps(found))
