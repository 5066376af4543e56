# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Any input at all: it is accepted and comes through exactly as it was, or refused with a QueueError. By properties, and by a fuzzer."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions, job, jobset, keys
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.tests.faults import fuzz, ledger
from ansible_collections.sagequeue.batch.tests.unit.batch_host import REPOSITORY, Host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("ansible.module_utils.basic")
from ansible.module_utils import basic
from ansible_collections.sagequeue.batch.plugins.modules import queue_enqueue

FIXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = st.from_regex(r"\A[A-Z][A-Z0-9_]{0,20}\Z").filter(lambda key: key not in (*job.RESULT_KEYS, *job.QUEUE_KEYS))
# What shells, podman, printf, Jinja and terminals would do something with.
TRICKS = [
    "$(touch pwned)", "`touch pwned`", "; touch pwned", "'\"'\"'", '"', "\\", "\\n", "%s%n", "{offset}", "{{ 1 }}", "-n", "--", "~", "*",
    "", " ", "\t", "\r", "a\rb", "\x1b[2J", "\N{GRINNING FACE}", "e\N{COMBINING ACUTE ACCENT}", "\N{RIGHT-TO-LEFT OVERRIDE}x", "\x85",
    "\u2028", "${IFS}", "!!", "#", "=", "a=b", "é" * 1000,
]  # fmt: skip
# All that a value can hold; and all that it can't, too.
TEXTS = st.one_of(st.sampled_from(TRICKS), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), max_size=200))
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(TRICKS)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=8,
)
LIKELY = {
    "mapping": st.dictionaries(st.one_of(KEYS, st.text(max_size=5)), st.one_of(TEXTS, ANYTHING), max_size=3),
    "secrets": st.dictionaries(KEYS, TEXTS, max_size=3),
    "words": st.one_of(st.lists(TEXTS, max_size=4), TEXTS),
    "runner": st.sampled_from(keys.RUNNERS),
    "supervisor": st.sampled_from(keys.SUPERVISORS),
}
COUNTED: dict[str, int] = {}


def counted(what: str, times: int = 1) -> None:
    COUNTED[what] = COUNTED.get(what, 0) + times


@pytest.fixture(scope="module", autouse=True)
def _count() -> Any:
    yield
    for what, tries in COUNTED.items():
        ledger.record(what, tries=tries)


def tree(host: Host) -> list[str]:
    return sorted(str(path) for path in host.base.rglob("*"))


def module(**options: Any) -> dict[str, Any]:
    """Run queue_enqueue in this process, as Ansible's wrapper does."""
    basic._ANSIBLE_PROFILE = "legacy"
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode()
    before, sys.stdout = sys.stdout, io.StringIO()
    try:
        with pytest.raises(SystemExit):
            queue_enqueue.main()
        result: dict[str, Any] = json.loads(sys.stdout.getvalue())
    finally:
        sys.stdout = before
    return result


@FIXED
@given(st.dictionaries(st.one_of(KEYS, st.text(max_size=5)), st.one_of(TEXTS, st.text()), max_size=6))
def test_values_reach_the_file_as_they_are(host: Host, values: dict[str, str]) -> None:
    if not (host.root / "etc").exists():
        host.define()
    queue = host.queue()
    before = tree(host)
    counted("property-based: values of a job are refused, or reach its file exactly")
    sound = all(re.fullmatch("[A-Z][A-Z0-9_]*", key) and not re.search("[\n\0\ud800-\udfff]", text) for key, text in values.items())
    try:
        queue.enqueue([("a", values)])
    except QueueError:
        assert tree(host) == before
        assert not sound or {"PRIORITY", "ENQUEUED_AT", *job.RESULT_KEYS} & values.keys() or sum(map(len, values.values())) > 10_000
    else:
        assert sound
        assert job.own_values(queue.read("pending", "a")) == {key: text for key, text in values.items() if key != "PRIORITY"}
        queue.remove(["a"])
    queue.close()


