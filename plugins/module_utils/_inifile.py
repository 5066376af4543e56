# Copyright: sagequeue contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection.

"""Set single values in an ini file and leave every other byte as it is.

WSL's files are edited by hand on Windows: they hold comments, CRLF line ends, byte order marks, UTF-16,
two sections of one name, and no newline at the end. A parser that reads and writes the whole loses some of that.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

_SECTION = re.compile(r"^\s*\[\s*(?P<name>[^\]]*?)\s*\]")
_KEY = re.compile(r"^(?P<lead>\s*(?P<key>[^\s=\[#;][^=]*?)\s*=[ \t]*)(?P<rest>.*)$")


class IniError(Exception):
    """The text is not an ini file that can be edited."""


class Setting(NamedTuple):
    section: str
    key: str
    value: str
    rule: str = "set"  # set: always; keep: only if the key has no value yet; at_least: only if it is smaller


class Kept(NamedTuple):
    """A setting that was left alone, and the value that is there instead."""

    section: str
    key: str
    value: str


def decode(data: bytes) -> tuple[str, str, bytes]:
    """The text, the codec to write it back with, and the byte order mark."""
    for bom, codec in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(bom):
            try:
                return data[len(bom):].decode(codec), codec, bom
            except UnicodeDecodeError as exc:
                raise IniError(f"not valid UTF-16: {exc}") from exc
    if b"\0" in data:
        raise IniError("it holds NUL bytes, so it is no text file")
    bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    # Latin-1 maps every byte to a character and back: text in any 8-bit encoding or in UTF-8 stays as it is.
    return data[len(bom):].decode("latin-1"), "latin-1", bom


def _split(rest: str) -> tuple[str, str]:
    """The value, without its quotes, and the comment behind it with the blanks before it."""
    quoted = False
    escaped = False
    end = len(rest)
    for pos, char in enumerate(rest):
        if escaped:
            escaped = False
        elif char == "\\" and quoted:
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "#" and not quoted:
            end = pos
            break
    value = rest[:end].rstrip()
    tail = rest[len(value):]
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return value, tail


def _ending(line: str) -> str:
    return line[len(line.rstrip("\r\n")):]


def _same(old: str, setting: Setting) -> bool:
    if old.lower() == setting.value.lower():
        return True
    if setting.rule == "at_least":
        try:
            return int(old) >= int(setting.value)
        except ValueError:
            return False
    return setting.rule == "keep" and bool(old)


def _find(lines: list[str], setting: Setting) -> tuple[int | None, list[int]]:
    """Where a new line belongs (None: no such section), and the lines that hold the key."""
    place = None
    found = []
    inside = False
    first = True
    for pos, line in enumerate(lines):
        section = _SECTION.match(line)
        if section:
            if inside:
                first = False
            inside = section["name"].lower() == setting.section.lower()
            if inside and first:
                place = pos + 1
            continue
        key = _KEY.match(line.rstrip("\r\n"))
        if not inside or not key:
            continue
        if first:
            place = pos + 1
        if key["key"].lower() == setting.key.lower():
            found.append(pos)
    return place, found


def _apply(lines: list[str], setting: Setting, newline: str) -> list[Kept]:
    place, found = _find(lines, setting)
    kept = []
    # WSL may take the first or the last of several: all of them get the value.
    for pos in found:
        ending = _ending(lines[pos])
        match = _KEY.match(lines[pos][: len(lines[pos]) - len(ending)])
        if match is None:
            continue
        old, tail = _split(match["rest"])
        if not _same(old, setting):
            lines[pos] = match["lead"] + setting.value + tail + ending
        elif old.lower() != setting.value.lower():
            kept.append(Kept(setting.section, setting.key, old))
    if found:
        return kept
    if place is None:
        if lines and not _ending(lines[-1]):
            lines[-1] += newline
        if lines and lines[-1].strip():
            lines.append(newline)
        lines.append(f"[{setting.section}]{newline}")
        place = len(lines)
    if not _ending(lines[place - 1]):
        lines[place - 1] += newline
    lines.insert(place, f"{setting.key}={setting.value}{newline}")
    return kept


def merge(data: bytes, settings: list[Setting], newline: str = "\n") -> tuple[bytes, list[Kept]]:
    """The file with the settings in it, and what was kept against a setting.

    NEWLINE serves a file without any line end; otherwise new lines end like the file's first one.
    """
    text, codec, bom = decode(data)
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    if lines and _ending(lines[0]):
        newline = _ending(lines[0])
    kept: list[Kept] = []
    for setting in settings:
        kept += _apply(lines, setting, newline)
    return bom + "".join(lines).encode(codec), kept
