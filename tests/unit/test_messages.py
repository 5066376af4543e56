# MIT licence, see LICENSE.
"""Every message that the code can print is in docs/messages.md, with what to do, and nothing else is.

`python tests/unit/test_messages.py` prints what the page lacks.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "messages.md"
# Whose first argument a person reads: errors, a module's end, a worker's log.
SAYERS = {"QueueError", "NotReady", "MalformedJob", "LostClaim", "fail_json", "warn", "say", "_say", "log"}
# Whose first argument ends such a text.
SAYERS |= {"BindMountError", "IniError", "refuse"}
GAP = "…"


def tidy(text: str) -> str:
    """Return a message on one line, with one gap where what differs from time to time stands."""
    return re.sub(rf"({GAP}\s?)+{GAP}", GAP, " ".join(text.split()))


def constant(node: ast.expr, known: dict[str, str]) -> str:
    """Return what is constant of a message, with gaps."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(constant(part, known) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return constant(node.left, known) + constant(node.right, known)
    if isinstance(node, ast.Name):
        return known.get(node.id, GAP)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{[^}]*\}", GAP, constant(node.func.value, known))
    return GAP


def texts(node: ast.expr, known: dict[str, str]) -> set[str]:
    """Return the messages of an expression: what is said otherwise under a condition is two."""
    return {tidy(constant(one, known)) for one in ((node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,))}


def in_python(source: str) -> set[str]:
    """Return the messages of a module."""
    tree = ast.parse(source)
    known = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and re.match("_?why", node.name):
            ends = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value]
            found = found.union(*(texts(one, known) for one in ends))
        if isinstance(node, ast.Dict):
            pairs = [(key, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)]
            found = found.union(*(texts(value, known) for key, value in pairs if key.value == "DETAIL"))
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = next((one.value for one in node.keywords if one.arg == "msg"), node.args[0] if node.args else None)
        if name in SAYERS and first is not None:
            found |= texts(first, known)
    return found


def in_yaml(node: Any) -> set[str]:
    """Return what the tasks of a role or a playbook fail with."""
    if isinstance(node, list):
        return {message for one in node for message in in_yaml(one)}
    if not isinstance(node, dict):
        return set()
    found = set()
    for key, value in node.items():
        if key.endswith("assert") and isinstance(value, dict):
            found.add(value.get("fail_msg", ""))
        elif key.endswith(".fail") and value["msg"] == "{{ item.msg }}":
            found |= {one["msg"] for one in node["loop"]}
        elif key.endswith(".fail"):
            found.add(value["msg"])
            # Here a message has two parts, and the first is among the variables.
            found |= {text for name, text in node.get("vars", {}).items() if name.endswith("_failure")}
        else:
            found |= in_yaml(value)
    return found


def plain(text: str) -> set[str]:
    """Return what a template can say, with gaps for its expressions: each of the texts that an expression chooses from makes one."""
    found = {re.sub(r"\{%.*?%\}", GAP, text, flags=re.DOTALL)}
    for expression in re.findall(r"\{\{.*?\}\}", text, flags=re.DOTALL):
        whole = re.sub(r"default\('[^']*'", "", expression)
        whole = re.sub(r"\w+ ~ '", f"'{GAP}", re.sub(r"'\s*~[^'~]+~\s*'", GAP, whole))
        whole = re.sub(r"' ~ \w+", f"{GAP}'", whole)
        choices = [one for one in re.findall(r"'([^']*)'", whole) if len(one.split()) > 2] or [GAP]
        found = {one.replace(expression, choice) for one in found for choice in choices}
    return {tidy(one) for one in found}


def in_shell(source: str) -> set[str]:
    """Return what a shell script dies of."""
    return {tidy(re.sub(r"\$(\w+|\{[^}]*\}|\([^)]*\))", GAP, one)) for one in re.findall(r'\bdie "((?:[^"$]|\$\([^)]*\)|\$)*)"', source)}


def messages() -> dict[str, str]:
    """Return all messages, and the file of each."""
    found: dict[str, str] = {}
    for path in sorted((REPOSITORY / "plugins").rglob("*.py")):
        found.update(dict.fromkeys(in_python(path.read_text()), str(path.relative_to(REPOSITORY))))
    for folder in ("roles", "playbooks"):
        for path in sorted((REPOSITORY / folder).rglob("*.yml")):
            if "collections" not in path.parts:
                texts = in_yaml(yaml.safe_load(path.read_text()))
                found.update({one: str(path.relative_to(REPOSITORY)) for text in texts for one in plain(text)})
    for name in ("quickstart", "tools/bootstrap"):
        found.update(dict.fromkeys(in_shell((REPOSITORY / name).read_text()), name))
    # What is put together from a thing and the system's or another message says nothing of its own.
    return {text: where for text, where in found.items() if re.search(r"[A-Za-z]{4,}", text)}


def rows() -> dict[str, str]:
    """Return the page's messages, and what it says to do."""
    return dict(re.findall(r"^\| `` ?(.+?) ?`` \| (.*) \|$", PAGE.read_text() if PAGE.exists() else "", flags=re.MULTILINE))


def lacking() -> str:
    """Return the rows that the page lacks, and those that it has too many, for a person to correct it by."""
    found, written = messages(), rows()
    add = [f"+ {where}: | `` {text} `` | WHAT TO DO |" for text, where in found.items() if text not in written]
    drop = [f"- {text}" for text in written if text not in found]
    return "\n".join(add + drop)


def test_the_page_has_every_message_and_no_other() -> None:
    assert not lacking(), f"correct docs/messages.md:\n{lacking()}"


def test_every_message_has_a_remedy() -> None:
    assert [text for text, remedy in rows().items() if len(remedy.split()) < 2] == []


def test_messages_are_collected_from_all_kinds_of_code() -> None:
    found = messages()
    assert len(found) > 150
    python = 'X = "gone {}"\nraise QueueError(f"no {a} there" + b if c else X.format(1))\nself._say(f"waiting for {d}")\n'
    python += 'm.fail_json(msg="bad luck")\n'
    assert in_python(python) == {f"no {GAP} there{GAP}", f"gone {GAP}", f"waiting for {GAP}", "bad luck"}
    tasks: list[Any] = [{"block": [{"ansible.builtin.assert": {"that": "x", "fail_msg": "no {{ x }}"}}]}]
    tasks.append({"ansible.builtin.fail": {"msg": "a {% if b %}c{% endif %}"}})
    assert {one for text in in_yaml(tasks) for one in plain(text)} == {f"no {GAP}", f"a {GAP}c{GAP}"}
    assert plain("{{ 'User ' ~ x ~ ' is gone' if y else 'No Podman here' }}.") == {f"User {GAP} is gone.", "No Podman here."}
    assert in_shell('x || die "needs $a, and ${b[*]} is $(c --d "e")"') == {f"needs {GAP}, and {GAP} is {GAP}"}


if __name__ == "__main__":
    print(lacking())
