# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""The archive for a bug report: what is in it, and above all what is not."""

from __future__ import annotations

import base64
import json
import os
import stat
import tarfile
import urllib.parse

import pytest
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import diag
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.carriers import carriers
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.redact import Redactor
from ansible_collections.sagequeue.batch.tests.unit.batch_host import Host, wait_for

# Of jobsets, of Podman, of Jupyter; by the name of a variable; and one that nobody has named.
SECRETS = {
    "jobset": 'plain-VALUE-1 "quoted" \\ käfer/x',
    "lines": "first line of a key\nsecond line of a key",
    "podman": "podman-VALUE-2",
    "jupyter": "jupyterVALUE3",
    "environment": "environment-VALUE-4",
    "unit": "unit-VALUE-5",
    "stray": "stray-VALUE-6",
    "older": "olderjupyterVALUE7",
}

# Stands where podman, systemctl and so on are: what they say has secrets in it, or no end.
TOOLS = {
    "podman": r"""
        case "$*" in
            *showsecret*sagemath-jupyter-token) cat "$SECRETS/jupyter" ;;
            *showsecret*licence) cat "$SECRETS/podman" ;;
            inspect*) printf '[{"Config": {"Env": ["A=%s"], "CreateCommand": ["podman", "--env", "A=%s"]}, "State": {"Running": true}}]' \
                "$(cat "$SECRETS/stray")" "$(cat "$SECRETS/stray")" ;;
            logs*) echo "http://127.0.0.1:8888/tree?token=$(cat "$SECRETS/older")"; cat "$SECRETS/podman" "$SECRETS/jupyter" ;;
            *) echo podman "$@" ;;
        esac""",
    "journalctl": r"""
        for one in jobset lines podman jupyter environment; do cat "$SECRETS/$one"; echo; done
        echo "PASSWORD=$(cat "$SECRETS/stray") and so on" """,
    "systemctl": r"""
        case "$*" in
            *cat*) printf 'Environment=X=%s\nExec=podman run --env=Y=%s image\n' "$(cat "$SECRETS/unit")" "$(cat "$SECRETS/unit")" ;;
            *) sleep 60 & sleep 60 ;;
        esac""",
    "findmnt": "yes | head -c 3000000; echo the end",
    "loginctl": "exit 3",
}  # fmt: skip


def forms(secret: str) -> list[str]:
    return [
        secret,
        *secret.split("\n"),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        urllib.parse.quote(secret),
        base64.b64encode(secret.encode()).decode(),
    ]


