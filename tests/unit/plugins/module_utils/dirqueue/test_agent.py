# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The agent that starts jobs in a container: real workers, agents and signals. Only the container is none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carriers
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.owner import process_start
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners import agent

# A container that is none: what runs in it is a child of nobody, with an environment of its own. `calls` says how it was called.
PODMAN = f"""#!{sys.executable}
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
words = sys.argv[1:]
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
if words[:2] == ["container", "inspect"]:
    print("true" if "StartedAt" not in words[3] else "true abc " + open(here + "/started").read())
elif words[0] == "unshare":
    os.execvp(words[1], words[1:])
elif words[0] == "exec":
    environment = {{"PATH": here + "/inside:" + os.environ["PATH"], "HOME": "/in", "IMAGE": "a=b"}}
    folder, kept, detached = "/", 0, False
    while words[1].startswith("--"):
        option, _, value = words.pop(1).partition("=")
        if option in ("--env", "--workdir") and not value:
            value = words.pop(1)
        if option == "--env":
            name, equals, given = value.partition("=")
            environment[name] = given if equals else os.environ[name]
        folder = value if option == "--workdir" else folder
        kept = int(value) if option == "--preserve-fds" else kept
        detached = detached or option == "--detach"
    os.chdir(folder)
    for number in range(3, 10):
        if number >= 3 + kept:
            try:
                os.close(number)
            except OSError:
                pass
    if detached:
        if os.fork():
            os.write(1, b"5e55107\\n")
            os._exit(0)
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
    os.environ["PATH"] = environment["PATH"]
    try:
        os.execvpe(words[2], words[2:], environment)
    except OSError as exc:
        sys.stderr.write(f"Error: {{exc}}\\n")
        sys.exit(127)
"""


class Container:
    """The container of a host, and its jobset t."""

    def __init__(self, host: Any, folder: Path) -> None:
        self.host = host
        self.folder = folder
        (folder / "inside").mkdir(parents=True)
        self.put("podman", PODMAN)
        (folder / "started").write_text("2026-01-01", encoding="utf-8")
        host.environment["PATH"] = f"{folder}:{os.environ['PATH']}"

    def put(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")
        (self.folder / name).chmod(0o755)

    def jobs(self, script: str, count: int = 1, **keys: Any) -> None:
        self.host.script(script)
        self.host.define(runner="podman_exec", container_workdir=str(self.host.work), stride=max(count, 1), **keys)
        self.host.queue().enqueue(self.host.queue().jobset.offset_jobs(range(count)))

    def calls(self) -> list[list[str]]:
        """The words that podman was called with, in order."""
        return [json.loads(line) for line in (self.folder / "calls").read_text(encoding="utf-8").splitlines()]

    def execs(self) -> list[str]:
        """How podman exec was used, in order: agent, test (for the script), or job."""
        kinds = {"--detach": lambda words: "agent", "test": lambda words: "test"}
        return [next((kind(words) for mark, kind in kinds.items() if mark in words), "job") for words in self.calls() if words[0] == "exec"]

    def agents(self) -> list[int]:
        return [
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdigit()
            and b"SAGEQUEUE_AGENT=" in read(f"/proc/{entry}/environ")
            and str(self.folder).encode() in read(f"/proc/{entry}/environ")
        ]


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


@pytest.fixture
def container(host: Any) -> Iterator[Container]:
    made = Container(host, host.base / "podman-bin")
    yield made
    host.close()
    for pid in made.agents():
        os.kill(pid, signal.SIGKILL)


# ---- through a worker -----------------------------------------------------------------------------------------


def test_one_podman_exec_starts_the_jobs_of_a_worker(host: Any, container: Container) -> None:
    container.jobs(
        'printf "x\\000\\377"; echo err >&2; env >env.$JOB_OFFSET; pwd; umask; exec head -c 4 /dev/stdin', 5, environment={"E": "1"}
    )
    host.work_off()
    assert set(host.states().values()) == {"done"}
    assert container.execs() == ["test", "agent"]
    log = (host.root / "var/t/log/t_off0.log").read_bytes()
    assert b"x\0\xfferr\n%s\n" % os.fsencode(host.work) in log
    inside = (host.work / "env.0").read_text(encoding="utf-8").splitlines()
    assert {"HOME=/in", "IMAGE=a=b", "E=1", "JOB_OFFSET=0"} <= set(inside) and not [line for line in inside if "AGENT" in line]
    values = host.values("t_off0")
    assert int(values["PEAK_MEMORY_KIB"]) > 100 and f"SAGEQUEUE_CLAIM={values['CLAIM']}" in inside
    assert container.agents() == []
    assert container.calls()[-1] == ["container", "cleanup", "--rm", "--exec", "5e55107", "sagemath"]


def test_the_process_list_holds_no_value(host: Any, container: Container) -> None:
    container.jobs("ps -eo args >list", environment={"SECRET": "s3cret-value"})
    host.work_off()
    assert "s3cret-value" not in (host.work / "list").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "key", "value"),
    [
        ("exit 3", "EXIT_STATUS", "3"),
        ("kill -9 $$", "SIGNAL", "9"),
        ("kill -11 $$", "SIGNAL", "11"),
        # What podman exec can't tell apart, and so we don't either.
        ("exit 143", "SIGNAL", "15"),
    ],
)
def test_how_jobs_end(host: Any, container: Container, script: str, key: str, value: str) -> None:
    container.jobs(script, attempts=2)
    host.work_off()
    values = host.values("t_off0")
    assert host.states() == {"t_off0": "failed"} and values[key] == value and values["ATTEMPTS"] == "2"


