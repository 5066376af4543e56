# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep secrets out of what is handed on: reports, and archives for bug reports."""

from __future__ import annotations

import base64
import json
import re
import shlex
import urllib.parse
from collections.abc import Iterable

GONE = "[secret]"
# Shorter texts are found everywhere.
_SHORTEST = 4
# A secret that nobody has named, by what stands before it.
_NAMED = re.compile(
    r"""(?i)((?:password|passwd|passphrase|secret|token|api_?key|access_?key|private_?key|credential)\w*["']?\s*[=:]\s*["']?|\bauthorization:\s*"""
    r"""(?:\w+\s+)?|--(?:password|passwd|token|secret|api-key)(?:\s+|",\s*")|://[^\s/:@]+:(?=[^\s/@]*@))(?!\[)([^\s"'&,;@]{4,})"""
)


def _forms(secret: str) -> set[str]:
    """Return how a text may hold a secret: as it is, or as JSON, Python, a shell, an address or base64 write it."""
    wire = secret.encode("utf-8", "surrogateescape")
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1], shlex.quote(secret)}
    forms |= {line for line in secret.splitlines() if len(line.strip()) > 5}
    return forms | {urllib.parse.quote(wire, safe=""), urllib.parse.quote(wire), base64.b64encode(wire).decode().rstrip("=")}


class Redactor:
    """Takes secrets out of texts.

    Args:
        secrets: their values; those of fewer than 4 characters can't be told from other text.
        guess: also take out what looks like a secret by the name before it, such as token=...
    """

    def __init__(self, secrets: Iterable[str], guess: bool = False) -> None:
        forms = {form for secret in secrets if len(secret.strip()) >= _SHORTEST for form in _forms(secret) if form.strip()}
        self.longest = max((len(form.encode("utf-8", "replace")) for form in forms), default=0)
        # The longest first: one secret may be part of another.
        self._known = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)) or r"(?!)")
        self._guess = guess

    def __call__(self, text: str) -> str:
        """Return a text without secrets."""
        text = self._known.sub(GONE, text)
        return _NAMED.sub(rf"\1{GONE}", text) if self._guess else text
