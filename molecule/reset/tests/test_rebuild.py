"""The image anew, as one command: killed while it goes on, and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from batch_site import ROOT

# Where it is killed, by the names of tasks that have just begun.
STEPS = ["Wait for the jobs that run", "Let jobs be claimed again"]
MORE = [
    "Let no more jobs be claimed",
    "Build the image, because",
    "Solve a clause with the candidate",
    "Give the candidate its name",
    "Drop images that nothing uses",
    "Start the container",
    "Ask Jupyter with the token",
    "Solve a clause in the running container",
]


def new(step):
    """Variables that ask for another recipe than that of setup and of all other steps."""
    return {"sagequeue_userns": "mapped", "sage_image_build_args": {"STEP": step}, "put_back": True}


def kill_at(site, step, **variables):
    """Start the command, and kill all that belongs to it here when a task begins."""
    words = ["ansible-playbook", "-i", str(site.inventory), "-e", json.dumps(variables), str(ROOT / "playbooks" / "rebuild_image.yml")]
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "playbooks" / "collections"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        # Else a task is named only when it has ended.
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    said, begun = [], False
    for line in process.stdout:
        said.append(line)
        # It looks at the container before, too.
        begun = begun or MORE[0] in line
        if begun and line.startswith("TASK [") and step in line:
            break
    else:
        pytest.fail(f"it has ended before the task {step}:\n{''.join(said[-30:])}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def broken(site):
    """pycryptosat is gone from the running container, and jobs have failed for want of it; the gate of template is an operator's."""
    site.setup()
    site.sh("podman exec -u root sagemath /sage/sage -pip uninstall -y pycryptosat")
    site.play("enqueue", jobset="petersen", offsets="0,1")
    site.until_counts("petersen", seconds=200, failed=2)
    site.play("request_stop", jobset="template")
    return site.sh("cat ~/Jupyter/template_stop.txt")


def test_check_mode_says_what_would_happen(site, broken):
    said = site.play("rebuild_image", check=True, **new("check")).said
    for words in ("would close the gates of half, petersen", "would put back half_off", "would leave closed, as now: the gates of template",
                  "a build argument changed", "would restart the workers of half, petersen",
                  "would retry, because the image was to blame: petersen_off0, petersen_off1"):  # fmt: skip
        assert words in said
    assert not site.sh("ls ~/sagequeue/var | grep rebuild || true")


@pytest.mark.parametrize("step", [*(pytest.param(step, marks=pytest.mark.long) for step in MORE), *STEPS])
def test_killed(site, broken, step):
    site.until_counts("half", seconds=60, running=2)
    # Deaf jobs are waited for as long as it takes; then they are put back.
    kill_at(site, step, **{**new(step), "put_back": step != STEPS[0]})
    assert sum(site.progress("half")["counts"].values()) == 6
    noted = site.sh("cat ~/sagequeue/var/rebuild_image.json 2>/dev/null || true")
    if step != MORE[0]:
        assert json.loads(noted)["jobsets"]["half"] == {"open": True, "ran": True}
        assert "rebuild_image" in site.progress("half")["gate"]["text"] or step == STEPS[1]
    if step in MORE:
        site.play("rebuild_image", cancel=True, sagequeue_userns="mapped")
        assert not site.progress("half")["gate"]["closed"]


def test_run_again_it_ends_right(site, broken):
    said = site.play("rebuild_image", **new(STEPS[-1])).said
    assert "solves in the running container sagemath" in said
    assert site.sh("ls ~/sagequeue/var | grep rebuild || true") == ""
    assert site.sh("cat ~/Jupyter/template_stop.txt") == broken, "an operator's gate was opened"
    assert not site.progress("half")["gate"]["closed"] and not site.progress("petersen")["gate"]["closed"]
    assert site.sh("podman inspect -f '{{.Image}}' sagemath") == site.sh(
        "podman image inspect -f '{{.Id}}' localhost/sagequeue-sagemath:10.7-pycryptosat"
    )
    site.until_counts("petersen", seconds=200, done=2)
    site.until_counts("half", seconds=60, running=2)
    again = site.play("rebuild_image", **new(STEPS[-1]))
    assert again.changed == []
    site.play("clear_stop", jobset="template")


def test_a_build_that_fails_leaves_all_as_it_was(site, broken):
    play = site.play("rebuild_image", ok=False, sagequeue_userns="mapped", put_back=True, sage_image_pycryptosat_version="0.0.0")
    assert play.rc != 0 and "All goes on as before, with the image from before: open: the gates of half, petersen" in play.errors
    site.until_counts("half", seconds=60, running=2)
    assert site.sh("ls ~/sagequeue/var | grep rebuild || true") == ""
