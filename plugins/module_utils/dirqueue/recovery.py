# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding orphans, ending what they left running, and bringing them back."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Callable

from . import owner
from .carriers import carried
from .layout import why_odd
from .queue import Queue
from .runners.base import Runner
from .store import Change

# A staged file older than this belongs to nobody who still lives (seconds).
STAGING_AGE = 3600
_LASTS = "left alone: it goes on in HTCondor, and the jobset's worker picks it up when it runs: start it. kill ends it, stop puts it back"
# Claims whose processes are looked for together.
_AT_ONCE = 1000


def recover(
    queue: Queue, runner: Runner, label: str = "recover", check: bool = False, log: Callable[[str], None] = lambda text: None
) -> list[Change]:
    """Bring every orphan back to pending (or to where its worker was bringing it, or to failed).

    Args:
        queue: the jobset's queue.
        runner: the jobset's runner, which ends what a dead worker left running.
        label: who recovers, for people.
        check: only say what would become of each.
        log: told what is done.
    Returns:
        one change per orphan.
    Raises:
        NotReady: what a dead worker left running can't be ended now.
        OSError: the disk is full, or the like; what is not recovered yet is still an orphan.
    """
    dead: dict[str, dict[str, str]] = {}
    kept: set[str] = set()

    def end(name: str, claim: str) -> None:
        if claim not in dead:
            runner.end(carried(queue.layout, name, claim))

    if not check:
        # A dead claim never comes to life again, so this needs no lock and holds nobody up. Only claims of records that
        # were read together with the proof that their owner is dead: the same job may be in new hands a moment later.
        for name in queue.entries("running"):
            record = queue.owner_of(name) or {}
            if record.get("OWNER_CLAIM") and owner.why_dead(record, queue.layout.workers):
                dead[record["OWNER_CLAIM"]] = carried(queue.layout, name, record["OWNER_CLAIM"])
        # What goes on by itself is not ended, but left for a worker to take over.
        kept = _kept(queue, runner, list(dead.values()))
        for claim in kept:
            del dead[claim]
        # Many by one look at all processes, but no more than a command can have words.
        for first in range(0, len(dead), _AT_ONCE):
            runner.end(*list(dead.values())[first : first + _AT_ONCE])
    holder = owner.Holder(queue.layout.workers, label)
    changes = []
    try:
        with queue.lock():
            for name in sorted(queue.entries("running")):
                if not queue.why_orphan(name):
                    continue
                claim = (queue.owner_of(name) or {}).get("OWNER_CLAIM", "")
                lasts = claim in kept or (claim not in dead and _kept(queue, runner, [carried(queue.layout, name, claim)]))
                if lasts and not queue.recorded_end(name):
                    changes.append(Change(name, "running", "running", _LASTS))
                    continue
                changes.append(queue.recover(name, holder, end, check))
                if changes[-1].changed and not check:
                    log(f"job {name}: running -> {changes[-1].new_state} ({changes[-1].reason})")
            if not check:
                _clean(queue, log)
    finally:
        holder.release()
    return [change for change in changes if change.old_state == "running"]


def _kept(queue: Queue, runner: Runner, wanted: list[dict[str, str]]) -> set[str]:
    """Return which claims of dead workers go on by themselves, and may."""
    return {claim for claim in runner.lasting(*wanted) if not queue.kill_request(claim)}


def lasting(queue: Queue, runner: Runner, ended: bool) -> dict[str, str]:
    """Return the jobs of dead workers that go on by themselves (ended: or have ended so), by claim."""
    found = queue.orphans()
    claims = runner.lasting(*(carried(queue.layout, name, claim) for claim, name in found.items()), ended=ended)
    return {claim: found[claim] for claim in claims}


def put_back(queue: Queue, runner: Runner) -> list[str]:
    """End what goes on without its worker, and bring those jobs back to pending: the operator has stopped the jobset.

    What has ended by itself is left as it is, for the next worker to record.

    Returns:
        the jobs.
    Raises:
        NotReady: they can't be ended now; nothing has changed.
    """
    holder = owner.Holder(queue.layout.workers, "stop")
    try:
        claims = queue.adopt(lasting(queue, runner, ended=False), holder)
        # Killed or refused here, this leaves orphans again.
        if claims:
            runner.end(*(carried(queue.layout, claim.name, claim.id) for claim in claims))
        for claim in claims:
            attempts = claim.values.get("ATTEMPTS", "0")
            queue.end(claim, "pending", {"REASON": "worker_stopped", "ATTEMPTS": attempts, "ENDED_AT": owner.now()})
        queue.commit()
    finally:
        holder.release()
    return [claim.name for claim in claims]


def _clean(queue: Queue, log: Callable[[str], None]) -> None:
    """Remove what dead holders left behind. The caller holds the lock."""
    for name in queue.clear_stale_owners():
        log(f"job {name}: removed the owner record of a worker that died while claiming it")
    queue.clear_stale_cursors()
    queue.clear_kill_requests()
    for change in queue.carry_on():
        log(f"job {change.name}: {change.old_state} -> {change.new_state} ({change.reason})")
    named = {(queue.owner_of(name) or {}).get("OWNER_LOCK", "") for name in queue.recorded()}
    owner.clean(queue.layout.workers, named, log)
    _clean_staging(queue.layout.staging)


def _clean_staging(folder: str) -> None:
    for entry in os.scandir(folder):
        with contextlib.suppress(OSError):
            found = entry.stat(follow_symlinks=False)
            # An owner record whose maker was killed may have its second name already.
            if time.time() - found.st_ctime > STAGING_AGE and not why_odd(found, links=entry.name.startswith("owner.")):
                os.unlink(entry.path)
