# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""Apptainer from packages, a real Sage as a .sif, and each reason to make it again or not."""

from __future__ import annotations

from typing import Any

import pytest
import sage_host
from ansible_collections.sagequeue.batch.tests.roles.sage_sif.conftest import SIF, left

pytestmark = [pytest.mark.host, pytest.mark.long]


def test_the_file_solves_and_a_second_run_changes_nothing(sif_host: Any) -> None:
    image = sif_host.image()["Id"]
    assert left(sif_host) == f"{SIF} {SIF}.digest"
    assert sif_host.sh(f"cat {SIF}.digest; stat -c %U {SIF}") == f"{image}\nresearcher\n"
    # Nothing else comes from there: neither now nor with the next upgrade.
    assert "sid" not in sif_host.sh("apt-get upgrade --simulate | grep -i ^inst || :")
    before = sif_host.sh(f"stat -c '%i %Y' {SIF}")
    for check in (True, False):
        play = sif_host.play("sage_sif", check=check)
        assert (play.rc, play.changed) == (0, []), play.errors
    assert sif_host.sh(f"stat -c '%i %Y' {SIF}") == before
    assert sif_host.play("sage_sif", tasks_from="install").changed == []


def test_what_is_missing_is_said(sif_host: Any) -> None:
    play = sif_host.play("sage_sif", sage_sif_image="localhost/nowhere:1", sage_sif_path="/home/researcher/none.sif")
    assert play.rc != 0 and "The image localhost/nowhere:1 of user researcher is not there" in play.errors[-1]


def test_a_file_that_does_not_solve_is_not_taken_and_a_changed_image_is(sif_host: Any) -> None:
    old = sif_host.image()["Id"]
    before = sif_host.sh(f"stat -c '%i %Y' {SIF}; cat {SIF}.digest")
    sif_host.write("/tmp/day-two/Containerfile", f"FROM {sage_host.IMAGE}\nENV DAY=two\n".encode())
    sif_host.podman("build", "--quiet", "--isolation=chroot", "--format=docker", "-t", sage_host.IMAGE, "/tmp/day-two")
    new = sif_host.image()["Id"]
    assert new != old
    try:
        predicted = sif_host.play("sage_sif", check=True)
        assert predicted.changed == ["Say what would be made"] and "pycryptosat changed." in predicted.messages
        play = sif_host.play("sage_sif", sage_sif_proof=["/sage/sage", "-python", "-c", "print('this is why'); 1 / 0"])
        assert play.rc != 0 and '"Try the new file" failed' in play.errors[-1] and "ZeroDivisionError" in play.errors[-1]
        assert "The file of that name is still the one from before." in play.errors[-1]
        assert sif_host.sh(f"stat -c '%i %Y' {SIF}; cat {SIF}.digest") == before and left(sif_host) == f"{SIF} {SIF}.digest"
        play = sif_host.play("sage_sif")
        assert play.rc == 0, play.errors
        look = f"cat {SIF}.digest; apptainer --silent exec --userns {SIF} sh -c 'echo $DAY'"
        assert sif_host.sh(look, user="researcher") == f"{new}\ntwo\n"
        assert sif_host.play("sage_sif").changed == []
    finally:
        sif_host.podman("tag", old, sage_host.IMAGE)


def test_it_goes_away_alone(sif_host: Any) -> None:
    assert sif_host.play("sage_sif", tasks_from="absent", sage_sif_path="/home/researcher/other.sif").changed == []
    sif_host.sh("touch ~/other.sif", user="researcher")
    assert sif_host.play("sage_sif", tasks_from="absent", sage_sif_path="/home/researcher/other.sif").changed == ["Remove the file"]
    assert left(sif_host) == f"{SIF} {SIF}.digest"
