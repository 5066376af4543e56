# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts say in a task, each thing once, with the names of the hosts where there are several."""

from __future__ import annotations

from typing import NamedTuple

from ansible_collections.sagequeue.batch.plugins.plugin_utils.words import wrap

# The kinds that are failures.
FAILURES = ("FAILED", "UNREACHABLE")


class Told(NamedTuple):
    """Lines to print: of which kind, and whether they have no colour of it."""

    kind: str
    lines: list[str]
    plain: bool = False


class Gathered:
    """What was said and is not printed yet. A kind is said, all (one host for all), change, FAILED or UNREACHABLE."""

    def __init__(self) -> None:
        # (kind, heading, lines) -> hosts.
        self._found: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}

    def add(self, kind: str, host: str, lines: list[str], heading: str = "") -> None:
        """Gather what a host says.

        Args:
            kind: of which kind it is.
            host: who says it.
            lines: what.
            heading: of a change what changes, of a failure where it happened or what is next.
        """
        if lines or kind not in ("said", "all"):
            hosts = self._found.setdefault((kind, heading, tuple(lines)), [])
            if host not in hosts:
                hosts.append(host)

    def has_change(self, what: str, host: str) -> bool:
        """Tell whether it was gathered already that something changes on a host."""
        return any(key[:2] == ("change", what) and host in hosts for key, hosts in self._found.items())

    def drain(self, names: list[str], width: int, check: bool) -> list[Told]:
        """Return what was gathered, and forget it.

        Args:
            names: all hosts, in order.
            width: of the terminal.
            check: whether nothing is really done.
        """
        found, self._found = self._found, {}
        told: list[Told] = []
        several, before = len(names) > 1, ""
        for (kind, heading, lines), hosts in found.items():
            who = ", ".join(sorted(hosts, key=names.index))
            if kind == "change":
                change = f"{'would change' if check else 'changed'}: {heading}" + (f" ({who})" if several else "")
                # Each item of a loop has a diff of its own.
                if change != before:
                    told.append(Told(kind, wrap(change, width)))
                before = change
                # What Ansible made of a diff has its own colours, and is not wrapped.
                told.append(Told(kind, [line for one in lines for line in one.splitlines()], True))
                continue
            text = list(lines) or [""]
            # A text that begins with the host's name needs it only once.
            if several and kind != "all" and not text[0].startswith(who):
                if len(text) > 1 and kind not in FAILURES:
                    text = [f"{who}:", *(f"  {line}" for line in text)]
                else:
                    text[0] = f"{who}: {kind}: {text[0]}" if kind in FAILURES else f"{who}: {text[0]}"
            elif kind in FAILURES:
                text[0] = f"{kind}: {text[0]}"
            told.append(Told(kind, [part for line in text for part in wrap(line, width)]))
            if heading:
                told.append(Told(kind, wrap(f"  {heading}", width), True))
        return told
