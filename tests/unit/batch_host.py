# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""A batch user's host for a test: a root, a work folder, the real program, and real worker processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions, job, jobset, owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carriers, end_carriers
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import PLACES, Layout
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue
from ansible_collections.sagequeue.batch.plugins.modules import queue_program

REPOSITORY = Path(__file__).resolve().parents[2]

# Seconds after which what should have happened has not: generous, for a busy machine.
PATIENCE = 30.0


def claimed(queue: Queue, holder: owner.Holder) -> list[str]:
    """Claim all that can be claimed; return the names in that order."""
    names = []
    while claim := queue.claim(holder):
        names.append(claim.name)
    return names


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until a call returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {seconds:g} s")
        time.sleep(0.02)


class Host:
    """A batch user's files below a folder, and the processes that work on them."""

    def __init__(self, base: Path, program: Path) -> None:
        self.base = base
        self.root = base / "sagequeue"
        self.work = base / "work"
        (self.root / "bin").mkdir(parents=True)
        self.work.mkdir()
        self.program = self.root / "bin" / "sagequeue"
        self.program.write_bytes(program.read_bytes())
        self.program.chmod(0o755)
        self.environment = {**os.environ, "PYTHONPATH": str(self.program), "PYTHONDONTWRITEBYTECODE": "1"}
        self.processes: list[subprocess.Popen[Any]] = []
        self._queues: list[Queue] = []

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        end_carriers({"SAGEQUEUE_ROOT": str(self.root)})
        for queue in self._queues:
            queue.close()

    # ---- definitions ------------------------------------------------------------------------------------------

    def script(self, text: str, name: str = "job.sh") -> None:
        """Put a script into the work folder, all at once."""
        path = self.work / (name + ".new")
        path.write_text(text, encoding="utf-8")
        path.rename(self.work / name)

    def define(self, name: str = "t", **keys: Any) -> jobset.Jobset:
        """Define a jobset whose jobs are run by /bin/sh in the work folder."""
        standard = {"script": "job.sh", "command": "/bin/sh", "workdir": str(self.work), "runner": "process", "grace": 2}
        definition = jobset.Jobset(name, {**standard, **keys})
        layout = Layout(str(self.root), name)
        layout.create()
        definitions.store(layout, definition)
        return definition

    def queue(self, name: str = "t") -> Queue:
        queue = Queue(Layout(str(self.root), name), definitions.load(str(self.root), name))
        self._queues.append(queue)
        return queue

    def path(self, state: str, name: str, queue: str = "t") -> Path:
        return self.root / "var" / queue / "queue" / state / f"{name}.env"

    def put(self, state: str, name: str, text: str = "", queue: str = "t") -> Path:
        """Put a job's file where it is wanted, as a person or an older script would."""
        path = self.path(state, name, queue)
        path.write_text(text, encoding="utf-8")
        return path

    # ---- looking ----------------------------------------------------------------------------------------------

    def states(self, queue: str = "t") -> dict[str, str]:
        """Return the state of every job; a job that stays in two is an error."""
        for _look in range(100):
            found: dict[str, list[str]] = {}
            for state in PLACES:
                for entry in os.listdir(self.root / "var" / queue / "queue" / state):
                    if entry.endswith(job.SUFFIX):
                        found.setdefault(entry[: -len(job.SUFFIX)], []).append(state)
            # One that moved on between two listings is seen twice, but not for long.
            if all(len(states) == 1 for states in found.values()):
                break
            time.sleep(0.01)
        assert all(len(states) == 1 for states in found.values()), found
        return {name: states[0] for name, states in found.items()}

    def owners(self, queue: str = "t") -> list[str]:
        folder = self.root / "var" / queue / "queue" / "running"
        return [entry for entry in os.listdir(folder) if entry.endswith(owner.SUFFIX)]

    def values(self, name: str, queue: str = "t") -> dict[str, str]:
        state = self.states(queue)[name]
        return job.parse(self.path(state, name, queue).read_bytes())

    def log(self, name: str, queue: str = "t") -> str:
        return (self.root / "var" / queue / "log" / f"{name}.log").read_text(encoding="utf-8")

    def history(self, queue: str = "t") -> list[dict[str, Any]]:
        path = self.root / "var" / queue / "run" / "history.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def alive(self, name: str) -> list[int]:
        """Return the processes of a job."""
        return carriers({"SAGEQUEUE_ROOT": str(self.root), "SAGEQUEUE_JOB": name})

    # ---- processes --------------------------------------------------------------------------------------------

    def sagequeue(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        return subprocess.run(
            [sys.executable, str(self.program), *words], env=self.environment, capture_output=True, text=True, timeout=60, **more
        )

    def worker(self, instance: str = "t-1", *words: str) -> subprocess.Popen[Any]:
        """Start a worker; what it says goes to said(instance)."""
        with open(self.base / f"{instance}.out", "ab") as output:
            process = subprocess.Popen(
                [sys.executable, str(self.program), "worker", instance, *words], env=self.environment, stdout=output, stderr=output
            )
        self.processes.append(process)
        return process

    @staticmethod
    def stop(worker: subprocess.Popen[Any]) -> None:
        """Stop a worker that has no job, as its supervisor does."""
        worker.terminate()
        assert worker.wait(PATIENCE) == 0

    def said(self, instance: str = "t-1") -> str:
        path = self.base / f"{instance}.out"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def work_off(self, instance: str = "t-1") -> str:
        """Run a worker until nothing is pending, and return what it said."""
        process = self.worker(instance, "--until-idle")
        assert process.wait(60) == 0, self.said(instance)
        return self.said(instance)

    def python(self, code: str, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Start a Python process that can import dirqueue."""
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **more
        )
        self.processes.append(process)
        return process

    def dead_claimer(self, queue: str = "t") -> str:
        """Claim a job in a process that is killed then; return the job's name."""
        process = self.python(
            "import sys, time\n"
            "from dirqueue import definitions, owner\nfrom dirqueue.layout import Layout\nfrom dirqueue.queue import Queue\n"
            "root, name = sys.argv[1:]\n"
            "queue = Queue(Layout(root, name), definitions.load(root, name))\n"
            "holder = owner.Holder(queue.layout.workers, name + '-dead')\n"
            "print(queue.claim(holder).name, flush=True)\n"
            "time.sleep(600)\n",
            str(self.root),
            queue,
        )
        assert process.stdout
        name = process.stdout.readline().strip()
        process.kill()
        process.wait()
        assert name
        return name


def make_program(path: Path, source: Path | None = None) -> Path:
    """Make the program sagequeue, as the module does, or of other sources."""
    if source:
        with open(path, "wb") as file:
            file.write(b"#!" + os.fsencode(sys.executable) + b"\n")
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("__main__.py", "import sys\nfrom dirqueue.cli import main\nsys.exit(main(program=sys.argv[0]))\n")
                for module in sorted(source.rglob("*.py")):
                    archive.write(module, str(Path("dirqueue") / module.relative_to(source)))
    else:
        path.write_bytes(queue_program.packed(sys.executable, queue_program.sources()))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program sagequeue."""
    return make_program(tmp_path_factory.mktemp("program") / "sagequeue")


@pytest.fixture
def host(tmp_path: Path, program: Path) -> Iterator[Host]:
    """A host with nothing defined yet."""
    made = Host(tmp_path, program)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def small_disk(host: Host) -> Iterator[Host]:
    """A file system of 256 KiB below var."""
    (host.root / "var").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(host.root / "var")], check=False).returncode != 0:
        pytest.skip("may not mount a file system")
    yield host
    for queue in host._queues:
        queue.close()
    subprocess.run(["umount", "--lazy", str(host.root / "var")], check=True)