def test_a_command_that_cannot_be_started(host: Any, container: Container) -> None:
    container.jobs("", command=["no-such-program"], attempts=1)
    host.work_off()
    assert host.values("t_off0")["EXIT_STATUS"] == "127" and "the job can't be started: " in host.log("t_off0")


def test_a_worker_that_is_killed_takes_its_job_along(host: Any, container: Container, wait_for: Callable[..., Any]) -> None:
    # In a session of its own, too, as timeout(1) or a shell's job control do it; and deaf.
    container.jobs("trap '' TERM HUP; echo $$ >>started\nsetsid sleep 600 & sleep 600")
    worker = host.worker()
    wait_for(lambda: len(host.alive("t_off0")) == 3)
    worker.kill()
    wait_for(lambda: not host.alive("t_off0") and not container.agents())
    assert host.states() == {"t_off0": "running"}
    assert "t_off0" in host.sagequeue("recover", "t").stdout
    assert (host.work / "started").read_text(encoding="utf-8").count("\n") == 1 and host.states() == {"t_off0": "pending"}


def test_an_agent_that_is_killed(host: Any, container: Container, wait_for: Callable[..., Any]) -> None:
    container.jobs("echo $$ >>started\n[ -e go ] || sleep 600")
    worker = host.worker()
    wait_for(lambda: host.alive("t_off0") and (host.work / "started").exists())
    (agent_pid,) = container.agents()
    os.kill(agent_pid, signal.SIGKILL)
    wait_for(lambda: host.history())
    (host.work / "go").touch()
    attempt = host.history()[0]
    assert (attempt["result"], attempt["reason"]) == ("pending", "runner_lost") and "went away" in attempt["detail"]
    first = int((host.work / "started").read_text(encoding="utf-8").split()[0])
    assert not process_start(first), "what the agent left still runs"
    wait_for(lambda: host.states() == {"t_off0": "done"})
    worker.terminate()
    worker.wait()
    values = host.values("t_off0")
    assert (values["RECOVERIES"], values["ATTEMPTS"]) == ("1", "1")
    # The agent is not trusted for a while.
    assert container.execs() == ["test", "agent", "test", "job"] and host.said().count("no agent in the container") == 1


@pytest.mark.parametrize("anew", [False, True], ids=["alone", "with its container"])
def test_an_agent_that_is_killed_between_two_jobs(host: Any, container: Container, wait_for: Callable[..., Any], anew: bool) -> None:
    container.jobs('[ "$SAGEQUEUE_JOB" != c ] || exit 3', attempts=1)
    worker = host.worker()
    wait_for(lambda: host.states() == {"t_off0": "done"})
    if anew:
        (container.folder / "started").write_text("2026-01-02", encoding="utf-8")
    (agent_pid,) = container.agents()
    os.kill(agent_pid, signal.SIGKILL)
    # A kill is not done at once, and until then its socket is open.
    wait_for(lambda: not process_start(agent_pid))
    host.queue().enqueue([("b", {"OFFSET": "0"})])
    wait_for(lambda: host.states()["b"] == "done")
    host.queue().enqueue([("c", {"OFFSET": "0"})])
    # Which is its own fault, and not its container's.
    wait_for(lambda: host.states()["c"] == "failed")
    worker.terminate()
    worker.wait()
    assert container.execs() == ["test", "agent", *(["test"] if anew else []), "agent", "test"]
    assert "RECOVERIES" not in host.values("b") and "RECOVERIES" not in host.values("c")


