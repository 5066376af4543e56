# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Where definitions are kept: what is stored is loaded, and what a person reads when a file was spoiled."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout


def test_what_is_stored_is_loaded(host: Any) -> None:
    found = host.define("rook", stride=8, environment={"SECRET": "ä $x"}, args=["{gate_file}", "a b"])
    assert definitions.load(str(host.root), "rook").to_dict() == found.to_dict()
    path = definitions.path_of(str(host.root), "rook")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert definitions.stored_text(found) == definitions.current_text(str(host.root), "rook")
    assert os.listdir(os.path.dirname(path)) == ["rook.json"]


def test_an_unknown_jobset(host: Any) -> None:
    with pytest.raises(QueueError, match=r"jobset rook_r4 is not defined on this host \(none is; run setup\)"):
        definitions.load(str(host.root), "rook_r4")
    host.define("rook_r3")
    host.define("shri_r3")
    with pytest.raises(QueueError, match=r"did you mean rook_r3\? \(defined are rook_r3, shri_r3\)"):
        definitions.load(str(host.root), "rook_r4")


@pytest.mark.parametrize("text", ["", "{", '{"script": "x', "\xff"])
def test_a_broken_definition_file(host: Any, text: str) -> None:
    host.define("t")
    with open(definitions.path_of(str(host.root), "t"), "w", encoding="latin-1") as file:
        file.write(text)
    with pytest.raises(QueueError, match="jobset t: .*t.json can't be read .* run setup to write it anew"):
        definitions.load(str(host.root), "t")


def test_a_definition_file_that_a_person_changed_is_checked(host: Any) -> None:
    definition = {**host.define("t").to_dict(), "strides": 3}
    with open(definitions.path_of(str(host.root), "t"), "w", encoding="utf-8") as file:
        json.dump(definition, file)
    with pytest.raises(QueueError, match="unknown key 'strides'; did you mean stride"):
        definitions.load(str(host.root), "t")


def test_a_forgotten_jobset_leaves_its_queue(host: Any) -> None:
    host.define("t")
    host.queue().enqueue([("j", {})])
    definitions.forget(str(host.root), "t")
    assert definitions.defined(str(host.root)) == []
    assert host.states() == {"j": "pending"}


def test_a_definition_file_that_can_be_neither_read_nor_written(host: Any) -> None:
    made = host.define()
    path = Path(definitions.path_of(str(host.root), "t"))
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(QueueError, match="can't be read .larger than 1048576 bytes.; run setup to write it anew"):
        definitions.load(str(host.root), "t")
    with pytest.raises(QueueError, match="can't be read .larger than 1048576 bytes.; remove it, and run setup again"):
        definitions.current_text(str(host.root), "t")
    path.write_bytes(b"\xff")
    assert definitions.current_text(str(host.root), "t") == "(not UTF-8)\n" and definitions.current_text(str(host.root), "none") == ""
    path.unlink()
    path.mkdir()
    with pytest.raises(QueueError, match="jobset t: can't write .*Is a directory"):
        definitions.store(Layout(str(host.root), "t"), made)
    assert os.listdir(path.parent) == ["t.json"], "nothing half written is left"
