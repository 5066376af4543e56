# MIT licence, see LICENSE.
"""The collection as it is shipped: the same bytes from the same files, nothing needless in it, at work from an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*words: str, **options: Any) -> str:
    """Run a command; return what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert not done.returncode, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, built from this checkout."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "tools/build", str(folder), cwd=REPOSITORY)
    (built,) = folder.iterdir()
    return built


# The operator's commands beside those of the test itself, in an order that makes sense, each with what it must be told. Those that need a
# container, an engine or several hosts are left out.
COMMANDS: dict[str, list[str]] = {
    "status": [],
    "list": [],
    "logs": ["job=quick_off0"],
    "journal": [],
    "verify": [],
    "report": [],
    "metrics": [],
    "diag": [],
    "stop": [],
    "reset": ["jobs=off0"],
    "hold": ["jobs=off0"],
    "release": ["jobs=off0"],
    "priority": ["jobs=off0", "priority=3"],
    "request_stop": [],
    "kill": ["jobs=off0"],
    "retry_failed": [],
    "requeue_running": [],
    "clear_stop": [],
    "backup": ["file={folder}/quick.tar.gz"],
    "purge_queue": ["confirm=quick"],
    "restore": ["file={folder}/quick.tar.gz"],
    "disable": [],
    "enable": [],
    "start": [],
    "restart": [],
}


def test_its_pages_refer_to_what_is_shipped(archive: Path) -> None:
    with tarfile.open(archive) as shipped:
        names = shipped.getnames()
        pages = {name: shipped.extractfile(name) for name in names if name.endswith(".md")}
        links = {(name, link) for name, page in pages.items() if page for link in re.findall(r"\]\(([^):#\s]+)[#)]", page.read().decode())}
    assert len(links) > 50
    assert [(name, link) for name, link in links if os.path.normpath(os.path.join(os.path.dirname(name), link)) not in names] == []


def test_the_same_files_give_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    """In another folder, made in another order, at another time, by a user with another umask."""
    other = tmp_path / "elsewhere"
    names = run("git", "ls-files", "-z", cwd=REPOSITORY).split("\0")
    old = os.umask(0o077)
    try:
        for name in sorted((name for name in names if (REPOSITORY / name).exists() and name), reverse=True):
            copy = other / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (REPOSITORY / name).is_symlink():
                copy.symlink_to(os.readlink(REPOSITORY / name))
                continue
            copy.write_bytes((REPOSITORY / name).read_bytes())
            copy.chmod(0o700 if (REPOSITORY / name).stat().st_mode & 0o100 else 0o600)
            os.utime(copy, (1, time.time() - 1000))
    finally:
        os.umask(old)
    (other / "left.by.an.editor~").touch()
    run("git", "init", "--quiet", cwd=other)
    run("git", "add", "--", ".", ":!left*", cwd=other)
    (tmp_path / "again").mkdir()
    # Another file system lists them in another order.
    scratch = {"TMPDIR": "/dev/shm"} if os.path.isdir("/dev/shm") else {}
    run(sys.executable, "tools/build", str(tmp_path / "again"), cwd=other, env={**os.environ, **scratch})
    assert (tmp_path / "again" / archive.name).read_bytes() == archive.read_bytes()


def test_nothing_needless_is_in_it(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    top = {name.split("/")[0] for name in names}
    files = {"MANIFEST.json", "FILES.json", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "requirements.yml"}
    assert top == files | {"LICENSES", "changelogs", "docs", "files", "inventories", "meta", "playbooks", "plugins", "roles"}
    assert {name for name in names if name.startswith("changelogs")} == {"changelogs", "changelogs/changelog.yaml"}
    assert [name for name in names if name.startswith("docs/") and "." in name and not name.endswith((".md", ".svg"))] == []
    assert [name for name in names if "/." in name or "__pycache__" in name or "collections" in name] == []


def test_it_installs_offline_and_works_from_an_empty_folder(archive: Path, tmp_path: Path, new_house: Any) -> None:
    collections, nowhere = tmp_path / "collections", tmp_path / "nowhere"
    nowhere.mkdir()
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(collections), "ANSIBLE_STDOUT_CALLBACK": "sagequeue.batch.operator"}
    # What it depends on is not loaded either: it is among what comes with Ansible, or beside it.
    run(
        "ansible-galaxy",
        "collection",
        "install",
        "--offline",
        "--no-deps",
        "-p",
        str(collections),
        str(archive),
        cwd=nowhere,
        env=environment,
    )
    run("ansible-galaxy", "collection", "verify", "--offline", "sagequeue.batch", cwd=nowhere, env=environment)

    def play(name: str, *options: str) -> str:
        words = ["ansible-playbook", f"sagequeue.batch.{name}", "-i", str(new_house.folder / "inventory"), *options]
        return run(*words, cwd=nowhere, env=environment)

    assert "is a batch host" in play("setup", "-e", "jobset=quick")
    assert "4 enqueued" in play("enqueue", "-e", "jobset=quick")
    assert "all 4 jobs are done" in play("progress", "-e", "jobset=quick", "-e", "follow=true")
    # Files beside a playbook are found by its full name, too.
    for name, options in COMMANDS.items():
        words = [word for option in options for word in ("-e", option.format(folder=new_house.folder))]
        assert play(name, "-e", "jobset=quick", *words).strip(), name
    assert "is taken down" in play("teardown")
    assert list(nowhere.iterdir()) == []
