# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""A host without Apptainer: the file's name has it run before those that install it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.sagequeue.batch.tests.roles.sage_sif.conftest import left

pytestmark = [pytest.mark.host, pytest.mark.long]


def test_a_host_without_apptainer_is_left_alone_or_gets_it(bare_host: Any) -> None:
    play = bare_host.play("sage_sif", sage_sif_manage=False)
    assert play.rc != 0 and "Apptainer is not installed on" in play.errors[-1]
    play = bare_host.play("sage_sif", sage_sif_add_source=False)
    assert play.rc != 0 and "sage_sif_add_source is false. Install Apptainer 1.2 or newer" in play.errors[-1]
    predicted = bare_host.play("sage_sif", check=True)
    assert predicted.rc == 0, predicted.errors
    assert predicted.changed == ["Say what would be installed", "Say what would be made"]
    assert "Would install apptainer" in predicted.messages and "it is not there" in predicted.messages
    assert bare_host.sh("command -v apptainer || :") == "" and left(bare_host) == ""
