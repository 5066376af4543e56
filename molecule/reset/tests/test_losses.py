"""A host loses what setup has made: setup puts back what is missing, and only that; the queue is untouched, and the jobset finishes."""

from __future__ import annotations

import pytest

UNITS = "~/.config/systemd/user"
CONTAINER = "systemctl --user stop sagemath; podman rm -f -i sagemath"

# What is lost, how, and by which user; and what setup does about it: tasks of which at least one and no other changes something.
# What has lost its container is started anew, and so are the workers that were stopped with their units.
START = {"Start the container", "Act on the workers"}
LOSSES = {
    "wsl.conf": ("rm /etc/wsl.conf", True, {"Merge the boot settings into /etc/wsl.conf"}),
    ".wslconfig": ("rm /mnt/c/Users/anna/.wslconfig", True, {"Merge instanceIdleTimeout into .wslconfig"}),
    "linger": (
        "loginctl disable-linger researcher; rm -r /etc/systemd/system/user@1001.service.d; systemctl daemon-reload;"
        " systemctl stop user@1001",
        True,
        {
            "Enable linger for the user",
            "Make a folder for settings of the user's manager",
            "Let the user's manager come back when it dies",
            "Start the user's manager",
            *START,
        },
    ),
    "units": (
        f"systemctl --user stop 'sagequeue-*'; rm -r {UNITS}/sagequeue* {UNITS}/*.wants/sagequeue*; systemctl --user daemon-reload",
        False,
        START,
    ),
    "the container's unit": (
        "systemctl --user stop sagemath; rm ~/.config/containers/systemd/sagemath.container; systemctl --user daemon-reload",
        False,
        {"Put the unit there", *START},
    ),
    "ACLs": (
        "setfacl -R -b /home/researcher/Jupyter; chmod 700 /home/researcher/Jupyter",
        True,
        {"Share the folders between the user and the container"},
    ),
    "image": (
        f"{CONTAINER}; podman rmi -f localhost/sagequeue-sagemath:10.7-pycryptosat",
        False,
        {
            "Build the image, because it does not exist",
            "Give the candidate its name",
            "Drop images that nothing uses",
            "Put the Containerfile there",
            "Make a build context",
            "Remove the build context",
            *START,
        },
    ),
    "container": (CONTAINER, False, START),
    "program": ("rm -r ~/sagequeue/bin", False, {"Write the program", *START}),
    "PATH": ("rm ~/.local/bin/sagequeue", False, {"Write the program"}),
    "definitions": ("rm -r ~/sagequeue/etc/jobsets ~/sagequeue/etc/host.json", False, START),
    "token": (
        "rm ~/sagequeue/etc/jupyter.token",
        False,
        {"Make the token", "Give the token to Podman", "Put the unit there", *START},
    ),
    "runtime": ("dpkg --purge --force-depends crun", True, {"Install what is missing"}),
    "range of subordinate ids": ("sed -i /researcher/d /etc/subuid /etc/subgid", True, {"Write the range"}),
}


def plain(tasks):
    """Names of tasks without the reasons that they end with."""
    return {task.partition(", again because")[0] for task in tasks}


@pytest.fixture(scope="module")
def half(site):
    """The jobset is half done, and nothing moves: its gate is closed, and what ran is pending."""
    site.play("request_stop", jobset="half")
    site.play("restart", jobset="half")
    site.until_counts("half", seconds=60, running=0)
    assert site.progress("half")["counts"] == {"pending": 3, "running": 0, "done": 3, "failed": 0}
    # What others left is put right before anything is lost.
    site.setup()
    assert site.setup().changed == []
    return site.queue()


@pytest.mark.long
@pytest.mark.parametrize("loss", list(LOSSES))
def test_one_loss(site, half, loss):
    script, root, wanted = LOSSES[loss]
    site.sh(f"({script}) || true", root=root)
    play = site.setup()
    assert play.changed and plain(play.changed) <= wanted
    assert site.queue() == half


def test_the_kernel_forbids_user_namespaces(site, half):
    # A file in the place of the kernel's own, which all hosts of this machine share. While it is there, no container can be started.
    site.sh("echo 0 >/run/limit; mount --bind /run/limit /proc/sys/user/max_user_namespaces", root=True)
    try:
        play = site.setup()
        assert site.sh("cat /run/limit") == "15000"
    finally:
        site.sh("umount /proc/sys/user/max_user_namespaces", root=True)
    assert "Let ordinary users make user namespaces" in play.changed
    assert plain(play.changed) <= {"Install what sets kernel variables", "Let ordinary users make user namespaces"}
    assert site.queue() == half


def test_all_losses_at_once(site, half):
    for script, root, _wanted in LOSSES.values():
        site.sh(f"({script}) 2>&1 || true", root=root)
    play = site.setup()
    missed = [loss for loss, (_script, _root, wanted) in LOSSES.items() if not plain(play.changed) & (wanted - START or wanted)]
    assert not missed
    assert site.queue() == half
    assert site.setup(check=True).changed == []


def test_the_jobset_finishes(site, half):
    site.go("all")
    site.play("clear_stop", jobset="half")
    site.until_counts("half", seconds=120, done=6)
    assert site.sh("podman exec sagemath id -u") == "1000"
