# MIT licence, see LICENSE.
"""What a role's argument_specs, defaults and README say of its variables is the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
ROLES = sorted((REPOSITORY / "roles").iterdir())


def load(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping."""
    return yaml.safe_load(path.read_text()) or {}


def specs(role: Path) -> dict[str, Any]:
    """Return a role's entry points."""
    return load(role / "meta" / "argument_specs.yml")["argument_specs"]


def is_template(value: Any) -> bool:
    """Tell whether a default is worked out on the host."""
    return isinstance(value, (str, list, dict)) and "{{" in str(value)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_are_those_of_the_argument_specs(role: Path) -> None:
    options = {name: one for entry in specs(role).values() for name, one in entry.get("options", {}).items()}
    defaults = load(role / "defaults" / "main.yml")
    assert {name for name, one in options.items() if not one.get("required")} == set(defaults), "declared are others than have a default"
    fixed = {name: value for name, value in defaults.items() if not is_template(value) and value not in ("", None)}
    assert {name: options[name].get("default") for name in fixed} == fixed, "argument_specs have other defaults"
    # One that is worked out on the host may end in a fixed one: default('').
    worked_out = {name: str(value) for name, value in defaults.items() if is_template(value) and "default" in options[name]}
    assert [name for name, value in worked_out.items() if f"default({options[name]['default']!r})" not in value] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_has_every_variable_and_no_other(role: Path) -> None:
    options = {name for entry in specs(role).values() for name in entry.get("options", {})}
    told: set[str] = set()
    for cell in re.findall(r"^\| (`.*?) \|", (role / "README.md").read_text(), flags=re.MULTILINE):
        first, *more = re.findall(r"`(\w+)`", cell)
        # `sage_image_remove`, `_base` and the like: the beginning is that of the first.
        told |= {first} | {next((name for name in sorted(options) if name.endswith(one)), one) for one in more}
    assert told == options


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_has_the_defaults_that_hold(role: Path) -> None:
    """Where it gives a value, and not words, of what is not worked out on the host."""
    defaults = load(role / "defaults" / "main.yml")
    wrong = []
    for names, told in re.findall(r"^\| (`.*?) \| (`[^`]*`(?:, `[^`]*`)*) \|", (role / "README.md").read_text(), flags=re.MULTILINE):
        first, *more = re.findall(r"`(\w+)`", names)
        full = [first, *(next(name for name in defaults if name.endswith(one)) for one in more)]
        values = re.findall(r"`([^`]*)`", told)
        if len(full) == len(values) and not any(is_template(defaults[name]) for name in full):
            for name, value in zip(full, values):
                fixed = defaults[name]
                text = " ".join(fixed) if isinstance(fixed, list) and fixed else yaml.safe_dump(fixed).partition("\n")[0].strip("'")
                wrong += [] if value == text else [(name, value, text)]
    assert wrong == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_entry_point_has_its_tasks(role: Path) -> None:
    assert [name for name in specs(role) if not (role / "tasks" / f"{name}.yml").exists()] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_calls_no_playbook_and_a_module_no_other(role: Path) -> None:
    assert [str(path) for path in role.rglob("*.yml") if "import_playbook" in path.read_text()] == []


def depends(role: Path) -> set[str]:
    """Return the roles that Ansible calls before a role, whichever of its entry points is meant."""
    own = [one["role"].rpartition(".")[2] for one in load(role / "meta" / "main.yml")["dependencies"]]
    return {*own, *(name for one in own for name in depends(role.parent / one))}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_a_role_that_uses_facts_has_them_gathered(role: Path) -> None:
    """Its arguments are checked before its first task: only what it depends on comes sooner."""
    texts = [path.read_text() for path in role.rglob("*") if path.suffix in (".yml", ".j2")]
    # What getent finds is put there by a task.
    uses = any(re.search(r"ansible_facts(?!\['getent_)", text) for text in texts)
    gathers = any("ansible.builtin.setup:" in text for text in texts)
    assert not uses or gathers or "facts" in depends(role)
    early = [name for name, value in load(role / "defaults" / "main.yml").items() if "ansible_facts" in str(value)]
    assert not early or "facts" in depends(role)


def test_modules_know_only_what_lies_below_them() -> None:
    allowed = "ansible.module_utils", "ansible_collections.sagequeue.batch.plugins.module_utils"
    odd = [
        f"{path.name}: {name}"
        for path in (REPOSITORY / "plugins" / "modules").glob("*.py")
        for name in re.findall(r"^from (ansible\S*) import", path.read_text(), flags=re.MULTILINE)
        if not name.startswith(allowed)
    ]
    assert odd == []