def test_a_container_that_is_started_anew(host: Any, container: Container, wait_for: Callable[..., Any]) -> None:
    container.jobs("[ -e go ] || sleep 600")
    worker = host.worker()
    wait_for(lambda: host.alive("t_off0"))
    (container.folder / "started").write_text("2026-01-02", encoding="utf-8")
    (host.work / "go").touch()
    for pid in [*container.agents(), *host.alive("t_off0")]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: host.states() == {"t_off0": "done"})
    worker.terminate()
    worker.wait()
    attempt = host.history()[0]
    assert (attempt["reason"], attempt["detail"]) == ("runner_lost", "the container was started anew while the job ran")
    assert container.execs() == ["test", "agent", "test", "agent"]


FALSE_PYTHONS = {
    "gone": "",
    "old": "#!/bin/sh\necho SyntaxError >&2\nexit 1\n",
    "mad": f"#!{sys.executable}\nimport socket, time\ns = socket.socket(fileno=3)\ns.recv(65536)\ns.send(b'x' * 3000)\ntime.sleep(600)\n",
}


@pytest.mark.parametrize("kind", FALSE_PYTHONS)
def test_without_an_agent_podman_starts_the_jobs(host: Any, container: Container, kind: str) -> None:
    if FALSE_PYTHONS[kind]:
        container.put("inside/python3", FALSE_PYTHONS[kind])
    else:
        podman = (
            (container.folder / "podman")
            .read_text(encoding="utf-8")
            .replace("words[2:], env", "[word + '?' * (word == 'python3') for word in words[2:]], env")
        )
        container.put("podman", podman.replace("os.execvpe(words[2]", "os.execvpe(words[2] + '?' * (words[2] == 'python3')"))
    container.jobs("echo hello", 3)
    said = host.work_off()
    assert set(host.states().values()) == {"done"} and "hello" in host.log("t_off2")
    assert container.execs() == ["test", "agent", "job", "job", "job"] and said.count("no agent in the container sagemath (") == 1
    assert kind == "gone" or "no agent in the container sagemath (its python3 does not run the agent)" in said


def test_an_agent_that_talks_nonsense_of_a_job(host: Any, container: Container) -> None:
    container.put(
        "inside/python3",
        f"#!{sys.executable}\nimport socket, time\ns = socket.socket(fileno=3)\ns.recv(65536)\ns.send(b'ready')\n"
        "s.recv(65536)\ns.send(b'ended well enough')\ntime.sleep(600)\n",
    )
    container.jobs("echo hello")
    host.work_off()
    assert host.states() == {"t_off0": "done"} and host.history()[0]["reason"] == "runner_lost"
    assert container.execs() == ["test", "agent", "test", "job"] and container.agents() == []


def test_a_command_too_long_for_one_message(host: Any, container: Container) -> None:
    container.jobs("echo ${#LONG}", environment={"LONG": "x" * 110_000})
    host.work_off()
    assert container.execs() == ["test", "job"] and "\n110000\n" in host.log("t_off0")


def test_a_daemon_outlives_its_job_and_its_agent(host: Any, container: Container, wait_for: Callable[..., Any]) -> None:
    container.jobs("setsid sleep 600 & echo $! >>daemon; sleep 600 & echo $! >>daemon", 2)
    host.work_off()
    assert set(host.states().values()) == {"done"} and container.agents() == []
    assert container.execs() == ["test", "agent"]
    for pid in (host.work / "daemon").read_text(encoding="utf-8").split():
        os.kill(int(pid), signal.SIGKILL)


def test_stopping_and_time_outs(host: Any, container: Container, wait_for: Callable[..., Any]) -> None:
    container.jobs("trap 'echo got TERM; exit 0' TERM; sleep 600 & wait")
    worker = host.worker()
    wait_for(lambda: len(host.alive("t_off0")) == 2)
    worker.terminate()
    worker.wait()
    assert host.states() == {"t_off0": "pending"} and host.values("t_off0")["REASON"] == "worker_stopped"
    assert "got TERM" in host.log("t_off0") and not host.alive("t_off0")
    # One that does not listen is killed, and the next is started all the same.
    container.jobs("[ $JOB_OFFSET = 1 ] || { trap '' TERM; sleep 600 & wait; wait; sleep 600; }", 2, timeout=1, grace=0.5, attempts=1)
    host.work_off()
    assert host.states() == {"t_off0": "failed", "t_off1": "done"} and host.values("t_off0")["REASON"] == "timeout"
    assert not host.alive("t_off0") and container.agents() == []


