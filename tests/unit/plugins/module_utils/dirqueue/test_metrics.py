# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The metrics, as Prometheus's own parser reads them."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import metrics, owner

parser = pytest.importorskip("prometheus_client.parser")


def read(text: str) -> dict[tuple[str, ...], float]:
    """Return the samples by name and labels, and check what a linter of metrics would."""
    found = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation and family.type in ("gauge", "counter") and family.name.startswith("sagequeue_"), family
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample
            key = (sample.name[len("sagequeue_") :], *(value for _label, value in sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def test_all_that_is_counted(host: Any, wait_for: Callable[..., Any]) -> None:
    host.define(stride=30, attempts=1, workers=2, state_file="state_{offset}", cases=300)
    host.define("other", gate_file='odd"name\\')
    host.define("broken")
    (host.root / "etc/jobsets/broken.json").write_text("{")
    host.script('echo "$((JOB_OFFSET + 60))" > state_$JOB_OFFSET; [ $JOB_OFFSET != 1 ] || exit 3; [ $JOB_OFFSET != 2 ] || sleep 600\n')
    queue = host.queue()
    queue.enqueue(queue.jobset.offset_jobs([0, 1, 2, 3]))
    # Its place in the queue is years ahead; how long it has been there is not.
    queue.enqueue([("late", {"PRIORITY": "-50", "OFFSET": "5"})])
    host.worker("t-1")
    wait_for(lambda: (host.states()["t_off2"], host.states()["t_off1"]) == ("running", "failed") and (host.work / "state_2").exists())
    Path(host.queue("other").jobset.gate).write_text("STOP requested by anna")
    found = read(metrics.text(str(host.root)))
    assert {key: found[key] for key in found if key[0] in ("jobs", "up", "workers", "workers_defined") and "other" not in key} == {
        ("up", "broken"): 0, ("up", "t"): 1, ("workers", "t"): 1, ("workers_defined", "t"): 2,
        ("jobs", "t", "pending"): 2, ("jobs", "t", "running"): 1, ("jobs", "t", "done"): 1, ("jobs", "t", "failed"): 1,
    }  # fmt: skip
    assert (found[("attempts_total", "t", "ok", "done")], found[("attempts_total", "t", "exit_status", "failed")]) == (1, 1)
    assert found[("attempt_seconds_total", "t")] > 0 and 0 <= found[("running_seconds", "t", "t-1")] < 120
    assert 0 < found[("oldest_pending_seconds", "t")] < 120 and found[("oldest_pending_seconds", "other")] == 0
    assert (found[("gate_closed", "other")], found[("gate_closed", "t")], found[("solved", "other")]) == (1, 0, 0)
    assert (found[("cases", "t")], found[("cases_done", "t")]) == (300, 9) and ("cases", "other") not in found
    assert 0 <= found[("seconds_left", "low", "t")] < found[("seconds_left", "high", "t")]
    assert found[("orphans", "t")] == found[("refused_entries", "t")] == found[("hooks_undelivered_total", "t")] == 0


def test_the_history_is_counted_once(host: Any) -> None:
    """Each time on from where the last count ended; from the start where that is not known any more."""
    host.define()
    queue = host.queue()
    history, kept = Path(queue.layout.history), Path(queue.layout.run, "attempts.json")

    def counted() -> float:
        found = read(metrics.text(str(host.root)))
        return sum(value for key, value in found.items() if key[0] == "attempts_total")

    assert counted() == 0
    line = json.dumps({"job": "a", "claim": "c", "reason": "ok", "result": "done", "duration_s": "1.5"}) + "\n"
    history.write_text(line * 3 + "half a li")
    assert counted() == 3 and json.loads(kept.read_text())["offset"] == len(line) * 3
    history.write_text(line * 3 + "half a line\n[]\n" + line.replace("ok", 'o\\"k').replace('"done"', "7") + line.replace('"1.5"', '"nan"'))
    assert counted() == 5
    kept.write_text(kept.read_text().replace('"ok/done": 4', '"ok/done": 400'))
    assert counted() == 401, "what was counted is not counted again"
    history.write_text(line)
    assert counted() == 1
    for text in ("", "null", '{"offset": 0, "counts": 3}', "[" * 100_000):
        kept.write_text(text)
        assert counted() == 1
    kept.unlink()
    kept.symlink_to("/etc/passwd")
    assert counted() == 1


def test_the_file(host: Any, tmp_path: Path) -> None:
    host.define()
    folder = tmp_path / "textfile"
    folder.mkdir()
    path = folder / "sagequeue.prom"
    assert host.sagequeue("metrics", "--write", str(path)).returncode == 0
    assert read(path.read_text()) and stat.S_IMODE(path.stat().st_mode) == 0o644 and os.listdir(folder) == ["sagequeue.prom"]
    assert read(host.sagequeue("metrics").stdout).keys() == read(path.read_text()).keys()
    for bad, words in (
        (folder / "x.txt", "x.txt: node_exporter reads only files whose names end with .prom"),
        (tmp_path / "none/x.prom", f"must be able to write into {tmp_path}/none"),
    ):
        ran = host.sagequeue("metrics", "--write", str(bad))
        assert ran.returncode == 1 and words in ran.stderr and not bad.exists()
    # What is in its place is replaced, not followed and not waited for.
    path.unlink()
    os.mkfifo(path)
    metrics.write("# nothing\n", str(path))
    assert path.read_text() == "# nothing\n"


def test_times_are_read_back() -> None:
    assert abs(owner.seconds_of(owner.now()) - time.time()) < 1 and owner.seconds_of("1970-01-01T00:01:00.250Z") == 60.25
    assert [owner.seconds_of(text) for text in ("", "yesterday", "2026-13-01T00:00:00.000Z")] == [0, 0, 0]
