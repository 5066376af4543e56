# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module queue_spread, which works on the machine that runs Ansible."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Optional

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, job
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.progress import bar_of, duration
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.selection import expression, split
from ansible_collections.sagequeue.batch.plugins.plugin_utils.spread import ENDED, PLACED, POLICIES, Record, occupy

SPEC: dict[str, dict[str, Any]] = {
    "step": {"type": "str", "choices": ["enqueue", "move", "moved", "back", "look", "put"], "required": True},
    "jobset": {"type": "str", "required": True},
    "record": {"type": "path", "required": True},
    "hosts": {"type": "list", "elements": "str", "required": True},
    "answers": {"type": "list", "elements": "str", "required": True},
    "policy": {"type": "str"},
    "offsets": {"type": "list", "elements": "int"},
    "jobs_file": {"type": "path"},
    "force": {"type": "bool", "default": False},
    "source": {"type": "str"},
    "jobs": {"type": "list", "elements": "str"},
    "lost": {"type": "bool", "default": False},
    "running": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    """Gathers the hosts' answers, lets the record decide, writes it, and says what is to be done now."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Optional[str] = None, task_vars: Optional[dict[str, Any]] = None) -> dict[str, Any]:
        """Run the module."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(argument_spec=SPEC)
        # What the operator's output goes by: a module's own message needs no task's name beside it.
        result["invocation"] = {"module_args": {}}
        try:
            return {**result, **_Step(options, task_vars or {}, bool(self._task.check_mode)).done()}
        except (QueueError, OSError) as exc:
            return {**result, "failed": True, "msg": explain(exc, options["record"])}


class _Step:
    """One step, with what is known of the hosts."""

    def __init__(self, options: dict[str, Any], task_vars: Mapping[str, Any], check: bool) -> None:
        self.options, self.check, self.jobset = options, check, options["jobset"]
        if not job.is_name(self.jobset):
            defined = ", ".join(sorted(task_vars.get("sagequeue_jobsets") or {})) or "none; run setup"
            raise QueueError(f"Name a jobset: -e jobset=NAME; defined are {defined}")
        if not check:
            occupy(options["record"], options["step"])
        self.record = Record(options["record"], self.jobset)
        known = task_vars["hostvars"]
        listed = set(known)
        self.members = list(dict.fromkeys([*options["hosts"], *self.record.hosts]))
        self.held: dict[str, dict[str, str]] = {}
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.silent: dict[str, str] = {}
        self.limits: dict[str, int] = {}
        self.drained: list[str] = []
        self.reached: list[str] = []
        for host in self.members:
            theirs = known[host] if host in listed else {}
            given = [theirs[name] for name in options["answers"] if name in theirs and not theirs[name].get("skipped")]
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
        if not self.answers and self.silent and options["step"] not in ("move", "put"):
            host, why = next(iter(self.silent.items()))
            raise QueueError(f"jobset {self.jobset}: none of {', '.join(self.members)} can be asked; {host}: {why}")
        self.record.note(self.held)
        policy = options["policy"] or self.record.policy or "sequential"
        if policy not in POLICIES:
            raise QueueError(f"there is no policy {policy}; there are {', '.join(POLICIES)}")
        self.record.policy = policy

    def _workers(self, without: Optional[str] = None) -> dict[str, int]:
        """Return how many workers each host has that may take jobs."""
        out = {*self.drained, *self.record.lost(), without}
        found = {host: int(answer["workers"]) for host, answer in self.answers.items() if host not in out and answer["workers"]}
        if not found:
            raise QueueError(
                f"jobset {self.jobset}: no host may take jobs: " + "; ".join(f"{host} {self._note(host, without)}" for host in self.members)
            )
        return found

    def done(self) -> dict[str, Any]:
        """Take the step."""
        before = {name: list(entry) for name, entry in self.record.jobs.items()}
        told = {
            "enqueue": self._enqueue,
            "move": self._move,
            "moved": self._moved,
            "back": self._back,
            "put": self._put,
            "look": lambda: {"put": {}, "take": [], "left": {}, "said": self._how_far()},
        }[self.options["step"]]()
        if not self.check:
            self.record.save()
        counts = self.record.counts()
        workers = {host: int(answer["workers"]) for host, answer in self.answers.items()}
        notes = {host: self._note(host) for host in self.members}
        said = [*told.pop("said"), *(self._odd() if self.options["step"] != "put" else [])]
        return {
            **told,
            "changed": False,
            "placed": sum(1 for name, entry in self.record.jobs.items() if entry[:1] != before.get(name, [""])[:1]),
            "hosts": self.record.rows(self.members, self.held, workers, notes),
            "counts": counts,
            "twice": self._twice(),
            "said": said,
            "msg": said[0] if said else "",
        }

    def _wanted(self) -> dict[str, str]:
        """Return the names and lines of the jobs that are to be enqueued."""
        if self.options["jobs_file"]:
            try:
                with open(self.options["jobs_file"], encoding="utf-8", newline="\n") as file:
                    jobs = batch.listed(file.read())
            except UnicodeDecodeError as exc:
                raise QueueError(f"{self.options['jobs_file']} is not UTF-8; nothing was enqueued") from exc
        else:
            strides = {answer["stride"]: host for host, answer in self.answers.items()}
            if len(strides) > 1:
                said = ", ".join(f"{stride} on {host}" for stride, host in strides.items())
                raise QueueError(f"jobset {self.jobset}: its stride is {said}; run setup, so that it is the same on all hosts")
            jobs = Jobset(self.jobset, {"script": "unknown", "stride": next(iter(strides))}).offset_jobs(self.options["offsets"])
        twice = next((name for name, count in Counter(jobs.names).items() if count > 1), None)
        if twice:
            raise QueueError(f"job {twice} is named twice; nothing was enqueued")
        return dict(zip(jobs.names, jobs.lines))

    def _enqueue(self) -> dict[str, Any]:
        wanted, workers = self._wanted(), self._workers()
        known = {name: list(self.record.jobs[name]) for name in wanted if name in self.record.jobs}
        left = self.record.enqueue(wanted, self.held, self.silent, workers, self.limits)
        open_to = {host: self.held[host] for host in workers}
        put = self.record.due(open_to)
        alone: Counter[str] = Counter()
        for name, (host, state, _line) in known.items():
            if self.options["force"] and state in ENDED and host in workers and name in self.held[host]:
                put.setdefault(host, []).append(wanted[name])
            elif state != PLACED:
                alone[f"{state} on {host}"] += 1
        # Where its jobs wait already, workers are to be started, too.
        for host in workers:
            if any(known[name][0] == host and known[name][1] == "pending" for name in known):
                put.setdefault(host, [])
        would = "would be " if self.check else ""
        parts = ", ".join(f"{len(lines)} on {host}" for host, lines in put.items() if lines)
        said = [f"{self.jobset}: {sum(map(len, put.values()))} {would}enqueued{f': {parts}' if parts else ''}"]
        if alone:
            said.append(
                f"{sum(alone.values())} {would or 'were '}left alone: " + ", ".join(f"{count} {what}" for what, count in alone.items())
            )
        if left:
            said.append(
                f"{len(left)} {_some(left)} {would or 'were '}not enqueued: each host has as many jobs as its max_jobs_allowed;"
                " enqueue again when some have ended"
            )
        return {"put": _texts(put), "take": [], "left": dict.fromkeys(left, "no host has room for it"), "said": said}

    def _source(self) -> str:
        source = self.options["source"] or ""
        if source not in self.members:
            raise QueueError(
                f"{source or 'no host'} is not one of the hosts of jobset {self.jobset}: {', '.join(self.members)}; name one: -e from=HOST"
            )
        return source

    def _move(self) -> dict[str, Any]:
        source, options = self._source(), self.options
        asked = source in self.held
        if not asked and not options["lost"]:
            raise QueueError(
                f"{source} can't be asked ({self.silent[source]}). If it is down for good, or switched off so that nothing runs there,"
                " give it up by adding -e lost=true: what was pending there then goes to other hosts"
            )
        workers = self._workers(source)
        own = [name for name, entry in self.record.jobs.items() if entry[0] == source]
        chosen = own
        if options["jobs"] is not None:
            like = re.compile("|".join(expression(text, self.jobset) for text in split(options["jobs"])))
            chosen = [name for name in own if like.fullmatch(name)]
            if not chosen:
                raise QueueError(f"jobset {self.jobset}: {source} has none of the jobs {', '.join(options['jobs'])}; nothing was moved")
        lines = {name: line for name, line in self.answers[source]["lines"].items() if self.record.jobs[name][0] == source} if asked else {}
        before = Counter(self.record.jobs[name][1] for name in chosen)
        ran = sorted((name for name in chosen if self.record.jobs[name][1] == "running"), key=job.natural)
        seen = self.record.hosts.get(source, {}).get("seen", "never")
        take, left = self.record.move(source, chosen, self.held, lines, workers, self.limits, options["running"])
        take += self._surplus(source)
        gone = [name for name in chosen if self.record.jobs[name][0] != source]
        if self.check:
            # As if they had been taken off.
            self.record.moving = {}
        would = "would move" if self.check else "moved"
        parts = Counter(self.record.jobs[name][0] for name in gone)
        said = [
            f"{self.jobset}: {_jobs(len(gone))} {would} from {source}" + "".join(f", {count} to {host}" for host, count in parts.items())
        ]
        if left:
            said.append(f"{len(left)} stay, {_some(list(left))}: {next(iter(left.values()))}")
        if ran and asked:
            said.append(
                f"{_some(ran)} still {'runs' if len(ran) == 1 else 'run'} there; stop.yml -e sagequeue_hosts={source} puts back what runs"
            )
        elif not asked:
            said.append(
                f"{source} is given up; it was asked last at {seen}: then it had "
                + (", ".join(f"{n} {state}" for state, n in before.items()) or "no jobs")
            )
            if ran:
                more = "they moved, too, and may run twice" if options["running"] else "they stay its own; -e running=true moves them, too"
                said.append(f"{_some(ran)} may have been running there: {more}")
            said.append(
                f"what moved and was pending there still is, and runs there, too, if {source} comes up: then at once -e back={source}"
            )
        if before["held"]:
            said.append(f"what is held stays on {source}: {_jobs(before['held'])}")
        return {"put": _texts(self.record.due({host: self.held[host] for host in workers})), "take": take, "left": left, "said": said}

    def _moved(self) -> dict[str, Any]:
        source = self._source()
        workers = self._workers(source)
        late = [name for name, host in self.record.moving.items() if host == source]
        said = [f"{_jobs(len(late))} to be taken off {source}, which can't be asked any more: run the same command again"] if late else []
        return {"put": _texts(self.record.due({host: self.held[host] for host in workers})), "take": [], "left": {}, "said": said}

    def _surplus(self, host: str) -> list[str]:
        return [name for name, state in self.record.away.get(host, {}).items() if self.held.get(host, {}).get(name) == "pending" and state]

    def _back(self) -> dict[str, Any]:
        source = self._source()
        if source not in self.held:
            raise QueueError(f"{source} can't be asked ({self.silent[source]}): it is not back yet")
        take = self._surplus(source)
        self.record.hosts[source].pop("lost", None)
        return {
            "put": {},
            "take": take,
            "left": {},
            "said": [f"{self.jobset}: {source} takes part again; {_jobs(len(take))} that had moved {'to be ' * self.check}taken off it"],
        }

    def _put(self) -> dict[str, Any]:
        """What was due was put into the queues of these hosts: if it is not there when they are asked next, it was removed."""
        for name, entry in self.record.jobs.items():
            if entry[1] == PLACED and entry[0] in self.reached and name not in self.record.moving:
                entry[1] = "pending"
        return {"put": {}, "take": [], "left": {}, "said": []}

    def _twice(self) -> dict[str, list[str]]:
        """Return the jobs that more than one host holds, the proper one first."""
        found: dict[str, list[str]] = {}
        for host, names in self.record.away.items():
            for name in names if host in self.held else ():
                found.setdefault(name, [self.record.jobs[name][0]]).append(host)
        return found

    def _how_far(self) -> list[str]:
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

    def _note(self, host: str, without: Optional[str] = None) -> str:
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

    def _odd(self) -> list[str]:
        """Return what an operator should know and do."""
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
        for name, hosts in self._twice().items():
            for host in hosts[1:]:
                key = (hosts[0], self.record.jobs[name][1], host, self.held[host][name])
                twice.setdefault(key, []).append(name)
        for (home, state, host, there), names in twice.items():
            said.append(f"TWICE: {_some(names)} {state} on {home}, and {there} on {host}, too")
        if self.options["step"] == "look":
            if any(answer["info"]["gate"]["solved_by"] for answer in self.answers.values()) and any(
                self.record.counts()[s] for s in ("pending", "running")
            ):
                said.append(f"the other hosts go on; to end that: ansible-playbook playbooks/request_stop.yml -e jobset={self.jobset}")
            due = sum(1 for name, entry in self.record.jobs.items() if entry[1] == PLACED and name not in self.held.get(entry[0], {}))
            if due:
                said.append(f"{_jobs(due)} placed and not in a queue yet: a command was cut short; run it again")
        return said


def _some(names: list[str]) -> str:
    """Return a few of some names."""
    chosen = sorted(names, key=job.natural)
    return ", ".join(chosen) if len(chosen) <= 6 else f"{', '.join(chosen[:3])} ... {chosen[-1]} ({len(chosen)} jobs)"


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"


def _texts(lines: Mapping[str, list[str]]) -> dict[str, str]:
    return {host: "".join(f"{line}\n" for line in some) for host, some in lines.items()}
