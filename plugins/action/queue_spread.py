# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module queue_spread, which works on the machine that runs Ansible."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Optional

from ansible.plugins.action import ActionBase
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import batch, job
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.selection import expression, split
from ansible_collections.sagequeue.batch.plugins.plugin_utils.hosts import Hosts, few, jobs
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
        self.hosts = Hosts(self.record, options["hosts"], options["answers"], task_vars["hostvars"])
        if not self.hosts.answers and self.hosts.silent and options["step"] not in ("move", "put"):
            host, why = next(iter(self.hosts.silent.items()))
            raise QueueError(f"jobset {self.jobset}: none of {', '.join(self.hosts.members)} can be asked; {host}: {why}")
        self.record.note(self.hosts.held)
        policy = options["policy"] or self.record.policy or "sequential"
        if policy not in POLICIES:
            raise QueueError(f"there is no policy {policy}; there are {', '.join(POLICIES)}")
        self.record.policy = policy

    def done(self) -> dict[str, Any]:
        """Take the step."""
        before = {name: list(entry) for name, entry in self.record.jobs.items()}
        told = {
            "enqueue": self._enqueue,
            "move": self._move,
            "moved": self._moved,
            "back": self._back,
            "put": self._put,
            "look": lambda: {"put": {}, "take": [], "left": {}, "said": self.hosts.how_far()},
        }[self.options["step"]]()
        if not self.check:
            self.record.save()
        counts = self.record.counts()
        workers = {host: int(answer["workers"]) for host, answer in self.hosts.answers.items()}
        notes = {host: self.hosts.note(host) for host in self.hosts.members}
        said = [*told.pop("said"), *(self.hosts.odd(looks=self.options["step"] == "look") if self.options["step"] != "put" else [])]
        return {
            **told,
            "changed": False,
            "placed": sum(1 for name, entry in self.record.jobs.items() if entry[:1] != before.get(name, [""])[:1]),
            "hosts": self.record.rows(self.hosts.members, self.hosts.held, workers, notes),
            "counts": counts,
            "twice": self.hosts.twice(),
            "said": said,
            "msg": said[0] if said else "",
        }

    def _wanted(self) -> dict[str, str]:
        """Return the names and lines of the jobs that are to be enqueued."""
        if self.options["jobs_file"]:
            try:
                with open(self.options["jobs_file"], encoding="utf-8", newline="\n") as file:
                    given = batch.listed(file.read())
            except UnicodeDecodeError as exc:
                raise QueueError(f"{self.options['jobs_file']} is not UTF-8; nothing was enqueued") from exc
        else:
            strides = {answer["stride"]: host for host, answer in self.hosts.answers.items()}
            if len(strides) > 1:
                said = ", ".join(f"{stride} on {host}" for stride, host in strides.items())
                raise QueueError(f"jobset {self.jobset}: its stride is {said}; run setup, so that it is the same on all hosts")
            given = Jobset(self.jobset, {"script": "unknown", "stride": next(iter(strides))}).offset_jobs(self.options["offsets"])
        twice = next((name for name, count in Counter(given.names).items() if count > 1), None)
        if twice:
            raise QueueError(f"job {twice} is named twice; nothing was enqueued")
        return dict(zip(given.names, given.lines))

    def _enqueue(self) -> dict[str, Any]:
        wanted, workers = self._wanted(), self.hosts.workers()
        known = {name: list(self.record.jobs[name]) for name in wanted if name in self.record.jobs}
        left = self.record.enqueue(wanted, self.hosts.held, self.hosts.silent, workers, self.hosts.limits)
        open_to = {host: self.hosts.held[host] for host in workers}
        put = self.record.due(open_to)
        alone: Counter[str] = Counter()
        for name, (host, state, _line) in known.items():
            if self.options["force"] and state in ENDED and host in workers and name in self.hosts.held[host]:
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
                f"{len(left)} {few(left)} {would or 'were '}not enqueued: each host has as many jobs as its max_jobs_allowed;"
                " enqueue again when some have ended"
            )
        return {"put": _texts(put), "take": [], "left": dict.fromkeys(left, "no host has room for it"), "said": said}

    def _source(self) -> str:
        source = self.options["source"] or ""
        if source not in self.hosts.members:
            raise QueueError(
                f"{source or 'no host'} is not one of the hosts of jobset {self.jobset}: {', '.join(self.hosts.members)};"
                " name one: -e from=HOST"
            )
        return source

    def _move(self) -> dict[str, Any]:
        source, options = self._source(), self.options
        asked = source in self.hosts.held
        if not asked and not options["lost"]:
            raise QueueError(
                f"{source} can't be asked ({self.hosts.silent[source]}). If it is down for good, or switched off so that nothing runs"
                " there, give it up by adding -e lost=true: what was pending there then goes to other hosts"
            )
        workers = self.hosts.workers(source)
        own = [name for name, entry in self.record.jobs.items() if entry[0] == source]
        chosen = own
        if options["jobs"] is not None:
            like = re.compile("|".join(expression(text, self.jobset) for text in split(options["jobs"])))
            chosen = [name for name in own if like.fullmatch(name)]
            if not chosen:
                raise QueueError(f"jobset {self.jobset}: {source} has none of the jobs {', '.join(options['jobs'])}; nothing was moved")
        known = self.hosts.answers[source]["lines"] if asked else {}
        lines = {name: line for name, line in known.items() if self.record.jobs[name][0] == source}
        before = Counter(self.record.jobs[name][1] for name in chosen)
        ran = sorted((name for name in chosen if self.record.jobs[name][1] == "running"), key=job.natural)
        seen = self.record.hosts.get(source, {}).get("seen", "never")
        take, left = self.record.move(source, chosen, self.hosts.held, lines, workers, self.hosts.limits, options["running"])
        take += self._surplus(source)
        gone = [name for name in chosen if self.record.jobs[name][0] != source]
        if self.check:
            # As if they had been taken off.
            self.record.moving = {}
        would = "would move" if self.check else "moved"
        parts = Counter(self.record.jobs[name][0] for name in gone)
        said = [
            f"{self.jobset}: {jobs(len(gone))} {would} from {source}" + "".join(f", {count} to {host}" for host, count in parts.items())
        ]
        if left:
            said.append(f"{len(left)} stay, {few(list(left))}: {next(iter(left.values()))}")
        if ran and asked:
            said.append(
                f"{few(ran)} still {'runs' if len(ran) == 1 else 'run'} there; stop.yml -e sagequeue_hosts={source} puts back what runs"
            )
        elif not asked:
            said.append(
                f"{source} is given up; it was asked last at {seen}: then it had "
                + (", ".join(f"{n} {state}" for state, n in before.items()) or "no jobs")
            )
            if ran:
                more = "they moved, too, and may run twice" if options["running"] else "they stay its own; -e running=true moves them, too"
                said.append(f"{few(ran)} may have been running there: {more}")
            said.append(
                f"what moved and was pending there still is, and runs there, too, if {source} comes up: then at once -e back={source}"
            )
        if before["held"]:
            said.append(f"what is held stays on {source}: {jobs(before['held'])}")
        return {"put": _texts(self.record.due({host: self.hosts.held[host] for host in workers})), "take": take, "left": left, "said": said}

    def _moved(self) -> dict[str, Any]:
        source = self._source()
        workers = self.hosts.workers(source)
        late = [name for name, host in self.record.moving.items() if host == source]
        said = [f"{jobs(len(late))} to be taken off {source}, which can't be asked any more: run the same command again"] if late else []
        return {"put": _texts(self.record.due({host: self.hosts.held[host] for host in workers})), "take": [], "left": {}, "said": said}

    def _surplus(self, host: str) -> list[str]:
        held = self.hosts.held.get(host, {})
        return [name for name, state in self.record.away.get(host, {}).items() if held.get(name) == "pending" and state]

    def _back(self) -> dict[str, Any]:
        source = self._source()
        if source not in self.hosts.held:
            raise QueueError(f"{source} can't be asked ({self.hosts.silent[source]}): it is not back yet")
        take = self._surplus(source)
        self.record.hosts[source].pop("lost", None)
        return {
            "put": {},
            "take": take,
            "left": {},
            "said": [f"{self.jobset}: {source} takes part again; {jobs(len(take))} that had moved {'to be ' * self.check}taken off it"],
        }

    def _put(self) -> dict[str, Any]:
        """What was due was put into the queues of these hosts: if it is not there when they are asked next, it was removed."""
        for name, entry in self.record.jobs.items():
            if entry[1] == PLACED and entry[0] in self.hosts.reached and name not in self.record.moving:
                entry[1] = "pending"
        return {"put": {}, "take": [], "left": {}, "said": []}


def _texts(lines: Mapping[str, list[str]]) -> dict[str, str]:
    return {host: "".join(f"{line}\n" for line in some) for host, some in lines.items()}
