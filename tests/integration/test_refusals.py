# MIT licence, see LICENSE.
"""What roles, quickstart and tools/bootstrap refuse before they change anything. What they do is in tests/roles, molecule and guides."""

from __future__ import annotations

import json
import os
import pwd
import socket
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
BECOMES = pytest.mark.skipif(not ROOT, reason="only root becomes root without a password")
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
            {"batch_host_supervisor": "systemd"},
            "root cannot be the batch user of a full host: its workers are units of an ordinary user's systemd.",
            marks=pytest.mark.skipif(not ROOT, reason="an ordinary user can"),
        ),
        pytest.param(
            "bind_mounts",
            {"bind_mounts_user": "root"},
            "Rootless Podman is not for root. Next: name an ordinary user in bind_mounts_user.",
            marks=BECOMES,
        ),
        pytest.param(
            "bind_mounts",
            {"bind_mounts_user": "nobody-here"},
            "The user nobody-here does not exist. Next: make the user, or name another one in bind_mounts_user.",
            marks=BECOMES,
        ),
        (
            "sage_image",
            {"sage_image_user": ME, "sage_image_containerfile": "/none"},
            "The Containerfile /none does not exist on the machine that runs Ansible. Point sage_image_containerfile to one",
        ),
        pytest.param(
            "linger",
            {"linger_user": ME},
            "Linger needs systemd as PID 1, and this host runs something else. Next: choose the supervisor supervisord",
            marks=pytest.mark.skipif(SYSTEMD, reason="it does not"),
        ),
        pytest.param(
            "batch_host",
            {"batch_host_user": "nobody-here"},
            f"The user nobody-here does not exist on localhost, and {ME} cannot make it.",
            marks=pytest.mark.skipif(ROOT, reason="root would make the user"),
        ),
        ("sage_venv", {"sage_venv_path": "x"}, "sage_venv_path 'x' is not an absolute path. Set it to one, or leave it out."),
        ("sage_image", {"sage_image_user": ME, "sage_image_tag": "10.7-pycryptosat"}, "(10.7): the role adds -pycryptosat itself."),
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
        (
            "sage_container",
            {"sage_container_user": ME, "sage_container_network": "host"},
            "sage_container_network is 'host': Jupyter would then answer on every address of localhost. Leave the variable out",
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
    done = play(tmp_path, {"ansible.builtin.include_role": {"name": f"sagequeue.batch.{role}"}}, variables)
    assert done.returncode == 2 and refusal in " ".join(done.stdout.split()), done.stdout + done.stderr
    assert "changed=0" in done.stdout


def play(folder: Path, task: dict[str, Any], variables: dict[str, Any], *options: str, **tools: str) -> subprocess.CompletedProcess[str]:
    """Run one task on this machine.

    Args:
        folder: an empty one.
        task: the task; its vars are the play's.
        variables: hold above all others.
        options: of ansible-playbook.
        tools: programs that are there besides those of this machine without Podman, as shell scripts.
    """
    # Root needs no sudo to become root.
    known = {"ansible_become_method": "su", "ansible_python_interpreter": sys.executable, **task.pop("vars", {})}
    tasks = [{"name": "A play", "hosts": "localhost", "vars": known, "tasks": [{"name": "Call it", **task}]}]
    (folder / "play.yml").write_text(yaml.safe_dump(tasks))
    (folder / "ansible.cfg").touch()
    (folder / "bin").mkdir()
    for name in os.listdir("/usr/bin"):
        if name not in ("podman", *tools):
            (folder / "bin" / name).symlink_to(f"/usr/bin/{name}")
    for name, text in tools.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", "play.yml"]
        + ["-e", json.dumps(variables), *options],
        cwd=folder,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "playbooks" / "collections"), "PATH": f"{folder}/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def says(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a play that failed said, on one line and as a person reads it."""
    assert done.returncode == 2, done.stdout + done.stderr
    return " ".join(done.stdout.replace("\\n", " ").replace('\\"', '"').split())


SUBIDS = {"bind_mounts_user": ME, "_bind_mounts_without": ["/etc/subuid", "/etc/subgid"], "_bind_mounts_subid_start": 100000}
SLURM = {"_slurm_controller": "localhost", "_slurm_looks": 1}
HTCONDOR = {"_htcondor_controller": "localhost", "_htcondor_looks": 1, "_htcondor_nodes": ["localhost", "far"]}


