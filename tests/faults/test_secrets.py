# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Secrets reach the jobs and nobody else: canaries are looked for wherever a value could turn up.

Beside each canary that nothing may show stands one that must be found, so that a blind search does not pass.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.tests.faults import ledger
from ansible_collections.sagequeue.batch.tests.unit.batch_host import REPOSITORY, Host, wait_for

pytest.importorskip("ansible.cli")

PLAIN, WILD = "canary-4f1d9c-plain", "canary-4f1d9c $(id) 'q' \"d\" `w` \\ {x} é"
# Shown where it may be: environment in Ansible's -vvv, arguments in the process list.
SEEN, SEEN_ARGUMENT = "0pen-value-of-environment", "0pen-argument"
SCRIPT = """
printf '%s\\n%s' "$PLAIN" "$WILD" > got.new
sleep 1
mv got.new got
"""
# What setup would do, and what enqueue does, without the supervisors.
PLAYBOOK = """
- hosts: all
  gather_facts: true
  gather_subset: [min]
  vars: {start: false, known: {home: /, runner: process, supervisor: supervisord, image: "", container: "", slice: {}, stop_margin: 0}}
  roles: [sagequeue.batch.batch_host]
  tasks:
    - ansible.builtin.include_role: {name: sagequeue.batch.queue_workers, tasks_from: define, apply: {check_mode: true}}
    - ansible.builtin.file: {path: "{{ batch_host_root }}/etc", state: directory, mode: "0700"}
    - ansible.builtin.copy: {content: "{{ known | to_json }}", dest: "{{ batch_host_root }}/etc/host.json", mode: "0600"}
    - ansible.builtin.include_tasks: "{{ playbook_tasks }}/enqueue.yml"
    - sagequeue.batch.queue_info: {root: "{{ batch_host_root }}", jobset: "{{ jobset }}", jobs: true}
"""
INVENTORY = """
sagequeue:
  hosts:
    localhost: {ansible_connection: local, ansible_python_interpreter: %s}
"""


