"""What --check --diff says before is what happens after."""

from __future__ import annotations

import subprocess

import pytest
from batch_site import HOST, ROOT, Site

NAME = "sagequeue-check"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    subprocess.run([HOST, "up", NAME], check=True)
    try:
        subprocess.run([str(ROOT / "tests/host/give-sage-base"), NAME], check=True, stdout=subprocess.DEVNULL)
        yield Site(NAME, tmp_path_factory.mktemp("bare"))
    finally:
        subprocess.run([HOST, "down", NAME], check=True)


def snapshot(site):
    """Every file of the host that a setup could make, and what is installed."""
    return site.sh(
        "find /etc /home/researcher /var/lib/systemd/linger /usr/local -xdev -path '*/containers/storage' -prune -o"
        " -path '*/.ansible' -prune -o -printf '%p %y %m %u %s\\n' | grep -v -e /etc/mtab -e '^/home/researcher d ' | sort; dpkg -l",
        root=True,
    )


def test_the_prediction_is_what_happens(bare):
    before = snapshot(bare)
    predicted = bare.play("setup", check=True)
    assert snapshot(bare) == before, "--check changed the host"

    real = bare.play("setup")
    assert real.changed, "setup of a bare host changed nothing"
    # By role: where a command has nothing to ask yet, a role says in words what it would do.
    assert predicted.changed_roles == real.changed_roles

    for check in (False, True):
        again = bare.play("setup", check=check)
        assert again.changed == []


def test_a_user_who_does_not_exist_yet(bare):
    play = bare.play("setup", check=True, sagequeue_user="newcomer", ansible_become=True)
    assert any("user" in task.lower() for task in play.changed)
    assert bare.run("id", "newcomer", check=False).returncode != 0
