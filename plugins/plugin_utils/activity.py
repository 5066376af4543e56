# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is being done, how far it is, since when, and how long it may still take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.progress_text import duration
from ansible_collections.sagequeue.batch.plugins.plugin_utils.memory import Memory


class Activity:
    """The task that hosts are at.

    task: what it is called; empty: there is nothing to say of it.
    """

    def __init__(self) -> None:
        self.task = ""
        self._memory = Memory()
        # The task's name in the memory, since when it is done on which hosts, and how far it says it is.
        self._key = ""
        self._awaited: dict[str, float] = {}
        self._answered: set[str] = set()
        self._far: dict[str, dict[str, Any]] = {}
        self._polled = False

    def begin(self, task: str, key: str) -> None:
        """A task begins; key is its name in the memory, empty where it is not to be remembered."""
        self.task, self._key = task, key
        self._awaited, self._far = {}, {}
        self._polled = False

    def start(self, host: str, asks_nothing: bool) -> None:
        """A host begins with it; asks_nothing: no ssh is in between, which may ask something on the terminal."""
        self._awaited[host] = time.monotonic()
        if asks_nothing:
            self._answered.add(host)

    def poll(self, host: str, found: Mapping[str, Any]) -> None:
        """A host has looked for what the task waits for."""
        self._polled = self._polled or "retries" in found
        counts, far = found.get("counts"), found.get("progress")
        if isinstance(far, Mapping) and "total" in far:
            entry = {"done": far.get("done", 0), "total": far["total"], "left": far.get("seconds_left"), "text": far.get("text", "")}
        elif isinstance(counts, Mapping) and {"done", "failed"} <= set(counts):
            others = [f"{count} {state}" for state, count in counts.items() if count and state != "done"]
            done = counts["done"] + counts["failed"]
            entry = {"done": done, "total": sum(counts.values()), "left": found.get("seconds_left"), "text": ", ".join(others)}
        else:
            return
        self._far[host] = entry

    def end(self, host: str, changed: bool, check: bool) -> None:
        """A host has ended it; check: so that nothing was really done."""
        self._answered.add(host)
        if host in self._awaited:
            seconds = time.monotonic() - self._awaited.pop(host)
            if not self._polled and not check:
                self._memory.learn(host, self._key, changed, seconds)
        self._far.pop(host, None)

    def save(self) -> None:
        """Remember for later runs how long things took."""
        self._memory.save()

    def lasts(self) -> bool:
        """Tell whether something is being done of which a line may be printed."""
        # ssh may ask something on the terminal before a host has answered for the first time.
        return bool(self.task and self._awaited) and self._answered.issuperset(self._awaited)

    def line(self, width: int, hosts: set[str]) -> str:
        """Return in one line what is being done.

        Args:
            width: how long the line may be.
            hosts: those that could be at it.
        """
        elapsed = time.monotonic() - min(self._awaited.values())
        share, words, left = None, [], None
        if self._far:
            done, total = (sum(one[key] for one in self._far.values()) for key in ("done", "total"))
            share = done / total if total else 0.0
            words += [f"{done}/{total}", *(one["text"] for one in self._far.values() if one["text"])]
            known = [one["left"] for one in self._far.values()]
            left = max(known) if None not in known else None
        elif not self._polled:
            usual = self._memory.usual(list(self._awaited), self._key, elapsed)
            if usual:
                share, left = min(elapsed / usual, 1.0), usual - elapsed
                if left <= 0:
                    words.append(f"it took {duration(usual)} the last time")
                    share = left = None
        if elapsed >= 1:
            words.append(f"for {duration(elapsed)}")
        if left is not None and left >= 1:
            words.append(f"about {duration(left)} left")
        if not hosts <= set(self._awaited):
            words.append(f"waiting for {', '.join(self._awaited)}")
        size = 20 if width >= 60 else 10
        drawn = "" if share is None else "[" + "#" * int(share * size) + "-" * (size - int(share * size)) + "] "
        told = (drawn + ", ".join(words)).rstrip()
        # On a narrow terminal the task's name gives way.
        name, room = self.task, width - len(told) - 2
        if told and len(name) > room:
            name = f"{name[: room - 3]}..." if room >= 8 else ""
        return ": ".join(part for part in (name, told) if part)[:width]
