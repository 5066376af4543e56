# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One worker for all jobs of a jobset whose commands HTCondor runs: claim, submit, wait, collect, finish; again.

Such a command goes on when its keeper dies. So the next keeper, in the same boot or after another, takes the dead one's jobs
over under the claims that they have, by which HTCondor knows them, too. A keeper that is told to stop leaves them running;
when it is the operator who stops the jobset, recovery.put_back ends them then.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import time
from typing import Callable

from . import definitions, owner
from .carriers import carried, identity
from .errors import NotReady, QueueError, explain
from .joblog import JobLog
from .jobset import check_sent, fill
from .judge import Ended, again, attempt_of, because, lost
from .queue import Claim
from .recovery import lasting, recover
from .runners.base import Command, Outcome, Running
from .runners.condor_events import Story
from .runners.condor_job import CondorJob
from .worker import Worker

# Seconds between two looks at what HTCondor says, and before what failed for want of something is tried again.
_LOOK = 1.0
_AGAIN = 5.0
# Reasons for which HTCondor holds a job that are not ours to judge, or that the job is to blame for: by condor_hold, for want of memory.
_BY_A_PERSON = (1,)
_RESOURCES = (34,)


class _Flight:
    """A job that HTCondor has, or is about to get."""

    def __init__(self, claim: Claim, tried: bool) -> None:
        self.claim = claim
        # Whether HTCondor may have been given it, and what it calls it.
        self.tried = tried
        self.id = ""
        # Where it ran when the log was told last; what ends it, whether HTCondor was told so; since when HTCondor does not know it.
        self.where = ""
        self.ended_for = ""
        self.told = False
        self.missed = 0
        self.stamp = (0, 0)
        self.story = Story()