@pytest.fixture
def archive(host: Host, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The texts of the archive of a host on which everything blabs."""
    tools, secrets, home = host.base / "tools", host.base / "secrets", host.base / "home"
    for folder in (tools, secrets, home / ".config/systemd/user", host.root / "etc", host.root / "log"):
        folder.mkdir(parents=True)
    for name, text in TOOLS.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    for name, secret in SECRETS.items():
        (secrets / name).write_text(secret)
    (home / ".config/systemd/user/sagequeue-worker@.service").write_text(
        f'[Service]\nEnvironment="A={SECRETS["unit"]}" "B=x"\nExecStart=worker\n'
    )
    (host.root / "etc/jupyter.token").write_text(SECRETS["jupyter"])
    (host.root / "log/t-1.log").write_text("\n".join(form for secret in ("jobset", "lines") for form in forms(SECRETS[secret])))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SECRETS", str(secrets))
    monkeypatch.setenv("SOMETHING", SECRETS["stray"])
    monkeypatch.setattr(diag, "_SECONDS", 1.5)
    # The tools above can be had with a systemd or without.
    monkeypatch.setattr(diag, "BOOTED", str(tools))
    host.define(
        secrets={"A": SECRETS["jobset"], "KEY": SECRETS["lines"], "SHORT": "a"},
        environment={"API_TOKEN": SECRETS["environment"], "OPEN": "not-shown-either"},
        args=["--password", SECRETS["stray"]],
    )
    host.define("run", runner="podman_run", image="x", podman_secrets={"L": "licence"}, run_options=[f"--env=Z={SECRETS['unit']}"])
    host.put("failed", "x", "REASON=exit_status\n")
    (host.root / "var/t/log/x.log").write_text("what a job printed")
    with open(host.root / "var/t/run/history.jsonl", "w") as history:
        history.write(json.dumps({"job": "x", "detail": SECRETS["jobset"]}) + "\n")
    (host.root / "var/t/run/gates.jsonl").symlink_to("/etc/passwd")
    collected = diag.Diag(str(host.root), more={"controller.txt": "Ansible 2.20"})
    collected.collect()
    path = collected.archive()
    assert os.path.dirname(path) == str(host.root / "diag") and os.listdir(host.root / "diag") == [os.path.basename(path)]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    # Nothing that it has started goes on.
    wait_for(lambda: not carriers({"SECRETS": str(secrets), "LC_ALL": "C.UTF-8"}))
    with tarfile.open(path) as tar:
        top = os.path.basename(path)[: -len(".tar.gz")]
        assert all(member.isreg() and member.name.startswith(f"{top}/") and ".." not in member.name for member in tar)
        return {member.name[len(top) + 1 :]: tar.extractfile(member).read().decode() for member in tar}  # type: ignore[union-attr]


def test_no_secret_is_in_it(archive: dict[str, str]) -> None:
    whole = "".join(f"{name}\n{text}" for name, text in archive.items())
    assert len(archive) > 40 and whole.count("[secret]") > 20
    assert [(name, form) for name, text in archive.items() for secret in SECRETS.values() for form in forms(secret) if form in text] == []
    assert "not-shown-either" not in whole and "what a job printed" not in whole and "root:x:0" not in whole
    shown = json.loads(archive["queues/t/definition.json"])
    assert shown["secrets"] == {"A": "[secret]", "KEY": "[secret]", "SHORT": "[secret]"} and shown["stride"] == 1
    # What helps stays.
    assert "tree?token=[secret]" in archive["container/logs.txt"] and '"Running": true' in archive["container/inspect.txt"]
    assert "ExecStart=worker" in next(text for name, text in archive.items() if name.endswith("sagequeue-worker@.service"))


def test_what_it_tells(archive: dict[str, str]) -> None:
    assert (
        "Linux" in archive["host/uname.txt"]
        and "open files" in archive["host/files/proc/self/limits"]
        and "VmSwap" not in archive["host/files/proc/meminfo"]
        and "MemTotal" in archive["host/files/proc/meminfo"]
    )
    assert "failed: 1 entries" in archive["queues/t/queue.txt"] and "'x.env'" in archive["queues/t/queue.txt"]
    assert '"job": "x"' in archive["queues/t/history.jsonl"] and archive["controller.txt"] == "Ansible 2.20"
    assert "not a regular file" in archive["queues/t/gates.jsonl"]
    assert "queues/run/definition.json" in archive["README.txt"]


def test_no_tool_holds_it_up(archive: dict[str, str]) -> None:
    assert "(ended after 1.5 s)" in archive["units/units.txt"]
    assert "(exit status 3)" in archive["units/linger.txt"]
    assert "(not on this host)" in archive["units/supervisord.txt"]
    flood = archive["disk/mounts.txt"]
    assert "bytes before this are left out" in flood and flood.endswith("the end\n") and len(flood) < 300_000


def test_without_systemd_its_tools_are_not_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diag, "BOOTED", str(host.base / "nowhere"))
    collected = diag.Diag(str(host.root))
    collected.collect()
    assert "does not run here" in collected.parts["units/systemd.txt"] and "units/supervisord.txt" in collected.parts
    assert not {"units/units.txt", "units/journal.txt", "host/clock.txt"} & collected.parts.keys()


def test_a_definition_that_cannot_be_read_gives_nothing_away(host: Host) -> None:
    host.define()
    path = host.root / "etc" / "jobsets" / "t.json"
    path.write_text('{"script": "x", "secrets": {"A": "my-VALUE"}, "unknown": 1}')
    (host.root / "log").mkdir()
    (host.root / "log" / "t-1.log").write_text("says my-VALUE")
    host.environment["PATH"] = "/nonexistent"
    said = host.sagequeue("diag")
    assert said.returncode == 0, said.stderr
    (made,) = (host.root / "diag").iterdir()
    assert str(made) in said.stdout
    with tarfile.open(made) as tar:
        texts = [tar.extractfile(member).read().decode() for member in tar]  # type: ignore[union-attr]
    assert not [text for text in texts if "my-VALUE" in text] and [text for text in texts if "says [secret]" in text]
    assert [text for text in texts if "jobset t: " in text]


def test_podman_is_asked_only_where_something_is_contained(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def contained() -> list[str]:
        collected = diag.Diag(str(host.root))
        collected.collect()
        return sorted(name for name in collected.parts if name.startswith("container/"))

    monkeypatch.setenv("HOME", str(host.base))
    assert "container/podman-info.txt" in contained(), "nothing is set up yet"
    host.define()
    assert contained() == ["container/inspect.txt"]
    host.define("run", runner="podman_run", image="x")
    assert "container/podman-info.txt" in contained()


def test_it_says_where_it_cannot_be_written(host: Host) -> None:
    host.define()
    (host.base / "file").touch()
    host.environment["PATH"] = "/nonexistent"
    said = host.sagequeue("diag", "--to", str(host.base / "file"))
    assert said.returncode == 1 and "can't write the archive" in said.stderr and "Traceback" not in said.stderr


def test_two_within_a_second_are_two(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diag.owner, "now", lambda: "2026-11-21T10:15:00.000Z")
    for count in range(3):
        path = diag.Diag(str(host.root), more={"count.txt": str(count)}).archive()
        with tarfile.open(path) as tar:
            assert os.path.basename(path)[: -len(".tar.gz")] + "/count.txt" in tar.getnames()
    assert path.endswith("-20261121T101500Z-3.tar.gz") and len(os.listdir(host.root / "diag")) == 3


def test_a_name_gives_a_secret_away() -> None:
    hide = Redactor([], guess=True)
    for text in (
        "token=abcdef",
        "PASSWORD: abcdef",
        '"api_key": "abcdef"',
        "--token abcdef",
        "https://me:abcdef@host/",
        "Authorization: Bearer abcdef",
    ):
        assert "abcdef" not in hide(text), hide(text)
    for text in ("the token is gone", "tokens: 3", "secret/jobset", "https://host:8888/x"):
        assert hide(text) == text
    assert Redactor(["aaaa", "aaaabbbb", ""])("aaaabbbb aaaa") == "[secret] [secret]"
    assert Redactor([])(text) == text
