# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One worker: claim a job, run it, finish it; again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Callable

from . import cases, engine, hooks, job, owner
from .carriers import carried, identity
from .current import Current
from .errors import LostClaim, MalformedJob, QueueError, explain, is_shortage
from .fence import Fence
from .joblog import JobLog
from .judge import Ended, attempt_of, attempts_after, because, judge, lost, oom_kills
from .layout import Refused
from .queue import VANISHED, Claim
from .recovery import recover
from .runners.base import Command, Outcome, Running

# Seconds: how often an idle worker looks where the kernel does not tell it of news, and where it does; how often a running job's
# memory is read, and whether somebody wants the job killed (one of very many workers: less often), how long it waits before it tries
# again what failed for want of a container, of disk or the like.
_IDLE = 0.1
_ARMED = 4.0
_SAMPLE = 5.0
_ASK = (1.0, 5.0)
_AGAIN = 5.0
# How many jobs that have ended are recorded together, and how long the first of them waits for others (seconds).
_TOGETHER = 512
_LATER = 0.3
# For how long what a job prints waits to be copied when it has just started: most short jobs print little, and end meanwhile.
_PRINTS = 0.05
_UNRECORDED = "jobs have ended, but that can't be recorded"


class Worker(Current):
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
        self.until_idle = until_idle
        super().__init__(root, jobset, log, program)
        self.engine = engine.own()
        lease = self.jobset.lease if self.engine else 0
        self.holder = owner.Holder(self.layout.workers, self.name, lease, " ".join(self.engine or ()))
        self._busy_until = time.monotonic()
        self._refused: set[str] = set()
        # What is to be said of the jobs that have ended, once that is recorded; and when the first of them had.
        self._ended: dict[str, str] = {}
        self._failed = False
        self._ended_at = 0.0
        self._kills = (0.0, 0)

    def run(self) -> str:
        """Work until SIGTERM or SIGINT, or until the program has changed; return which: signal, replaced, or idle for want of jobs."""
        self._heed_signals()
        self.log(f"worker {self.name} starts")
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
        result["ATTEMPTS"] = str(attempts_after(claim, result["REASON"]))
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
            "SAGEQUEUE_ATTEMPT": str(attempt_of(claim)),
            "SAGEQUEUE_GATE": self.jobset.gate_file,
        }

    def _execute(self, claim: Claim) -> tuple[str, dict[str, str]]:
        """Run a claimed job to its end; return the state it goes to and what its file is to say."""
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
            log.note(f"attempt {attempt_of(claim)} of {claim.name}, worker {self.name}, claim {claim.id}")
            self.log(f"job {claim.name}: attempt {attempt_of(claim)}")
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
                return lost(self.jobset, claim, f"the job can't be started: {exc}")
            log.started()
            outcome, ended_for = self._watch(running, log)
            killed = outcome.signal == signal.SIGKILL and self._oom_kills(again=True) > kills
            state, more = self._judge(claim, running, Ended(outcome, ended_for, killed))
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
            self._kills = (now, oom_kills())
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

    def _judge(self, claim: Claim, running: Running, ended: Ended) -> tuple[str, dict[str, str]]:
        """See judge. What has to be asked for that is asked until there is an answer."""

        def killed_by() -> str:
            return self._insist(lambda: self.queue.kill_request(claim.id), f"job {claim.name} was killed, but by whom can't be read")

        def why_lost() -> str:
            return self._insist(lambda: self.runner.why_lost(running), f"job {claim.name} has ended, but not why is known")

        gate = self._insist(self.queue.gate, f"job {claim.name} has ended, but the gate can't be read")
        return judge(self.jobset, claim, ended, gate, self._stopping, killed_by, why_lost)

    def _ended_with_us(self, outcome: Outcome) -> str:
        """Say worker_stopped where an engine ends all that it started at once, and the job was faster to end than we to hear of it."""
        if not self.engine or signal.SIGTERM not in (outcome.signal, (outcome.exit_status or 0) - 128):
            return ""
        deadline = time.monotonic() + 1.0
        while not self._stopping and time.monotonic() < deadline:
            self._sleep(deadline - time.monotonic())
        return "worker_stopped" if self._stopping else ""
