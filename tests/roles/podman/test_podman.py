"""Podman from the distribution's packages, and the two checks that come with it."""

import pytest

pytestmark = pytest.mark.host


def test_installs_what_is_missing_and_nothing_twice(podman_host):
    podman_host.sh("dpkg --purge --force-depends fuse-overlayfs")
    predicted = podman_host.play("podman", check=True)
    assert predicted.rc == 0, predicted.errors
    assert predicted.changed == ["Say what would be installed"]
    assert "fuse-overlayfs" in predicted.messages

    first = podman_host.play("podman")
    assert first.rc == 0, first.errors
    assert first.changed == ["Install what is missing"]
    assert podman_host.sh("command -v fuse-overlayfs catatonit newuidmap crun")

    second = podman_host.play("podman")
    assert (second.rc, second.changed) == (0, [])


@pytest.fixture
def hardened(podman_host):
    """A file in the place of the kernel's own limit, which all hosts of this machine share."""
    podman_host.sh("echo 0 >/run/limit; mount --bind /run/limit /proc/sys/user/max_user_namespaces")
    yield
    podman_host.sh("umount /proc/sys/user/max_user_namespaces; rm /run/limit /etc/sysctl.d/60-sagequeue.conf")


def test_a_kernel_that_forbids_user_namespaces_is_told_to_allow_them(podman_host, hardened):
    predicted = podman_host.play("podman", check=True)
    assert predicted.rc == 0, predicted.errors
    first = podman_host.play("podman")
    assert first.rc == 0, first.errors
    assert "Let ordinary users make user namespaces" in first.changed
    assert podman_host.sh("cat /run/limit /etc/sysctl.d/60-sagequeue.conf").split() == ["15000", "user.max_user_namespaces=15000"]
    second = podman_host.play("podman")
    assert (second.rc, second.changed) == (0, [])


@pytest.fixture
def user_without_range(podman_host):
    podman_host.sh("useradd -m norange; sed -i /^norange:/d /etc/subuid /etc/subgid")
    yield "norange"
    podman_host.sh("userdel -r norange 2>/dev/null")


def test_a_user_without_subordinate_ids_is_told_how_to_get_them(podman_host, user_without_range):
    play = podman_host.play("podman", podman_user=user_without_range)
    assert play.rc != 0
    assert "User norange has no range of subordinate user and group ids" in play.errors[-1]
    assert "usermod --add-subuids" in play.errors[-1]


def test_a_user_who_does_not_exist_yet_is_no_error_in_check_mode(podman_host):
    play = podman_host.play("podman", check=True, podman_user="notyet")
    assert play.rc == 0, play.errors


def test_an_old_podman_is_named(podman_host):
    podman_host.write("/usr/local/bin/podman", b"#!/bin/sh\necho podman version 4.3.1\n")
    podman_host.sh("chmod 755 /usr/local/bin/podman")
    try:
        play = podman_host.play("podman")
    finally:
        podman_host.sh("rm /usr/local/bin/podman")
    assert play.rc != 0
    assert "Podman 4.3.1 was found" in play.errors[-1]
    assert "4.4 or newer" in play.errors[-1]
