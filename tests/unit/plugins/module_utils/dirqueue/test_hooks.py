# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""on_done and on_failed, with a real receiver, a real program, and a stand-in for sendmail; once each, and through kills."""

from __future__ import annotations

import email
import email.policy
import http.server
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import hooks, hooks_call, hooks_tell, jobset, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError

TOKEN = "s3cr3t-token"


class Receiver:
    """A real HTTP server that keeps what is posted to it, and answers as it is told to."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.answers: list[int] = []
        self.free = threading.Event()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.requests.append(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.startswith("/never"):
                    # An answer by drops: each is in time, all of it never is.
                    while not receiver.free.wait(0.1):
                        try:
                            self.wfile.write(b"H")
                        except OSError:
                            return
                    return
                status = receiver.answers.pop(0) if receiver.answers else 204
                if status < 300:
                    assert self.headers["Content-Type"] == "application/json"
                    receiver.events.append(json.loads(body))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.requests.append(f"GET {self.path}")

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/{TOKEN}?room=1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def seen(self) -> Counter[tuple[str, str]]:
        return Counter((event["event"], event.get("job", "")) for event in self.events)

    def close(self) -> None:
        self.free.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def end(host: Any, queue: Any, states: list[str], holder: owner.Holder) -> None:
    """Finish jobs as a worker would, without one."""
    for state in states:
        queue.finish(queue.claim(holder), state, {"REASON": "ok" if state == "done" else "exit_status", "ENDED_AT": owner.now()})


def quiet(queue: Any) -> bool:
    """Tell whether nobody tells anything any more."""
    with hooks_tell._turn(queue.layout.run, wait=False) as mine:
        return mine


def finisher(host: Any, number: int) -> int:
    """Start a process that claims a job as a worker does, waits for all others, and finishes it at the same moment."""
    pid = os.fork()
    if pid:
        return pid
    try:
        queue = host.queue()
        holder = owner.Holder(queue.layout.workers, f"t-{number}")
        claim = queue.claim(holder)
        (host.base / f"ready{number}").touch()
        while not (host.work / "go").exists():
            time.sleep(0.001)
        state = "failed" if claim.name in ("t_off3", "t_off5") else "done"
        queue.finish(claim, state, {"REASON": "exit_status", "DETAIL": "it is odd", "EXIT_STATUS": "7", "ENDED_AT": owner.now()})
        hooks.poke(queue, state == "failed", print)
    finally:
        os._exit(0)


def test_sixteen_that_finish_at_once_and_each_event_once(
    host: Any, receiver: Receiver, wait_for: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {"on_done": receiver.url, "on_failed": [receiver.url], "stride": 48, "secrets": {"PASSWORD": "hunter2hunter2"}}
    host.define(**keys)
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs(list(range(16))))
    pids = [finisher(host, number) for number in range(16)]
    wait_for(lambda: len(list(host.base.glob("ready*"))) == 16)
    (host.work / "go").touch()
    for pid in pids:
        os.waitpid(pid, 0)
    wait_for(lambda: ("done", "") in receiver.seen() and quiet(queue))
    assert receiver.seen() == {("failed", "t_off3"): 1, ("failed", "t_off5"): 1, ("done", ""): 1}
    failed, done = next(event for event in receiver.events if event.get("job") == "t_off3"), receiver.events[-1]
    assert failed["text"] == "jobset t: job t_off3 failed: exit_status (it is odd)" and failed["exit_status"] == "7"
    assert failed["id"] == host.values("t_off3")["CLAIM"] and failed["log"].endswith("/log/t_off3.log")
    assert done["text"] == "jobset t: all jobs have ended: 14 done, 2 failed"
    assert done["counts"] == {"pending": 0, "running": 0, "done": 14, "failed": 2}
    assert "hunter2" not in json.dumps(receiver.events)
    # It ends again: that is told again, and once.
    host.script("true\n")
    queue.enqueue(queue.jobset.offset_jobs([20, 21]))
    host.work_off()
    wait_for(lambda: receiver.seen()[("done", "")] == 2 and quiet(queue))
    assert host.sagequeue("recover", "t").returncode == 0 and host.sagequeue("hooks", "t").returncode == 0
    assert sum(receiver.seen().values()) == 4
    # Neither an address's path nor a secret is in what workers say.
    said = capfd.readouterr().out + host.said()
    assert "told http://127.0.0.1" in said and TOKEN not in said and "hunter2" not in said


def test_a_command_gets_its_values_by_environment_and_stdin(host: Any, wait_for: Callable[..., Any]) -> None:
    tell = host.work / "tell.py"
    tell.write_text(
        "import json, os, sys\n"
        "event = json.load(sys.stdin)\n"
        "with open('told.new', 'w') as file:\n"
        "    json.dump([sys.argv[1:], dict(os.environ), event], file)\n"
        "os.rename('told.new', 'told')\n"
    )
    words = ["python3", "tell.py", "$(touch pwned); `id` 'x"]
    host.define(stride=2, on_done=words, secrets={"PASSWORD": "hunter2hunter2"}, environment={"LEVEL": "9"})
    host.script("[ $JOB_OFFSET = 0 ] || echo 'SAT off=1 stride=2 \"; touch pwned' > t_stop.txt\n")
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs())
    host.worker("t-1")
    wait_for(lambda: (host.work / "told").exists())
    argv, environment, event = json.loads((host.work / "told").read_text())
    assert argv == words[2:] and not (host.work / "pwned").exists()
    assert (event["solved_by"], environment["HOOK_SOLVED_BY"], environment["HOOK_JOBS_DONE"]) == ("t_off1", "t_off1", "2")
    assert environment["HOOK_EVENT"] == "done" and environment["HOOK_TEXT"] == event["text"] == "jobset t: solved by t_off1: 2 done"
    assert not {"PASSWORD", "LEVEL", "SAGEQUEUE_CLAIM", "SAGEQUEUE_JOB", "SAGEQUEUE_ROOT", "JOB_OFFSET"} & environment.keys()


def test_a_mail_is_one(host: Any, tmp_path: Path) -> None:
    sendmail = tmp_path / "sendmail"
    sendmail.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words; cat > {tmp_path}/mail\n')
    sendmail.chmod(0o755)
    host.environment["PATH"] = f"{tmp_path}:{host.environment['PATH']}"
    host.define(on_failed="mailto:anna@example.org", attempts=1)
    host.script('echo "bad"; kill -9 $$\n')
    host.put("pending", "a")
    host.work_off()
    host.sagequeue("hooks", "t")
    mail = email.message_from_bytes((tmp_path / "mail").read_bytes(), policy=email.policy.default)
    assert (tmp_path / "words").read_text() == "-oi\n--\nanna@example.org\n"
    assert (mail["To"], mail["Auto-Submitted"]) == ("anna@example.org", "auto-generated")
    assert mail["Subject"] == "[sagequeue] jobset t: job a failed: signal (ended by SIGKILL, attempt 1 of 1)"
    assert "\nreason: signal\n" in mail.get_content()


def test_a_mail_without_a_mailer_is_said_to_be_undelivered(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(hooks_call, "_SBIN", "")
    monkeypatch.setattr(hooks_tell, "_WAITS", ())
    host.define(on_failed="mailto:anna@example.org")
    queue, holder = host.queue(), owner.Holder(host.queue().layout.workers, "t-1")
    queue.enqueue([("a", {})])
    end(host, queue, ["failed"], holder)
    said: list[str] = []
    hooks_tell.run(queue, said.append)
    assert "there is no sendmail on this host; install a mail transfer agent" in said[-1]
    holder.release()


def test_a_teller_that_cannot_be_started_is_named(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    host.define(on_failed=["./tell.sh"])
    monkeypatch.setattr(hooks.sys, "executable", str(host.base / "none"))
    said: list[str] = []
    hooks.poke(host.queue(), True, said.append)
    assert said == [f"on_done and on_failed wait for the next recovery: {host.base}/none: No such file or directory"]


def test_nothing_is_told_of_a_jobset_that_has_not_ended(host: Any) -> None:
    """Neither when an operator has stopped it, nor before anything ran, nor when there is no time left to tell it."""
    host.define(on_done="touch told", on_failed="touch told")
    queue, holder = host.queue(), owner.Holder(host.queue().layout.workers, "t-1")
    hooks_tell.run(queue, print)
    queue.enqueue([("a", {}), ("b", {})])
    end(host, queue, ["failed"], holder)
    hooks_tell.run(queue, print, 0.0)
    assert not (host.work / "told").exists()
    hooks_tell.run(queue, print)
    assert (host.work / "told").exists()
    (host.work / "told").unlink()
    queue.close_gate()
    hooks_tell.run(queue, print)
    assert not (host.work / "told").exists()
    queue.open_gate()
    end(host, queue, ["done"], holder)
    hooks_tell.run(queue, print)
    assert (host.work / "told").exists()
    holder.release()


def test_a_receiver_that_is_away_or_strange_or_never_answers(host: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks_tell, "_WAITS", (0.01, 0.01))
    host.define(stride=9, on_failed=receiver.url, hook_limit=5)
    queue, holder = host.queue(), owner.Holder(host.queue().layout.workers, "t-1")
    queue.enqueue(queue.jobset.offset_jobs())
    said: list[str] = []

    def told(count: int = 1) -> str:
        end(host, queue, ["failed"] * count, holder)
        said.clear()
        receiver.requests.clear()
        hooks_tell.run(queue, said.append)
        return said[-1]

    receiver.answers[:] = [500, 503]
    assert "told http://127.0.0.1" in told() and len(receiver.requests) == 3
    receiver.answers[:] = [302] * 3
    assert told().endswith("it answered 302") and not any(path.startswith("GET") for path in receiver.requests)
    # As long as nobody answers, one try is enough for those that follow.
    receiver.answers[:] = [500] * 4
    assert told(2).endswith("it answered 500") and len(receiver.requests) == 4
    receiver.answers.clear()
    assert "told http" in told()
    queue.jobset = host.define(stride=9, on_failed=receiver.url.replace(TOKEN, "never"), hook_limit=0.3)
    began = time.monotonic()
    assert "no answer within 0.3 s" in told() and time.monotonic() - began < 20 and len(receiver.requests) == 3
    queue.jobset = host.define(stride=9, on_failed="http://127.0.0.1:9/")
    assert "Connection refused" in told()
    queue.jobset = host.define(stride=9, on_failed="/no/such/program")
    assert told().endswith("not delivered to /no/such/program: /no/such/program: No such file or directory")
    assert json.loads(Path(queue.layout.run, "hooks.json").read_text())["undelivered"] == 6
    holder.release()


def test_a_hook_that_hangs_is_ended_and_holds_nobody_up(host: Any, wait_for: Callable[..., Any]) -> None:
    # What it leaves behind is in a session of its own.
    (host.work / "hang.sh").write_text("setsid sh -c 'echo $$ > behind; exec sleep 600' &\necho $$ > hangs; sleep 600\n")
    host.define(stride=4, on_failed="/bin/sh hang.sh", on_done="/bin/sh hang.sh", attempts=1, hook_limit=2)
    host.script("exit 1\n")
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs([0]))
    host.worker("t-1")
    wait_for(lambda: (host.work / "behind").exists() and (host.work / "behind").read_text())
    pids = [int((host.work / name).read_text()) for name in ("hangs", "behind")]
    host.script("true\n")
    queue.enqueue(queue.jobset.offset_jobs([1, 2, 3]))
    wait_for(lambda: list(host.states().values()).count("done") == 3)
    wait_for(lambda: "has not ended for 2 s, and was killed" in host.said())
    for pid in pids:
        wait_for(lambda pid=pid: not owner.process_start(pid))
    wait_for(lambda: host.said().count("was killed") >= 2 and quiet(queue))


def test_whoever_is_killed_while_telling_tells_again(host: Any, wait_for: Callable[..., Any]) -> None:
    """A kill at any moment: nothing is lost, and what was told and noted is not told again."""
    (host.work / "tell.sh").write_text('echo "$HOOK_JOB" >> told; [ ! -e hold ] || { touch holds; sleep 600; }\n')
    host.define(stride=3, on_failed="/bin/sh tell.sh", on_done="/bin/sh tell.sh", attempts=1, hook_limit=60)
    queue, holder = host.queue(), owner.Holder(host.queue().layout.workers, "t-1")
    queue.enqueue(queue.jobset.offset_jobs())
    end(host, queue, ["failed", "failed", "done"], holder)
    (host.work / "hold").touch()
    process = host.python(
        "import sys\nfrom dirqueue.cli import main\nmain(['--root', sys.argv[1], 'hooks', 't'])\n", str(host.root), start_new_session=True
    )
    wait_for(lambda: (host.work / "holds").exists())
    assert not quiet(queue)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (host.work / "hold").unlink()
    # The recovery, which everyone's timer calls.
    assert host.sagequeue("recover", "t").returncode == 0
    assert (host.work / "told").read_text().splitlines() == ["t_off0", "t_off0", "t_off1", ""]
    host.sagequeue("recover", "t")
    assert len((host.work / "told").read_text().splitlines()) == 4
    for variables in Path("/proc").glob("[0-9]*/environ"):
        # The first one's program, which nobody waits for any more.
        try:
            if f"HOOK_LOG={host.root}".encode() in variables.read_bytes():
                os.kill(int(variables.parent.name), signal.SIGKILL)
        except OSError:
            continue
    holder.release()


def test_every_kill_of_the_teller(host: Any, killed_at: Callable[..., bool]) -> None:
    """Killed before each of its system calls on files: the next one tells what is left, each at least once, done last."""
    (host.work / "tell.sh").write_text('echo "$HOOK_JOB" >> told\n')
    host.define(stride=50, on_failed="/bin/sh tell.sh", on_done="/bin/sh tell.sh")
    queue, holder = host.queue(), owner.Holder(host.queue().layout.workers, "t-1")
    # Something was told before.
    queue.enqueue(queue.jobset.offset_jobs([49]))
    end(host, queue, ["done"], holder)
    hooks_tell.run(queue, lambda _text: None)
    number = 0
    killed = True
    while killed:
        number += 1
        (host.work / "told").unlink(missing_ok=True)
        queue.enqueue(queue.jobset.offset_jobs([number]))
        end(host, queue, ["failed"], holder)
        killed = killed_at(lambda: hooks_tell.run(host.queue(), lambda _text: None), number)
        hooks_tell.run(queue, lambda _text: None)
        told = (host.work / "told").read_text().splitlines()
        assert set(told) == {f"t_off{number}", ""} and told[-1] == "" and len(told) <= 3, (number, told)
    assert number > 10
    holder.release()


def test_hooks_that_come_later_tell_nothing_of_before(host: Any, receiver: Receiver) -> None:
    host.define(stride=9)
    queue, holder = host.queue(), owner.Holder(host.queue().layout.workers, "t-1")
    queue.enqueue(queue.jobset.offset_jobs([0, 1]))
    end(host, queue, ["failed", "done"], holder)
    time.sleep(0.3)
    queue.jobset = host.define(stride=9, on_done=receiver.url, on_failed=receiver.url)
    hooks_tell.run(queue, print)
    assert not receiver.events
    queue.enqueue(queue.jobset.offset_jobs([2]))
    end(host, queue, ["failed"], holder)
    # The history may hold anything.
    with open(queue.layout.history, "a", encoding="utf-8") as file:
        file.write('nonsense\n[]\n{"result": "failed", "job": ["\\ud800"], "claim": null, "detail": "a\\u0000b"}\n{"half')
    hooks_tell.run(queue, print)
    assert receiver.seen() == {("failed", "t_off2"): 1, ("failed", "['\\ud800']"): 1, ("done", ""): 1}
    for text in ("", "null", "[1]", '{"offset": "x"}', '{"offset": 1e400}'):
        Path(queue.layout.run, "hooks.json").write_text(text)
        hooks_tell.run(queue, print)
    Path(queue.layout.run, "hooks.json").unlink()
    Path(queue.layout.run, "hooks.json").symlink_to("/etc/passwd")
    hooks_tell.run(queue, print)
    # Without hooks, it is forgotten how far was told.
    queue.jobset = host.define(stride=9)
    hooks_tell.run(queue, print)
    assert not os.path.lexists(os.path.join(queue.layout.run, "hooks.json"))
    holder.release()


@pytest.mark.parametrize(
    "words",
    ["https://", "http:/x", "mailto:", "mailto:-oQ/tmp", "mailto:a b", ["https://x", "y"], "mailto:a@b -X", [""], "'", {"a": 1}],
)
def test_bad_hooks_are_refused(words: Any) -> None:
    address = words[0] if isinstance(words, list) else words if isinstance(words, str) else ""
    why = "is no address; one is a word, https://HOST/PATH or mailto:NAME@HOST" if ":" in address else ""
    for key in ("on_done", "on_failed"):
        with pytest.raises(QueueError, match=f"jobset t: {key} {why}"):
            jobset.Jobset("t", {"script": "x", key: words})
    with pytest.raises(QueueError, match="hook_limit"):
        jobset.Jobset("t", {"script": "x", "hook_limit": 0})


def test_one_tells_one_waits_and_the_others_go(host: Any, wait_for: Callable[..., Any]) -> None:
    """Whoever goes has seen nothing that the one who waits will not see."""
    host.define()
    folder = host.queue().layout.run
    got: list[bool] = []

    def wait() -> None:
        with hooks_tell._turn(folder, wait=True) as mine:
            got.append(mine)

    with hooks_tell._turn(folder, wait=True) as mine:
        assert mine
        second = threading.Thread(target=wait)
        second.start()
        # As long as nobody waits, this one would: so it looks at the lock alone.
        wait_for(lambda: "hooks-next" in held(folder))
        wait()
        assert got == [False] and not quiet(host.queue())
    second.join(30)
    assert got == [False, True] and quiet(host.queue())


def held(folder: str) -> str:
    """Return the names of the locks of hooks that are held, as the kernel lists them (proc(5), locks)."""
    inodes = {line.split()[5].rpartition(":")[2] for line in Path("/proc/locks").read_text().splitlines() if "->" not in line}
    return " ".join(path.name for path in Path(folder).glob("hooks*.lock") if str(path.stat().st_ino) in inodes)
