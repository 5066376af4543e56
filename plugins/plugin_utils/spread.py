# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host gets which job of a jobset that is spread over several, and a record of it, for when a host can't be asked.

A job is written into the record before it is put into a host's queue, and from then on belongs to that host: whatever is cut short in
between, the next command goes on with the same host. A job leaves a host's queue before it enters another's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional

from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import owner
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import write_whole

POLICIES = ("sequential", "random", "smart", "frugal")
# A job that is in the record, and that its host has not been seen to hold yet.
PLACED = "placed"
WAITING = ("pending", "held", PLACED)
ENDED = ("done", "failed")


class Seat(NamedTuple):
    """What a host can take: its workers, its jobs that wait or run, and how many of these it may have (None: any number)."""

    workers: int
    load: int
    limit: Optional[int] = None


def place(jobs: Iterable[str], seats: Mapping[str, Seat], policy: str, chance: Optional[random.Random] = None) -> dict[str, str]:
    """Decide which job goes where.

    Args:
        jobs: their names, in order.
        seats: the hosts that may take jobs, in the inventory's order.
        policy: sequential (each host in turn), random, smart (the host with most free slots) or frugal (with fewest). Where no host has
            a free slot any more, smart and frugal take the one with the fewest jobs for each of its workers.
        chance: what random draws from.
    Returns:
        the host of each job; one for which no host has room is not in it.
    """
    chance = chance or random.Random()
    load = {host: seat.load for host, seat in seats.items()}
    placed: dict[str, str] = {}
    turn = list(seats)
    for job in jobs:
        able = [host for host in turn if (limit := seats[host].limit) is None or load[host] < limit]
        if not able:
            break
        free = {host: seats[host].workers - load[host] for host in able}
        slots = [host for host in able if free[host] > 0]
        if policy == "sequential":
            host = able[0]
            turn.remove(host)
            turn.append(host)
        elif policy == "random":
            host = chance.choice(able)
        elif slots:
            host = (max if policy == "smart" else min)(slots, key=free.__getitem__)
        else:
            host = min(able, key=lambda one: load[one] / max(seats[one].workers, 1))
        placed[job] = host
        load[host] += 1
    return placed