class Keeper(Worker):
    """The worker of a jobset with a runner that keeps; arguments as those of Worker."""

    runner: CondorJob

    def __init__(
        self, root: str, jobset: str, number: str, log: Callable[[str], None], program: str = "", until_idle: bool = False
    ) -> None:
        self._flights: dict[str, _Flight] = {}
        self._landed: set[str] = set()
        super().__init__(root, jobset, number, log, program, until_idle)

    def run(self) -> str:
        """Keep jobs until SIGTERM or SIGINT, or until the program has changed; see Worker.run. Jobs that run then go on."""
        self._heed_signals()
        self.log(f"worker {self.name} starts")
        recover_at = 0.0
        end = "idle"
        while not self._stopping:
            if self._is_replaced():
                end = "replaced"
                break
            try:
                self._reload()
                if time.monotonic() >= recover_at:
                    recover(self.queue, self.runner, self.name, log=self.log)
                    self._adopt()
                    self._miss()
                    recover_at = time.monotonic() + self.jobset.recover_every
                waits = self._claim() or bool(self._flights)
                self._look()
                self._commit()
                self._said = ""
            except (OSError, MemoryError, QueueError) as exc:
                self._say(f"waiting: {explain(exc, self.layout.base)}")
                self._sleep(_AGAIN)
                continue
            if self.until_idle and not waits:
                break
            self._sleep(_LOOK)
        with contextlib.suppress(OSError, MemoryError, QueueError):
            self._commit()
        self.log(f"worker {self.name} stops" + (f" ({self._stopping})" if self._stopping else ""))
        if self._flights:
            self.log(f"{len(self._flights)} jobs go on in HTCondor; the next worker picks them up")
        else:
            self.holder.release()
        self.queue.close()
        return "signal" if self._stopping else end

    def _reload(self) -> None:
        if self._flights and definitions.load(self.layout.root, self.layout.jobset).runner != self.jobset.runner:
            raise NotReady(f"the jobset has another runner now, but HTCondor has {len(self._flights)} of its jobs: stop it, and start it")
        super()._reload()

    def _adopt(self) -> None:
        """Take over the jobs of a keeper that has ended."""
        for claim in self.queue.adopt(lasting(self.queue, self.runner, ended=True), self.holder):
            self._flights[claim.id] = _Flight(claim, tried=True)
            self.log(f"job {claim.name}: picked up where it is in HTCondor")
            self._note(claim, f"picked up by worker {self.name}")
        # In this order: one that is claimed meanwhile has no folder yet.
        folders = self.runner.folders()
        held = {(self.queue.owner_of(name) or {}).get("OWNER_CLAIM", "") for name in self.queue.recorded()}
        self.runner.forget(folders - held)

    def _miss(self) -> None:
        """Find jobs that HTCondor has lost: neither in its queue, twice, nor ended according to their events."""
        there = self.runner.queued() if self._flights else {}
        for flight in self._flights.values():
            flight.missed = 0 if not flight.id or flight.id in there else flight.missed + 1

    def _claim(self) -> bool:
        """Claim jobs, as many as there may be at a time; return whether more may wait."""
        while self.queue.look():
            if len(self._flights) >= self.jobset.workers or self._stopping:
                return True
            self._make_ready()
            claim = self.queue.claim(self.holder)
            if not claim:
                break
            flight = self._flights[claim.id] = _Flight(claim, tried=False)
            self._submit(flight)
        return False

    def _submit(self, flight: _Flight) -> None:
        claim = flight.claim
        carries = identity(self.layout, claim.name, claim.id)
        if flight.tried:
            # A try before this one may have got through.
            flight.id = next((one for one, (_status, known, _name) in self.runner.queued().items() if known == claim.id), "")
            if flight.id:
                return
        try:
            argv = self.jobset.argv(claim.name, claim.values)
            names = self.jobset.placeholders(claim.name, claim.values)
            state = self.jobset.state_path(claim.name, claim.values) if self.jobset.state_file else ""
            sent = [self.jobset.script, *(fill(name, names) for name in self.jobset.inputs)]
            outputs = [fill(name, names) for name in self.jobset.outputs]
            for name in sent:
                check_sent(f"its input is {name!r}", name)
        except QueueError as exc:
            self._land(flight, "failed", {"REASON": "malformed_job", "DETAIL": str(exc)})
            return
        missing = [path for path in (os.path.join(self.jobset.workdir, name) for name in sent) if not os.path.exists(path)]
        if missing:
            more = {"REASON": "not_started", "DETAIL": f"its input {missing[0]} is not there; put it there, and retry the job"}
            self._land(flight, "failed", more)
            return
        if state and os.path.exists(os.path.join(self.jobset.workdir, state)):
            sent.append(state)
        if not flight.tried:
            self._note(claim, f"attempt {attempt_of(claim)} of {claim.name}, worker {self.name}, claim {claim.id}")
            self.log(f"job {claim.name}: attempt {attempt_of(claim)}")
            if "CLAIM" in claim.values and "REASON" not in claim.values:
                # It was done before, and is redone.
                self.runner.end(carried(self.layout, claim.name, claim.values["CLAIM"]))
        flight.tried = True
        back = [self.jobset.gate_file, *([state] if state else [])]
        command = Command(argv, self._environment(claim), -1)
        self.runner.submit(command, carries, list(dict.fromkeys(sent)), outputs, back)
        flight.id = self.runner.story(claim.id).id

    def _look(self) -> None:
        """See what has become of the jobs, and what is to become of them."""
        doomed = []
        for flight in list(self._flights.values()):
            story = self._news(flight)
            flight.id = story.id or flight.id
            if not flight.id:
                self._submit(flight)
                continue
            if story.where and story.where != flight.where:
                flight.where = story.where
                self._note(flight.claim, f"HTCondor runs it on {story.where} as {flight.id}")
            if story.over or flight.missed > 1:
                self._judged(flight, story)
                continue
            if not flight.ended_for:
                if self.queue.kill_request(flight.claim.id):
                    flight.ended_for = "killed"
                elif story.held and story.held_code not in _BY_A_PERSON:
                    flight.ended_for = "held"
                elif self.jobset.timeout and story.began and time.time() > story.began + self.jobset.timeout:
                    flight.ended_for = "timeout"
            if flight.ended_for and not flight.told:
                doomed.append(flight)
        self.runner.remove([flight.id for flight in doomed])
        for flight in doomed:
            flight.told = True

    def _news(self, flight: _Flight) -> Story:
        """Return the story of a job, read again only if there is something new."""
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(os.path.join(self.runner.folder(flight.claim.id), "events"))
            if (found.st_mtime_ns, found.st_size) != flight.stamp:
                flight.story = self.runner.story(flight.claim.id)
                flight.stamp = (found.st_mtime_ns, found.st_size)
        return flight.story

    def _judged(self, flight: _Flight, story: Story) -> None:
        """Bring a job that HTCondor has no more to do for to the state it goes to."""
        claim = flight.claim
        unreadable = ""
        try:
            if story.ended:
                odd = self.runner.collect(claim.id)
                for text in odd:
                    self._note(claim, f"left out of what it has sent back: {text}")
            self._note(claim, *self.runner.printed(claim.id))
        except tarfile.TarError as exc:
            unreadable = f"what it has sent back can't be read: {exc}"
        if unreadable:
            state, more = lost(self.jobset, claim, unreadable)
        elif story.ended or flight.ended_for in ("killed", "timeout"):
            outcome = Outcome(story.exit_status, story.signal, story.peak_kib)
            ended_for = "" if flight.ended_for == "held" else flight.ended_for
            state, more = self._judge(claim, Running(0, carried(self.layout, claim.name, claim.id), ""), Ended(outcome, ended_for))
        elif flight.ended_for == "held" and story.held_code in _RESOURCES:
            state, more = again(self.jobset, claim, "out_of_memory", story.held)
        elif flight.ended_for == "held":
            state, more = lost(self.jobset, claim, f"HTCondor could not go on with it: {story.held}")
        else:
            state, more = lost(self.jobset, claim, f"HTCondor has its job {flight.id} no more: {story.removed or 'it is not in the queue'}")
        for key, value in (("EXIT_STATUS", story.exit_status), ("SIGNAL", story.signal), ("PEAK_MEMORY_KIB", story.peak_kib)):
            if value is not None:
                more[key] = str(value)
        self._land(flight, state, more)

    def _land(self, flight: _Flight, state: str, more: dict[str, str]) -> None:
        """Note how a job ended; what is not there any more afterwards is its flight."""
        story = flight.story
        seconds = max(0.0, story.ended - story.began) if story.began and story.ended else 0.0
        began = owner.stamp(story.began) if story.began else owner.now()
        ended = owner.stamp(story.ended) if story.ended else owner.now()
        self._note(flight.claim, f"{state}: {because(more)}")
        result = {"WORKER": self.name, "STARTED_AT": began, "ENDED_AT": ended, "DURATION_S": f"{seconds:.3f}", **more}
        self._record(flight.claim, state, result)
        self._landed.add(flight.claim.id)
        del self._flights[flight.claim.id]

    def _commit(self) -> None:
        super()._commit()
        self.runner.forget(self._landed)
        self._landed.clear()

    def _note(self, claim: Claim, *texts: str | bytes) -> None:
        """Write lines of our own, and what a job has printed (bytes), into its log; what can't be written there is left out."""
        with contextlib.suppress(OSError):
            path = os.path.join(self.layout.log, f"{claim.name}.log")
            with contextlib.closing(JobLog(path, self.jobset.log_size, self.jobset.log_keep, self.log)) as log:
                for text in texts:
                    if isinstance(text, str):
                        log.note(text)
                    else:
                        log.write(memoryview(text))