class Watch(threading.Thread):
    """Reads all command lines of the machine again and again, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.looks = 0
        self.found: set[bytes] = set()
        self.over = threading.Event()

    def run(self) -> None:
        known: dict[str, bytes] = {}
        while not self.over.wait(0.05):
            self.looks += 1
            for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read()
                    if known.get(pid) != words:
                        known[pid] = words
                        self.found.update(mark for mark in (b"canary-4f1d9c", SEEN_ARGUMENT.encode()) if mark in words)


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch()
    made.start()
    yield made
    made.over.set()
    made.join()


def shows(text: str) -> bool:
    """Tell whether a canary can be read from a text, also from Base64."""
    # At each of the three offsets, without the ends, which depend on what stands around.
    coded = [base64.b64encode(b" " * shift + b"canary-4f1d9c")[4:-4].decode() for shift in range(3)]
    return any(mark in text for mark in ("canary-4f1d9c", *coded))


def traced(base: Path) -> list[str]:
    """Return what to put before a command so that each command line that it ever makes, however short its life, is kept."""
    words = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=execve", "-s", "100000", "-A", "-o", str(base / "execve")]
    # Not everywhere may a process be traced.
    usable = shutil.which("strace") and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    return words if usable else []


def ansible(folder: Path, playbook: str, trace: list[str], **variables: Any) -> str:
    """Run a playbook with -vvv and --diff, and return all that it said, its log included."""
    (folder / "log").unlink(missing_ok=True)
    done = subprocess.run(
        [
            *trace,
            *(str(Path(sys.executable).with_name("ansible-playbook")), "-vvv", "--diff", "--inventory", str(folder / "inventory")),
            *("--vault-password-file", str(folder / "password"), "--extra-vars", json.dumps(variables), playbook),
        ],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": f"{REPOSITORY}/playbooks/collections",
            "ANSIBLE_LOG_PATH": str(folder / "log"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr + (folder / "log").read_text()


def vault(folder: Path, plain: str) -> None:
    secrets = folder / "secrets.yml"
    secrets.write_text(f"vault_plain: {plain}\nvault_wild: !unsafe {json.dumps(WILD)}\n")
    program = [str(Path(sys.executable).with_name("ansible-vault")), "encrypt", "--vault-password-file", str(folder / "password")]
    subprocess.run([*program, str(secrets)], check=True, capture_output=True)
    secrets.rename(folder / "inventory" / "group_vars" / "all" / "secrets.yml")


def inventory(folder: Path, host: Host) -> None:
    (folder / "password").write_text("of the vault\n")
    (folder / "inventory" / "group_vars" / "all").mkdir(parents=True)
    vault(folder, PLAIN)
    (folder / "inventory" / "hosts.yml").write_text(INVENTORY % sys.executable)
    jobset = {
        "script": "job.sh",
        "command": "/bin/sh",
        "args": [SEEN_ARGUMENT],
        "workdir": str(host.work),
        "environment": {"OPEN": SEEN},
        "secrets": {"PLAIN": "{{ vault_plain }}", "WILD": "{{ vault_wild }}"},
    }
    settings = {
        "sagequeue_root": str(host.root),
        "sagequeue_supervisor": "supervisord",
        "sagequeue_runner": "process",
        "sagequeue_provide_sage": False,
        "queue_runtime_link": False,
        "sagequeue_jobsets": {"t": jobset},
        "playbook_tasks": str(REPOSITORY / "playbooks" / "tasks"),
    }
    (folder / "inventory" / "group_vars" / "all" / "all.yml").write_text(json.dumps(settings))


def test_only_the_job_sees_a_secret(program: Path, watch: Watch, long: bool) -> None:
    # In /tmp: the path of supervisord's socket must be short.
    base = Path(tempfile.mkdtemp(prefix="sagequeue-secret-", dir="/tmp"))
    folder = base / "control"
    folder.mkdir()
    host = Host(base, program)
    supervisor = host.root / "run" / "supervisord.pid"
    try:
        host.script(SCRIPT)
        inventory(folder, host)
        (folder / "playbook.yml").write_text(PLAYBOOK)
        plays = [str(folder / "playbook.yml")]
        if long:
            plays = [str(REPOSITORY / "playbooks" / f"{name}.yml") for name in ("setup", "enqueue")]
        # A tracer would wait for supervisord's end.
        trace = [] if long else traced(base)
        said = [ansible(folder, play, trace, jobset="t") for play in plays]
        if long:
            wait_for(lambda: host.path("done", "t_off0").exists(), 60)
            names = "progress status logs journal diag retry_failed request_stop clear_stop restart setup stop"
            said += [ansible(folder, str(REPOSITORY / "playbooks" / f"{name}.yml"), [], jobset="t") for name in names.split()]
            # A change of a secret's value alone is carried out, and shown without it.
            vault(folder, PLAIN + "2")
            said.append(ansible(folder, str(REPOSITORY / "playbooks/setup.yml"), [], jobset="t"))
            assert "the value of an environment variable or a secret" in said[-1]
        else:
            words = [*trace, sys.executable, str(host.program), "worker", "t-1", "--until-idle"]
            done = subprocess.run(words, env=host.environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout + done.stderr)
        assert (host.work / "got").read_text() == f"{PLAIN}\n{WILD}"
        definition = host.root / "etc" / "jobsets" / "t.json"
        assert shows(definition.read_text()) and definition.stat().st_mode & 0o777 == 0o600
        said += [host.sagequeue("progress", "t", *option).stdout for option in ([], ["--json"])]
        watch.over.set()
        watch.join()
        # Ansible's own results, its log; what workers and progress say.
        assert SEEN in said[0] and "queue_workers" in said[0], "a search that finds nothing at all"
        assert not [text for text in said if shows(text)]
        assert watch.found == {SEEN_ARGUMENT.encode()}
        files = [path for path in host.root.rglob("*") if path.is_file() and host.root / "supervisor" not in path.parents]
        assert [path for path in files if shows(path.read_bytes().decode("utf-8", "replace"))] == [definition]
        ledger.record("secret looked for in output of Ansible (-vvv --diff), workers and progress", tries=len(said))
        ledger.record("secret looked for in all files but the definition", tries=len(files))
        ledger.record("secret looked for in the process list", tries=watch.looks)
        if trace:
            started = (base / "execve").read_text().splitlines()
            assert [line for line in started if SEEN_ARGUMENT in line] and not [line for line in started if shows(line)]
            ledger.record("secret looked for in every command line ever made (strace)", tries=len(started))
    finally:
        if supervisor.exists():
            os.kill(int(supervisor.read_text()), signal.SIGTERM)
            wait_for(lambda: not supervisor.exists())
        host.close()
        shutil.rmtree(base)
