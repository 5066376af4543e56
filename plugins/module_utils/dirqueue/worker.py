# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One worker: claim a job, run it, finish it; again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from types import FrameType
from typing import Callable, Optional, TypeVar

from . import cases, definitions, engine, hooks, job, owner
from .errors import LostClaim, MalformedJob, NotReady, QueueError, explain, is_shortage
from .fence import Fence
from .joblog import JobLog
from .layout import Layout, Refused
from .queue import VANISHED, Claim, Queue
from .recovery import recover
from .runners import Command, Outcome, Runner, Running, carried, identity, make

# Seconds: how often an idle worker looks where the kernel does not tell it of news, and where it does; how long it trusts that the
# runner is ready, how often a running job's memory is read, and whether somebody wants the job killed (one of very many workers: less
# often), how long it waits before it tries again what failed for want of a container, of disk or the like.
_IDLE = 0.1
_ARMED = 4.0
_READY = 5.0
_SAMPLE = 5.0
_ASK = (1.0, 5.0)
_AGAIN = 5.0
# How many jobs that have ended are recorded together, and how long the first of them waits for others (seconds).
_TOGETHER = 512
_LATER = 0.3
# For how long what a job prints waits to be copied when it has just started: most short jobs print little, and end meanwhile.
_PRINTS = 0.05
_UNRECORDED = "jobs have ended, but that can't be recorded"
# Reasons that are not the job's own doing: such an attempt does not count.
_UNCOUNTED = ("gate", "worker_stopped", "runner_lost", "not_started", "too_many_recoveries")

_T = TypeVar("_T")


