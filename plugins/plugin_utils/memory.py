# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long things took the last time."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Optional

# Tasks that took less are not remembered, and no time left is told (seconds).
_LONG = 5.0
# How many tasks are remembered.
_REMEMBERED = 500


class Memory:
    """How long tasks took in former runs: by host and task, apart for those that changed something and those that didn't."""

    def __init__(self) -> None:
        self._file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sagequeue", "durations.json")
        self._known: dict[str, dict[str, float]] = {}
        self._learnt = False
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            for key, spans in json.loads(self._file.read_text(encoding="utf-8")).items():
                self._known[key] = {kind: float(seconds) for kind, seconds in spans.items()}

    def learn(self, host: str, task: str, changed: bool, seconds: float) -> None:
        """Remember what took long."""
        if task and seconds >= _LONG:
            spans = self._known.pop(f"{host}: {task}", {})
            self._known[f"{host}: {task}"] = {**spans, "changed" if changed else "unchanged": round(seconds, 1)}
            self._learnt = True

    def usual(self, hosts: list[str], task: str, elapsed: float) -> Optional[float]:
        """Return how long the task takes: when it is known, and it can't be one of the quick runs that change nothing."""
        spans = [self._known.get(f"{host}: {task}", {}) for host in hosts]
        if elapsed <= max((one.get("unchanged", 0.0) for one in spans), default=0.0):
            return max(one.get("unchanged", 0.0) for one in spans)
        return max((one.get("changed", 0.0) for one in spans), default=0.0) or None

    def save(self) -> None:
        """Write what was learnt. Without a place for it nothing is remembered."""
        if self._learnt:
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                new = self._file.with_suffix(f".{os.getpid()}")
                new.write_text(json.dumps(dict(list(self._known.items())[-_REMEMBERED:]), indent=1), encoding="utf-8")
                new.replace(self._file)