def test_values_reach_a_real_job_as_they_are(host: Host, long: bool) -> None:
    """By the library, by a list of jobs and by the module; to the job's environment and to its arguments."""
    host.script('printf "%s\\0%s\\0%s" "$JOB_TEXT" "$1" "$#" > "out.$SAGEQUEUE_JOB"\n')
    host.define(args=["{text}"])
    expected: dict[str, str] = {}
    queue = host.queue()

    @settings(max_examples=10 if long else 2)
    @given(st.lists(TEXTS, min_size=20, max_size=30))
    def enqueue(texts: list[str]) -> None:
        for way in range(3):
            jobs = {f"j{len(expected) + number}": text for number, text in enumerate([*TRICKS, *texts] if not expected else texts)}
            if way == 0:
                queue.enqueue([(name, {"TEXT": text}) for name, text in jobs.items()])
            elif way == 1:
                # The list is lines: a return, a form feed and the like end none.
                lines = "".join(f"{name} TEXT={shlex.quote(text)}\n" for name, text in jobs.items())
                (host.base / "list").write_bytes(lines.encode("utf-8"))
                result = module(root=str(host.root), jobset="t", jobs_file=str(host.base / "list"))
                assert not result.get("failed"), result
            else:
                given_jobs = [{"name": name, "values": {"TEXT": text}} for name, text in jobs.items()]
                result = module(root=str(host.root), jobset="t", jobs=given_jobs)
                assert not result.get("failed"), result
            expected.update(jobs)

    enqueue()
    host.environment.update(LC_ALL="C")
    assert host.worker("t-1", "--until-idle").wait(900) == 0, host.said()
    for name, text in expected.items():
        assert (host.work / f"out.{name}").read_bytes().decode("utf-8") == f"{text}\0{text}\x001", (name, text)
    assert set(host.states().values()) == {"done"} and not (host.work / "pwned").exists()
    counted("property-based: a value reaches a real job exactly", len(expected))


OPTIONAL = {key: st.one_of(LIKELY.get(rule.check, st.one_of(st.integers(-1, 100), TEXTS)), ANYTHING) for key, rule in keys.KEYS.items()}


@given(st.one_of(ANYTHING, st.fixed_dictionaries({"script": TEXTS}, optional={k: v for k, v in OPTIONAL.items() if k != "script"})))
def test_a_definition_is_refused_or_kept(definition: Any) -> None:
    counted("property-based: a definition is refused, or kept exactly")
    try:
        found = jobset.Jobset("t", definition)
    except QueueError:
        return
    assert jobset.Jobset("t", json.loads(definitions.stored_text(found))).to_dict() == found.to_dict()
    assert os.path.normpath(os.path.dirname(found.gate)) == os.path.normpath(found.workdir)
    fuzz.definition(json.dumps(definition, default=str).encode("utf-8", "replace"))


@FIXED
@given(st.one_of(st.text(), st.text(st.sampled_from("aZ9._-/\n\0~ "), max_size=210), st.sampled_from(TRICKS)))
def test_a_name_is_refused_or_harmless(host: Host, name: str) -> None:
    if not (host.root / "etc").exists():
        host.define()
    counted("property-based: a name is refused, or harmless")
    before = tree(host)
    queue = host.queue()
    calls: list[Callable[[], object]] = [
        lambda: queue.enqueue([(name, {})]),
        lambda: queue.retry([name]),
        lambda: queue.remove([name], logs=True),
        lambda: definitions.load(str(host.root), name),
        lambda: jobset.Jobset(name, {"script": "s"}),
    ]
    for call in calls:
        try:
            call()
        except QueueError:
            continue
        fuzz._harmless(name)
    assert tree(host) == before or tree(host) == sorted([*before, str(host.root / "var/t/run/queue.lock")])
    queue.close()


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_any_bytes(target: str) -> None:
    """The same that the fuzzer tries, with Hypothesis' idea of bytes: it runs on every machine."""
    lines = st.lists(st.one_of(st.binary(max_size=30), *map(st.just, b"\n".join(fuzz.SEEDS[target]).split(b"\n"))), max_size=12)

    @given(st.one_of(st.binary(), lines.map(b"\n".join)))
    def tried(data: bytes) -> None:
        fuzz.TARGETS[target](data)
        counted("property-based: any bytes wherever the queue reads some")

    tried()


def test_the_fuzzer_finds_nothing(tmp_path: Path, long: bool) -> None:
    if not importlib.util.find_spec("atheris"):
        pytest.skip("atheris has no wheel for this Python or this machine")
    # The fuzzer ends without cleaning up.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "playbooks" / "collections"), "TMPDIR": str(tmp_path)}
    waiting, running = list(fuzz.TARGETS), {}
    failures = []
    while waiting or running:
        while waiting and len(running) < 2:
            target = waiting.pop()
            corpus = tmp_path / target
            corpus.mkdir()
            for number, seed in enumerate(fuzz.SEEDS[target]):
                (corpus / str(number)).write_bytes(seed)
            output = open(tmp_path / f"{target}.out", "w+")  # noqa: SIM115
            words = [sys.executable, str(Path(fuzz.__file__)), target, "120" if long else "1", str(corpus)]
            running[target] = subprocess.Popen(words, env=environment, stdout=output, stderr=output, cwd=tmp_path), output
        for target, (process, output) in list(running.items()):
            if process.poll() is not None:
                del running[target]
                output.seek(0)
                said = output.read()
                output.close()
                runs = re.search(r"stat::number_of_executed_units: *([0-9]+)", said)
                counted(f"fuzzed input: {target.replace('_', ' ')}", int(runs[1]) if runs else 0)
                if process.returncode != 0 or not runs:
                    failures.append(f"{target}: {said[-3000:]}")
        time.sleep(0.05)
    assert not failures, "\n".join(failures)
