# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How jobs come into the queue: a few as files, many as a batch that becomes files late (see batch.py)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable

from . import batch, job, owner
from .batch import Batch, Lines
from .errors import MalformedJob, QueueError, explain
from .job import SUFFIX
from .layout import PLACES, Refused, open_own, sync_file_system, why_odd
from .records import Records
from .store import Change, ahead


class Intake(Records):
    """A queue that takes jobs."""

    # ---- enqueue ------------------------------------------------------------------------------------------------

    def enqueue(self, jobs: Iterable[tuple[str, dict[str, str]]] | Lines, force: bool = False, check: bool = False) -> list[Change]:
        """Put jobs into pending, all or none; durable on return. A job that exists in any state is left alone.

        Args:
            jobs: names and values, or many as lines.
            force: redo those that are done or failed.
            check: only say what would become of each.
        Returns:
            one change per job; of many jobs, one for all alike.
        Raises:
            QueueError: a bad name or value, or no room; then nothing was enqueued.
        """
        if isinstance(jobs, Lines) and len(jobs.names) < batch.LEAST:
            jobs = job.parse_list(jobs.lines)
        if not isinstance(jobs, Lines):
            wanted = self._checked(jobs)
            if len(wanted) < batch.LEAST:
                return self._enqueue_few(wanted, force, check)
            jobs = Lines(list(wanted), [batch.line(name, values) for name, values in wanted.items()])
        elif len(set(jobs.names)) != len(jobs.names):
            twice = next(name for name, count in Counter(jobs.names).items() if count > 1)
            raise QueueError(f"job {twice} is named twice; nothing was enqueued")
        return self._enqueue_many(jobs, force, check)

    def _checked(self, jobs: Iterable[tuple[str, dict[str, str]]]) -> dict[str, dict[str, str]]:
        wanted: dict[str, dict[str, str]] = {}
        for name, values in jobs:
            if job.check_name(name) in wanted:
                raise QueueError(f"job {name} is named twice; nothing was enqueued")
            try:
                wanted[name] = job.check_own_values(values)
            except MalformedJob as exc:
                raise QueueError(f"job {name}: {exc}; nothing was enqueued") from exc
        return wanted

    def _enqueue_few(self, wanted: dict[str, dict[str, str]], force: bool, check: bool) -> list[Change]:
        """Make a file of each job at once."""
        with self.lock():
            changes = [self._enqueued(name, state, force) for name, state in self._locate_all(list(wanted))]
            if not check:
                self._make([(change, wanted[change.name]) for change in changes if change.old_state != change.new_state])
        return changes

    def _make(self, jobs: list[tuple[Change, dict[str, str]]]) -> None:
        """Make the files of enqueued jobs. The caller holds the lock."""
        stamp = owner.now()
        self._publish([(c.name, c.old_state, {**values, "ENQUEUED_AT": stamp, **self._kept_of(c)}) for c, values in jobs])

    def _enqueue_many(self, jobs: Lines, force: bool, check: bool) -> list[Change]:
        """Make one batch of the new jobs, and files of those that are redone."""
        with self.lock():
            known = self._known(jobs.names)
            fresh = [line for name, line in zip(jobs.names, jobs.lines) if name not in known] if known else jobs.lines
            redone = (
                [line for name, line in zip(jobs.names, jobs.lines) if force and known.get(name) in ("done", "failed")] if known else []
            )
            again = [(self._enqueued(name, known[name], force), values) for name, values in job.parse_list(redone)]
            if not check:
                name = f"{owner.now()}.{os.urandom(4).hex()}".replace(":", "")
                try:
                    if fresh:
                        self._publish_batch(name, fresh, self._last_place())
                    self._make(again)
                except BaseException as exc:
                    with contextlib.suppress(OSError):
                        self._drop_batch(name)
                    if isinstance(exc, (OSError, MemoryError)):
                        raise QueueError(self._not_enqueued(exc, "nothing was enqueued")) from exc
                    raise
        changes = [change for change, _values in again]
        if fresh:
            changes.insert(0, Change(fresh[0].partition(" ")[0], None, "pending", "enqueued", len(fresh)))
        alone: dict[str, list[str]] = {}
        for name in known.keys() - {change.name for change in changes}:
            alone.setdefault(known[name], []).append(name)
        return changes + [Change(min(names), state, state, f"left alone: already {state}", len(names)) for state, names in alone.items()]

    def _last_place(self) -> int:
        """Return the place behind all that is in the queue: now, or the end of a batch, whose jobs are a microsecond apart."""
        now = time.time_ns()
        place = now
        for one in self._batches():
            with one:
                place = max(place, min(now, one.place) + one.jobs * 1000)
        return place

    def _known(self, names: list[str]) -> dict[str, str]:
        """Return the state of those of many jobs that exist. The caller holds the lock."""
        found: dict[str, str] = {}
        for one in self._batches():
            with one:
                found.update((name, "pending") for name, _line in one.rest())
        for state in PLACES:
            found.update((entry[: -len(SUFFIX)], state) for entry in os.listdir(self._listed(state)) if entry.endswith(SUFFIX))
        return {name: found[name] for name in names if name in found} if found else {}

    def _locate_all(self, names: list[str]) -> list[tuple[str, str | None]]:
        if len(names) < 64:
            return [(name, self.locate(name)) for name in names]
        known = self._known(names)
        return [(name, known.get(name)) for name in names]

    def _enqueued(self, name: str, state: str | None, force: bool) -> Change:
        if state is None:
            return Change(name, None, "pending", "enqueued")
        if force and state in ("done", "failed"):
            reason = self.why_refused(state, name)
            return Change(name, state, state, f"left alone: {reason}") if reason else Change(name, state, "pending", "enqueued again")
        return Change(name, state, state, f"left alone: already {state}")

    def _kept_of(self, change: Change) -> dict[str, str]:
        """Return what the new file of a job that is to be redone says besides: see carry_on."""
        if not change.old_state:
            return {}
        kept = {"RESULT": "pending"}
        with contextlib.suppress(FileNotFoundError, MalformedJob, KeyError):
            # What its latest claim left behind must end before it runs again.
            kept["CLAIM"] = self.read(change.old_state, change.name)["CLAIM"]
        return kept

    def _publish(self, jobs: list[tuple[str, str | None, dict[str, str]]], place: int | None = None) -> None:
        """Write jobs into staging, sync, and rename each into pending; undo it on an error. The caller holds the lock.

        Args:
            jobs: names, states (None: new; done or failed: to be redone), values.
            place: of the first in the queue; None: behind all others.
        """
        first_place = self._last_place() if place is None else place
        prefix = os.urandom(8).hex()
        rendered = [job.render(values) for _name, _state, values in jobs]
        redone = [name for name, state, _values in jobs if state]
        staged: list[str] = []
        published: list[str] = []
        try:
            for order, (name, _state, values) in enumerate(jobs):
                self._stage(f"{prefix}.{name}", rendered[order], sync=len(jobs) < 20)
                staged.append(name)
                at = first_place + order * 1000 - ahead(values)
                os.utime(f"{prefix}.{name}", ns=(at, at), dir_fd=self._fds["staging"])
            if redone:
                # A new file is in done or failed for a moment, where it would pass for finished: this list brings it on.
                self._stage(f"redo.{prefix}", "\n".join(redone).encode(), sync=len(jobs) < 20)
            if len(jobs) >= 20:
                sync_file_system(self._fds["staging"])
            elif redone:
                os.fsync(self._fds["staging"])
            for name, state, _values in jobs:
                first = state or "pending"
                os.rename(f"{prefix}.{name}", name + SUFFIX, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds[first])
                published.append(name)
                if state:
                    self._rename(name, state, "pending", sync=False)
            for state in sorted({"pending", *(state for _name, state, _values in jobs if state)}):
                os.fsync(self._fds[state])
        except BaseException as exc:
            what = self._unpublish(prefix, staged, published, set(redone))
            if isinstance(exc, (OSError, MemoryError)):
                raise QueueError(self._not_enqueued(exc, what)) from exc
            raise
        if redone:
            with contextlib.suppress(OSError):
                os.unlink(f"redo.{prefix}", dir_fd=self._fds["staging"])

    def _not_enqueued(self, error: BaseException, what: str) -> str:
        return f"jobset {self.jobset.name}: can't enqueue, {what}: {explain(error, self.layout.base)}"

    def _unpublish(self, prefix: str, staged: list[str], published: list[str], redone: set[str]) -> str:
        """Undo a publishing as far as it came; return what is left of it, in words."""
        left = []
        for name in published:
            # A job that existed before is not removed again; a new one may be claimed already.
            if name in redone:
                left.append(name)
                continue
            try:
                os.unlink(name + SUFFIX, dir_fd=self._fds["pending"])
            except OSError:
                left.append(name)
        for name in staged[len(published) :]:
            # What stays there, recovery cleans up.
            with contextlib.suppress(OSError):
                os.unlink(f"{prefix}.{name}", dir_fd=self._fds["staging"])
        if not redone.intersection(published):
            with contextlib.suppress(OSError):
                os.unlink(f"redo.{prefix}", dir_fd=self._fds["staging"])
        return f"only {', '.join(left)} could not be called back" if left else "nothing was enqueued"

    # ---- batches ------------------------------------------------------------------------------------------------

    def _publish_batch(self, name: str, lines: list[str], place: int) -> None:
        """Write a batch, or what is left of it. The caller holds the lock."""
        identity = os.urandom(8).hex()
        head = batch.head(identity, len(lines), place, owner.now())
        self._put(identity, (head + "\n".join(lines) + "\n").encode("utf-8"), name + batch.SUFFIX)
        # Idle workers look at this folder's time.
        os.utime(os.path.join(self.layout.queue, "pending"))

    def _put(self, staged: str, data: bytes, entry: str) -> None:
        """Write a file of the folder batches, durably, in the place of what is there; nothing is left where that can't be done."""
        self._stage(staged, data)
        try:
            os.rename(staged, entry, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds["batches"])
        except OSError:
            os.unlink(staged, dir_fd=self._fds["staging"])
            raise
        os.fsync(self._fds["batches"])

    def _drop_batch(self, name: str) -> None:
        """Remove a batch, and only then its cursor: without one it would begin anew. The caller holds the lock."""
        for entry in (name + batch.SUFFIX, name + batch.CURSOR):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=self._fds["batches"])
            os.fsync(self._fds["batches"])

    def _issue(self, one: Batch) -> None:
        """Turn the next jobs of a batch into files. The caller holds the lock."""
        jobs, cursor = one.next()
        # Who was killed before the cursor was written has made some of them.
        fresh = [(name, values) for name, values in dict(jobs).items() if not self._filed(name)]
        try:
            self._publish([(name, None, {**values, "ENQUEUED_AT": one.stamp}) for name, values in fresh], one.place + one.issued * 1000)
        except QueueError as exc:
            why = explain(exc.__cause__ or exc, self.layout.base)
            raise QueueError(f"jobset {self.jobset.name}: no files can be made of the next {len(fresh)} jobs of a batch: {why}") from exc
        if len(jobs) == one.left:
            self._drop_batch(one.name)
            return
        self._put(f"{one.id}.{os.urandom(8).hex()}", cursor, one.name + batch.CURSOR)

    def _remove_from_batches(self, names: set[str] | None, check: bool) -> list[Change]:
        """Take pending jobs that are no files yet out of their batches; None: all. The caller holds the lock."""
        changes = []
        for one in self._batches() if names is None or names else []:
            with one:
                if names is None:
                    lag = sum(1 for name in one.names() if self._filed(name))
                    changes.append(Change(f"batch {one.name}", "pending", None, "removed, as jobs of a batch", one.left - lag))
                    kept = []
                else:
                    lines = list(one.rest())
                    kept = [line for name, line in lines if name not in names]
                    if len(kept) == len(lines):
                        continue
                    taken = [name for name, _line in lines if name in names and not self._filed(name)]
                    changes += [Change(name, "pending", None, "removed") for name in taken]
                if not check and kept:
                    self._publish_batch(one.name, kept, one.place + one.issued * 1000)
                elif not check:
                    self._drop_batch(one.name)
        return changes

    def clear_stale_cursors(self) -> None:
        """Remove the cursors of batches that are gone. The caller holds the lock."""
        entries = set(os.listdir(self._listed("batches")))
        left = [entry for entry in entries if entry.endswith(batch.CURSOR) and entry[: -len(batch.CURSOR)] + batch.SUFFIX not in entries]
        for entry in left:
            if not why_odd(os.stat(entry, dir_fd=self._fds["batches"], follow_symlinks=False)):
                os.unlink(entry, dir_fd=self._fds["batches"])

    # ---- what was cut short -------------------------------------------------------------------------------------

    def carry_on(self) -> list[Change]:
        """Carry out the redoing, or undo the change of a pending job, that was cut short half way. The caller holds the lock."""
        changes = []
        for entry in os.listdir(self._listed("staging")):
            if not entry.startswith("redo."):
                continue
            try:
                with open(os.path.join(self.layout.staging, entry), encoding="utf-8", errors="replace", opener=open_own) as file:
                    # No further than it is a list of names: what is none of ours may be a gigabyte.
                    lines = iter(functools.partial(file.readline, 1000), "")
                    names = list(itertools.takewhile(job.is_name, (line.rstrip("\n") for line in lines)))
            except Refused:
                continue
            for name, state in itertools.product(names, ("held", "done", "failed")):
                with contextlib.suppress(FileNotFoundError, MalformedJob):
                    values = self.read(state, name)
                    if state == "held" and "HELD_AT" not in values:
                        killed = ".failed." in entry and values.get("REASON") == "killed"
                        changes.append(Change(name, state, "failed" if killed else "pending", "its change was cut short"))
                    elif state != "held" and values.get("RESULT") == "pending":
                        changes.append(Change(name, state, "pending", "enqueued again"))
                    else:
                        continue
                    self._rename(name, state, changes[-1].new_state or "")
            os.unlink(entry, dir_fd=self._fds["staging"])
        return changes

    def states(self) -> dict[str, str]:
        """Return the state of every job at one moment, in which it may be held, too."""
        with self.lock():
            waiting = dict.fromkeys(self.waiting("[A-Za-z0-9._-]+"), "pending")
            # Rule 3, and of a job of a batch its file counts.
            return {**waiting, **{name: state for state in PLACES for name in self.entries(state)}}
