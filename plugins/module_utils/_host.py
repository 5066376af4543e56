# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What setup has found out about a host, and the definitions of its jobsets. Private to the collection."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any, NamedTuple

from .dirqueue import definitions
from .dirqueue.errors import QueueError
from .dirqueue.jobset import Jobset
from .dirqueue.layout import Layout, probe, write_whole


class Host(NamedTuple):
    """What holds for all jobsets of a host; kept in etc/host.json, so that later commands need not find it out again."""

    root: str
    home: str
    runner: str
    supervisor: str
    image: str
    container: str
    slice: dict[str, Any]
    stop_margin: int
    sif: str = ""

    def defaults(self) -> dict[str, Any]:
        """Return what a definition leaves to the host."""
        sage = [os.path.join(self.root, "sage", "bin", "sage")]
        own = {key: getattr(self, key) for key in ("home", "runner", "supervisor", "image", "sif")}
        return {**own, "sage_command": sage}

    def text(self) -> str:
        """Return the file's text. The root is where the file lies."""
        values = {key: value for key, value in self._asdict().items() if key != "root"}
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def path_of(root: str) -> str:
    """Return where setup writes down what it has found out."""
    return os.path.join(root, "etc", "host.json")


def of(root: str, given: dict[str, Any] | None = None, program: bool = True) -> Host:
    """Return what holds for the host: what is given, or what setup wrote down.

    Args:
        root: the queue's root.
        given: all but the root.
        program: whether the program must be there.
    Raises:
        QueueError: setup has not been there, or what it wrote can't be read.
    """
    path = os.path.join(root, "bin", "sagequeue")
    if program and not os.path.exists(path):
        raise QueueError(f"There is no {path} on this host: run setup first.")
    try:
        if given is None:
            with open(path_of(root), encoding="utf-8") as file:
                given = json.load(file)
        return Host(root=root, **given)
    except FileNotFoundError as exc:
        raise QueueError(f"There is no {path_of(root)} on this host: run setup first.") from exc
    except (OSError, ValueError, TypeError) as exc:
        raise QueueError(f"{path_of(root)} can't be read ({exc}): run setup, which writes it anew.") from exc


def loaded(host: Host, name: str) -> Jobset:
    """Return a jobset of the host; of one whose definition can't be understood, little more than its name."""
    try:
        return definitions.load(host.root, name)
    except QueueError:
        return Jobset(name, {"script": "unknown"}, host.defaults())


def others(host: Host, names: Collection[str]) -> list[Jobset]:
    """Return the jobsets of the host that have none of these names."""
    return [loaded(host, name) for name in definitions.defined(host.root) if name not in names]


def remember(host: Host, present: bool, check: bool) -> list[dict[str, str]]:
    """Write down what setup has found out, or forget it; return the difference: one entry, or none."""
    path = path_of(host.root)
    before, after = "", host.text() if present else ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = file.read()
    if before == after:
        return []
    if present and not check:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, after)
    elif not check:
        os.unlink(path)
    return [{"before_header": path, "after_header": path, "before": before, "after": after}]


def without_secrets(text: str) -> str:
    """Return a definition file's text with the values of environment variables and secrets left out."""
    if not text:
        return text
    try:
        definition = json.loads(text)
        # A file of an older version has no secrets.
        for key in {"environment", "secrets"} & definition.keys():
            definition[key] = dict.fromkeys(definition[key].keys(), "(not shown)")
    except (ValueError, AttributeError, TypeError, RecursionError):
        return "(not a definition)\n"
    return json.dumps(definition, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def define(
    root: str, name: str, definition: dict[str, Any], secrets: dict[str, Any] | None, defaults: dict[str, Any], check: bool
) -> tuple[Jobset, list[dict[str, str]]]:
    """Write a definition and make the queue's folders.

    Args:
        root: the queue's root.
        name: the jobset's name.
        definition: its keys, without secrets.
        secrets: those.
        defaults: what the host says for all its jobsets.
        check: whether only to say what would change.
    Returns:
        the jobset, and the difference without secrets: one entry, or none where nothing changes.
    Raises:
        QueueError: the definition is not sound, or can't be written.
    """
    if "secrets" in definition:
        raise QueueError(f"jobset {name}: the definition has secrets, which Ansible could show; give them as the option secrets")
    wanted = Jobset(name, {**definition, "secrets": secrets or {}}, defaults)
    layout = Layout(root, wanted.name)
    probe(layout.base)
    before, after = definitions.current_text(layout.root, wanted.name), definitions.stored_text(wanted)
    if before == after and not layout.missing():
        return wanted, []
    if not check:
        layout.create()
        definitions.store(layout, wanted)
    difference = {"before": without_secrets(before), "after": without_secrets(after)}
    if before and difference["before"] == difference["after"]:
        difference["after"] += "(the value of an environment variable or a secret, or a missing folder, has changed)\n"
    path = definitions.path_of(root, name)
    return wanted, [{"before_header": path, "after_header": path, **difference}]


def forget(root: str, name: str, check: bool) -> list[dict[str, str]]:
    """Remove a definition; return the difference: one entry, or none where there was no definition."""
    before = definitions.current_text(root, name)
    if before and not check:
        definitions.forget(root, name)
    return [{"before": without_secrets(before), "after": ""}] if before else []
