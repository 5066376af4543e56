# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the hosts of a spread jobset: what they have answered, and what is to be said of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import job
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.progress_text import bar_of, duration
from ansible_collections.sagequeue.batch.plugins.plugin_utils.spread import PLACED, Record


class Hosts:
    """The hosts of a spread jobset.

    members: all of them. held: for each that could be asked, its jobs and their states. answers: all that these say.
    silent: why each other could not be asked. limits: how many jobs some may have. drained: those that take no more jobs.
    reached: those into whose queues something was put.

    Args:
        record: where the jobs were placed; the hosts in it are members, too.
        hosts: the hosts of this run.
        registered: the variables that may hold a host's answer; the first that does counts.
        known: the variables of all hosts.
    Raises:
        QueueError: the inventory says something odd of a host.
    """

    def __init__(self, record: Record, hosts: Iterable[str], registered: list[str], known: Mapping[str, Any]) -> None:
        self.record, self.jobset = record, record.jobset
        listed = set(known)
        self.members = list(dict.fromkeys([*hosts, *record.hosts]))
        self.held: dict[str, dict[str, str]] = {}
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.silent: dict[str, str] = {}
        self.limits: dict[str, int] = {}
        self.drained: list[str] = []
        self.reached: list[str] = []
        for host in self.members:
            theirs = known[host] if host in listed else {}
            given = [theirs[name] for name in registered if name in theirs and not theirs[name].get("skipped")]
            answer = given[0] if given else {"msg": "it is not among the hosts of this run"}
            if "counts" in answer:
                self.reached.append(host)
            if "states" in answer:
                self.answers[host] = answer
                self.held[host] = {name: state for state, names in answer["states"].items() for name in names}
            else:
                why = " ".join(str(answer.get("msg", "it says nothing")).split())
                self.silent[host] = re.sub(r"^(Task failed: )?(.* (via|over) ssh: (ssh: )?)?", "", why)[:200].rstrip(".")
            if boolean(theirs.get("drained", False)):
                self.drained.append(host)
            limit = theirs.get("max_jobs_allowed")
            if limit is not None:
                if not str(limit).isdigit():
                    raise QueueError(f"{host}: max_jobs_allowed is {limit!r}, and should be how many jobs may be pending or running there")
                self.limits[host] = int(limit)

    def workers(self, without: Optional[str] = None) -> dict[str, int]:
        """Return how many workers each host has that may take jobs.

        Args:
            without: a host that may not.
        Raises:
            QueueError: none may.
        """
        out = {*self.drained, *self.record.lost(), without}
        found = {host: int(answer["workers"]) for host, answer in self.answers.items() if host not in out and answer["workers"]}
        if not found:
            raise QueueError(
                f"jobset {self.jobset}: no host may take jobs: " + "; ".join(f"{host} {self.note(host, without)}" for host in self.members)
            )
        return found

    def note(self, host: str, without: Optional[str] = None) -> str:
        """Return what is to be said of a host."""
        known = self.record.hosts.get(host, {})
        extra = sum(1 for name in self.record.away.get(host, {}) if name in self.held.get(host, {}))
        said = [
            f"given up at {known['lost']}" if known.get("lost") else "",
            "is back" if known.get("lost") and host in self.held else "",
            f"can't be asked; seen last {known.get('seen', 'never')}" if host in self.silent and not known.get("lost") else "",
            "drained" if host in self.drained else "",
            "has no workers" if host in self.answers and not self.answers[host]["workers"] else "",
            f"{extra} of these belong to other hosts" if extra else "",
            "its jobs are to move" if host == without else "",
        ]
        return "; ".join(one for one in said if one)

    def how_far(self) -> list[str]:
        """Return one line for all hosts."""
        counts, infos = self.record.counts(), [answer["info"] for answer in self.answers.values()]
        text = f"{self.jobset} {bar_of(counts)} {counts['done']}/{sum(counts.values())} done"
        text += "".join(f", {counts[state]} {state}" for state in ("failed", "running", "pending") if counts[state])
        solved = {info["gate"]["solved_by"]: host for host, info in zip(self.answers, infos) if info["gate"]["solved_by"]}
        text += "".join(f"; solved by {name} on {host}" for name, host in solved.items())
        left = [info["seconds_left"] for info in infos if info["seconds_left"] and not info["settled"]]
        known = not self.silent and all(info["settled"] or info["seconds_left"] for info in infos)
        text += f"; about {duration(max(left))} left" if left and known and not solved else ""
        return [text]

    def twice(self) -> dict[str, list[str]]:
        """Return the jobs that more than one host holds, the proper one first."""
        found: dict[str, list[str]] = {}
        for host, names in self.record.away.items():
            for name in names if host in self.held else ():
                found.setdefault(name, [self.record.jobs[name][0]]).append(host)
        return found

    def odd(self, looks: bool) -> list[str]:
        """Return what an operator should know and do; looks: also what there is to do where nothing is being done."""
        said = []
        known = self.record.hosts
        for host, why in self.silent.items():
            if not known.get(host, {}).get("lost"):
                said.append(f"{host} can't be asked: {why}")
        for host in self.record.lost():
            if host in self.held:
                said.append(
                    f"{host}, which was given up, is back; next: ansible-playbook playbooks/move.yml -e jobset={self.jobset} -e back={host}"
                )
        twice: dict[tuple[str, str, str, str], list[str]] = {}
        for name, hosts in self.twice().items():
            for host in hosts[1:]:
                key = (hosts[0], self.record.jobs[name][1], host, self.held[host][name])
                twice.setdefault(key, []).append(name)
        for (home, state, host, there), names in twice.items():
            said.append(f"TWICE: {few(names)} {state} on {home}, and {there} on {host}, too")
        if looks:
            if any(answer["info"]["gate"]["solved_by"] for answer in self.answers.values()) and any(
                self.record.counts()[s] for s in ("pending", "running")
            ):
                said.append(f"the other hosts go on; to end that: ansible-playbook playbooks/request_stop.yml -e jobset={self.jobset}")
            due = sum(1 for name, entry in self.record.jobs.items() if entry[1] == PLACED and name not in self.held.get(entry[0], {}))
            if due:
                said.append(f"{jobs(due)} placed and not in a queue yet: a command was cut short; run it again")
        return said


def few(names: list[str]) -> str:
    """Return a few of some names."""
    chosen = sorted(names, key=job.natural)
    return ", ".join(chosen) if len(chosen) <= 6 else f"{', '.join(chosen[:3])} ... {chosen[-1]} ({len(chosen)} jobs)"


def jobs(count: int) -> str:
    """Return a number of jobs in words."""
    return f"{count} job" if count == 1 else f"{count} jobs"
