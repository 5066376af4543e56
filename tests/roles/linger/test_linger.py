from __future__ import annotations

import pytest

pytestmark = pytest.mark.host

USER = "lingerer"


@pytest.fixture
def user(host):
    host.sh(f"id {USER} >/dev/null 2>&1 || useradd -m {USER}")
    yield USER
    host.sh(
        f"rm -rf /etc/systemd/system/user@$(id -u {USER}).service.d; systemctl daemon-reload;"
        f" loginctl disable-linger {USER}; loginctl terminate-user {USER} || true; sleep 1;"
        f" pkill -KILL -u {USER} || true; userdel -rf {USER}"
    )


def test_the_manager_answers_and_a_second_run_changes_nothing(host, user):
    told = host.play("linger", linger_user=user, check=True)
    wanted = ["Enable linger for the user", "Make a folder for settings of the user's manager", "Start the user's manager"]
    assert (told.rc, told.changed) == (0, wanted)
    assert host.exec("test", "-e", f"/var/lib/systemd/linger/{user}", check=False).returncode

    first = host.play("linger", linger_user=user)
    # Enabling linger starts the manager, too: who is first is a race.
    assert first.rc == 0
    assert first.changed[0] == "Enable linger for the user"
    uid = host.sh(f"id -u {user}").strip()
    bus = f"XDG_RUNTIME_DIR=/run/user/{uid}"
    assert host.exec("runuser", "-u", user, "--", "env", bus, "systemctl", "--user", "is-system-running").stdout == "running\n"

    for check in (True, False):
        again = host.play("linger", linger_user=user, check=check)
        assert (again.rc, again.changed) == (0, [])


@pytest.mark.parametrize("before", [False, True])
def test_it_is_taken_back_as_it_was_found(host, user, before):
    lingers, settings = f"/var/lib/systemd/linger/{user}", f"/etc/systemd/system/user@{host.sh(f'id -u {user}').strip()}.service.d"
    host.sh(f"loginctl enable-linger {user}" if before else "true")
    # A second run must not forget how it was before the first.
    assert (host.play("linger", linger_user=user).rc, host.play("linger", linger_user=user).changed) == (0, [])
    assert host.play("linger", linger_user=user, tasks_from="absent", check=True).changed
    assert host.exec("test", "-e", lingers, check=False).returncode == 0
    gone = host.play("linger", linger_user=user, tasks_from="absent")
    assert gone.rc == 0 and gone.changed, gone.errors
    assert (host.exec("test", "-e", lingers, check=False).returncode == 0) is before
    assert host.exec("test", "-e", settings, check=False).returncode
    assert host.play("linger", linger_user=user, tasks_from="absent").changed == []


def test_a_missing_user_is_named(host):
    play = host.play("linger", linger_user="nobody-here")
    assert play.rc != 0
    assert "The user nobody-here does not exist. Next: make the user, or name another one in linger_user." in play.errors[0]
    told = host.play("linger", linger_user="nobody-here", check=True)
    assert (told.rc, told.changed) == (0, ["Say what waits for the user"])


def test_without_systemd_it_says_what_to_do(bare_container):
    play = bare_container.play("linger", linger_user="root")
    assert play.rc != 0
    assert "supervisord" in play.errors[0]


def test_a_bus_that_is_missing_is_told(host, user):
    uid = host.sh(f"id -u {user}").strip()
    host.play("linger", linger_user=user)
    manager = ("runuser", "-u", user, "--", "env", f"XDG_RUNTIME_DIR=/run/user/{uid}", "systemctl", "--user")
    host.exec(*manager, "mask", "--now", "dbus.socket", "dbus.service")
    play = host.play("linger", linger_user=user, linger_timeout=4)
    assert play.rc != 0
    assert "dbus-user-session" in play.errors[-1]
