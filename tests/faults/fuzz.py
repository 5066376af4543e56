# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What must hold for any bytes at all, in every place where the queue reads bytes; and a fuzzer that looks for some for which it doesn't.

python tests/faults/fuzz.py TARGET SECONDS [CORPUS]    with playbooks/collections in PYTHONPATH

Each target either accepts its input and finds it harmless, or raises QueueError. Any other exception ends the fuzzer.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Callable

with contextlib.ExitStack() as _instrumented:
    if __name__ == "__main__":
        import atheris

        _instrumented.enter_context(atheris.instrument_imports(include=["ansible_collections.sagequeue"]))
    from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import (
        batch,
        definitions,
        job,
        jobset,
        owner,
        progress,
        progress_text,
    )
    from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
    from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout
    from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.queue import Queue

_ROOT = tempfile.TemporaryDirectory(prefix="sagequeue-fuzz-")
_DEFINITION = jobset.Jobset(
    "t",
    {"script": "s.sh", "command": "sh", "args": ["{offset}", "a {text} b", "{job}"], "stride": 8, "workdir": _ROOT.name},
)
_LAYOUT = Layout(_ROOT.name, "t")
_LAYOUT.create()


def _write(path: str, data: bytes) -> str:
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
    return path


def _harmless(name: str) -> None:
    assert 0 < len(name) <= 200 and "/" not in name and name[0] not in "-." and name.isprintable() and name.isascii()


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except QueueError as exc:
        assert str(exc)


def job_file(data: bytes) -> None:
    """What was parsed can be written again, and makes a command without a shell."""
    try:
        values = job.parse(data)
    except QueueError:
        return
    assert job.parse(job.render(values)) == values
    with _refusing():
        for call in (job.own_values, job.before_attempt, job.tidy):
            job.parse(job.render(call(values)))
        words = _DEFINITION.argv("a", values)
        # Each word of args stays one word, whatever the values are.
        assert len(words) == 5 + 4 * ("OFFSET" in values) and not any("\0" in word for word in words)
        assert words[3] == f"a {values['TEXT']} b"
        job.check_own_values(values)


def owner_record(data: bytes) -> None:
    """An owner is dead or alive, and no file but one in run/workers is opened to find out."""
    record = owner.parse(data)
    seen: list[str] = []
    original = owner._free_lock
    owner._free_lock = lambda path, **more: seen.append(path) or original(path, **more)
    try:
        assert isinstance(owner.why_dead(record, _LAYOUT.workers), str)
    finally:
        owner._free_lock = original
    assert all(os.path.dirname(path) == _LAYOUT.workers for path in seen)


def definition(data: bytes) -> None:
    """A definition that is accepted is kept and read again as it is; its gate lies in its workdir."""
    path = definitions.path_of(_ROOT.name, "d")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _write(path, data)
    with _refusing():
        found = definitions.load(_ROOT.name, "d")
        _write(path, definitions.stored_text(found).encode("utf-8"))
        assert definitions.load(_ROOT.name, "d").to_dict() == found.to_dict()
        assert os.path.dirname(found.gate) == found.workdir.rstrip("/") or os.path.dirname(found.gate) == found.workdir
        values = {"OFFSET": "0", "TEXT": "$(id)"}
        found.names_job("off=0 stride=1", "a", values)
        assert not any("\0" in word for word in found.argv("a", values))


def name(data: bytes) -> None:
    """A name that is accepted is a file's name, and its files lie below the root."""
    text = data.decode("utf-8", "surrogateescape")
    with _refusing():
        _harmless(job.check_name(text))
        assert os.path.dirname(definitions.path_of(_ROOT.name, text)) == os.path.join(_ROOT.name, "etc", "jobsets")
        assert os.path.dirname(Layout(_ROOT.name, text).base) == os.path.join(_ROOT.name, "var")


def job_list(data: bytes) -> None:
    """A list that is accepted can be read back from the batch that it becomes."""
    with _refusing():
        found = batch.listed(data.decode("utf-8", "replace"))
        again = list(job.parse_list(found.lines))
        assert [entry[0] for entry in again] == found.names
        for entry, values in again:
            _harmless(entry)
            job.render(values)


def batch_file(data: bytes) -> None:
    """Every look at a batch ends; jobs that come out of it are sound."""
    head = b"# batch 0123456789abcdef: 3 jobs enqueued 2026-11-21T00:00:00.000Z, place 1\n"
    cursor, _, text = data.partition(b"\n\n")
    _write(os.path.join(_LAYOUT.batches, "b.batch"), text if text.startswith(b"#") else head + text)
    _write(os.path.join(_LAYOUT.batches, "b.cursor"), cursor)
    with Queue(_LAYOUT, _DEFINITION) as queue:
        queue.counts()
        list(queue.batched())
        queue.locate("a")
        for one in queue._batches():
            with one, _refusing():
                jobs, _cursor = one.next()
                for entry, values in jobs:
                    _harmless(entry)
                    job.render(values)


def queue_files(data: bytes) -> None:
    """Progress is shown, whatever stands in history, gate and job files."""
    parts = [*data.split(b"\n\n", 2), b"", b""]
    _write(_LAYOUT.history, parts[0])
    _write(_DEFINITION.gate, parts[1])
    _write(os.path.join(_LAYOUT.queue, "done", "a.env"), parts[2])
    with Queue(_LAYOUT, _DEFINITION) as queue:
        progress_text.text(progress.summary(queue))
        json.dumps(progress.jobs(queue))


TARGETS: dict[str, Callable[[bytes], None]] = {
    call.__name__: call for call in (job_file, owner_record, definition, name, job_list, batch_file, queue_files)
}
# Where the search begins: one sound input of each kind.
SEEDS: dict[str, list[bytes]] = {
    "job_file": [b"TEXT=a\0b\n", b"OFFSET=3\nTEXT=$(id)\nPRIORITY=-5\nRESULT=done\nCLAIM=x\nATTEMPTS=2\n"],
    "owner_record": [
        b"OWNER_PID=1\nOWNER_START=5\nOWNER_LOCK=t-1.0123456789abcdef.lock\nOWNER_CLAIM=c\nOWNER_HOST=x\n",
        b"OWNER_PID=1\nOWNER_LOCK=../../x.lock\nOWNER_CLAIM=c\n",
    ],
    "definition": [
        definitions.stored_text(_DEFINITION).encode(),
        b'{"script": "a", "args": "--x {offset}", "log_size": "64M", "secrets": {"A": "b"}}',
    ],
    "name": [b"rook_r3", b"../x", b"a\n"],
    "job_list": [b"# comment\na A='b c' B=2\nb PRIORITY=5\n"],
    "batch_file": [b"0123456789abcdef 76 0\n\n\na A=1\nb B='x y'\nc\n"],
    "queue_files": [b'{"job": "a", "claim": "c", "result": "done", "duration_s": "1.5"}\n\nSAT off=3 stride=8\n\nOFFSET=3\n'],
}


if __name__ == "__main__":
    target, seconds, *corpus = sys.argv[1:]
    atheris.Setup(
        [
            *(sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"),
            *(f"-artifact_prefix={folder}/crash-" for folder in corpus[:1]),
            *corpus,
        ],
        TARGETS[target],
    )
    atheris.Fuzz()
