# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Job files: what is written is read back as it is, and nothing else is read."""

from __future__ import annotations

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import job
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import MalformedJob, QueueError
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.from_regex(r"\A[A-Z][A-Z0-9_]{0,20}\Z")
VALUES = st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=("Cs",)), max_size=200)


@given(st.dictionaries(KEYS, VALUES, max_size=20))
def test_what_is_written_is_read_back(values: dict[str, str]) -> None:
    data = job.render(values)
    assert job.parse(data) == values
    assert list(job.parse(data)) == list(values)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_exactly_or_refused(data: bytes) -> None:
    try:
        values = job.parse(data)
    except MalformedJob:
        return
    assert job.parse(job.render(values)) == values


@given(st.text(max_size=210))
def test_a_name_that_is_accepted_is_one_plain_file_name(name: str) -> None:
    try:
        job.check_name(name)
    except QueueError as exc:
        assert repr(name) in str(exc)
        return
    assert name.isascii() and "/" not in name and name[0] not in ".-_" and 0 < len(name) <= 200 and name.strip() == name


@pytest.mark.parametrize("name", ["a", "0", "rook_r3_off7", "A.b-c_d", "x" * 200])
def test_good_names(name: str) -> None:
    assert job.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "_x", "a/b", "a b", "a\n", "ü", "x" * 201, "a\0", None, 7])
def test_bad_names(name: object) -> None:
    with pytest.raises(QueueError, match="can't be a name"):
        job.check_name(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"OFFSET\n", "line 1 is not KEY=VALUE"),
        (b"A=1\n\noffset=3\n", "line 3 is not KEY=VALUE"),
        (b"=3\n", "line 1 is not KEY=VALUE"),
        (b" A=3\n", "line 1 is not KEY=VALUE"),
        (b"A =3\n", "line 1 is not KEY=VALUE"),
        (b"1A=3\n", "line 1 is not KEY=VALUE"),
        (b"_A=3\n", "line 1 is not KEY=VALUE"),
        (b"export A=3\n", "line 1 is not KEY=VALUE"),
        (b"# a comment\n", "line 1 is not KEY=VALUE"),
        ("Ä=3\n".encode(), "line 1 is not KEY=VALUE"),
        (b"A=1\nA=2\n", "line 2 sets A again"),
        (b"A=a\0b\n", "line 1 has a NUL byte"),
        (b"A=\xff\n", "not UTF-8 at byte 2"),
        (b"\xef\xbb\xbfA=1\n", "line 1 is not KEY=VALUE"),
        (b"A=" + b"x" * 65536, "larger than 65536 bytes"),
    ],
)
def test_malformed_files(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedJob, match=reason):
        job.parse(data)


def test_values_are_taken_as_they_are() -> None:
    text = "A= $(rm -rf /) `x` \"q\" 'p' \\n \nB==\nC=\nD=x\r\nE=last line without a break"
    assert job.parse(text.encode()) == {
        "A": " $(rm -rf /) `x` \"q\" 'p' \\n ",
        "B": "=",
        "C": "",
        "D": "x\r",
        "E": "last line without a break",
    }
    assert job.parse(b"") == {}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"A": "x\ny"}, "line break"),
        ({"A": "x\0y"}, "NUL"),
        ({"a": "x"}, "'a' is not a key"),
        ({"A": "\ud800"}, "a value is not valid Unicode"),
        ({"A": "x" * 65536}, "larger than"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(values: dict[str, str], reason: str) -> None:
    with pytest.raises(MalformedJob, match=reason):
        job.render(values)


@pytest.mark.parametrize("key", [*job.RESULT_KEYS, "ENQUEUED_AT"])
def test_keys_of_the_queue_are_refused(key: str) -> None:
    with pytest.raises(MalformedJob, match=f"{key} is written by the queue"):
        job.check_own_values({key: "1"})


@pytest.mark.parametrize("priority", ["x", "1.5", "", "101", "-101", "1000", " 1"])
def test_bad_priorities(priority: str) -> None:
    with pytest.raises(MalformedJob, match="PRIORITY"):
        job.check_own_values({"PRIORITY": priority})


def test_what_is_the_jobs_own_and_what_is_the_queues() -> None:
    values = {"OFFSET": "3", "PRIORITY": "5", "ENQUEUED_AT": "x", "ATTEMPTS": "2", "RECOVERIES": "1", "REASON": "timeout"}
    assert job.own_values(values) == {"OFFSET": "3"}
    assert job.before_attempt(values) == {"OFFSET": "3", "PRIORITY": "5", "ENQUEUED_AT": "x", "ATTEMPTS": "2", "RECOVERIES": "1"}


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("", 0), ("-1", 0), ("x", 0), ("٣", 0), ("9" * 10, 0), ("007", 7)])
def test_counts(text: str, number: int) -> None:
    assert job.number({"ATTEMPTS": text}, "ATTEMPTS") == number
    assert job.number({}, "ATTEMPTS") == 0


def test_a_list_of_jobs() -> None:
    lines = ["# all of them", "", "one OFFSET=1", "two  A='x y' B=\"$(z)\" C=\\# # the rest", "three"]
    assert list(job.parse_list(lines)) == [
        ("one", {"OFFSET": "1"}),
        ("two", {"A": "x y", "B": "$(z)", "C": "#"}),
        ("three", {}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("../x A=1", "can't be a name"),
        ("x A", "'A' is not KEY=VALUE"),
        ("x a=1", "'a=1' is not KEY=VALUE"),
        ("x A=1 A=2", "A is set twice"),
        ("x A='1", "No closing quotation"),
        ("x RESULT=done", "RESULT is written by the queue"),
        ("x PRIORITY=high", "PRIORITY=high is not a whole number"),
    ],
)
def test_a_bad_list_of_jobs(line: str, reason: str) -> None:
    with pytest.raises(QueueError) as caught:
        list(job.parse_list(["good A=1", line]))
    assert "line 2 of the list of jobs" in str(caught.value)
    assert reason in str(caught.value)
