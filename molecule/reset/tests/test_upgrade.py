"""From the release before to this one, while jobs run."""

from __future__ import annotations

import os
import subprocess

import pytest
from batch_site import ROOT

# Where no release is tagged: the first state that ran whole jobsets.
FIRST = "02e172a"


def git(*words):
    return subprocess.run(["git", "-C", str(ROOT), "-c", "safe.directory=*", *words], capture_output=True, check=False)


@pytest.fixture(scope="session")
def before(tmp_path_factory):
    """The collection's release before, built and installed as its users have it; without a history, this one."""
    tag = git("describe", "--tags", "--abbrev=0", "HEAD^").stdout.decode().strip() or FIRST
    archive = git("archive", "--format=tar", tag)
    if archive.returncode:
        archive = git("archive", "--format=tar", "HEAD")
    source, installed = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    subprocess.run(["ansible-galaxy", "collection", "build", "--output-path", str(source), str(source)], check=True, capture_output=True)
    (built,) = source.glob("sagequeue-batch-*.tar.gz")
    words = ["ansible-galaxy", "collection", "install", "--no-deps", "--offline", "-p", str(installed), str(built)]
    subprocess.run(words, check=True, capture_output=True, cwd=source, env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(installed)})
    return installed


@pytest.fixture(scope="session")
def owners(site, before):
    """A host that the release before has set up, with a job done, one failed, two running, and two waiting."""
    site.script()
    # The shipped ones have keys that it does not know.
    jobsets, site.jobsets = site.jobsets, {"half": site.jobsets["half"]}
    site.write_inventory()
    for name, variables in (("setup", {"sagequeue_userns": "mapped"}), ("enqueue", {"jobset": "half"})):
        site.play(name, collections=before, **variables)
    site.jobsets = jobsets
    site.write_inventory()
    site.go("half_off0")
    site.until_counts("half", seconds=120, done=1, running=2, pending=3)
    return site.sh("cd ~/sagequeue/var/half/queue/running && cat *.owner")


def test_an_upgrade_loses_nothing(site, owners):
    play = site.setup()
    assert "Write the program" in play.changed
    assert site.sh("cd ~/sagequeue/var/half/queue/running && cat *.owner") == owners, "jobs that ran were touched"
    assert site.progress("half")["counts"] == {"pending": 3, "running": 2, "done": 1, "failed": 0}
    running = site.sh("cd ~/sagequeue/var/half/queue/running && ls *.env").replace(".env", "").split()
    site.go(*running)
    site.until_counts("half", seconds=120, done=3, running=2)
    # Each ran once, and the workers have moved to the new program.
    for job in running:
        assert site.sh(f"grep -c 'begins in' ~/sagequeue/var/half/log/{job}.log") == "1"
    assert site.sh("journalctl --user -q -o cat -u 'sagequeue-worker@half-*' | grep -c 'the program was replaced'") == "2"
