# MIT licence, see LICENSE.
"""What roles, quickstart and tools/bootstrap refuse before they change anything. What they do is in tests/roles, molecule and guides."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
BOOTSTRAP = REPOSITORY / "tools" / "bootstrap"
ME = pwd.getpwuid(os.getuid()).pw_name
ROOT = os.getuid() == 0
SYSTEMD = os.path.isdir("/run/systemd/system")
APPTAINER = ("/usr/bin/apptainer", "/usr/local/bin/apptainer")


@pytest.mark.parametrize(
    ("role", "variables", "refusal"),
    [
        ("batch_host", {"batch_host_supervisor": "supervisord", "batch_host_root": "q"}, "The queue's root q is not an absolute path."),
        pytest.param(
            "batch_host",
            {"batch_host_supervisor": "systemd"},
            "systemd does not run localhost, so it cannot supervise the workers.",
            marks=pytest.mark.skipif(SYSTEMD, reason="it does"),
        ),
        pytest.param(
            "batch_host",
            {"batch_host_user": "nobody-here"},
            f"The user nobody-here does not exist on localhost, and {ME} cannot make it.",
            marks=pytest.mark.skipif(ROOT, reason="root would make the user"),
        ),
        ("sage_venv", {"sage_venv_path": "x"}, "sage_venv_path 'x' is not an absolute path. Set it to one, or leave it out."),
        ("sage_image", {"sage_image_user": "nobody-here"}, "User nobody-here does not exist on localhost, so no image can be built."),
        ("sage_image", {"sage_image_user": ME}, "Podman is not installed on localhost, so no image can be built."),
        ("sage_container", {"sage_container_user": ME}, "Podman is not installed on localhost. The roles batch_host, podman and"),
        ("sage_container", {"sage_container_user": "nobody-here"}, "User nobody-here does not exist on localhost. The roles"),
        pytest.param(
            "sage_sif",
            {"sage_sif_manage": False, "sage_sif_user": ME},
            "Apptainer is not installed on localhost, and sage_sif_manage is false. Install Apptainer 1.2 or newer with squashfuse",
            marks=pytest.mark.skipif(any(map(os.path.exists, APPTAINER)), reason="it is"),
        ),
        ("sage_container", {"sage_container_userns": "other"}, "value of sage_container_userns must be one of: keep-id, mapped"),
        ("slurm", {}, "A Slurm pool needs one host in the group slurm_controller (0 now) and at least one in slurm_compute (0 now)."),
        (
            "htcondor",
            {},
            "An HTCondor pool needs one host in the group htcondor_controller (0 now) and at least one in htcondor_compute (0 now).",
        ),
    ],
)
def test_a_role_refuses_what_it_cannot_do(tmp_path: Path, role: str, variables: dict[str, Any], refusal: str) -> None:
    if "nobody-here" in variables.values() and role != "batch_host" and not ROOT:
        pytest.skip("only root becomes root without a password")
    task = {"ansible.builtin.include_role": {"name": f"sagequeue.batch.{role}"}}
    # Root needs no sudo to become root.
    known = {"ansible_become_method": "su", "ansible_python_interpreter": sys.executable}
    play = {"hosts": "localhost", "vars": {**variables, **known}, "tasks": [{"name": "Call the role", **task}]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{"name": "A play", **play}]))
    (tmp_path / "ansible.cfg").touch()
    # Podman may be on this machine; here all is but Podman.
    (tmp_path / "bin").mkdir()
    for name in os.listdir("/usr/bin"):
        if name != "podman":
            (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    ansible = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [ansible, "-i", "localhost,", "-c", "local", "play.yml"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "playbooks" / "collections"), "PATH": f"{tmp_path}/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and refusal in " ".join(done.stdout.split()), done.stdout + done.stderr
    assert "changed=0" in done.stdout


class Bare:
    """A folder to make an environment in, and all the programs that there are for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tools = folder, folder / "bin"
        (folder / "tools").mkdir()
        self.tools.mkdir()
        (folder / "tools" / "bootstrap").write_bytes(BOOTSTRAP.read_bytes())
        for name in ("requirements.txt", "requirements-test.txt"):
            (folder / name).touch()
        for name in ("bash", "basename", "cat", "dirname", "env", "grep", "id", "mktemp", "readlink", "rm", "sha256sum", "touch"):
            (path,) = [f"{at}/{name}" for at in ("/usr/bin", "/bin") if os.path.exists(f"{at}/{name}")][:1]
            (self.tools / name).symlink_to(path)

    def tool(self, name: str, text: str) -> None:
        (self.tools / name).unlink(missing_ok=True)
        (self.tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.tools / name).chmod(0o755)

    def dies(self, command: str, **variables: str) -> str:
        """Return what a command of tools/bootstrap dies of."""
        done = subprocess.run(
            ["/bin/bash", "-c", f"set -euo pipefail; . tools/bootstrap; {command}", "quickstart"],
            cwd=self.folder,
            env={"PATH": str(self.tools), "HOME": str(self.folder), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr.splitlines()[-1]


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


def test_packages_that_cannot_be_had(bare: Bare) -> None:
    assert bare.dies("apt_install one two") == "quickstart: needs one two, and there is no apt here: install them first"
    bare.tool("apt-get", "exit 100")
    bare.tool("id", "echo 1000")
    assert bare.dies("apt_install one") == "quickstart: needs one, and there is no sudo here: as root, apt-get install one"
    bare.tool("id", "echo 0")
    bare.tool("apt-get", '[ "$1" = update ] || exit 100')
    assert bare.dies("apt_install one") == "quickstart: apt-get could not install one: see above"


def test_a_python_that_does_not_do(bare: Bare) -> None:
    bare.tool("python3", 'case $1 in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac')
    why = "needs Python 3.11 or newer, and python3 is Python 3.9.2: install one, or name it: PYTHON=/path/to/python3"
    assert bare.dies("bootstrap") == f"quickstart: {why}"
    # All packages are there, and it has no venv all the same.
    bare.tool("dpkg-query", "echo installed")
    bare.tool("python3", 'case $2 in *ensurepip*) exit 1 ;; esac')
    why = f"{bare.tools}/python3 cannot make virtual environments: install its venv module (python3.X-venv)"
    assert bare.dies("bootstrap") == f"quickstart: {why}"


def test_an_index_that_cannot_be_reached(bare: Bare) -> None:
    (bare.tools / "python3").symlink_to(Path(sys.executable).resolve())
    away = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    assert bare.dies("bootstrap", **away) == "quickstart: the collections of requirements.yml could not be taken from PyPI: see above"
    (bare.folder / "requirements.txt").write_text("no-such-package-here==1\n")
    assert bare.dies("bootstrap", **away) == "quickstart: pip could not install what requirements*.txt names: see above"


def test_words_that_mean_nothing() -> None:
    for words, why in (
        (["tools/bootstrap", "--tests"], "bootstrap: takes --test, for what the tests need, or nothing"),
        (["./quickstart", "now"], "quickstart: takes no arguments; README.md says what the playbooks take"),
    ):
        done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.strip()) == (1, why)
