"""The container as a unit of the user's systemd: Jupyter behind a token on loopback, restarts that spare jobs."""

import json

import pytest

# The scenario of the full host runs the role on the way; what only its own tests show takes many minutes.
pytestmark = [pytest.mark.host, pytest.mark.long]
TOKEN = "/home/researcher/sagequeue/etc/jupyter.token"
UNIT = "/home/researcher/.config/containers/systemd/sagemath.container"


def status(host, address="127.0.0.1", token=None, port=8888):
    header = ["-H", f"Authorization: token {token}"] if token else []
    return host.exec(
        "curl", "-s", "-o", "/dev/null", "-m", "10", "-w", "%{http_code}", *header, f"http://{address}:{port}/api/status", check=False
    ).stdout


def started(host):
    return host.podman("inspect", "--format", "{{.State.StartedAt}}", "sagemath")


@pytest.fixture(scope="module")
def up(container_host):
    assert container_host.play("podman").rc == 0
    predicted = container_host.play("sage_container", check=True)
    assert predicted.rc == 0, predicted.errors
    assert "Put the unit there" in predicted.changed
    assert container_host.exec("test", "-e", UNIT, check=False).returncode
    play = container_host.play("sage_container")
    assert play.rc == 0, play.errors
    return play


@pytest.fixture
def listener(container_host):
    container_host.sh("systemd-run --unit=squatter python3 -m http.server --bind 127.0.0.1 8899; sleep 1")
    yield 8899
    container_host.sh("systemctl stop squatter")


@pytest.fixture
def running_job(container_host, up):
    folder = "/home/researcher/sagequeue/var/petersen/queue/running"
    container_host.sh(f"mkdir -p {folder}; echo OFFSET=3 > {folder}/petersen_off3.env", user="researcher")
    yield "petersen_off3"
    container_host.sh("rm -r /home/researcher/sagequeue/var")


def test_a_host_without_the_user_gets_a_prediction(container_host):
    play = container_host.play("sage_container", check=True, sage_container_user="notyet")
    assert play.rc == 0, play.errors
    assert play.changed == ["Predict for a host that is not ready yet"]


def test_a_taken_port_is_named_before_anything_starts(container_host, listener):
    play = container_host.play("sage_container", sage_container_port=listener, sage_container_name="second")
    assert play.rc != 0
    assert f"Port {listener} on 127.0.0.1" in play.errors[-1]
    assert "by python3 with pid " in play.errors[-1]
    assert container_host.exec("test", "-e", UNIT.replace("sagemath", "second"), check=False).returncode
    assert "second" not in container_host.podman("ps", "--all")


def test_an_old_podman_is_named(container_host):
    container_host.write("/usr/local/bin/podman", b"#!/bin/sh\necho podman version 4.3.1\n")
    container_host.sh("chmod 755 /usr/local/bin/podman")
    try:
        play = container_host.play("sage_container", check=True)
    finally:
        container_host.sh("rm /usr/local/bin/podman")
    assert play.rc != 0
    assert "Podman 4.3.1 was found" in play.errors[-1]


def test_a_missing_image_is_named(container_host):
    play = container_host.play("sage_container", sage_container_image="localhost/none:1", sage_container_name="second")
    assert play.rc != 0
    assert "The image localhost/none:1 is not in the image store of user researcher on" in play.errors[-1]
    assert "Build it first: ansible-playbook playbooks/build_image.yml" in play.errors[-1]


def test_the_host_network_is_refused(container_host):
    play = container_host.play("sage_container", sage_container_network="host")
    assert play.rc != 0
    assert "every address" in play.errors[-1]


def test_a_second_run_changes_nothing(container_host, up):
    before = started(container_host)
    play = container_host.play("sage_container")
    assert (play.rc, play.changed) == (0, []), play.errors
    assert container_host.play("sage_container", check=True).changed == []
    assert started(container_host) == before


def test_jupyter_answers_only_with_the_token_and_only_on_loopback(container_host, up):
    token = container_host.read(TOKEN).decode()
    assert len(token) == 48
    assert container_host.sh(f"stat -c %a:%U {TOKEN}").strip() == "600:researcher"
    assert status(container_host, token=token) == "200"
    assert status(container_host) == "403"
    assert status(container_host, token="wrong") == "403"
    address = container_host.connection()["ansible_host"]
    assert status(container_host, address=address, token=token) == "000"
    listening = container_host.sh("ss -Hltn sport = :8888").split()
    assert "127.0.0.1:8888" in listening


