"""Roles run for real: by an ordinary user with sudo, on a host that boots systemd."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The checkout is found as a collection, too, beside those that are installed.
sys.path.insert(0, str(ROOT / "playbooks" / "collections"))
HOST = str(ROOT / "tests" / "host" / "host")


def pytest_configure(config):
    config.addinivalue_line("markers", "host: needs root, and a test host that boots systemd")
    config.addinivalue_line("markers", "long: takes minutes; run by ./run-tests --long")


@dataclass
class Play:
    """What a playbook run did, from its events."""

    events: list = field(default_factory=list)
    rc: int = 0

    def results(self, kind):
        for event in self.events:
            if event["event"] == f"runner_on_{kind}":
                yield event["event_data"]["task"], event["event_data"]["res"]

    @property
    def changed(self):
        return [task for task, res in self.results("ok") if res.get("changed")]

    @property
    def ran(self):
        return [task for task, _res in self.results("ok")]

    @property
    def errors(self):
        return [str(res.get("msg")) for _task, res in self.results("failed")]

    @property
    def messages(self):
        text = [res["msg"] for _task, res in self.results("ok") if "msg" in res]
        return "\n".join("\n".join(map(str, msg)) if isinstance(msg, list) else str(msg) for msg in text)

    def result(self, task):
        return next(res for name, res in self.results("ok") if name == task)


@dataclass
class Host:
    name: str
    scratch: Path
    user: str = "researcher"
    runs: int = 0

    def exec(self, *command, user=None, check=True, text=True, stdin=None):
        who = ["-u", user] if user else []
        done = subprocess.run(
            [HOST, "exec", self.name, *who, *command], capture_output=True, text=text, input=stdin, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{command} on {self.name}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def sh(self, script, user=None, check=True):
        return self.exec("sh", "-euc", script, user=user, check=check).stdout

    def write(self, path, data):
        self.exec("sh", "-c", f"mkdir -p {shlex.quote(str(Path(path).parent))}; cat > {shlex.quote(path)}", text=False, stdin=data)

    def read(self, path):
        return self.exec("cat", path, text=False).stdout

    def connection(self):
        address = subprocess.run([HOST, "address", self.name], capture_output=True, text=True, check=True).stdout.strip()
        key = subprocess.run([HOST, "key"], capture_output=True, text=True, check=True).stdout.strip()
        self.wait_for_ssh(address)
        return {
            "ansible_host": address,
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": key,
            "ansible_ssh_pipelining": True,
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ControlPersist=60s",
        }

    @staticmethod
    def wait_for_ssh(address):
        """A new host may get the address of an old one, and the bridge needs a while to see that."""
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection((address, 22), timeout=2).close()
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def play(self, role, *, check=False, environment=None, tasks_from="main", **variables):
        import ansible_runner

        self.runs += 1
        folder = self.scratch / f"run{self.runs}"
        folder.mkdir()
        playbook = [
            {
                "hosts": "all",
                "gather_facts": False,
                "environment": environment or {},
                "tasks": [{"name": role, "ansible.builtin.include_role": {"name": f"sagequeue.batch.{role}", "tasks_from": tasks_from}}],
            }
        ]
        (folder / "playbook.yml").write_text(json.dumps(playbook))
        run = ansible_runner.run(
            private_data_dir=str(folder),
            playbook=str(folder / "playbook.yml"),
            inventory={"all": {"hosts": {self.name: {"ansible_python_interpreter": "/usr/bin/python3", **self.connection()}}}},
            extravars=variables,
            cmdline="--diff --check" if check else "--diff",
            envvars={"ANSIBLE_COLLECTIONS_PATH": f"{ROOT}/playbooks/collections:{os.environ.get('ANSIBLE_COLLECTIONS_PATH', '')}"},
            quiet=True,
        )
        return Play(list(run.events), run.rc)


class Container(Host):
    """The same image without systemd as PID 1: what WSL looks like before its first restart. Nor is there an ssh server."""

    def connection(self):
        wrapper = self.scratch / "podman"
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(HOST)} podman "$@"\n')
        wrapper.chmod(0o755)
        return {"ansible_connection": "containers.podman.podman", "ansible_podman_executable": str(wrapper)}


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A host shared by the tests of this folder. Each test puts back what it changes."""
    name = f"c-{os.getpid()}"
    subprocess.run([HOST, "up", name], check=True)
    yield Host(name, tmp_path_factory.mktemp("play"))
    subprocess.run([HOST, "down", name], check=False)


@pytest.fixture(scope="session")
def bare_container(tmp_path_factory):
    name = f"c-{os.getpid()}-no-systemd"
    image = subprocess.run([HOST, "image"], capture_output=True, text=True, check=True).stdout.split()[-1]
    limits = ["--privileged", "--ulimit=nproc=20000:20000", "--ulimit=nofile=20000:20000"]
    subprocess.run([HOST, "podman", "run", "-d", "--name", name, *limits, image, "sleep", "infinity"], check=True, capture_output=True)
    yield Container(name, tmp_path_factory.mktemp("play"), user="root")
    subprocess.run([HOST, "podman", "rm", "-f", "-t", "0", name], check=False, capture_output=True)
