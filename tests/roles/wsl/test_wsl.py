"""The role on a real host. Only what Windows and its kernel would answer is played, by programs first on PATH."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.host

FAKES = "/opt/wsl-answers"
PROFILE = "/mnt/c/Users/J\u00f6rg W"
WSLCONFIG = f"{PROFILE}/.wslconfig"
PATH = {"PATH": f"{FAKES}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def answer(host, name, text, rc=0):
    host.write(f"{FAKES}/{name}", f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {rc}\n".encode())
    host.sh(f"chmod 755 {FAKES}/{name}")


def make_wsl(host, propagation="private", interop=True):
    host.sh(f"rm -rf {FAKES} /mnt/c; rm -f /etc/wsl.conf /etc/wsl.conf.*")
    answer(host, "uname", "6.6.87.2-microsoft-standard-WSL2")
    answer(host, "systemd-detect-virt", "wsl")
    answer(host, "findmnt", propagation)
    if interop:
        warning = "'\\\\wsl.localhost\\Debian\\home' CMD.EXE was started with the above path. UNC paths are not supported.\r"
        answer(host, "cmd.exe", f"{warning}\nC:\\Users\\J\u00f6rg W\r")
        answer(host, "wslpath", PROFILE)
        host.sh(f"mkdir -p '{PROFILE}'; chown -R {host.user}: '{PROFILE}' 2>/dev/null || true")


@pytest.fixture
def wsl(host):
    make_wsl(host)
    yield host
    host.sh(f"rm -rf {FAKES} /mnt/c; rm -f /etc/wsl.conf /etc/wsl.conf.*")


def test_elsewhere_nothing_happens(host):
    play = host.play("wsl")
    assert (play.rc, play.changed) == (0, [])
    assert [task for task in play.ran if not task.startswith("Validating")] == ["wsl", "Read the kernel release"]
    assert host.exec("test", "-e", "/etc/wsl.conf", check=False).returncode


def test_a_container_on_wsl_is_not_wsl(wsl):
    answer(wsl, "systemd-detect-virt", "podman")
    assert wsl.play("wsl", environment=PATH).changed == []


def test_both_files_are_merged_once(wsl):
    conf = b"# mine\n[boot]\nsystemd = false # why\n[network]\nhostname=box"
    config = b"# J\xc3\xb6rg's\r\n[wsl2]\r\nmemory=8GB\r\n[general]\r\nx=1"
    wsl.write("/etc/wsl.conf", conf)
    wsl.write(WSLCONFIG, config)

    told = wsl.play("wsl", environment=PATH, check=True)
    assert (told.rc, len(told.changed)) == (0, 2)
    assert (wsl.read("/etc/wsl.conf"), wsl.read(WSLCONFIG)) == (conf, config)

    first = wsl.play("wsl", environment=PATH)
    assert (first.rc, first.changed) == (0, told.changed)
    assert "wsl.exe --shutdown" in first.messages
    assert wsl.read("/etc/wsl.conf") == (
        b"# mine\n[boot]\nsystemd = true # why\ninitTimeout=60000\ncommand=mount --make-rshared /\n[network]\nhostname=box"
    )
    assert wsl.read(WSLCONFIG) == config + b"\r\ninstanceIdleTimeout=-1\r\n"
    backup = first.result("Merge instanceIdleTimeout into .wslconfig")["backup_file"]
    assert wsl.read(backup) == config

    second = wsl.play("wsl", environment=PATH)
    assert (second.rc, second.changed) == (0, [])
    assert "wsl.exe --shutdown" not in second.messages


def test_a_shared_root_needs_no_command(wsl):
    make_wsl(wsl, propagation="shared")
    wsl.play("wsl", environment=PATH)
    assert b"command" not in wsl.read("/etc/wsl.conf")


def test_another_command_stays_and_is_told(wsl):
    wsl.write("/etc/wsl.conf", b"[boot]\ncommand=service cron start\n")
    play = wsl.play("wsl", environment=PATH)
    assert b"command=service cron start\n" in wsl.read("/etc/wsl.conf")
    assert '"service cron start"' in play.messages
    assert "mount --make-rshared /" in play.messages


def test_without_interop_the_lines_are_printed(wsl):
    make_wsl(wsl, interop=False)
    play = wsl.play("wsl", environment=PATH)
    assert play.rc == 0
    assert "[general]\ninstanceIdleTimeout=-1" in play.messages


def test_windows_is_left_alone_by_variable(wsl):
    wsl.play("wsl", environment=PATH, wsl_manage_wslconfig=False)
    assert wsl.exec("test", "-e", WSLCONFIG, check=False).returncode


def test_without_systemd_it_stops_with_the_next_step(bare_container):
    make_wsl(bare_container)
    for check in (True, False):
        play = bare_container.play("wsl", environment=PATH, check=check)
        assert play.rc != 0
        (error,) = play.errors
        for part in ("PID 1 of this WSL distribution is sleep, not systemd", "wsl.exe --shutdown", "run setup again"):
            assert part in error
    assert b"systemd=true" in bare_container.read("/etc/wsl.conf")
