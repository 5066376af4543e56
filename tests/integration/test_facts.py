# MIT licence, see LICENSE.
"""Each role in a play that has gathered no facts, or those of setup."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir())
SUBSET = ["!all", "!min", "env", "platform", "python", "user"]
GATHERS = "facts : Have the facts that the other roles need"
# Those that need none, or others, which they gather themselves where there is a pool.
WITHOUT = {"wsl", "slurm", "htcondor"}


@pytest.mark.parametrize("gathered", [False, True])
def test_each_role_has_the_facts_that_it_needs(tmp_path: Path, gathered: bool) -> None:
    """In check mode, as far as this machine lets it come; each role on a host of its own, with facts of its own."""
    task = {"name": "Call the role", "ansible.builtin.include_role": {"name": "sagequeue.batch.{{ inventory_hostname }}"}}
    gathers: dict[str, Any] = {"gather_facts": gathered, **({"gather_subset": SUBSET} if gathered else {})}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{"name": "A play", "hosts": "all", **gathers, "tasks": [task]}]))
    known = {"ansible_connection": "local", "ansible_become_method": "su", "ansible_python_interpreter": sys.executable}
    hosts = {"hosts": dict.fromkeys(ROLES), "vars": {**known, "sagequeue_root": str(tmp_path / "q")}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": hosts}))
    (tmp_path / "ansible.cfg").touch()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "hosts.yml", "--check", "play.yml"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "playbooks" / "collections"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # What stops a role here, if anything, is an error of its own.
    why = dict(re.findall(r"^fatal: \[(\w+)\]: FAILED! => (.*)$", done.stdout, flags=re.MULTILINE))
    assert [role for role, text in why.items() if re.search("has no attribute|undefined", json.loads(text)["msg"])] == [], done.stdout
    ended = dict(re.findall(r"^(\w+) +: ok=(\d+)", done.stdout, flags=re.MULTILINE))
    assert sorted(ended) == ROLES and "unreachable=1" not in done.stdout
    here = done.stdout.split(f"TASK [sagequeue.batch.{GATHERS}]")[1:]
    got = {role for text in here for role in re.findall(r"^ok: \[(\w+)\]", text.split("\nTASK [")[0], flags=re.MULTILINE)}
    assert got == (set() if gathered else set(ROLES) - WITHOUT)
    assert not (tmp_path / "q").exists()
