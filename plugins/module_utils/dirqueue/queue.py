# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What workers and recovery do with jobs: claim, finish, recover; and the rules that all transitions keep.

    enqueue -> pending -> claim -> running -> finish -> done, failed, or back to pending
    recover: running -> pending (or failed)    adopt: running, with another owner    retry: failed -> pending    remove: away

    hold: pending -> held    release: back    kill: pending, held -> failed; a running one by its worker    reset: done, failed -> pending

A large enqueue is one file, a batch, whose jobs are pending and become files a few at a time: see batch.py. A held job is
pending, too, but lies in a folder where no claimer looks.

Below this file are those that it rests on: notes.py (how an end is noted), order.py (which pending job is next), control.py (what an
operator decides), copies.py and intake.py (how jobs come in), records.py (owner records), gate.py, and store.py (how the folders are
read and written).

The rules that make it safe:

1. A job is the file NAME.env in exactly one of five folders. A transition is one rename(2); what must be written is
   written beside it, synced, and renamed over it first.
2. The owner record running/NAME.env.owner is the right to touch a job that is running or about to be. It comes into
   being whole and only once, by link(2), BEFORE the job is renamed into running; its holder removes it AFTER the job
   has left. A record whose holder is dead is taken over only under the jobset's lock.
3. Moves towards the end (claim, done, failed) take no lock. Moves to pending, removals and enqueue hold the jobset's
   lock: under it a job moves forward only, so whoever looks through pending, running, done, failed in that
   order sees every job. A pending job is changed only when it has been moved to held, which takes it from all claimers.
4. How a job ended is first noted beside it (RESULT and the CLAIM it belongs to, in staging), which SIGKILL does not
   undo; synced, it becomes the job's file, and then it is carried out. Several that have ended share the syncs.
   Recovery that finds the RESULT of a dead owner's claim carries it out, instead of running the job again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Callable, NamedTuple

from . import job, owner
from .errors import LostClaim, MalformedJob
from .job import SUFFIX
from .jobset import Jobset
from .layout import PLACES, STATES, Layout, sync_folder
from .notes import NOTE, Leaving, Notes
from .store import CLAIM, Change

VANISHED = "job {} has vanished from running; its result is not recorded"


class Claim(NamedTuple):
    """A job that this process holds."""

    name: str
    id: str
    values: dict[str, str]


