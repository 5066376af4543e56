from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "default" / "tests"))
from batch_site import Site

# The later ones need what the earlier ones leave.
ORDER = ["test_upgrade", "test_rebuild", "test_losses", "test_adopt", "test_teardown"]
# Deaf to the gate: each job runs until it is let go.
NAP = """#!/bin/sh
echo "begins in $SAGEQUEUE_CLAIM"
until [ -e "go.$SAGEQUEUE_JOB" ] || [ -e go.all ]; do sleep 0.2; done
"""
HALF = {"script": "nap.sh", "command": ["/bin/sh"], "stride": 6, "workers": 2, "grace": 2, "recover_every": 5, "enabled": True}
# What Windows and its kernel would answer, by programs first on PATH.
ANSWERS = {
    "uname": '[ "$*" = -r ] || exec /usr/bin/uname "$@"; echo 6.6.87.2-microsoft-standard-WSL2',
    "systemd-detect-virt": "echo wsl",
    "cmd.exe": r"printf 'C:\\Users\\anna\r\n'",
    "wslpath": "echo /mnt/c/Users/anna",
}


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes many minutes; run by ./run-tests --long")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.index(item.module.__name__.rpartition(".")[2]))
    if not os.environ.get("SAGEQUEUE_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="many minutes: ./run-tests --long"))


class Reset(Site):
    """The host, and a jobset that is half done."""

    def __init__(self, name, folder):
        super().__init__(name, folder, {"half": HALF})
        for program, text in ANSWERS.items():
            self.sh(f"cat >/usr/local/bin/{program} <<'END'\n#!/bin/sh\n{text}\nEND\nchmod 755 /usr/local/bin/{program}", root=True)
        self.sh("mkdir -p /mnt/c/Users/anna; chown researcher: /mnt/c/Users/anna", root=True)
        self.found = self.listing()

    def setup(self, **variables):
        # Other than in the scenario default, so that there are ACLs.
        return self.play("setup", sagequeue_userns="mapped", **variables)

    def listing(self):
        """Every file of the host outside of packages and storage, the units and the users."""
        return self.sh(
            "find /etc /home/researcher /var/lib/systemd/linger /usr/local /mnt/c -xdev"
            " '(' -path '*/containers/storage' -o -path '*/.ansible' -o -path '*/containers/cache' ')' -prune"
            " -o -printf '%p %y %m %u\\n' | sort; getent passwd; getent group;"
            " systemctl list-unit-files --no-legend --plain | grep -v ' transient '",
            root=True,
        ).splitlines()

    def queue(self):
        """Every job's file with its text, and where it lies."""
        return self.sh("cd ~/sagequeue/var/half/queue && find . -name '*.env' | sort | xargs -r sha256sum")

    def script(self):
        self.sh(f"mkdir -p ~/Jupyter; cat >~/Jupyter/nap.sh <<'END'\n{NAP}END")

    def go(self, *jobs):
        self.sh(f"cd ~/Jupyter && touch {' '.join('go.' + job for job in jobs)}")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return Reset(os.environ.get("SAGEQUEUE_TEST_HOST", "sagequeue-reset"), tmp_path_factory.mktemp("site"))