class Record:
    """Where each job of a jobset was placed, and how it was seen there last.

    jobs: name -> host, state, line of a list of jobs (empty where it came otherwise than by this record).
    moving: name -> the host that it has yet to be taken off.
    away: host -> name -> state: what belongs to another host by now, and is or may be here, too.
    hosts: name -> seen (when it was asked last), lost (since when it is given up).
    """

    def __init__(self, path: str, jobset: str) -> None:
        self.path, self.jobset = path, jobset
        known: dict[str, Any] = {}
        try:
            with open(path, encoding="utf-8") as file:
                known = json.load(file)
            self.policy: str = known.get("policy", "")
            self.jobs: dict[str, list[str]] = known.get("jobs", {})
            self.moving: dict[str, str] = known.get("moving", {})
            self.away: dict[str, dict[str, str]] = known.get("away", {})
            self.hosts: dict[str, dict[str, str]] = known.get("hosts", {})
        except FileNotFoundError:
            self.policy, self.jobs, self.moving, self.away, self.hosts = "", {}, {}, {}, {}
        except (OSError, ValueError, AttributeError) as exc:
            raise QueueError(
                f"{path}, which says where the jobs of {jobset} are, can't be read ({exc}): bring it back from a backup; or move it away"
                " while all hosts can be asked, which then say what they hold"
            ) from exc

    def save(self) -> None:
        """Write it, durably, before anything is done that it speaks of."""
        try:
            write_whole(self.path, json.dumps({key: getattr(self, key) for key in ("policy", "hosts", "moving", "away", "jobs")}, indent=0))
        except OSError as exc:
            raise QueueError(f"{explain(exc, self.path)}; no job was placed") from exc

    def lost(self) -> list[str]:
        """Return the hosts that were given up."""
        return [host for host, known in self.hosts.items() if known.get("lost")]

    def note(self, held: Mapping[str, Mapping[str, str]]) -> None:
        """Take up what hosts hold now: for each that was asked, its jobs and their states."""
        for host in held:
            self.hosts.setdefault(host, {})["seen"] = owner.now()
        for name, source in list(self.moving.items()):
            if source in held:
                del self.moving[name]
                if name in held[source]:
                    # It was not taken off, or a worker was faster.
                    self.jobs[name][:2] = [source, held[source][name]]
        places: dict[str, list[str]] = {}
        for host, states in held.items():
            for name in states:
                places.setdefault(name, []).append(host)
        for name, hosts in places.items():
            home, state, line = self.jobs.get(name, ["", "", ""])
            if home in held and home not in hosts:
                # Removed there, or never put there. A place where it is left over from a move is not its new one.
                proper = [host for host in hosts if name not in self.away.get(host, {})]
                home = proper[0] if proper else home if state == PLACED else hosts[0]
            home = home or hosts[0]
            self.jobs[name] = [home, held[home][name] if home in hosts else state, line]
            for host in hosts:
                if host != home:
                    self.away.setdefault(host, {})[name] = held[host][name]
        self.jobs = {name: job for name, job in self.jobs.items() if name in places or job[0] not in held or job[1] == PLACED}
        for host in set(self.away) & set(held):
            self.away[host] = {name: held[host][name] for name in self.away[host] if name in held[host] and self.jobs[name][0] != host}
        self.away = {host: names for host, names in self.away.items() if names}

    def _load(self, host: str, states: Mapping[str, str]) -> int:
        coming = sum(1 for name, job in self.jobs.items() if job[0] == host and job[1] == PLACED and name not in states)
        return coming + sum(1 for state in states.values() if state not in ENDED)

    def _place(
        self, names: list[str], workers: Mapping[str, int], held: Mapping[str, Mapping[str, str]], limits: Mapping[str, int]
    ) -> dict[str, str]:
        seats = {host: Seat(count, self._load(host, held[host]), limits.get(host)) for host, count in workers.items()}
        return place(names, seats, self.policy)

    def enqueue(
        self,
        wanted: Mapping[str, str],
        held: Mapping[str, Mapping[str, str]],
        silent: Mapping[str, str],
        workers: Mapping[str, int],
        limits: Mapping[str, int],
    ) -> list[str]:
        """Place those of the wanted jobs that are nowhere yet; return those for which there is no room.

        Args:
            wanted: name -> line of a list of jobs.
            held: what each host holds that was asked; noted already.
            silent: why each other host could not be asked.
            workers: how many workers each host has that may take jobs, in the inventory's order.
            limits: how many jobs such a host may have at a time.
        Raises:
            QueueError: a job may be on a host that can't be asked.
        """
        unknown = {host: why for host, why in silent.items() if host not in self.lost()}
        fresh = [name for name in wanted if name not in self.jobs]
        if fresh and unknown:
            host, why = next(iter(unknown.items()))
            raise QueueError(
                f"jobset {self.jobset}: {host} can't be asked what it holds ({why}), and the record does not say where {fresh[0]}"
                f"{f' and {len(fresh) - 1} more' if fresh[1:] else ''} would be: so they could come to be in two queues, and nothing was"
                f" enqueued. Mend {host}; or, if it is down for good: ansible-playbook playbooks/move.yml -e jobset={self.jobset}"
                f" -e from={host} -e lost=true"
            )
        # Placed, and not put there before its host was drained: nobody holds it.
        adrift = {name: job[2] for name, job in self.jobs.items() if job[1] == PLACED and job[0] in held and job[0] not in workers}
        lines = {
            **{name: line for name, line in adrift.items() if name not in self.moving and not unknown},
            **{name: wanted[name] for name in fresh},
        }
        placed = self._place(list(lines), workers, held, limits)
        self.jobs.update({name: [host, PLACED, lines[name]] for name, host in placed.items()})
        return [name for name in lines if name not in placed]

    def move(
        self,
        source: str,
        chosen: Optional[Iterable[str]],
        held: Mapping[str, Mapping[str, str]],
        lines: Mapping[str, str],
        workers: Mapping[str, int],
        limits: Mapping[str, int],
        running: bool = False,
    ) -> tuple[list[str], dict[str, str]]:
        """Place the pending jobs of a host elsewhere; return those to be taken off it first, and why others stay.

        Args:
            source: the host. If it is not in held, it is given up, and what it holds is what it held when it was asked last.
            chosen: only these jobs; None: all.
            held: what each host holds that was asked; noted already.
            lines: the lines of those jobs of the host that it could say them of.
            workers: how many workers each other host has that may take jobs, in the inventory's order.
            limits: how many jobs such a host may have at a time.
            running: also those that ran on a host that is given up.
        """
        asked = source in held
        for name, line in lines.items():
            self.jobs[name][2] = line
        states = ("pending", PLACED, *(["running"] if running and not asked else []))
        only = None if chosen is None else set(chosen)
        names = [name for name, job in self.jobs.items() if job[0] == source and job[1] in states and (only is None or name in only)]
        placed = self._place([name for name in names if self.jobs[name][2]], workers, held, limits)
        take = []
        for name, host in placed.items():
            state, line = self.jobs[name][1:]
            self.jobs[name] = [host, PLACED, line]
            if asked and state == "pending":
                take.append(name)
                self.moving[name] = source
            elif not asked:
                self.away.setdefault(source, {})[name] = state
        if not asked:
            self.hosts.setdefault(source, {})["lost"] = owner.now()
            for name in [name for name, host in self.moving.items() if host == source]:
                del self.moving[name]
                self.away.setdefault(source, {})[name] = "pending"
        why = {name: "no host has room for it" if self.jobs[name][2] else "its values are not known here" for name in names}
        return take, {name: why[name] for name in names if name not in placed}

    def due(self, held: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
        """Return what is yet to be put into queues, by host: the lines of the jobs."""
        due: dict[str, list[str]] = {}
        for name, (host, state, line) in self.jobs.items():
            if state == PLACED and host in held and name not in held[host] and name not in self.moving:
                due.setdefault(host, []).append(line)
        return due

    def rows(
        self, members: Iterable[str], held: Mapping[str, Mapping[str, str]], workers: Mapping[str, int], notes: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Return a row for each host: how many jobs it has in each state, and how many of its workers are free.

        Args:
            members: the hosts.
            held: what each holds that was asked.
            workers: how many workers each of these has.
            notes: what else is to be said of some.
        """
        found = []
        for host in members:
            states = held.get(host, {})
            own = Counter(states.values())
            own.update(
                job[1]
                for name, job in self.jobs.items()
                if job[0] == host and (host not in held or job[1] == PLACED) and name not in states
            )
            waiting = sum(own[state] for state in WAITING)
            slots = max(workers.get(host, 0) - waiting - own["running"], 0) if host in held else None
            counts = {"pending": waiting, **{state: own[state] for state in ("running", *ENDED)}}
            found.append({"host": host, **counts, "workers": workers.get(host), "free": slots, "note": notes.get(host, "")})
        return found

    def counts(self) -> dict[str, int]:
        """Return how many jobs are in each state on all hosts together, each job once."""
        all_of = Counter(job[1] for job in self.jobs.values())
        return {"pending": sum(all_of[state] for state in WAITING), **{state: all_of[state] for state in ("running", *ENDED)}}


def occupy(path: str, what: str) -> None:
    """Let no other command change the record as long as the ansible-playbook lives that this one belongs to.

    Raises:
        QueueError: another one does, or there is no place for the record.
    """
    mine = {"pid": os.getppid(), "start": _start(os.getppid()), "host": socket.gethostname(), "what": what}
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(f"{path}.lock", "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            other: dict[str, Any] = {}
            with contextlib.suppress(ValueError):
                other = json.loads(file.read() or "{}")
            same = other.get("host") == mine["host"]
            if (
                other
                and (other["pid"], other["start"]) != (mine["pid"], mine["start"])
                and (not same or _start(other["pid"]) == other["start"])
            ):
                raise QueueError(
                    f"{other['what']} (process {other['pid']} on {other['host']}) is at work on {path}: wait until it has ended"
                    + ("" if same else f"; if it has, remove {path}.lock")
                )
            file.seek(0)
            file.truncate()
            json.dump(mine, file)
    except OSError as exc:
        raise QueueError(f"{explain(exc, path)}; name another folder for the record of what is where: -e spread_record=FOLDER") from exc


def _start(pid: int) -> str:
    """Return when a process has started, empty where there is none."""
    found = owner.process_start(pid)
    if not found and not os.path.isdir("/proc/self"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return "alive"
    return found