class Queue(Notes):
    """The queue of one jobset. Close it, or use it in a with statement; what it needs and raises: see Store."""

    def __init__(self, layout: Layout, jobset: Jobset) -> None:
        super().__init__(layout, jobset)
        # By claim.
        self._ended: dict[str, Leaving] = {}
        self._stuck: Claim | None = None

    # ---- claim --------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """See Order.look."""
        return bool(self._stuck) or super().look()

    def claim(self, holder: owner.Holder) -> Claim | None:
        """Take the next job, pending -> running; None if the gate is closed or nothing is pending.

        Args:
            holder: this process.
        """
        if self._stuck:
            self._let_go(self._stuck)
        self._check_order()
        lost = not self._names
        while not self._is_shut():
            if not self._names and lost:
                # All that was listed has gone to others: there may be more.
                lost = False
                self._next_names()
            if not self._names:
                return None
            name = self._names.popleft()
            if not self._is_in("pending", name):
                # Somebody else was faster.
                lost = True
                continue
            claim = os.urandom(16).hex()
            # Whatever goes wrong from here on, this job must not stay with a worker that has forgotten it.
            self._stuck = Claim(name, claim, {})
            if not self._own(name, holder.record(claim), claim):
                lost = not self._odd_owner(name) or lost
                continue
            if self._is_twice(name):
                self._disown(name)
                continue
            try:
                self._rename(name, "pending", "running", sync=False)
            except OSError as exc:
                self._disown(name)
                if isinstance(exc, FileNotFoundError):
                    lost = True
                    continue
                raise
            claimed = self._accept(self._stuck)
            if claimed and self._is_shut():
                self.finish(claimed, "pending", {"REASON": "gate", "DETAIL": "the gate was closed while it was claimed"})
                claimed = None
            self._stuck = None
            if claimed:
                return claimed
        # What is listed is old when the gate opens.
        self._forget_names()
        return None

    def _is_twice(self, name: str) -> bool:
        """Tell whether a pending job is in another state, too. The caller has its owner record."""
        others = [state for state in PLACES[1:] if self._is_in(state, name)]
        if others and self._is_in("pending", name):
            self.refused[f"pending/{name}{SUFFIX}"] = f"is in {others[0]}, too: remove the one that should not be"
            return True
        return False

    def _accept(self, claim: Claim) -> Claim | None:
        """Read a job that was just claimed; None if it is malformed, and failed now."""
        try:
            values = self.read("running", claim.name)
            # A short one has room, and takes a while to be weighed.
            if sum(map(len, values)) + sum(map(len, values.values())) > 1000:
                job.check_room(values)
        except MalformedJob as exc:
            self.reject(claim, str(exc))
            return None
        return claim._replace(values=values)

    def _let_go(self, claim: Claim) -> None:
        """Give back a job whose claim failed half way, or carry out what its file says already."""
        if (self.owner_of(claim.name) or {}).get("OWNER_CLAIM") == claim.id:
            values: dict[str, str] = {}
            with contextlib.suppress(FileNotFoundError, MalformedJob):
                values = self.read("running", claim.name)
            with contextlib.suppress(FileNotFoundError), self.lock():
                if values.get("CLAIM") == claim.id:
                    self._carry_out([Leaving(claim.name, values)], locked=True)
                else:
                    self._rename(claim.name, "running", "pending")
            self._disown(claim.name)
        self._stuck = None

    # ---- finish -------------------------------------------------------------------------------------------------

    def finish(self, claim: Claim, state: str, result: dict[str, str]) -> None:
        """Bring a claimed job to done, failed, or back to pending; durable on return. See end and commit."""
        self.end(claim, state, result)
        if claim.name in self.commit():
            raise LostClaim(VANISHED.format(claim.name))

    def end(self, claim: Claim, state: str, result: dict[str, str]) -> None:
        """Note how a claimed job ended. It is still owned and running; commit, which must follow, brings it to its state.

        Args:
            claim: as claim returned it.
            state: where it goes.
            result: what its file is to say besides (RESULT_KEYS).
        Raises:
            LostClaim: the job is no longer this claim's.
            OSError: it can't be written; try again.
        """
        if claim.id in self._ended:
            # It was noted, and then could not be committed.
            return
        try:
            held = claim.id.encode() in self._read_file("running", claim.name + SUFFIX + owner.SUFFIX)
        except FileNotFoundError:
            held = False
        if not held:
            raise LostClaim(f"job {claim.name} is no longer held by claim {claim.id}; its result is not recorded")
        try:
            # The file's mtime is the job's place in the queue, see ahead: it stays.
            place = os.stat(claim.name + SUFFIX, dir_fd=self._fds["running"], follow_symlinks=False).st_mtime_ns
        except FileNotFoundError as exc:
            self._disown(claim.name)
            raise LostClaim(VANISHED.format(claim.name)) from exc
        # RESULT is last: what lacks it is not whole.
        values = {**job.before_attempt(claim.values), **job.tidy(result), "CLAIM": claim.id, "RESULT": state}
        ended = Leaving(claim.name, values, place)
        self._note(ended)
        self._ended[claim.id] = ended

    def commit(self) -> list[str]:
        """Bring all jobs whose end was noted to their states, by the same few syncs; durable on return.

        Returns:
            those that have vanished from running meanwhile.
        Raises:
            OSError: it could not be recorded; those jobs are still owned, try again.
        """
        ended = list(self._ended.values())
        self._sync_notes([one for one in ended if not one.synced])
        for one in ended:
            if not one.written:
                entry = NOTE + one.values["CLAIM"]
                try:
                    os.rename(entry, one.name + SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds["running"])
                except FileNotFoundError as exc:
                    # To a clean-up whose clock was set forward it was an old one. The job itself is still there: try again.
                    self._note(one)
                    one.synced = False
                    raise OSError(errno.ESTALE, "its new file was cleaned away", os.path.join(self.layout.staging, entry)) from exc
                one.written = True
        self._carry_out(ended)
        for one in ended:
            self._disown(one.name)
        self._ended.clear()
        return [one.name for one in ended if one.vanished]

    def _carry_out(self, ended: list[Leaving], locked: bool = False) -> None:
        """Do what the RESULT of running jobs says (rule 4). The caller has their owner records, and the lock if it says so."""
        unlogged = [one for one in ended if not one.logged and not (locked and self._in_history(one.values["CLAIM"]))]
        if unlogged:
            self._append(self.layout.history, *(one.line() for one in unlogged))
        for one in ended:
            one.logged = True
        states = sorted({one.values["RESULT"] for one in ended})
        with self.lock() if "pending" in states and not locked else contextlib.nullcontext():
            for one in ended:
                if not one.moved:
                    try:
                        self._rename(one.name, "running", one.values["RESULT"], sync=False)
                    except FileNotFoundError:
                        one.vanished = True
                    one.moved = True
            # The new entries first: a job that a power cut shows twice is better than one it shows nowhere.
            for state in (*states, "running") if states else ():
                os.fsync(self._fds[state])

    def reject(self, claim: Claim, reason: str, locked: bool = False) -> None:
        """Bring a running job whose file is malformed to failed; the file as it was is kept in run/malformed.

        Args:
            claim: whose job it is.
            reason: what is wrong with its file.
            locked: the caller holds the lock, and may find what a power cut left of an earlier try: its line of the history alone.
        """
        entry = claim.name + SUFFIX
        kept = self._kept(claim.name, os.stat(entry, dir_fd=self._fds["running"], follow_symlinks=False))
        try:
            os.link(entry, kept, src_dir_fd=self._fds["running"], follow_symlinks=False)
        except FileExistsError:
            # It is there already when a first try was cut short; what else is there stays.
            if not self._is_kept(claim.name, os.stat(entry, dir_fd=self._fds["running"], follow_symlinks=False)):
                kept += f".{claim.id}"
                os.link(entry, kept, src_dir_fd=self._fds["running"], follow_symlinks=False)
        sync_folder(self.layout.malformed)
        values = job.tidy({"REASON": "malformed_job", "DETAIL": reason, "ENDED_AT": owner.now()})
        values.update(ORIGINAL=kept, CLAIM=claim.id, RESULT="failed")
        self._overwrite("running", claim.name, values)
        self._carry_out([Leaving(claim.name, values)], locked)
        self._disown(claim.name)

    # ---- recover ------------------------------------------------------------------------------------------------

    def recover(self, name: str, holder: owner.Holder, end: Callable[[str, str], None], check: bool) -> Change:
        """Bring one orphan where it belongs. The caller holds the lock.

        Args:
            name: a job in running.
            holder: this process, which owns the job meanwhile if nobody else does.
            end: called with the job's name and the dead claim's id (empty if unknown) to end what that claim left running.
            check: only say what would become of it.
        """
        # The record first, the job's file second: its owner removes them in the other order (rule 2).
        record = self.owner_of(name)
        why = owner.why_dead(record or {}, self.layout.workers)
        if not why:
            return Change(name, "running", "running", "left alone: its owner lives")
        try:
            reason = self.why_refused("running", name)
        except FileNotFoundError:
            state = self.locate(name)
            return Change(name, state, state, "left alone: no longer running")
        odd = self._odd_owner(name)
        if reason or odd:
            return Change(name, "running", "running", f"refused: {reason or 'its owner record: ' + odd}")
        dead = record or {}
        claim = dead.get("OWNER_CLAIM", "")
        if not check:
            end(name, claim)
        if not claim:
            claim = os.urandom(16).hex()
            # Somebody must own it until it is back in pending: a claimer with an old list may try this name.
            if not check and not self._take_over(name, holder.record(claim), claim):
                return Change(name, "running", "running", "left alone: somebody is trying to claim it")
        try:
            noted = self._noted(dead)
            values = noted or self.read("running", name)
            # A power cut may have left nothing of the record. What was rejected has no values of its own any more: it must not run.
            rejected = values.get("REASON") == "malformed_job" and "CLAIM" in values
            unknown = (values.get("CLAIM") != claim and not rejected) or values.get("RESULT") not in STATES
            if unknown:
                job.check_room(values)
                values = self._recovered(name, values, claim, dead.get("OWNER_WORKER_ID", ""), why)
            if not check:
                if noted or unknown:
                    self._overwrite("running", name, values)
                self._carry_out([Leaving(name, values)], locked=True)
                self._disown(name)
                if noted:
                    os.unlink(NOTE + claim, dir_fd=self._fds["staging"])
        except MalformedJob as exc:
            if not check:
                self.reject(Claim(name, claim, {}), str(exc), locked=True)
            return Change(name, "running", "failed", f"malformed_job: {exc}")
        return Change(name, "running", values["RESULT"], f"{values['REASON']}: {values.get('DETAIL', '')}")

    def recorded_end(self, name: str) -> bool:
        """Tell whether how an orphan's attempt ended was recorded before its owner died: then recover carries that out."""
        record = self.owner_of(name) or {}
        with contextlib.suppress(FileNotFoundError, MalformedJob):
            values = self.read("running", name)
            return bool(self._noted(record)) or (values.get("CLAIM") == record.get("OWNER_CLAIM") and values.get("RESULT") in STATES)
        return True

    def orphans(self) -> dict[str, str]:
        """Return the jobs of dead owners, by claim."""
        records = {name: self.owner_of(name) or {} for name in self.entries("running")}
        dead = {name: record for name, record in records.items() if owner.why_dead(record, self.layout.workers)}
        return {record["OWNER_CLAIM"]: name for name, record in dead.items() if CLAIM.match(record.get("OWNER_CLAIM", ""))}

    def adopt(self, orphans: dict[str, str], holder: owner.Holder) -> list[Claim]:
        """Take orphans over as they are: the same claims, which go on without their owners, get another.

        Args:
            orphans: which, by claim; some of what orphans returned.
            holder: this process.
        Returns:
            the claims that this process holds now.
        """
        claims = []
        with self.lock():
            for claim, name in orphans.items():
                record = self.owner_of(name) or {}
                # Somebody else may have been faster, who lives, or has died in turn.
                if record.get("OWNER_CLAIM") != claim or not self._is_in("running", name):
                    continue
                if owner.why_dead(record, self.layout.workers) and not self.recorded_end(name):
                    values = self.read("running", name)
                    self._replace_owner(name, holder.record(claim))
                    claims.append(Claim(name, claim, values))
        return claims

    def _take_over(self, name: str, record: bytes, claim: str) -> bool:
        """Own an orphan whose record is missing or names no claim. The caller holds the lock."""
        self._disown(name)
        return self._own(name, record, claim, locked=True)

    def _recovered(self, name: str, values: dict[str, str], claim: str, worker: str, why: str) -> dict[str, str]:
        recoveries = job.number(values, "RECOVERIES") + 1
        values = {"ATTEMPTS": "0", **job.before_attempt(values), "RECOVERIES": str(recoveries)}
        values.update(ENDED_AT=owner.now(), CLAIM=claim, WORKER=worker)
        result, reason, detail = "pending", "orphan", why
        if self.gate().solved_by == name:
            result, reason, detail = "done", "solved", f"its worker died after it had solved the jobset ({why})"
        elif by := self.kill_request(claim):
            result, reason, detail = "failed", "killed", by
        elif recoveries >= self.jobset.recoveries:
            result, reason, detail = "failed", "too_many_recoveries", f"its worker died {recoveries} times, lastly: {why}"
        return {**values, **job.tidy({"RESULT": result, "REASON": reason, "DETAIL": detail})}

    def clear_stale_owners(self) -> list[str]:
        """Remove the owner records of dead holders whose job is not running; return the jobs. The caller holds the lock."""
        cleared = [name for name in self.recorded() if self._stale(name)]
        for name in cleared:
            self._disown(name)
        return cleared