def test_a_frozen_agent_never_starts_what_its_dead_worker_had_told_it(
    host: Any, container: Container, wait_for: Callable[..., Any]
) -> None:
    container.jobs("echo $SAGEQUEUE_JOB >>started", 0)
    worker = host.python(
        "import os, signal, sys, time\n"
        "from dirqueue import definitions\n"
        "from dirqueue.layout import Layout\n"
        "from dirqueue.runners.base import Command\n"
        "from dirqueue.runners.known import make\n"
        "runner = make(Layout(sys.argv[1], 't'), definitions.load(sys.argv[1], 't'))\n"
        "token = runner.ready()\n"
        "runner._agent_in(token)\n"
        "print('agent', flush=True)\n"
        "sys.stdin.readline()\n"
        "claim = {'SAGEQUEUE_CLAIM': sys.argv[2]}\n"
        "command = Command(['/bin/sh', 'job.sh'], {'SAGEQUEUE_JOB': 'b', **claim}, os.open('/dev/null', os.O_WRONLY))\n"
        "assert runner.start(command, claim, token).fileno >= 0\n"
        "print('told', flush=True)\n"
        "time.sleep(600)\n",
        str(host.root),
        f"test-{os.getpid()}",
    )
    assert worker.stdout and worker.stdin and worker.stdout.readline() == "agent\n"
    (pid,) = container.agents()
    os.kill(pid, signal.SIGSTOP)
    worker.stdin.write("\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "told\n"
    worker.kill()
    worker.wait()
    found = host.sagequeue("carriers", "--signal", "9", "--until-gone", f"SAGEQUEUE_CLAIM=test-{os.getpid()}")
    assert found.returncode == 0, found.stderr
    assert not process_start(pid), "the agent could start the job when it goes on"
    assert not (host.work / "started").exists()


def test_an_agent_that_does_not_answer_is_not_used(host: Any, container: Container, wait_for: Callable[..., Any]) -> None:
    container.jobs("echo $SAGEQUEUE_JOB >>started", 0)
    worker = host.worker()
    host.queue().enqueue([("a", {"OFFSET": "0"})])
    wait_for(lambda: host.states() == {"a": "done"})
    frozen = container.agents()
    os.kill(frozen[0], signal.SIGSTOP)
    # Longer than the worker trusts that all is well.
    time.sleep(6)
    host.queue().enqueue([("b", {"OFFSET": "0"})])
    wait_for(lambda: host.states()["b"] == "done")
    with contextlib.suppress(ProcessLookupError):
        # On a slow machine it has been ended by now.
        os.kill(frozen[0], signal.SIGCONT)
    wait_for(lambda: not process_start(frozen[0]))
    worker.terminate()
    worker.wait()
    assert (host.work / "started").read_text(encoding="utf-8") == "a\nb\n"
    assert container.execs() == ["test", "agent", "agent"]


def test_a_job_that_a_frozen_agent_was_told_times_out(host: Any, container: Container, wait_for: Callable[..., Any]) -> None:
    container.jobs("echo $SAGEQUEUE_JOB >>started; exec sleep 600", 1, timeout=2, grace=0.5, attempts=1)
    worker = host.worker()
    wait_for(lambda: host.alive("t_off0"))
    (pid,) = container.agents()
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: host.states() == {"t_off0": "failed"})
    worker.terminate()
    worker.wait()
    assert host.values("t_off0")["REASON"] == "timeout" and not process_start(pid) and not host.alive("t_off0")


# ---- the agent alone ------------------------------------------------------------------------------------------


def send(ours: socket.socket, message: bytes, fd: int) -> None:
    """As socket.send_fds does, which Python has since 3.9."""
    ours.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))])


@pytest.fixture
def alone() -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    ours.send(Path(agent.__file__).read_bytes())
    environment = {"PATH": os.environ["PATH"], "SAGEQUEUE_AGENT": "x", "A": "1"}
    # While coverage is measured: the library that does so, and what it is told.
    measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    code = f"import os; exec(compile(os.read(3, 65536), {agent.__file__!r}, 'exec'))"
    words = ["sh", "-c", 'exec "$@" 3<&0 0</dev/null', "sh", sys.executable, "-I" if measured else "-IS", "-c", code]
    process = subprocess.Popen(words, stdin=its.fileno(), stderr=subprocess.PIPE, env={**environment, **measured})
    its.close()
    assert ours.recv(100) == b"ready"
    yield ours, process
    ours.close()
    assert process.stderr
    process.stderr.close()
    assert process.wait(20) == 0


def told(ours: socket.socket, *words: str, claim: str = "test-agent") -> int:
    """Tell an agent to start something; return what it prints into."""
    output, inner = os.pipe()
    fields = [str(len(words)), "/tmp", *words, f"SAGEQUEUE_CLAIM={claim}", "B=2=3"]
    send(ours, b"run\0" + b"".join(field.encode() + b"\0" for field in fields), inner)
    os.close(inner)
    return output


