# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What the fault tests have counted: one line per test in a file, a table of all of them, and the pages in docs/.

python tests/faults/ledger.py FILE            prints the table
python tests/faults/ledger.py FILE --write    and puts it into docs/reliability.md and docs/reliability.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Optional

# Names the file; ./run-tests sets it, so that several test runs write into one.
VARIABLE = "SAGEQUEUE_LEDGER"
_DOCS = Path(__file__).resolve().parents[2] / "docs"
_BEGIN, _END = "<!-- the table begins -->\n", "<!-- the table ends -->\n"


def record(
    fault: str, *, tries: int, lost: int = 0, doubled: int = 0, overlapped: int = 0, recovery_seconds: Optional[float] = None
) -> None:
    """Write down what one test has counted, and fail it unless every promise held.

    Args:
        fault: what was done to the queue, in a few words; tests that use the same words share a row.
        tries: how often it was really done.
        lost: jobs that were in no state, or whose acknowledged result was gone.
        doubled: jobs that were in two states, or finished twice.
        overlapped: runs of one job that overlapped in time.
        recovery_seconds: the longest time from the fault until the job ran again, where that was measured.
    """
    row = {
        "fault": fault,
        "tries": tries,
        "lost": lost,
        "doubled": doubled,
        "overlapped": overlapped,
        "recovery_seconds": None if recovery_seconds is None else round(recovery_seconds, 2),
    }
    if os.environ.get(VARIABLE):
        with open(os.environ[VARIABLE], "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    assert tries > 0, f"{fault}: not tried at all"
    assert not (lost or doubled or overlapped), row


def rows(path: str) -> list[dict[str, object]]:
    """Read a ledger, one row per fault: counts added up, the longest of the times."""
    merged: dict[str, dict[str, object]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        known = merged.setdefault(row["fault"], {**row, "tries": 0, "lost": 0, "doubled": 0, "overlapped": 0})
        for key in ("tries", "lost", "doubled", "overlapped"):
            known[key] += row[key]
        times = [time for time in (known["recovery_seconds"], row["recovery_seconds"]) if time is not None]
        known["recovery_seconds"] = max(times) if times else None
    return [merged[fault] for fault in sorted(merged, key=str.lower)]


def table(found: list[dict[str, object]]) -> str:
    """Return the rows as a Markdown table that reads well as text, too."""
    head = ["fault", "tries", "lost", "doubled", "overlapped", "seconds to recovery"]
    lines = [head, *([("" if value is None else f"{value}") for value in row.values()] for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def text(line: list[str]) -> str:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        return f"| {' | '.join(cells)} |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([text(head), rule, *(text(line) for line in lines[1:])]) + "\n"


def write(found: list[dict[str, object]]) -> None:
    """Put the rows into docs/."""
    (_DOCS / "reliability.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page = _DOCS / "reliability.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    page.write_text(f"{before}{_BEGIN}\n{table(found)}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    everything = rows(sys.argv[1])
    print(table(everything), end="")
    if "--write" in sys.argv[2:]:
        write(everything)
