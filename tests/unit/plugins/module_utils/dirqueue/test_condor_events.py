# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What HTCondor's log of events says of a job."""

from __future__ import annotations

from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.runners.condor_events import Story, read_events


def test_events_as_htcondor_writes_them() -> None:
    assert read_events("") == read_events("000 (012.000.000) 2026-11-21 20:00:00 Job subm") == Story()
    text = (
        "000 (012.000.000) 2026-11-21 20:00:00 Job submitted from host: <10.0.0.1:9618?addrs=10.0.0.1-9618>\n...\n"
        "001 (012.000.000) 2026-11-21 20:00:05 Job executing on host: <10.0.0.2:9618?alias=n1&x=y>\n\tSlotName: slot1_1@n1\n...\n"
    )
    story = read_events(text)
    assert (story.id, story.where, story.over) == ("12.0", "n1", False) and story.began > 0
    held = read_events(text + "012 (012.000.000) 2026-11-21 20:00:09 Job was held.\n\tout of memory\n\tCode 34 Subcode 102\n...\n")
    assert (held.held, held.held_code, held.began) == ("out of memory", 34, 0)
    evicted = read_events(text + "004 (012.000.000) 2026-11-21 20:00:09 Job was evicted.\n\t(0) CPU times\n...\n")
    assert (evicted.where, evicted.over) == ("", False)
