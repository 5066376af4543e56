# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator decides: hold, release, prioritize, kill, reset, retry and remove of jobs, all under the lock."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from typing import Callable

from . import job, joblog, owner
from .copies import Copies
from .errors import MalformedJob, QueueError
from .gate import me
from .job import SUFFIX
from .layout import STATES, Refused, open_own, sync_file_system, why_odd
from .store import CLAIM, Change, ahead


class Control(Copies):
    """A queue that an operator commands."""

    def hold(self, names: list[str], by: str = "", check: bool = False) -> list[Change]:
        """Keep pending jobs from being claimed until they are released; durable on return.

        Args:
            names: which.
            by: who asks for it.
            check: only say what would become of each.
        """
        held = job.tidy({"HELD_AT": owner.now(), "HELD_BY": (by or me())[:100]})
        with self.lock():
            return self._amend(names, ("pending",), "held", "held", lambda values: {**values, **held}, check)

    def release(self, names: list[str], check: bool = False) -> list[Change]:
        """Let held jobs be claimed again, each in its old place; durable on return."""
        with self.lock():
            return self._amend(names, ("held",), "pending", "released", _not_held, check)

    def prioritize(self, names: list[str], priority: str, check: bool = False) -> list[Change]:
        """Give pending jobs another priority, and the place in the queue that goes with it; durable on return."""
        job.check_priority(priority)

        def edit(values: dict[str, str]) -> dict[str, str]:
            if int(job.check_priority(values.get("PRIORITY", "0"))) == int(priority):
                raise QueueError(f"its priority is {int(priority)} already")
            return {**values, "PRIORITY": str(int(priority))}

        with self.lock():
            return self._amend(names, ("pending", "held"), None, f"priority {int(priority)}", edit, check)

    def kill(self, names: list[str], by: str = "", check: bool = False) -> list[Change]:
        """Bring pending jobs to failed, and ask the workers of running ones to end them; see kill.py, which waits for those."""
        asked = job.tidy({"DETAIL": f"by {by or me()} at {owner.now()}", "ENDED_AT": owner.now()})

        def edit(values: dict[str, str]) -> dict[str, str]:
            kept = {"ATTEMPTS": "0", **job.before_attempt(_not_held(values)), **{key: values[key] for key in ("CLAIM",) if key in values}}
            return {**kept, **asked, "REASON": "killed", "RESULT": "failed"}

        with self.lock():
            changes = self._amend(names, ("pending", "held"), "failed", "killed", edit, check)
            for number, change in enumerate(changes):
                if change.new_state == "running":
                    changes[number] = change._replace(new_state="failed", reason="killed") if check else change
                    claim = (self.owner_of(change.name) or {}).get("OWNER_CLAIM", "")
                    if CLAIM.match(claim) and not check and not self.kill_request(claim):
                        staged = f"kill.{os.urandom(8).hex()}"
                        self._stage(staged, asked["DETAIL"].encode("utf-8", "replace"))
                        os.rename(staged, os.path.join(self.layout.run, f"kill.{claim}"), src_dir_fd=self._fds["staging"])
        return changes

    def kill_request(self, claim: str) -> str:
        """Return who has asked for the end of a running job's claim, and when; an empty text if nobody has."""
        path = os.path.join(self.layout.run, f"kill.{claim}")
        with contextlib.suppress(FileNotFoundError, Refused), open(path, encoding="utf-8", errors="replace", opener=open_own) as file:
            return file.read(1000) or "nobody knows who asked for it"
        return ""

    def clear_kill_requests(self) -> None:
        """Remove the requests to end claims that hold no job any more. The caller holds the lock."""
        asked = {entry for entry in os.listdir(self.layout.run) if re.fullmatch("kill[.][0-9a-f]{32}", entry)}
        if asked:
            running = (name for name in self.recorded() if self._filed(name) == "running")
            asked -= {f"kill.{(self.owner_of(name) or {}).get('OWNER_CLAIM')}" for name in running}
        for path in (os.path.join(self.layout.run, entry) for entry in asked):
            if not why_odd(os.stat(path, follow_symlinks=False)):
                os.unlink(path)

    def reset(self, names: list[str], check: bool = False) -> list[Change]:
        """Bring done and failed jobs back to pending as if they had never run; durable on return."""
        changes, again = [], []
        with self.lock():
            for name, state in self._locate_all([job.check_name(name) for name in names]):
                if state not in ("done", "failed"):
                    reason = "running; kill it first" if state == "running" else f"already {state}" if state else "there is no such job"
                    changes.append(Change(name, state, state, f"left alone: {reason}"))
                    continue
                try:
                    values = self.read(state, name)
                    if values.get("REASON") == "malformed_job":
                        raise MalformedJob(f"malformed ({values.get('DETAIL', '')}); remove it and enqueue it anew")
                    job.check_room(values)
                except MalformedJob as exc:
                    changes.append(Change(name, state, state, f"left alone: {exc}"))
                    continue
                kept = {"PRIORITY": values["PRIORITY"]} if "PRIORITY" in values else {}
                changes.append(Change(name, state, "pending", f"was {values.get('REASON', state)}"))
                again.append((changes[-1], {**job.own_values(values), **kept}))
            if again and not check:
                self._make(again)
        return changes

    def _amend(
        self,
        names: list[str],
        sources: tuple[str, ...],
        target: str | None,
        reason: str,
        edit: Callable[[dict[str, str]], dict[str, str]],
        check: bool,
    ) -> list[Change]:
        """Write pending and held jobs anew, and bring them somewhere; durable on return. The caller holds the lock.

        Args:
            names: which.
            sources: where they may be, pending or held; others are left alone.
            target: where they go; None: they stay where they are.
            reason: what became of them.
            edit: returns the new values of a job; a QueueError says why it is left alone.
            check: only say what would become of each.
        """
        lines = self.batch_lines({job.check_name(name) for name in names})
        changes: dict[str, Change] = {}
        todo = []
        for name in dict.fromkeys(names):
            filed = self._filed(name)
            state = filed or ("pending" if name in lines else None)
            try:
                if state not in sources:
                    raise QueueError(f"already {state}" if state == target else state or "there is no such job")
                if filed:
                    values = self.read(filed, name)
                    place = os.stat(name + SUFFIX, dir_fd=self._fds[filed], follow_symlinks=False).st_mtime_ns
                else:
                    values, place = lines[name]
                new = edit(values)
                job.check_room(new)
            except FileNotFoundError:
                changes[name] = self._claimed_now(name)
            except QueueError as exc:
                changes[name] = Change(name, state, state, f"left alone: {exc}")
            else:
                if values.get("PRIORITY") != new.get("PRIORITY"):
                    place += ahead(values) - ahead(new)
                words = [f", priority {int(v.get('PRIORITY', '0'))}" if target is None else "" for v in (values, new)]
                changes[name] = Change(name, state, target or state, reason, 1, *words)
                todo.append((name, filed, target or state or "", new, place))
        if check or not todo:
            return list(changes.values())
        prefix = os.urandom(8).hex()
        staged = {name: f"{prefix}.{name}" for name, *_rest in todo}
        try:
            for name, _filed, _target, new, place in todo:
                self._stage(staged[name], job.render(new), sync=len(todo) < 20)
                os.utime(staged[name], ns=(place, place), dir_fd=self._fds["staging"])
            # A job is in held for a moment, where nobody would claim it: by this list recovery brings it back.
            self._stage(f"redo.{target}.{prefix}", "\n".join(staged).encode(), sync=len(todo) < 20)
            if len(todo) >= 20:
                sync_file_system(self._fds["staging"])
            else:
                os.fsync(self._fds["staging"])
            for name, filed, last, _new, _place in todo:
                entry = name + SUFFIX
                if filed == "pending":
                    try:
                        # Either a claimer gets it, or we do.
                        os.rename(entry, entry, src_dir_fd=self._fds["pending"], dst_dir_fd=self._fds["held"])
                    except FileNotFoundError:
                        changes[name] = self._claimed_now(name)
                        continue
                first = "held" if filed else last
                os.rename(staged.pop(name), entry, src_dir_fd=self._fds["staging"], dst_dir_fd=self._fds[first])
                if first != last:
                    os.rename(entry, entry, src_dir_fd=self._fds[first], dst_dir_fd=self._fds[last])
        finally:
            for entry in staged.values():
                with contextlib.suppress(OSError):
                    os.unlink(entry, dir_fd=self._fds["staging"])
        for folder in dict.fromkeys([*(last for _name, _filed, last, _new, _place in todo), "held", "pending"]):
            os.fsync(self._fds[folder])
        # Their files are there for sure: now their lines may go.
        self._remove_from_batches({name for name, *_rest in todo if name in lines}, False)
        os.unlink(f"redo.{target}.{prefix}", dir_fd=self._fds["staging"])
        # Whoever has listed names looks at this folder's time.
        os.utime(self.layout.held)
        return list(changes.values())

    def _claimed_now(self, name: str) -> Change:
        state = self._filed(name)
        return Change(name, state, state, f"left alone: {state}, it was claimed just now")

    def retry(self, names: list[str] | None = None, check: bool = False) -> list[Change]:
        """Move failed jobs back to pending with their attempts set to zero.

        Args:
            names: which; None: all that failed.
            check: only say what would become of each.
        """
        changes = []
        with self.lock():
            for name in sorted(self.entries("failed"), key=job.natural) if names is None else names:
                state = self.locate(job.check_name(name))
                if state != "failed":
                    changes.append(Change(name, state, state, f"left alone: {state or 'there is no such job'}"))
                    continue
                try:
                    values = self.read("failed", name)
                    job.check_room(values)
                except MalformedJob as exc:
                    changes.append(Change(name, "failed", "failed", f"left alone: {exc}"))
                    continue
                if values.get("REASON") == "malformed_job":
                    reason = f"left alone: malformed ({values.get('DETAIL', '')}); remove it and enqueue it anew"
                    changes.append(Change(name, "failed", "failed", reason))
                    continue
                changes.append(Change(name, "failed", "pending", f"was {values.get('REASON', 'failed')}"))
                if not check:
                    # Why it failed stays in it: whoever is killed before the move leaves a job that failed.
                    self._overwrite("failed", name, {**values, "ATTEMPTS": "0", "RECOVERIES": "0"})
                    self._rename(name, "failed", "pending")
        return changes

    def remove(self, names: list[str] | None, states: Iterable[str] = STATES, logs: bool = False, check: bool = False) -> list[Change]:
        """Delete jobs; a running one is left alone.

        Args:
            names: which; None: all in the states.
            states: in which states.
            logs: their logs, too.
            check: only say what would become of each.
        """
        states = [*states, "held"] if "pending" in states else list(states)
        changes = []
        with self.lock():
            if names is None:
                names = sorted({name for state in states for name in self.entries(state)}, key=job.natural)
                changes += self._remove_from_batches(None if "pending" in states else set(names), check)
            else:
                filed = {job.check_name(name): self._filed(name) for name in names}
                # Also from a batch that has made a file of it already: else it would do so again, once that is gone.
                changes += self._remove_from_batches({n for n, state in filed.items() if (state or "pending") in states}, check)
                gone = {change.name for change in changes}
                names = [name for name in names if filed[name] or name not in gone]
            for name in names:
                state = self.locate(name)
                if state is None or state not in states:
                    changes.append(Change(name, state, state, f"left alone: {state or 'there is no such job'}"))
                elif state == "running":
                    left = "recover it first" if self.why_orphan(name) else "its owner lives; stop the jobset first"
                    changes.append(Change(name, state, state, f"left alone: {left}"))
                else:
                    changes.append(self._removed(name, state, logs, check))
            for state in states:
                os.fsync(self._fds[state])
        return changes

    def _removed(self, name: str, state: str, logs: bool, check: bool) -> Change:
        try:
            reason = self.why_refused(state, name)
            if reason or check:
                return Change(name, state, state if reason else None, f"refused: {reason}" if reason else "removed")
            os.unlink(name + SUFFIX, dir_fd=self._fds[state])
        except FileNotFoundError:
            now = self.locate(name)
            return Change(name, now, now, f"left alone: {now} in the meantime")
        if self._stale(name):
            self._disown(name)
        if logs:
            joblog.remove(os.path.join(self.layout.log, f"{name}.log"))
        return Change(name, state, None, "removed")


def _not_held(values: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if key not in ("HELD_AT", "HELD_BY")}
