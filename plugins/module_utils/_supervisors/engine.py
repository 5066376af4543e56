# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the supervisors have in common that are engines of a cluster, such as Slurm.

An engine starts workers on its nodes when there are jobs for them; a worker that finds nothing to do for a while leaves. So a
jobset that was started has a mark, and whatever makes jobs pending wakes it: the workers that it lacks are submitted.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from typing import NamedTuple

from ..dirqueue import batch, engine, job, joblog
from ..dirqueue.errors import QueueError
from ..dirqueue.jobset import Jobset
from ..dirqueue.layout import Layout
from . import Supervisor, stop_wait

# Seconds that an engine gets to answer, and beyond a worker's own time to say that the worker has ended.
_PATIENCE = 60
_SLACK = 60.0


class Task(NamedTuple):
    """One worker, as the engine knows it: whose, its number, the engine's id and state for it, where it is, and why it is not running."""

    jobset: str
    number: int
    id: str
    state: str
    where: str
    why: str
    alive: bool

    @property
    def label(self) -> str:
        """The worker's name."""
        return f"{self.jobset}-{self.number}"


class Engine(Supervisor):
    """Base of the engines."""

    suffix = ""
    # What a command says of a worker that has ended since it was listed.
    ended = re.compile(r"(?!)")

    # ---- what an engine must say ------------------------------------------------------------------------------

    def text(self, jobset: Jobset, enabled: bool) -> str:
        """Return what is submitted for a jobset's workers; enabled: they come back after the failure of their node."""
        raise NotImplementedError

    def tasks(self, jobsets: list[Jobset], ended: bool = False) -> list[Task]:
        """Return what the engine knows of some jobsets' workers; ended: of those, too, that have ended."""
        raise NotImplementedError

    def submit(self, jobset: Jobset, numbers: list[int]) -> None:
        """Have the engine start some of a jobset's workers when it can."""
        raise NotImplementedError

    def end(self, tasks: list[Task], kill: bool = False) -> None:
        """Send SIGTERM to workers that run, and cancel those that wait; kill: those that have not heeded it."""
        raise NotImplementedError

    def keep(self, tasks: list[Task], on: bool) -> None:
        """Set whether workers that there are come back after the failure of their node."""
        raise NotImplementedError

    def hurry(self, tasks: list[Task]) -> None:
        """Have workers come now that wait for nothing but the end of a delay."""

    # ---- what they share --------------------------------------------------------------------------------------

    def said(self, *words: str, some_ended: bool = False) -> str:
        """Run a command of the engine and return what it says; some_ended: that workers have ended meanwhile is no failure."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "_CONDOR_"))}
        try:
            done = subprocess.run(
                words,
                env={**environment, "LC_ALL": "C.UTF-8"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PATIENCE,
                check=False,
            )
        except FileNotFoundError as exc:
            raise QueueError(f"There is no {words[0]} here: run this on a host of the {self.name} pool, or set it up: pool.yml") from exc
        except subprocess.TimeoutExpired as exc:
            raise QueueError(f"{words[0]} has not answered for {_PATIENCE} s: see whether the {self.name} controller runs") from exc
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            if some_ended and all(not line or self.ended.search(line) for line in lines):
                return done.stdout
            raise QueueError(f"{words[0]} failed: {'; '.join(lines[:3]) or done.returncode}")
        return done.stdout

    def listed(self, *words: str) -> str:
        """Return what the engine says of the workers that there are; nothing if only a check asks, and pool.yml has not been there yet."""
        try:
            return self.said(*words)
        except QueueError:
            if self.check:
                return ""
            raise

    def _folder(self) -> str:
        return os.path.join(self.host.root, "etc", self.name)

    def file(self, jobset: Jobset) -> str:
        """Return the file that is submitted."""
        return os.path.join(self._folder(), jobset.name + self.suffix)

    def _mark(self, jobset: Jobset) -> str:
        return engine.started_mark(self.host.root, self.name, jobset.name)

    def _enabled(self, jobset: Jobset) -> bool:
        """Tell whether its workers come back; they do unless disable has said otherwise."""
        try:
            with open(self.file(jobset), encoding="utf-8") as file:
                return file.read() != self.text(jobset, False)
        except FileNotFoundError:
            return True

    def prepare(self) -> None:
        for path in (self._folder(), os.path.join(self.host.root, "log")):
            if not os.path.isdir(path) and self.acts([path], "absent", "a folder"):
                os.makedirs(path, mode=0o700)

    def define(self, jobsets: list[Jobset]) -> None:
        self.prepare()
        for jobset in jobsets:
            self.write(self.file(jobset), self.text(jobset, self._enabled(jobset)), 0o600)
        started = [jobset for jobset in jobsets if os.path.exists(self._mark(jobset))]
        workers = {jobset.name: jobset.workers for jobset in started}
        surplus = [task for task in self.tasks(started) if task.alive and task.number > workers[task.jobset]] if started else []
        # Not waited for: each gives its job back within its grace, all at the same time.
        if self.acts([task.label for task in surplus], "running", "stopped"):
            self.end(surplus)
        self.wake(started)

    def enable(self, jobsets: list[Jobset], on: bool) -> None:
        others = [jobset for jobset in jobsets if self._enabled(jobset) != on]
        self.needs(others, [self.file(jobset) for jobset in others])
        for jobset in others:
            self.write(self.file(jobset), self.text(jobset, on), 0o600)
        if others and not self.check:
            self.keep([task for task in self.tasks(others) if task.alive], on)

    def start(self, jobsets: list[Jobset]) -> None:
        for jobset in jobsets:
            self.write(self._mark(jobset), "started\n", 0o600)
        self.wake(jobsets)

    def wake(self, jobsets: list[Jobset]) -> None:
        waiting = {jobset.name: self._waiting(jobset) for jobset in jobsets if os.path.exists(self._mark(jobset)) or self.check}
        some = [jobset for jobset in jobsets if waiting.get(jobset.name)]
        if not some:
            return
        tasks = [task for task in self.tasks(some) if task.alive]
        for jobset in some:
            # A worker that has left lives a little longer, as the engine sees it.
            left = engine.left(Layout(self.host.root, jobset.name), [task.id for task in tasks], clean=not self.check)
            there = {task.number for task in tasks if task.jobset == jobset.name and task.id not in left}
            # Those that are there and run nothing, or have not begun yet, are for the first of them.
            free = max(0, len(there) - self._count(jobset, "running"))
            missing = [number for number in range(1, jobset.workers + 1) if number not in there][: max(0, waiting[jobset.name] - free)]
            if self.acts([f"{jobset.name}-{number}" for number in missing], "absent", "submitted"):
                self.submit(jobset, missing)
        if not self.check:
            self.hurry(tasks)

    def _waiting(self, jobset: Jobset) -> int:
        """Return how many workers there are jobs for, as far as a look at the folders can tell."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.lexists(jobset.gate):
                return 0
            if any(name.endswith(batch.SUFFIX) for name in os.listdir(Layout(self.host.root, jobset.name).batches)):
                return jobset.workers
        return self._count(jobset, "pending")

    def _count(self, jobset: Jobset, state: str) -> int:
        """Return how many jobs are in a state; no more than there are workers need be counted."""
        count = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(Layout(self.host.root, jobset.name).queue, state)) as found:
            for entry in found:
                count += entry.name.endswith(job.SUFFIX)
                if count >= jobset.workers:
                    break
        return count

    def stop(self, jobsets: list[Jobset]) -> None:
        for jobset in jobsets:
            self.remove(self._mark(jobset))
        tasks = [task for task in self.tasks(jobsets) if task.alive]
        if not self.acts([task.label for task in tasks], "running", "stopped"):
            return
        self.end(tasks)
        began = time.monotonic()
        longest = max(stop_wait(jobset, self.host) for jobset in jobsets)
        killed = False
        while tasks:
            time.sleep(0.5)
            tasks = [task for task in self.tasks(jobsets) if task.alive]
            late = time.monotonic() - began - longest
            if tasks and late > 0 and not killed:
                killed = True
                self.end(tasks, kill=True)
            if tasks and late > _SLACK:
                left = ", ".join(f"{task.label} ({task.state} on {task.where or 'no node'})" for task in tasks[:5])
                raise QueueError(f"{self.name} has not stopped {left}: see whether these nodes are up; nothing new starts meanwhile")

    def forget(self, jobsets: list[Jobset]) -> None:
        made = [jobset for jobset in jobsets if os.path.exists(self.file(jobset))]
        if made:
            self.stop(made)
        for jobset in made:
            self.remove(self.file(jobset))

    def gone(self) -> None:
        if os.path.isdir(self._folder()) and self.acts([self._folder()], "a folder", "absent"):
            shutil.rmtree(self._folder())

    def status(self, jobsets: list[Jobset]) -> list[str]:
        lines = []
        tasks = self.tasks(jobsets, ended=True)
        for jobset in jobsets:
            started = os.path.exists(self._mark(jobset))
            after = "come back" if self._enabled(jobset) else "do not come back"
            lines.append(
                f"{jobset.name}: {'started, workers come when there are jobs' if started else 'stopped'}; "
                f"after the failure of their node they {after}"
            )
            # Of each number, the latest that the engine knows.
            latest = {task.number: task for task in tasks if task.jobset == jobset.name and not task.alive}
            latest.update((task.number, task) for task in tasks if task.jobset == jobset.name and task.alive)
            left = engine.left(Layout(self.host.root, jobset.name), [task.id for task in latest.values()])
            for number in sorted({*latest, *range(1, jobset.workers + 1)}):
                task = latest.get(number)
                if task:
                    why = "left, as nothing was pending" if task.id in left else task.why
                    lines.append(f"{task.label:32} {task.state:10} {task.where or '-':12} job {task.id} {why}".rstrip())
                else:
                    lines.append(f"{jobset.name}-{number}".ljust(32) + " absent")
        return lines

    def journal(self, jobsets: list[Jobset], lines: int) -> list[str]:
        patterns = [f"{jobset.name}-[0-9]*.log" for jobset in jobsets]
        return joblog.ends(os.path.join(self.host.root, "log"), patterns, lines)


def ranges(numbers: list[int]) -> str:
    """Return numbers as 1-3,7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)