def test_the_token_shows_nowhere(container_host, up):
    token = container_host.read(TOKEN).decode()
    assert token not in container_host.sh("ps axww -o args")
    assert token not in container_host.podman("inspect", "sagemath")
    assert token not in container_host.podman("exec", "sagemath", "env")
    assert token not in container_host.read(UNIT).decode()
    assert token not in json.dumps(up.events)


def test_a_secret_of_podmans_is_in_the_environment_and_shows_nowhere(container_host, up):
    container_host.sh("printf c4nary > lic; podman secret create licence lic; rm lic", user="researcher")
    play = container_host.play("sage_container", sage_container_secrets={"LICENCE_KEY": "licence"})
    assert play.rc == 0, play.errors
    assert container_host.podman("exec", "sagemath", "sh", "-c", "echo $LICENCE_KEY") == "c4nary"
    assert "c4nary" not in container_host.sh("ps axww -o args")
    assert "c4nary" not in container_host.podman("inspect", "sagemath")
    assert "c4nary" not in container_host.read(UNIT).decode()
    assert container_host.play("sage_container").rc == 0
    assert container_host.podman("exec", "sagemath", "sh", "-c", "echo $LICENCE_KEY") == ""


def test_both_sides_write_the_same_files(container_host, up):
    container_host.podman("exec", "sagemath", "sh", "-c", "umask 077; echo inside > /home/sage/notebooks/inside")
    container_host.sh("echo more >> ~/Jupyter/inside; echo outside > ~/Jupyter/outside", user="researcher")
    container_host.podman("exec", "sagemath", "sh", "-c", "echo more >> /home/sage/notebooks/outside")
    assert container_host.sh("cat ~/Jupyter/inside ~/Jupyter/outside", user="researcher").split() == ["inside", "more", "outside", "more"]


def test_it_is_healthy_and_comes_back_when_it_ends(container_host, up):
    container_host.podman("healthcheck", "run", "sagemath")
    before = started(container_host)
    container_host.podman("kill", "sagemath")
    container_host.sh(
        "for i in $(seq 60); do sleep 1; podman inspect --format '{{.State.StartedAt}}' sagemath 2>/dev/null"
        " | grep -vxF '" + before + "' && exit; done; exit 1",
        user="researcher",
    )


def test_a_restart_waits_for_running_jobs(container_host, running_job):
    before = started(container_host)
    more = {"sage_container_environment": {"MORE": "yes"}}
    play = container_host.play("sage_container", **more)
    assert play.rc == 0, play.errors
    assert play.changed == ["Put the unit there"]
    assert "would end 1 running job (petersen_off3)" in play.messages
    assert started(container_host) == before

    # It is not forgotten, and can be forced.
    again = container_host.play("sage_container", **more)
    assert again.changed == []
    assert "its unit or token changed" in again.messages
    forced = container_host.play("sage_container", sage_container_force_restart=True, **more)
    assert forced.rc == 0, forced.errors
    assert started(container_host) != before
    assert container_host.podman("exec", "sagemath", "printenv", "MORE") == "yes"


def test_a_new_token_or_image_restarts(container_host, up):
    container_host.play("sage_container")
    container_host.sh(f"rm {TOKEN}")
    assert container_host.play("sage_container").rc == 0
    assert status(container_host, token=container_host.read(TOKEN).decode()) == "200"

    before = started(container_host)
    assert container_host.build(sage_image_build_args={"PIP_INDEX_URL": "https://pypi.org/simple"}).rc == 0
    play = container_host.play("sage_container")
    assert any("its image changed" in task for task in play.changed), play.changed
    assert started(container_host) != before
    assert container_host.play("sage_container").changed == []


def test_a_jupyter_that_does_not_answer_is_shown_with_its_last_lines(container_host, up):
    play = container_host.play(
        "sage_container",
        sage_container_name="second",
        sage_container_port=8890,
        sage_container_wait=3,
        sage_container_command=["sh", "-c", "echo I will not serve; sleep 60"],
    )
    container_host.systemctl("stop", "second")
    container_host.sh(f"rm {UNIT.replace('sagemath', 'second')}")
    assert play.rc != 0
    assert "Jupyter did not answer on http://127.0.0.1:8890" in play.errors[-1]
    assert "I will not serve" in play.errors[-1]
