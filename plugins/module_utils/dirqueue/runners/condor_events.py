# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What HTCondor's log of a job's events says of it."""

from __future__ import annotations

import re
import signal
import time
from typing import NamedTuple, Optional

_EVENT = re.compile(r"([0-9]{3}) \(0*([0-9]+)\.0*([0-9]+)\.[0-9]+\) (\S+ \S+) ?(.*)")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})")


class Story(NamedTuple):
    """What HTCondor's log of events says of a job."""

    id: str = ""
    # Since when it runs, and where; 0: it does not.
    began: float = 0.0
    where: str = ""
    # It has ended by itself: when, and with which exit status or signal.
    ended: float = 0.0
    exit_status: Optional[int] = None
    signal: Optional[int] = None
    peak_kib: Optional[int] = None
    # Why it is held, and that reason's number; 0: it is not.
    held: str = ""
    held_code: int = 0
    # Why it was removed.
    removed: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return bool(self.ended or self.removed)


def read_events(text: str) -> Story:
    """Read HTCondor's log of one job's events. The last may not be whole yet."""
    story = Story()
    for event in text.split("\n...\n")[:-1]:
        lines = event.strip("\n").splitlines()
        match = _EVENT.match(lines[0]) if lines else None
        if not match:
            continue
        number, cluster, process, when, about = match.groups()
        story = story._replace(id=f"{cluster}.{process}")
        detail = [line.strip() for line in lines[1:]]
        if number == "001":
            slot = next((line.partition(":")[2].strip() for line in detail if line.startswith("SlotName:")), "")
            host = re.search(r"alias=([^&>]+)", about)
            story = story._replace(began=_seconds(when), where=slot.rpartition("@")[2] or (host.group(1) if host else about))
        elif number in ("004", "007", "024"):
            # Evicted, or its node was lost: HTCondor runs it again.
            story = story._replace(began=0.0, where="")
        elif number == "005":
            code = re.search(r"\((?:return value|signal) ([0-9]+)\)", event)
            abnormal = "Abnormal termination" in event
            value = int(code.group(1)) if code else 1
            memory = re.search(r"Memory \(MB\)\s*:\s*([0-9]+)", event)
            # The shell on the node says 128 + N where the command ended by signal N.
            ended_by = value if abnormal else value - 128 if 128 < value < 128 + signal.NSIG else None
            story = story._replace(
                ended=_seconds(when),
                exit_status=None if ended_by else value,
                signal=ended_by,
                peak_kib=(int(memory.group(1)) << 10 if memory else 0) or None,
            )
        elif number == "009":
            story = story._replace(removed="; ".join(detail) or "no reason given")
        elif number == "012":
            why = re.search(r"Code ([0-9]+)", event)
            reason = "; ".join(line for line in detail if not line.startswith("Code ")) or "no reason given"
            story = story._replace(held=reason, held_code=int(why.group(1)) if why else 0, began=0.0, where="")
        elif number == "013":
            story = story._replace(held="", held_code=0)
    return story


def _seconds(when: str) -> float:
    """Return the time of an event, which is in this host's own zone; now where it can't be understood."""
    match = _TIME.match(when)
    return time.mktime(time.strptime(" ".join(match.groups()), "%Y-%m-%d %H:%M:%S")) if match else time.time()
