# MIT licence, see LICENSE.
"""The playbooks on the embedded default: supervisord, the runner process, a small shell script as the program."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]

# Says its name, and does what its offset tells it to.
SCRIPT = """
while [ $# -gt 0 ]; do
    case "$1" in --offset) offset=$2 ;; --stop_file) stop_file=$2 ;; esac
    shift
done
echo "part $offset"
[ ! -e hold ] || while [ -e hold ] && [ ! -e "$stop_file" ]; do sleep 0.1; done
[ "$offset" != "$(cat fails 2>/dev/null)" ] || exit 3
[ "$offset" != "$(cat finds 2>/dev/null)" ] || echo "SAT gidx=1 off=$offset stride=4 P=witness" > "$stop_file"
"""


class Result:
    """What one run of a playbook did, from its events."""

    def __init__(self, runner: Any) -> None:
        self.rc: int = runner.rc
        self.events = [event for event in runner.events if event["event"].startswith("runner_on_")]
        self.changed = [
            event["event_data"]["task"]
            for event in self.events
            if event["event"] == "runner_on_ok" and event["event_data"]["res"].get("changed")
        ]
        self.failures = [
            str(event["event_data"]["res"].get("msg", "")) + str([one.get("msg") for one in event["event_data"]["res"].get("results", [])])
            for event in self.events
            if event["event"] == "runner_on_failed"
        ]

    def result(self, task: str) -> dict[str, Any]:
        """Return the result of the last task of this name that ran."""
        return [e["event_data"]["res"] for e in self.events if e["event_data"]["task"] == task and e["event"] == "runner_on_ok"][-1]

    def said(self) -> str:
        """Return what the last task said."""
        message = self.events[-1]["event_data"]["res"]["msg"]
        return message if isinstance(message, str) else "\n".join(message)


class House:
    """A queue in a folder of its own, and the playbooks that act on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "q"
        self.work = folder / "work"
        self.work.mkdir()
        (self.work / "part.sh").write_text(SCRIPT)
        (folder / "inventory" / "group_vars" / "all").mkdir(parents=True)
        shutil.copy(REPOSITORY / "inventories/local/hosts.yml", folder / "inventory")
        common = {
            "script": "part.sh",
            "command": ["/bin/sh"],
            "args": ["--stop_file", "{gate_file}"],
            "workdir": str(self.work),
            "stride": 4,
            "grace": 2,
            "attempts": 1,
        }
        self.jobsets: dict[str, Any] = {"quick": {**common, "workers": 2}, "other": {**common, "stride": 1}}
        self.write()

    def write(self) -> None:
        """Write the inventory."""
        settings = {
            "sagequeue_root": str(self.root),
            "sagequeue_supervisor": "supervisord",
            "sagequeue_runner": "process",
            "sagequeue_provide_sage": False,
            # The only thing that setup would write outside of the root.
            "queue_runtime_link": False,
            "sagequeue_jobsets": self.jobsets,
        }
        (self.folder / "inventory" / "group_vars" / "all" / "all.yml").write_text(yaml.safe_dump(settings))

    def play(self, name: str, *options: str, **variables: Any) -> Result:
        """Run a playbook."""
        private = self.folder / "runner"
        shutil.rmtree(private, ignore_errors=True)
        private.mkdir()
        return Result(
            ansible_runner.run(
                private_data_dir=str(private),
                project_dir=str(REPOSITORY / "playbooks"),
                playbook=f"{name}.yml",
                inventory=str(self.folder / "inventory"),
                extravars=variables,
                cmdline=" ".join(options) or None,
                envvars={"ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
                quiet=True,
            )
        )

    def jobs(self, state: str, jobset: str = "quick") -> list[str]:
        """Return the names of the jobs in a state."""
        return sorted(path.name[: -len(".env")] for path in (self.root / "var" / jobset / "queue" / state).glob("*.env"))

    def wait(self, state: str, count: int, jobset: str = "quick") -> None:
        """Wait until so many jobs are in a state."""
        end = time.monotonic() + 60
        while len(self.jobs(state, jobset)) != count:
            assert time.monotonic() < end, {one: self.jobs(one, jobset) for one in ("pending", "running", "done", "failed")}
            time.sleep(0.1)

    def programs(self) -> dict[str, str]:
        """Return the programs of supervisord and their states."""
        import subprocess

        ctl = [str(self.root / "supervisor/bin/supervisorctl"), "-c", str(self.root / "etc/supervisord.conf"), "status"]
        lines = subprocess.run(ctl, capture_output=True, text=True, check=False).stdout.splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}


@contextlib.contextmanager
def _built() -> Iterator[House]:
    # In /tmp: the path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="sagequeue-", dir="/tmp"))
    yield House(folder)
    pid = folder / "q" / "run" / "supervisord.pid"
    if pid.exists():
        os.kill(int(pid.read_text()), 15)
        end = time.monotonic() + 30
        while pid.exists() and time.monotonic() < end:
            time.sleep(0.1)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def empty() -> Iterator[House]:
    """A house that setup has not seen, for tests that build on each other."""
    with _built() as house:
        yield house


@pytest.fixture
def new_house() -> Iterator[House]:
    """A house that setup has not seen, for one test."""
    with _built() as house:
        yield house
