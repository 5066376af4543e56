# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""What a definition may contain: each kind of value, as it is written, as it is kept, and what a person reads who got one wrong."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.keys import KEYS, checked


@pytest.mark.parametrize(("text", "size"), [(0, 0), ("0", 0), (5000, 5000), ("4k", 4096), ("64M", 64 << 20), ("2G", 2 << 30)])
def test_a_size_has_a_unit_or_none(text: Any, size: int) -> None:
    assert checked("t", "log_size", text, "/home/anna") == size == checked("t", "log_size", size, "/home/anna")


@pytest.mark.parametrize(
    ("key", "given", "kept"),
    [
        ("stride", "8", 8),
        ("timeout", "1.5", 1.5),
        ("enabled", "yes", True),
        ("enabled", False, False),
        ("args", "--title 'a b' c", ["--title", "a b", "c"]),
        ("args", ["a b", 3], ["a b", "3"]),
        ("environment", {"N": 3}, {"N": "3"}),
        ("engine_options", {"+Kind": 3}, {"+Kind": "3"}),
        ("workdir", "~/Jupyter", "/home/anna/Jupyter"),
        ("workdir", "~", "/home/anna"),
        ("workdir", "/~/w", "/~/w"),
        ("runner", "podman_exec", "podman_exec"),
    ],
)
def test_values_may_come_as_text_as_ansible_gives_them(key: str, given: Any, kept: Any) -> None:
    found = checked("t", key, given, "/home/anna")
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize("key", [key for key, rule in KEYS.items() if rule.default is not None])
def test_a_default_is_a_value_of_its_kind(key: str) -> None:
    kept = checked("t", key, KEYS[key].default, "/home/anna")
    assert checked("t", key, kept, "/elsewhere") == kept


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("script", 5, "script is 5; it must be one line of text"),
        ("script", "a\nb", "it must be one line of text"),
        ("stride", 0, "jobset rook_r3: stride is 0; it must be a number of at least 1"),
        ("stride", -1, "stride is -1"),
        ("stride", "eight", "stride is 'eight'"),
        ("stride", 1.5, "stride is 1.5"),
        ("stride", True, "stride is True"),
        ("stride", 10**9, "stride is 1000000000"),
        ("workers", -1, "workers is -1; it must be a number of at least 0"),
        ("log_size", 64, "log_size is 64; it must be a number of bytes of at least 4K, such as 64M, or 0"),
        ("log_size", "64MB", "log_size is '64MB'"),
        ("log_size", True, "log_size is True"),
        ("log_keep", -1, "log_keep is -1; it must be a number of at least 0"),
        ("attempts", 0, "attempts is 0; it must be a number of at least 1"),
        ("timeout", -1, "timeout is -1"),
        ("timeout", "nan", "timeout is 'nan'"),
        ("timeout", "inf", "timeout is 'inf'"),
        ("grace", "soon", "grace is 'soon'"),
        ("runner", "podman-exec", "runner is 'podman-exec'; did you mean podman_exec?"),
        ("supervisor", "cron", "supervisor is 'cron'; did you mean htcondor? (it can be systemd, supervisord, slurm, htcondor)"),
        ("workdir", "Jupyter", "workdir is 'Jupyter'; it must be an absolute path, or begin with ~/"),
        ("args", 5, "args is 5; it must be a list of words or one line"),
        ("args", "it's", "args is \"it's\"; it can't be split into words (No closing quotation)"),
        ("args", {"graph": "rook"}, "it must be a list of words or one line"),
        ("args", ["a\0b"], "args"),
        ("environment", {"A": "a\0b"}, "environment"),
        ("environment", ["A=1"], "it must be a mapping of names to values"),
        ("environment", {"A B": 1}, "'A B', which can't be an environment variable's name"),
        ("environment", {"A=B": 1}, "'A=B'"),
        ("secrets", "c4nary", "secrets is no mapping; it must be a mapping of names to values"),
        ("secrets", ["c4nary"], "secrets is no mapping"),
        ("secrets", {"A B": "c4nary"}, "'A B', which can't be an environment variable's name"),
        ("secrets", {"A": "c4nary\0"}, "the value of A has a NUL byte"),
        ("engine_options", {"--mem": "1"}, "it must be a mapping of options' names, without --, to values of one line"),
        ("engine_options", {"mem": "1\n#SBATCH --uid=0"}, "engine_options is"),
        ("engine_options", ["mem"], "engine_options is"),
        ("enabled", "maybe", "enabled is 'maybe'; it must be true or false"),
    ],
)
def test_a_value_that_is_none_of_its_kind(key: str, value: Any, message: str) -> None:
    with pytest.raises(QueueError) as caught:
        checked("rook_r3", key, value, "/home/anna")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"jobset rook_r3: {key}")
    assert "c4nary" not in str(caught.value)