@pytest.mark.parametrize(
    ("role", "step", "variables", "tools", "refusal"),
    [
        # As a node that is down, and one whose slurmd does not answer, are shown.
        (
            "slurm",
            "verify",
            SLURM,
            {"sinfo": "echo near idle; echo far 'down*'"},
            "These nodes are not up: far down*. See journalctl -u slurmctld there, and -u slurmd on a node; munge needs the same key",
        ),
        (
            "slurm",
            "verify",
            SLURM,
            {"sinfo": "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"},
            "Slurm does not answer on localhost: slurm_load_partitions: Unable to contact slurm controller. See journalctl",
        ),
        (
            "htcondor",
            "verify",
            HTCONDOR,
            {"condor_status": "echo localhost"},
            "HTCondor on localhost knows 1 of 2 nodes: localhost. See /var/log/condor on a node that is missing: most often it has no",
        ),
        (
            "htcondor",
            "drain",
            {"htcondor_drain_node": "far"},
            {"condor_status": "true"},
            "HTCondor knows no node far in its pool (condor_status lists them). Name it as there; a node that is down",
        ),
        pytest.param(
            "linger",
            "wait",
            {"linger_user": ME, "linger_timeout": 2, "_linger_uid": "77"},
            {"busctl": "echo 'Failed to set bus address: No such file or directory' >&2; exit 1"},
            f"The systemd manager of {ME} did not answer over its bus within 2 s: Failed to set bus address: No such file or directory."
            " Next: install dbus-user-session if /run/user/77/bus is missing, then run",
            marks=BECOMES,
        ),
        (
            "sage_container",
            "main",
            {"sage_container_user": ME},
            {"podman": "echo podman version 4.3.1"},
            "Podman 4.3.1 was found on localhost, but Quadlet units need Podman 4.4 or newer. Ubuntu 24.04 and Debian 13 have it.",
        ),
        pytest.param(
            "sage_container",
            "main",
            {"sage_container_user": ME},
            {"podman": "echo podman version 5.4.2"},
            f"The systemd of user {ME} does not run (no /run/user/{os.getuid()}/bus) on localhost. The roles batch_host, podman",
            marks=pytest.mark.skipif(os.path.exists(f"/run/user/{os.getuid()}/bus"), reason="it does"),
        ),
        (
            "bind_mounts",
            "add_subids",
            {**SUBIDS, "bind_mounts_manage_subids": False},
            {},
            f"The user {ME} has no range of subordinate ids in /etc/subuid and /etc/subgid, which rootless Podman needs."
            " Next: set bind_mounts_manage_subids=true, or run",
        ),
        (
            "bind_mounts",
            "add_subids",
            {**SUBIDS, "_bind_mounts_subid_start": 4294960000},
            {},
            "Next: no id is free above the ranges of others; run",
        ),
        (
            "sage_sif",
            "source",
            {"sage_sif_user": ME, "_sage_sif_debian": False, "_sage_sif_ubuntu": False},
            {},
            "The packages of localhost have no Apptainer, and no source of it is known for such a system. Install Apptainer 1.2 or newer",
        ),
        pytest.param(
            "sage_container",
            "wait",
            {"sage_container_user": ME, "sage_container_name": "none", "_sage_container_reasons": [], "_sage_container_stale": True},
            {},
            "none.service could not be started on localhost. The last lines of none.service were:",
            marks=BECOMES,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_step_refuses_what_it_meets(
    tmp_path: Path, role: str, step: str, variables: dict[str, Any], tools: dict[str, str], refusal: str
) -> None:
    task = {"ansible.builtin.include_role": {"name": f"sagequeue.batch.{role}", "tasks_from": step}}
    assert refusal in says(play(tmp_path, task, variables, **tools))


def test_a_podman_that_does_not_tell_its_map(tmp_path: Path) -> None:
    task: dict[str, Any] = {"ansible.builtin.include_role": {"name": "sagequeue.batch.bind_mounts", "tasks_from": "folders"}}
    task["vars"] = {"_bind_mounts_looked": {"uid_map": ""}}
    said = says(play(tmp_path, task, {"bind_mounts_user": ME}, podman="echo 'cannot set up namespace' >&2; exit 125"))
    assert f"Podman can't say which ids the containers of {ME} get: cannot set up namespace. Next: run" in said


def test_a_port_that_somebody_else_has(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        task = {"ansible.builtin.include_role": {"name": "sagequeue.batch.sage_container"}}
        said = says(play(tmp_path, task, {"sage_container_user": ME, "sage_container_port": port}, "--check"))
    assert f"Port {port} on 127.0.0.1 of localhost is taken by " in said and "so Jupyter cannot have it. Nothing was started." in said


def test_a_container_that_is_not_fit_keeps_the_gates_closed(tmp_path: Path) -> None:
    task: dict[str, Any] = {"ansible.builtin.include_tasks": str(REPOSITORY / "playbooks" / "tasks" / "rebuild_container.yml")}
    # As it was found before the image was built.
    task["vars"] = {"sage_container_unfit": ""}
    variables = {"sage_container_user": ME, "queue": {"jobsets": ["petersen", "half"]}}
    said = says(play(tmp_path, task, {**variables, "sage_container_name": "none", "sage_container_port": 0}, "--check"))
    assert "The container none on localhost is not fit for jobs: it does not run." in said
    assert "The gates of petersen, half stay closed, since their jobs would fail. Mend it, and run rebuild_image again;" in said


def test_a_folder_and_a_python_that_sage_cannot_have(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    task = {"ansible.builtin.include_role": {"name": "sagequeue.batch.sage_venv"}}
    (tmp_path / "one").mkdir()
    said = says(play(tmp_path / "one", task, {"sage_venv_path": str(tmp_path / "theirs")}))
    assert f"{tmp_path}/theirs on localhost is not empty and was not made by this role, so nothing was changed." in said
    (tmp_path / "two").mkdir()
    (tmp_path / "python").write_text('#!/bin/sh\necho \'{"version": "3.9", "release": "3.9.2"}\'\n')
    (tmp_path / "python").chmod(0o755)
    said = says(play(tmp_path / "two", task, {"sage_venv_path": str(tmp_path / "new"), "sage_venv_python": str(tmp_path / "python")}))
    assert f"Sage needs Python 3.11, 3.12 or 3.13, and {tmp_path}/python on localhost is 3.9.2. Install one of them" in said


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
