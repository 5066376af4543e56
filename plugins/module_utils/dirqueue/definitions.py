# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the definitions of jobsets are kept: one file each below the root, which workers read again when it was replaced."""

from __future__ import annotations

import json
import os

from .errors import QueueError, explain, is_shortage, nearest
from .job import check_name, is_name
from .jobset import Jobset
from .layout import Layout, open_own, sync_folder, write_whole

# More than any definition needs: what is larger is not read.
_MAX_BYTES = 1 << 20


def path_of(root: str, name: str) -> str:
    """Return where a jobset's definition is kept."""
    check_name(name)
    return os.path.join(os.path.abspath(os.path.expanduser(root)), "etc", "jobsets", f"{name}.json")


def defined(root: str) -> list[str]:
    """Return the names of the jobsets that have a definition on this host."""
    folder = os.path.dirname(path_of(root, "x"))
    try:
        return sorted(entry[:-5] for entry in os.listdir(folder) if entry.endswith(".json") and is_name(entry[:-5]))
    except FileNotFoundError:
        return []


def _text(path: str) -> str:
    with open(path, "rb", opener=open_own) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    return data.decode("utf-8")


def load(root: str, name: str) -> Jobset:
    """Read a jobset's definition.

    Raises:
        QueueError: it is not defined here, or can't be read; names those that are defined.
    """
    try:
        definition = json.loads(_text(path_of(root, name)))
    except FileNotFoundError as exc:
        names = defined(root)
        known = f"defined are {', '.join(names)}" if names else "none is; run setup"
        raise QueueError(f"jobset {name} is not defined on this host{nearest(name, names)} ({known})") from exc
    except (OSError, ValueError, RecursionError) as exc:
        if is_shortage(exc):
            raise
        raise QueueError(f"jobset {name}: {path_of(root, name)} can't be read ({exc}); run setup to write it anew") from exc
    return Jobset(name, definition)


def stored_text(jobset: Jobset) -> str:
    """Return the definition file's text."""
    return json.dumps(jobset.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def current_text(root: str, name: str) -> str:
    """Return the text that a jobset's definition file has now, empty where there is none.

    Raises:
        QueueError: it can't be read.
    """
    try:
        return _text(path_of(root, name))
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        return "(not UTF-8)\n"
    except (OSError, ValueError) as exc:
        raise QueueError(f"jobset {name}: {path_of(root, name)} can't be read ({exc}); remove it, and run setup again") from exc


def store(layout: Layout, jobset: Jobset) -> None:
    """Write a jobset's definition, private to the user, all or nothing."""
    path = path_of(layout.root, jobset.name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_whole(path, stored_text(jobset))
    except OSError as exc:
        raise QueueError(f"jobset {jobset.name}: can't write {explain(exc, path)}") from exc


def forget(root: str, name: str) -> None:
    """Remove a jobset's definition; its queue, logs and state files stay."""
    path = path_of(root, name)
    os.unlink(path)
    sync_folder(os.path.dirname(path))
