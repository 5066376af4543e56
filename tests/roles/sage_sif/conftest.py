# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import sage_host
from ansible_collections.sagequeue.batch.tests.roles.runners.test_container_agent import FILES, program

SIF = "/home/researcher/sagequeue/images/sagemath.sif"


def left(host: Any) -> str:
    """Return what lies where the file is, and what was left on the way."""
    return " ".join(host.sh(f"ls {SIF}* /var/tmp | grep -e sagemath -e sagequeue || :").split())


@pytest.fixture(scope="session")
def bare_host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A host with the image of Sage, and without Apptainer."""
    for host in sage_host.make(request, tmp_path_factory):
        # A mirror that is a copy may be some days old.
        host.write("/etc/apt/apt.conf.d/90-old-mirror", b'Acquire::Check-Valid-Until "false";\n')
        assert host.play("linger").rc == 0
        sage_host.give_base(host)
        built = host.build()
        assert built.rc == 0, built.errors
        host.write("/home/researcher/sagequeue/bin/sagequeue", program())
        for file, text in FILES.items():
            host.write(f"/home/researcher/work/{file}", text.encode())
        host.sh("cd ~researcher; chmod -R a+rX,u+w work sagequeue; chmod a+x work/* sagequeue/bin/*; chown -R researcher: work sagequeue")
        yield host


@pytest.fixture(scope="session")
def sif_host(bare_host: Any) -> Any:
    """The same host with Apptainer, and the image as a file."""
    play = bare_host.play("sage_sif")
    assert play.rc == 0, play.errors
    return bare_host
