# MIT licence, see LICENSE.
"""Each guide, followed to the letter on a host that is as clean as a new machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.sagequeue.batch.tests.guides.guide import GUIDES, HOST, Guide, Machine, fits, follow, give_checkout

TESTS = Path(__file__).resolve().parents[1]
# What the guides call by the name that a registry gives it; none need answer here.
SAGE = "docker.io/sagemath/sagemath:10.7"

host = pytest.mark.host
long = pytest.mark.long


def introduce(hosts: dict[str, str]) -> None:
    """Let machines reach each other by the names of the guide, over ssh, as machines of one user do."""
    told = {
        name: subprocess.run([HOST, "address", one], capture_output=True, text=True, check=True).stdout.strip()
        for name, one in hosts.items()
    }
    key = Path(subprocess.run([HOST, "key"], capture_output=True, text=True, check=True).stdout.strip()).read_text()
    for one in hosts.values():
        lines = "".join(f"{address} {name}\n" for name, address in told.items())
        subprocess.run([HOST, "exec", one, "sh", "-c", "cat >> /etc/hosts"], input=lines, text=True, check=True)
        script = (
            "umask 077; cat > .ssh/id_ed25519; echo 'StrictHostKeyChecking accept-new' > .ssh/config; echo 'LogLevel ERROR' >> .ssh/config"
        )
        subprocess.run([HOST, "exec", one, "-u", "researcher", "sh", "-c", script], input=key, text=True, check=True)


@contextlib.contextmanager
def clean(*names: str, sage: bool = False) -> Iterator[dict[str, Machine]]:
    """Give new machines, by the names that the guide has for them."""
    hosts = {name: f"g-{os.getpid()}-{name or 'guide'}" for name in names}
    machines: dict[str, Machine] = {}
    try:
        for name, one in hosts.items():
            subprocess.run([HOST, "up", one], check=True, stdout=subprocess.DEVNULL)
            give_checkout(one)
            if sage:
                made = subprocess.run([str(TESTS / "host" / "make-sage-base")], capture_output=True, text=True, check=True)
                with open(made.stdout.split()[-1], "rb") as archive:
                    load = [HOST, "exec", one, "-u", "researcher", "podman", "import", "--quiet", "-", SAGE]
                    subprocess.run(load, stdin=archive, stdout=subprocess.DEVNULL, check=True)
            machines[name] = Machine(one, {host: name or "myhost" for name, host in hosts.items()})
        if len(hosts) > 1:
            introduce(hosts)
        yield machines
    finally:
        for machine in machines.values():
            machine.close()
        subprocess.run([HOST, "down", *hosts.values()], check=False)


@host
def test_the_first_jobset_and_what_to_do_when() -> None:
    """The second goes on where the first has ended, as it says."""
    with clean("") as machines:
        for name in ("first-jobset.md", "when.md"):
            assert follow(Guide(GUIDES / name), machines) == []


@host
@long
def test_own_notebook() -> None:
    with clean("", sage=True) as machines:
        assert follow(Guide(GUIDES / "own-notebook.md"), machines) == []


@host
@long
def test_own_container() -> None:
    with clean("", sage=True) as machines:
        assert follow(Guide(GUIDES / "own-container.md"), machines) == []


@host
@long
def test_moving() -> None:
    guide = Guide(GUIDES / "moving.md")
    with clean(*guide.machines()) as machines:
        assert follow(guide, machines) == []


def test_every_guide_is_tried_here() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in GUIDES.glob("*.md") if f'"{path.name}"' not in text] == []


def test_what_differs_from_time_to_time_may_differ_and_nothing_else() -> None:
    shown = "hello-1  done  1.5 s  at 2026-11-21T14:40:42+00:00\n4/4 done\n"
    assert fits(shown, "hello-2 done 250 ms at 2027-01-01T00:00:00.123Z\n4/4 done\n")
    assert not fits(shown, "hello-2 failed 250 ms at 2027-01-01T00:00:00.123Z\n4/4 done\n")
    assert not fits(shown, shown + "one more line\n")
    assert not fits("", "an error that the guide does not show\n")
    assert fits("a\n...\nz\n", "a\nb\nc\nz\n") and not fits("a\n...\nz\n", "a\nb\nc\n")


def rewrite(path: str) -> None:
    """Follow a guide, and write into it what its commands really print."""
    guide = Guide(Path(path))
    with clean(*guide.machines(), sage="Sage" in guide.text) as machines:
        print("\n".join(follow(guide, machines, write=True)))


if __name__ == "__main__":
    rewrite(*sys.argv[1:])