class Worker:
    """A worker of a jobset.

    Args:
        root: the batch user's sagequeue folder.
        jobset: the jobset's name.
        number: which of its workers this is, for people.
        log: where its own messages go.
        program: the program's file; when it changes, run returns between two jobs, to be started again.
        until_idle: return when nothing is pending.
    Raises:
        QueueError: the jobset is not defined, or its queue is not usable.
    """

    def __init__(
        self, root: str, jobset: str, number: str, log: Callable[[str], None], program: str = "", until_idle: bool = False
    ) -> None:
        self.name = f"{jobset}-{number}"
        self.log = log
        self.until_idle = until_idle
        self.layout = Layout(root, jobset)
        self._program = (program, _stamp(program))
        self._definition = (definitions.path_of(root, jobset), "")
        self._define()
        # Of two kinds, see keeper.py.
        self._keeps = self.runner.keeps
        self.queue = Queue(self.layout, self.jobset)
        self.engine = engine.own()
        lease = self.jobset.lease if self.engine else 0
        self.holder = owner.Holder(self.layout.workers, self.name, lease, " ".join(self.engine or ()))
        self._busy_until = time.monotonic()
        self._stopping = ""
        self._token = ""
        self._token_until = 0.0
        self._said = ""
        self._refused: set[str] = set()
        # What is to be said of the jobs that have ended, once that is recorded; and when the first of them had.
        self._ended: dict[str, str] = {}
        self._failed = False
        self._ended_at = 0.0
        self._kills = (0.0, 0)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def _define(self) -> None:
        stamp = _stamp(self._definition[0])
        self.jobset = definitions.load(self.layout.root, self.layout.jobset)
        if self._definition[1]:
            self.runner.close()
        self.runner: Runner = make(self.layout, self.jobset, self.log)
        # Only now: a definition that can't be read is said to be so before each claim, and none is made under the old one.
        self._definition = (self._definition[0], stamp)

    def _say(self, text: str) -> None:
        """Log a condition once, however long it lasts."""
        if text and text != self._said:
            self.log(text)
        self._said = text

    def _on_signal(self, number: int, _frame: Optional[FrameType]) -> None:
        self._stopping = signal.Signals(number).name

    def _sleep(self, seconds: float, *more: int) -> None:
        """Wait, until a signal comes, a child ends or one of more descriptors (-1: none) has something to read."""
        watched = [self._wake_read, *(fd for fd in more if fd >= 0)]
        if self._wake_read in select.select(watched, [], [], max(0.0, seconds))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)

    def _heed_signals(self) -> None:
        # A handler is needed for a signal to be written to the pipe that _sleep watches.
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGIO, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self.log(f"worker {self.name} starts")

    def _is_replaced(self) -> bool:
        if self.runner.keeps != self._keeps:
            self.log("the jobset's runner has changed; starting anew")
        elif _stamp(self._program[0]) != self._program[1]:
            self.log("the program was replaced; starting anew")
        else:
            return False
        return True

    def run(self) -> str:
        """Work until SIGTERM or SIGINT, or until the program has changed; return which: signal, replaced, or idle for want of jobs."""
        self._heed_signals()
        armed = False
        recover_at = 0.0
        end = "idle"
        if self.engine:
            engine.say_left(self.layout, self.engine, False)
            self.fence = Fence(self.holder, self.jobset.lease)
        while not self._stopping:
            if self._is_replaced():
                end = "replaced"
                break
            try:
                self._reload()
                if time.monotonic() >= recover_at:
                    # Where an engine has started us, nobody else than the workers looks for orphans.
                    every = self.jobset.recover_every if self.engine else float("inf")
                    with engine.turn(self.layout, self.engine, every) as wait:
                        if not wait:
                            recover(self.queue, self.runner, self.name, log=self.log)
                    recover_at = time.monotonic() + (wait or every)
                claim = None
                if self.queue.look():
                    self._make_ready()
                    claim = self.queue.claim(self.holder)
            except (OSError, MemoryError, QueueError) as exc:
                self._say(f"waiting: {explain(exc, self.layout.base)}")
                self._try(self._commit)
                self._sleep(_AGAIN)
                continue
            for entry in self.queue.refused.keys() - self._refused:
                self.log(f"refused {entry} in the queue: {self.queue.refused[entry]}")
                self._refused.add(entry)
            if claim:
                self._said = ""
                self._work(claim)
                self._busy_until = time.monotonic()
            elif self._ended:
                self._insist(self._commit, _UNRECORDED)
            elif self.until_idle or self._leaves():
                break
            elif not armed:
                # And look once more: something may have come in between.
                armed = self.queue.arm()
                self._sleep(0 if armed else _IDLE)
            else:
                self._sleep(_ARMED)
                armed = False
        self._insist(self._commit, _UNRECORDED)
        self.log(f"worker {self.name} stops" + (f" ({self._stopping})" if self._stopping else ""))
        self.runner.close()
        if self.engine:
            self.fence.close()
        self.holder.release()
        self.queue.close()
        return "signal" if self._stopping else end

    def _leaves(self) -> bool:
        """Tell whether there has been nothing to do for so long that the engine may have our place; then that is said."""
        if not self.engine or time.monotonic() < self._busy_until + self.jobset.idle:
            return False
        engine.say_left(self.layout, self.engine, True)
        # Under the lock, jobs become pending before or after, but not meanwhile.
        with self.queue.lock():
            stays = self.queue.waits()
        if stays:
            engine.say_left(self.layout, self.engine, False)
        return not stays

    def _reload(self) -> None:
        if _stamp(self._definition[0]) != self._definition[1]:
            self._define()
            self.queue.jobset = self.jobset
            self._token = ""
            self.log("the jobset's definition has changed; it holds from the next job on")
            if self.runner.keeps != self._keeps:
                raise NotReady(f"jobset {self.jobset.name} has the runner {self.jobset.runner} now")

    def _make_ready(self) -> None:
        if not self._token or time.monotonic() > self._token_until:
            self._token = ""
            self._token = self.runner.ready()
            self._token_until = time.monotonic() + _READY

    # ---- one job ----------------------------------------------------------------------------------------------

    def _work(self, claim: Claim) -> None:
        result = {"WORKER": self.name, "STARTED_AT": owner.now()}
        began = time.monotonic()
        try:
            state, more = self._execute(claim)
        except MalformedJob as exc:
            state, more = "failed", {"REASON": "malformed_job", "DETAIL": str(exc)}
        seconds = time.monotonic() - began
        self._record(claim, state, {**result, "ENDED_AT": owner.now(), "DURATION_S": f"{seconds:.3f}", **more})
        unready = more["REASON"] in ("runner_lost", "not_started")
        if unready or len(self._ended) >= _TOGETHER or time.monotonic() > self._ended_at + _LATER:
            self._insist(self._commit, _UNRECORDED)
        if unready:
            self._token = ""
            self._sleep(1.0)

    def _record(self, claim: Claim, state: str, result: dict[str, str]) -> None:
        """Note how a job ended; _commit, which must follow, records it."""
        attempts = job.number(claim.values, "ATTEMPTS")
        result["ATTEMPTS"] = str(attempts if result["REASON"] in _UNCOUNTED else attempts + 1)
        try:
            self._insist(lambda: self.queue.end(claim, state, result), f"job {claim.name} is {state}, but that can't be recorded")
        except LostClaim as exc:
            self.log(str(exc))
        else:
            self._ended_at = self._ended_at if self._ended else time.monotonic()
            self._failed = self._failed or state == "failed"
            self._ended[claim.name] = f"job {claim.name}: {state} after {float(result['DURATION_S']):.1f} s ({because(result)})"

    def _commit(self) -> None:
        """Record how jobs have ended, all at once."""
        vanished = self.queue.commit()
        if self._ended:
            self.log("\n".join(VANISHED.format(name) if name in vanished else said for name, said in self._ended.items()))
            hooks.poke(self.queue, self._failed, self.log)
        self._failed = False
        self._ended.clear()

    def _environment(self, claim: Claim) -> dict[str, str]:
        """Return the variables that a job gets."""
        return {
            **self.jobset.environment,
            **self.jobset.secrets,
            **{f"JOB_{key}": value for key, value in job.own_values(claim.values).items()},
            **identity(self.layout, claim.name, claim.id),
            "SAGEQUEUE_ATTEMPT": str(job.number(claim.values, "ATTEMPTS") + 1),
            "SAGEQUEUE_GATE": self.jobset.gate_file,
        }

    def _execute(self, claim: Claim) -> tuple[str, dict[str, str]]:
        """Run a claimed job to its end; return the state it goes to and what its file is to say."""
        attempt = job.number(claim.values, "ATTEMPTS") + 1
        environment = {**self._environment(claim), "SAGEQUEUE_HOLDER": self.holder.lock}
        argv = self.jobset.argv(claim.name, claim.values)
        path = os.path.join(self.layout.log, f"{claim.name}.log")
        try:
            log = JobLog(path, self.jobset.log_size, self.jobset.log_keep, self.log)
        except Refused as exc:
            # Not the job's doing, but it would come back for ever.
            return "failed", {"REASON": "not_started", "DETAIL": f"its log {path} is {exc.strerror}"}
        except OSError as exc:
            return "pending", {"REASON": "not_started", "DETAIL": f"its log can't be opened: {explain(exc, path)}"}
        with contextlib.closing(log):
            log.note(f"attempt {attempt} of {claim.name}, worker {self.name}, claim {claim.id}")
            self.log(f"job {claim.name}: attempt {attempt}")
            if "CLAIM" in claim.values and "REASON" not in claim.values:
                # It was done before, and is redone: a daemon, say, that it left then must not run beside it.
                earlier = carried(self.layout, claim.name, claim.values["CLAIM"])
                self._insist(lambda: self.runner.end(earlier), f"what job {claim.name} left running can't be ended")
            kills = self._oom_kills()
            cases_before = cases.begin(self.jobset, claim, self.holder)
            command = Command(argv, environment, log.output)
            try:
                running = self.runner.start(command, carried(self.layout, claim.name, claim.id), self._token)
            except OSError as exc:
                if is_shortage(exc):
                    # Not its container's doing either: it may be tried as often as it takes.
                    return "pending", {"REASON": "not_started", "DETAIL": f"the job can't be started: {explain(exc, self.layout.base)}"}
                return self._lost(claim, f"the job can't be started: {exc}")
            log.started()
            outcome, ended_for = self._watch(running, log)
            killed = outcome.signal == signal.SIGKILL and self._oom_kills(again=True) > kills
            state, more = self._judge(claim, running, outcome, ended_for, attempt, killed)
            if state != "done" or ended_for or outcome.exit_status != 0:
                # A wrapper may have ended before what it started, and the job may run again: nothing of it must be left.
                self._insist(lambda: self.runner.end(running.carries), f"job {claim.name} can't be ended")
            if outcome.exit_status is not None:
                more["EXIT_STATUS"] = str(outcome.exit_status)
            if outcome.signal is not None:
                more["SIGNAL"] = str(outcome.signal)
            if outcome.peak_kib:
                more["PEAK_MEMORY_KIB"] = str(outcome.peak_kib)
            more.update(cases.since(self.jobset, claim, cases_before))
            # What it printed last. A daemon that it has left may keep the pipe open, and is not waited for.
            log.copy()
            log.note(f"{state}: {because(more)}")
        return state, more

    def _oom_kills(self, again: bool = False) -> int:
        """Return how often the kernel has killed for want of memory, as of the last second or (again) as of now."""
        now = time.monotonic()
        if again or now > self._kills[0] + 1:
            self._kills = (now, _oom_kills())
        return self._kills[1]

    def _watch(self, running: Running, log: JobLog) -> tuple[Outcome, str]:
        """Wait for a command's end; return how it ended, and why we ended it (timeout, worker_stopped, killed or nothing)."""
        now = time.monotonic()
        deadline = now + self.jobset.timeout if self.jobset.timeout else float("inf")
        sample, ask = now + 0.5, now + _ASK[bool(self.engine)]
        ended_for = ""
        # Those that ended before it wait no longer than they have to.
        record = self._ended_at + _LATER if self._ended else float("inf")
        prints = now + _PRINTS
        while True:
            silent = now < prints
            wake = min(deadline, sample, record, prints if silent else float("inf"), float("inf") if ended_for else ask)
            self._sleep(wake - time.monotonic(), -1 if silent else log.fileno(), running.fileno)
            outcome = self.runner.reap(running)
            if outcome:
                return outcome, ended_for or self._ended_with_us(outcome)
            log.copy()
            now = time.monotonic()
            if not ended_for and (self._stopping or now >= deadline):
                ended_for = "worker_stopped" if self._stopping else "timeout"
                deadline = now + self.jobset.grace
                self._try(lambda: self.runner.signal(running, signal.SIGTERM))
            elif not ended_for and now >= ask:
                ask = now + _ASK[bool(self.engine)]
                with contextlib.suppress(OSError):
                    if self.queue.kill_request(running.carries["SAGEQUEUE_CLAIM"]):
                        ended_for, deadline = "killed", now + self.jobset.grace
                        self._try(lambda: self.runner.signal(running, signal.SIGTERM))
            elif ended_for and now >= deadline:
                deadline = now + self.jobset.grace
                self._try(lambda: self.runner.end(running.carries))
            elif now >= record:
                self._try(self._commit)
                record = now + _AGAIN if self._ended else float("inf")
            elif now >= sample:
                sample = now + _SAMPLE
                self._try(lambda: self.runner.sample(running))

    def _ended_with_us(self, outcome: Outcome) -> str:
        """Say worker_stopped where an engine ends all that it started at once, and the job was faster to end than we to hear of it."""
        if not self.engine or signal.SIGTERM not in (outcome.signal, (outcome.exit_status or 0) - 128):
            return ""
        deadline = time.monotonic() + 1.0
        while not self._stopping and time.monotonic() < deadline:
            self._sleep(deadline - time.monotonic())
        return "worker_stopped" if self._stopping else ""

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (OSError, MemoryError, NotReady) as exc:
            self._say(explain(exc, self.layout.base))

    def _judge(
        self, claim: Claim, running: Running, outcome: Outcome, ended_for: str, attempt: int, out_of_memory: bool
    ) -> tuple[str, dict[str, str]]:
        gate = self._insist(self.queue.gate, f"job {claim.name} has ended, but the gate can't be read")
        solved = gate.closed and not gate.requested and self.jobset.names_job(gate.text, claim.name, claim.values)
        ok = outcome.exit_status == 0
        if solved and (ok or ended_for in ("worker_stopped", "killed")):
            return "done", {"REASON": "solved", "DETAIL": gate.text}
        if ended_for == "killed":
            by = self._insist(lambda: self.queue.kill_request(claim.id), f"job {claim.name} was killed, but by whom can't be read")
            return "failed", {"REASON": "killed", "DETAIL": by}
        if ended_for == "worker_stopped":
            return "pending", {"REASON": "worker_stopped", "DETAIL": self._stopping}
        if ended_for == "timeout":
            return self._again(attempt, "timeout", f"ran longer than {self.jobset.timeout:g} s")
        if ok:
            return ("pending", {"REASON": "gate", "DETAIL": gate.text}) if gate.closed else ("done", {"REASON": "ok"})
        lost = self._insist(lambda: self.runner.why_lost(running), f"job {claim.name} has ended, but not why is known")
        if lost:
            return self._lost(claim, lost)
        if outcome.signal is not None:
            if out_of_memory:
                return self._again(attempt, "out_of_memory", "killed while the kernel was out of memory")
            return self._again(attempt, "signal", f"ended by {_signal_name(outcome.signal)}")
        return self._again(attempt, "exit_status", f"exit status {outcome.exit_status}")

    def _again(self, attempt: int, reason: str, detail: str) -> tuple[str, dict[str, str]]:
        """Decide what follows a failed attempt."""
        last = attempt >= self.jobset.attempts
        return "failed" if last else "pending", {"REASON": reason, "DETAIL": f"{detail}, attempt {attempt} of {self.jobset.attempts}"}

    def _lost(self, claim: Claim, reason: str) -> tuple[str, dict[str, str]]:
        """Decide what follows when a job's surroundings went away."""
        count = job.number(claim.values, "RECOVERIES") + 1
        more = {"REASON": "runner_lost", "DETAIL": reason, "RECOVERIES": str(count)}
        if count < self.jobset.recoveries:
            return "pending", more
        return "failed", {**more, "REASON": "too_many_recoveries", "DETAIL": f"lost {count} times, lastly: {reason}"}

    def _insist(self, call: Callable[[], _T], trouble: str) -> _T:
        """Call again and again until it works: until then the job stays owned. LostClaim goes through."""
        while True:
            try:
                return call()
            except (OSError, MemoryError, NotReady) as exc:
                self._say(f"{trouble} ({explain(exc, self.layout.base)}); trying again")
                self._sleep(1.0)


def because(result: dict[str, str]) -> str:
    """Return why a job went where it did."""
    detail = result.get("DETAIL", "")
    return f"{result['REASON']}: {detail}" if detail else result["REASON"]


def _signal_name(number: int) -> str:
    # Real-time signals, but for the first and the last, have no name there.
    return signal.Signals(number).name if number in {int(known) for known in signal.Signals} else f"signal {number}"


def _stamp(path: str) -> str:
    """Return what changes when a file is replaced."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}"


def _oom_kills() -> int:
    """Return how often the kernel has killed for want of memory since it started (proc(5), vmstat)."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat", encoding="ascii") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