def test_what_it_says(alone: tuple[socket.socket, subprocess.Popen[bytes]]) -> None:
    ours, _process = alone
    ours.send(b"ping 7")
    assert ours.recv(100) == b"ping 7"
    for script, status in (("env; pwd; ls -l /proc/self/fd", 0), ("exit 7", 7 << 8), ("kill -9 $$", 9)):
        with open(told(ours, "sh", "-c", script), encoding="utf-8") as file:
            printed = file.read().splitlines()
        word, said, kib = ours.recv(100).split()
        assert (word, int(said)) == (b"ended", status) and int(kib) > 100
        if not status:
            assert {"A=1", "B=2=3", "SAGEQUEUE_CLAIM=test-agent", "/tmp"} <= set(printed)
            assert not [line for line in printed if "SAGEQUEUE_AGENT" in line] and sum("->" in line for line in printed) == 4


def test_what_cannot_be_started(alone: tuple[socket.socket, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    """It is said as podman exec says it, by the exit status, and the agent goes on."""
    ours, _process = alone
    (tmp_path / "plain").touch()
    (tmp_path / "strange").write_text("#!/no/such/interpreter\n")
    (tmp_path / "strange").chmod(0o755)
    wanted = {"no-such-program": (127, "no such program"), str(tmp_path / "plain"): (126, "not executable")}
    for word, (status, reason) in {**wanted, str(tmp_path / "strange"): (1, "No such file")}.items():
        with open(told(ours, word), encoding="utf-8") as file:
            assert reason in file.read()
        assert ours.recv(100) == b"ended %d 0" % (status << 8)
    ours.send(b"ping 8")
    assert ours.recv(100) == b"ping 8"


def test_a_job_starts_as_any_process_does(alone: tuple[socket.socket, subprocess.Popen[bytes]]) -> None:
    """Signals that Python ignores, or handles, are as they are for a process that podman exec starts."""
    ours, _process = alone
    with open(told(ours, "cat", "/proc/self/status"), encoding="utf-8") as file:
        masks = [int(line.split()[1], 16) for line in file if line.startswith(("SigIgn", "SigBlk"))]
    # What these tests were started with ignored (by nohup, say) stays so, but for what Python ignores itself.
    with open("/proc/self/status", encoding="utf-8") as file:
        given = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
    given &= ~sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))
    # Some C libraries' posix_spawn leaves the two signals ignored that it keeps for itself, 32 and 33.
    assert [mask & ~0x180000000 for mask in masks] == [0, given & ~0x180000000]
    ours.recv(100)


@pytest.mark.parametrize(
    ("message", "with_output"),
    [
        (b"", False),
        (b"\xff" * 1000, True),
        (b"run\0", True),
        (b"run\0x\0/\0true\0", True),
        (b"run\x001\0/\0true\0", True),
        (b"run\x001\0/tmp\0true\0SAGEQUEUE_CLAIM=x\0", False),
        (b"ping", False),
    ],
)
def test_nonsense_ends_it(alone: tuple[socket.socket, subprocess.Popen[bytes]], message: bytes, with_output: bool) -> None:
    ours, process = alone
    if with_output:
        with open(os.devnull, "wb") as null:
            send(ours, message, null.fileno())
    else:
        ours.send(message)
    assert process.wait(20) == 0


@pytest.mark.parametrize("how", ["closed", "nonsense", "a second job"])
def test_it_ends_with_its_job(alone: tuple[socket.socket, subprocess.Popen[bytes]], wait_for: Callable[..., Any], how: str) -> None:
    ours, process = alone
    claim = f"test-{os.getpid()}-{how.replace(' ', '-')}"
    told(ours, "sh", "-c", "trap '' TERM; setsid sleep 600 & sleep 600 & wait", claim=claim)
    wait_for(lambda: len(carriers({"SAGEQUEUE_CLAIM": claim})) == 3)
    if how == "closed":
        ours.close()
    elif how == "nonsense":
        ours.send(b"nonsense")
    else:
        told(ours, "true")
    assert process.wait(20) == 0
    wait_for(lambda: not carriers({"SAGEQUEUE_CLAIM": claim}))


def test_what_was_said_before_the_end_is_not_done_after_it(alone: tuple[socket.socket, subprocess.Popen[bytes]]) -> None:
    """Told to start something by one who is gone when it reads that, it does not even try."""
    ours, process = alone
    os.kill(process.pid, signal.SIGSTOP)
    output = told(ours, "/no/such/program")
    ours.close()
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(20) == 0
    with open(output, "rb") as file:
        assert file.read() == b""
