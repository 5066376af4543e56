# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How what modules return is put into lines that a person reads on a terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

# What a job or a program printed must not reach the terminal as a command to it.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\t")}


def visible(value: Any) -> list[str]:
    """Return the lines of a text, or of anything else as JSON, with control characters made visible."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return [line.translate(_VISIBLE).expandtabs() for line in text.splitlines()]


def table(rows: list[Mapping[str, Any]], width: int) -> list[str]:
    """Return the lines of a table, a column a key; where it is too wide, a paragraph a row."""
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    cells = [["" if row.get(column) is None else " ".join(visible(row[column])) for column in columns] for row in rows]
    numbers = [all(isinstance(row.get(column) or 0, (int, float)) for row in rows) for column in columns]
    widths = [max(map(len, column)) for column in zip(columns, *cells)]
    if sum(widths) + 2 * len(widths) - 2 > width:
        pairs = [[f"{name}: {cell}" for name, cell in zip(columns, line) if cell] for line in cells]
        return [line for number, row in enumerate(pairs) for line in [""] * bool(number) + row]
    return [
        "  ".join(cell.rjust(size) if number else cell.ljust(size) for cell, size, number in zip(line, widths, numbers)).rstrip()
        for line in [columns, *cells]
    ]


def said(message: Any, width: int) -> list[str]:
    """Return what a debug task says as lines."""
    if isinstance(message, (list, tuple)):
        if message and all(isinstance(row, Mapping) for row in message):
            return table(list(message), width)
        return [line for one in message for line in visible(one) or [""]]
    return visible(message)


def wrap(line: str, width: int) -> list[str]:
    """Return a line as lines of at most this width; what goes on is indented, so that lists and tables can still be read."""
    indent = " " * min(len(line) - len(line.lstrip()) + 2, width // 2)
    return textwrap.wrap(line, max(width, 20), subsequent_indent=indent, replace_whitespace=False, break_on_hyphens=False) or [""]


def plain(result: Any) -> Any:
    """Return a result without what only Ansible itself has use for."""
    if isinstance(result, Mapping):
        hidden = ("invocation", "exception", "warnings", "deprecations")
        return {key: plain(value) for key, value in result.items() if key not in hidden and not str(key).startswith("_ansible_")}
    return [plain(one) for one in result] if isinstance(result, (list, tuple)) else result
