# MIT licence, see LICENSE.
"""What an operator reads, from real runs of ansible-playbook: in terminals of several widths, and without one."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ansible.cli")

REPOSITORY = Path(__file__).resolve().parents[2]
ANSIBLE = str(Path(sys.executable).with_name("ansible-playbook"))
WIDE = "a sentence that goes on and on, so that it has to be wrapped wherever it is read, however wide the terminal may be there"

# What can happen in a playbook; tags choose.
PLAYBOOK = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Write it
      ansible.builtin.copy: {content: "of {{ inventory_hostname }}\\n", dest: "{{ folder }}/{{ inventory_hostname }}.txt", mode: "0600"}
      register: written
      tags: [change]
    - name: Look
      ansible.builtin.set_fact: {_private: 1}
      register: _hidden
      tags: [say]
    - name: Say what is true now
      ansible.builtin.debug: {msg: "WIDE"}
      tags: [say]
    - name: Show a table
      ansible.builtin.debug: {msg: [{job: off7, state: done, seconds: 7}, {job: off12, state: "running on some other host", seconds: 123}]}
      tags: [say]
    - name: Show what a job printed
      ansible.builtin.debug: {msg: ["see \\u001b[2J of {{ inventory_hostname }}", "two"]}
      tags: [say]
    - name: Go on after a failure
      tags: [say]
      block:
        - name: Fail where it is imported, and be rescued
          ansible.builtin.import_tasks: false.yml
      rescue:
        - name: Go on after another
          block:
            - name: Fail where it is included, and be rescued
              ansible.builtin.include_tasks: false.yml
          rescue:
            - name: Fail, and be ignored
              ansible.builtin.command: "false"
              ignore_errors: true
              register: ignored
    - name: Nap
      ansible.builtin.command: sleep {{ nap | default(4) }}
      tags: [never, long]
    - name: Define a jobset
      sagequeue.batch.queue_jobset:
        name: four
        root: "{{ folder }}/q"
        definition: {script: x.sh, command: [/bin/sh], stride: 4, workdir: "{{ folder }}"}
      tags: [never, wait]
    - name: Enqueue
      sagequeue.batch.queue_enqueue: {jobset: four, root: "{{ folder }}/q"}
      tags: [never, wait]
    - name: Wait for the jobs
      sagequeue.batch.queue_info: {jobset: four, root: "{{ folder }}/q"}
      register: queue
      until: queue.counts.done == 4
      retries: 2
      delay: 1
      ignore_errors: true
      tags: [never, wait]
    - name: Say how it ended
      ansible.builtin.debug: {msg: [four jobs, none was done]}
      failed_when: queue.counts.done == 0
      tags: [never, wait]
    - name: Notify
      ansible.builtin.command: "true"
      notify: Do what was put off
      when: inventory_hostname == "handler"
      tags: [never, break]
    - name: Refuse
      ansible.builtin.fail: {msg: "jobset quik is not defined; WIDE. Did you mean quick?"}
      when: inventory_hostname != "good"
      tags: [never, refuse]
    - name: Run a command
      ansible.builtin.command: sh -c 'echo the reason >&2; exit {{ item }}'
      loop: [0, 3]
      when: inventory_hostname == "one"
      tags: [never, break]
    - name: Use what is not there
      ansible.builtin.debug: {msg: "{{ not_there }}"}
      when: inventory_hostname == "template"
      tags: [never, break]
  handlers:
    - name: Do what was put off
      ansible.builtin.fail: {msg: the handler could not}
""".replace("WIDE", WIDE)


class Ran:
    """What a run left: the bytes, the lines that a terminal would show, the lines that were there for a while."""

    def __init__(self, rc: int, raw: str, width: int, errors: str = "") -> None:
        self.rc, self.raw, self.errors = rc, raw, errors
        self.status = re.findall(r"\r\x1b\[K([^\r\n\x1b]+)", raw)
        self.lines = [""]
        column = 0
        for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.|\n", raw, re.S):
            if token == "\n":
                self.lines.append("")
                column = 0
            elif token == "\r":
                column = 0
            elif token == "\x1b[K":
                self.lines[-1] = self.lines[-1][:column]
            elif not token.startswith("\x1b"):
                if column == width:
                    self.lines.append("")
                    column = 0
                self.lines[-1] = self.lines[-1][:column].ljust(column) + token + self.lines[-1][column + 1 :]
                column += 1
        self.text = "\n".join(self.lines).strip()
        self.flowing = " ".join(self.text.split())

    @property
    def coloured(self) -> bool:
        return re.search(r"\x1b\[[0-9;]*m", self.raw) is not None


class Desk:
    """A playbook, its hosts, and ways to run it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "play.yml").write_text(PLAYBOOK)
        (folder / "false.yml").write_text('- {name: Fail, ansible.builtin.command: "false"}\n')
        self.hosts("one")

    def hosts(self, *names: str) -> None:
        local = "ansible_connection=local ansible_python_interpreter=/usr/bin/python3"
        lines = [f"{name} {'ansible_connection=ssh' if name.endswith('.invalid') else local}" for name in names]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")

    def command(self, *words: str, **variables: Any) -> list[str]:
        extra = {"folder": str(self.folder), **variables}
        return [ANSIBLE, "-i", str(self.folder / "hosts"), str(self.folder / "play.yml"), "-e", json.dumps(extra), *words]

    def environment(self, **more: str) -> dict[str, str]:
        hidden = re.compile("NO_COLOR$|COLUMNS$|LINES$|ANSIBLE_")
        kept = {key: value for key, value in os.environ.items() if not hidden.match(key)}
        settings = {
            "ANSIBLE_CONFIG": f"{REPOSITORY}/ansible.cfg",
            "ANSIBLE_COLLECTIONS_PATH": f"{REPOSITORY}/playbooks/collections",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "TERM": "xterm",
        }
        return {**kept, **settings, **more}

    def piped(self, *words: str, env: dict[str, str] | None = None, **variables: Any) -> Ran:
        done = subprocess.run(
            self.command(*words, **variables), env=self.environment(**env or {}), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return Ran(done.returncode, done.stdout, sys.maxsize, done.stderr)

    def terminal(self, width: int, *words: str, env: dict[str, str] | None = None, interrupt: str = "", **variables: Any) -> Ran:
        """Run in a terminal so wide; where asked to, type ctrl-C when a text has appeared."""
        pid, fd = pty.fork()
        if pid == 0:
            time.sleep(0.05)  # until the width is set
            os.execve(ANSIBLE, self.command(*words, **variables), self.environment(**env or {}))
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        before = termios.tcgetattr(fd)
        raw, typed = b"", False
        while True:
            try:
                raw += os.read(fd, 65536)
            except OSError:
                break
            if interrupt and not typed and interrupt.encode() in raw:
                typed = bool(os.write(fd, b"\x03"))
        assert not interrupt or termios.tcgetattr(fd) == before
        os.close(fd)
        return Ran(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), raw.decode(), width)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_is_said_fits_the_terminal(desk: Desk, width: int) -> None:
    ran = desk.terminal(width, "--tags", "say,refuse")
    assert ran.rc == 2
    assert max(map(len, ran.lines)) <= width
    assert max(map(len, ran.status)) < width
    assert WIDE in ran.flowing
    # No word was cut.
    assert {word for line in ran.lines for word in line.split()} >= set(WIDE.split())
    if width == 40:
        assert "job: off12\nstate: running on some other host\nseconds: 123" in ran.text
    else:
        table = ["job    state                       seconds", "off7   done                              7"]
        assert "\n".join([*table, "off12  running on some other host      123"]) in ran.text
    assert "see \\x1b[2J of one\ntwo\n" in ran.text
    assert "FAILED: jobset quik is not defined; " in ran.text and "Did you mean quick?" in ran.flowing.replace("- ", "-")
    assert not re.search(r"TASK|PLAY|false|rescued|ignor|ok=", ran.text)
    # One host needs no name, and such a failure no more than its own words.
    assert not re.search(r"\bone:|in the task", ran.text)
    assert ran.coloured


@pytest.mark.parametrize("env", [{"NO_COLOR": "anything"}, {"TERM": "dumb"}])
def test_colour_only_where_it_is_wanted(desk: Desk, env: dict[str, str]) -> None:
    ran = desk.terminal(60, "--tags", "change,refuse", "--diff", env=env)
    assert not ran.coloured
    assert "+of one" in ran.lines and "changed: Write it" in ran.lines
    assert max(map(len, ran.lines)) <= 60
    if "TERM" in env:
        assert "\x1b" not in ran.raw
        assert not ran.status


def test_without_a_terminal_lines_are_whole_and_come_now_and_then(desk: Desk) -> None:
    ran = desk.piped("--tags", "say,long", env={"SAGEQUEUE_OPERATOR_EVERY": "1"}, nap=6)
    assert ran.rc == 0
    assert WIDE in ran.lines
    assert "\x1b" not in ran.raw + ran.errors
    # After 1 s, 3 s, 7 s, or later where the machine is busy; never each second.
    told = [line for line in ran.lines if re.fullmatch(r"Nap: for \d+ s", line)]
    assert 1 <= len(told) <= 3


def test_several_hosts_say_the_same_once(desk: Desk) -> None:
    desk.hosts("one", "good", "down.invalid")
    ran = desk.terminal(100, "--tags", "change,say,refuse", env={"ANSIBLE_SSH_RETRIES": "0"})
    assert ran.rc == 4 or ran.rc == 2
    assert ran.flowing.count(WIDE) == 2
    assert "one, good: a sentence" in ran.text
    assert "one:\n  see \\x1b[2J of one\n  two\n" in ran.text and "good:\n  see \\x1b[2J of good\n" in ran.text
    assert "down.invalid: UNREACHABLE: " in ran.text and "see that down.invalid is up" in ran.flowing
    assert "one: FAILED: jobset quik" in ran.text
    assert ran.lines[-2] == "failed: one; unreachable: down.invalid; ok: good"


def test_failures_say_why_and_where(desk: Desk) -> None:
    desk.hosts("one", "template", "handler")
    ran = desk.terminal(80, "--tags", "break")
    assert ran.rc == 2
    assert "one: FAILED: 3: sh -c echo the reason >&2; exit 3 ended with exit status 3\n  the reason\n  in the task" in ran.text
    assert "play.yml:" in ran.flowing and "-v says more" in ran.flowing
    assert "template: FAILED: " in ran.text and "'not_there' is undefined in the task" in ran.flowing
    assert "\nhandler: FAILED: the handler could not\nfailed: one, template, handler" in ran.text


def test_check_and_diff_show_what_would_change(desk: Desk) -> None:
    ran = desk.terminal(80, "--check", "--diff")
    assert "would change: Write it\n--- before\n+++ after" in ran.text and "+of one" in ran.lines
    assert "Check mode: 1 change would be made." in ran.text
    assert not (desk.folder / "one.txt").exists()
    assert desk.piped("--tags", "change").text == ""
    assert desk.piped("--check", "--tags", "change").text == "Check mode: nothing would change."


def test_verbose_is_all_of_the_default_callback(desk: Desk) -> None:
    own = desk.piped("-v", "--tags", "say")
    default = desk.piped("-v", "--tags", "say", env={"ANSIBLE_STDOUT_CALLBACK": "default"})
    times = re.compile(r"'?[0-9-]{10} [0-9:.]+'?|'?[0-9]:[0-9:.]+'?")
    assert "PLAY RECAP" in own.text
    assert times.sub("", own.raw) == times.sub("", default.raw)


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_json_is_one_document(desk: Desk, options: list[str]) -> None:
    desk.hosts("one", "good")
    ran = desk.piped("--tags", "change,say,refuse", "--diff", *options, output="json")
    assert ran.rc == 2
    document = json.loads(ran.raw)
    assert document["ok"] is False and document["playbooks"] == ["play"] and document["check_mode"] is False
    one, good = document["hosts"]["one"], document["hosts"]["good"]
    assert (one["status"], good["status"]) == ("failed", "ok")
    assert one["said"][0] == WIDE and one["said"][1][1]["seconds"] == 123
    assert set(one["results"]) == {"written", "ignored"}
    assert one["results"]["written"]["dest"].endswith("one.txt") and "invocation" not in one["results"]["written"]
    assert "+of one" in one["diffs"][0]
    assert one["changed"] == ["Write it"]
    (failure,) = one["failures"]
    assert failure["task"] == "Refuse" and failure["msg"].startswith("jobset quik") and failure["result"]["msg"] == failure["msg"]
    assert ("PLAY RECAP" in ran.errors) == bool(options)


def test_json_also_when_there_is_nothing_to_do_it_on_or_it_breaks_off(desk: Desk) -> None:
    (desk.folder / "play.yml").write_text("- hosts: nobody\n- hosts: '{{ not_there }}'\n")
    ran = desk.piped(output="json")
    document = json.loads(ran.raw)
    assert ran.rc != 0 and not document["ok"] and document["hosts"] == {}
    assert "not_there" in str(document["errors"]) and "not_there" in ran.errors
    assert "nobody" in ran.errors
    assert desk.piped(output="xml").errors.strip().endswith("output=xml is not known; there are output=text and output=json.")


def test_a_wait_shows_how_many_jobs_are_done(desk: Desk) -> None:
    ran = desk.terminal(80, "--tags", "wait")
    assert [line for line in ran.status if line.startswith("Wait for the jobs: [--------------------] 0/4, 4 pending")], ran.status
    # What is said while it fails is said as ever.
    assert ran.rc == 2 and ran.text == "four jobs\nnone was done"
    assert not (desk.folder / "cache").exists()


def test_ctrl_c_leaves_the_terminal_as_it_was(desk: Desk) -> None:
    ran = desk.terminal(80, "--tags", "long", interrupt="for 1 s", nap=30)
    assert ran.rc in (99, -signal.SIGINT)
    assert "Nap" not in ran.text.replace("^C", "")
    assert "User interrupted execution" in ran.text


def test_the_time_left_is_that_of_the_last_run_that_did_the_work(desk: Desk) -> None:
    known = desk.folder / "cache/sagequeue/durations.json"
    known.parent.mkdir(parents=True)
    known.write_text("{broken")
    first = desk.terminal(80, "--tags", "long", nap=5.5)
    assert not [line for line in first.status if "left" in line]
    ((task, spans),) = json.loads(known.read_text()).items()
    assert task == "one: Nap" and 5 < spans["changed"] < 30
    known.write_text(json.dumps({task: {"changed": 4000}}))
    second = desk.terminal(80, "--tags", "long", nap=1)
    assert "Nap: [--------------------] about 1 h 6 min left" in second.status
