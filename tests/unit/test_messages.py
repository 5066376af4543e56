# MIT licence, see LICENSE.
"""Every message that the code can print is in docs/messages.md, with what to do, and has a test; nothing else is on that page.

`python tests/unit/test_messages.py` prints what the page lacks.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, nodes

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "messages.md"
# Whose first argument a person reads: errors, a module's end, a worker's log.
SAYERS = {"QueueError", "NotReady", "MalformedJob", "LostClaim", "fail_json", "warn", "say", "_say", "log"}
# Whose first argument ends such a text.
SAYERS |= {"BindMountError", "IniError", "ValueError", "refuse"}
# What a script that is sent elsewhere ends with.
SAYERS |= {"exit"}
# Whose third and fourth argument a person reads: what is wrong, and the next step.
FINDINGS = {"Problem"}
GAP = "…"
# How many words of a message a test must have, in their order.
WORDS = 4


def tidy(text: str) -> str:
    """Return a message on one line, with one gap where what differs from time to time stands."""
    return re.sub(rf"({GAP}\s?)+{GAP}", GAP, " ".join(text.split()))


def constant(node: ast.expr, known: dict[str, str]) -> str:
    """Return what is constant of a message, with gaps."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(constant(part, known) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return re.sub("%[a-z]", GAP, constant(node.left, known))
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


def reasons(node: ast.AST, known: dict[str, str]) -> set[str]:
    """Return why something is as it is, where that is worked out before it is said: what more than two words are given the name."""
    if isinstance(node, ast.FunctionDef) and re.match("_?why|_odd", node.name):
        ends = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value]
        return {text for one in ends for text in texts(one, known)}
    if isinstance(node, ast.Assign) and [one.id for one in node.targets if isinstance(one, ast.Name)] == ["why"]:
        return {text for text in texts(node.value, known) if len(text.replace(GAP, "").split()) > 2}
    return set()


def in_python(source: str, says: bool = False) -> set[str]:
    """Return the messages of a module, and of the scripts that it sends elsewhere.

    Args:
        source: its text.
        says: whether what it appends to `said` tells an operator what to know and do.
    """
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
        found |= reasons(node, known)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n    sys.exit(" in node.value:
            found |= in_python(node.value)
        if isinstance(node, ast.Dict):
            pairs = [(key, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)]
            found = found.union(*(texts(value, known) for key, value in pairs if key.value == "DETAIL"))
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = next((one.value for one in node.keywords if one.arg == "msg"), node.args[0] if node.args else None)
        if name in SAYERS and first is not None:
            found |= texts(first, known)
        if says and name == "append" and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "said":
            found |= texts(node.args[0], known)
        if name in FINDINGS:
            found.add(tidy("; ".join(constant(one, known) for one in node.args[2:])))
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


def chosen(node: nodes.Node) -> list[str]:
    """Return the texts that an expression of a template can be, with gaps."""
    if isinstance(node, nodes.Const):
        return [str(node.value)]
    if isinstance(node, nodes.Concat):
        return ["".join(parts) for parts in itertools.product(*map(chosen, node.nodes))]
    if isinstance(node, nodes.CondExpr):
        return [*chosen(node.expr1), *(chosen(node.expr2) if node.expr2 else [])]
    return [GAP]


def plain(text: str) -> set[str]:
    """Return what a template can say, with gaps for its expressions: each of the texts that an expression chooses from makes one."""
    found = {re.sub(r"\{%.*?%\}", GAP, text, flags=re.DOTALL)}
    for expression in re.findall(r"\{\{.*?\}\}", text, flags=re.DOTALL):
        (output,) = Environment().parse(expression).find_all(nodes.Output)
        choices = [one for one in chosen(output.nodes[0]) if len(one.split()) > 2] or [GAP]
        found = {one.replace(expression, choice) for one in found for choice in choices}
    return {tidy(one) for one in found}


def in_shell(source: str) -> set[str]:
    """Return what a shell script dies of."""
    return {tidy(re.sub(r"\$(\w+|\{[^}]*\}|\([^)]*\))", GAP, one)) for one in re.findall(r'\bdie "((?:[^"$]|\$\([^)]*\)|\$)*)"', source)}


def messages() -> dict[str, str]:
    """Return all messages, and the file of each."""
    found: dict[str, str] = {}
    for path in sorted((REPOSITORY / "plugins").rglob("*.py")):
        says = path.parent.name in ("action", "plugin_utils")
        found.update(dict.fromkeys(in_python(path.read_text(), says), str(path.relative_to(REPOSITORY))))
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


def bare(text: str) -> str:
    """Return a text's words on one line, without what stands around them."""
    return " ".join(word for word in (one.strip(".,:;()\"'`") for one in text.split()) if word)


def in_tests() -> str:
    """Return all texts of the tests, one a line: neither comments nor what says what a test is for."""
    lines = []
    for path in (path for top in ("tests", "molecule") for path in sorted((REPOSITORY / top).rglob("*"))):
        if path.suffix == ".yml":
            lines.append(bare(re.sub(r"^\s*#.*", "", path.read_text(), flags=re.MULTILINE).replace("\\", "")))
        if path.suffix != ".py" or path == Path(__file__).resolve():
            continue
        tree = ast.parse(path.read_text())
        passed = {one.value for one in ast.walk(tree) if isinstance(one, ast.Expr)}
        passed |= {part for one in ast.walk(tree) if isinstance(one, ast.JoinedStr) for part in one.values}
        for node in (one for one in ast.walk(tree) if isinstance(one, (ast.Constant, ast.JoinedStr)) and one not in passed):
            # In what is compared by a regular expression some characters have a backslash.
            lines.append(bare(re.sub(r"\\(.)", r"\1", constant(node, {}))))
    return "\n".join(lines)


def runs(message: str) -> Iterator[str]:
    """Return expressions for each so many words of a message that follow each other, whatever stands in the gaps between them."""
    words = bare(message.replace(GAP, f" {GAP} ")).split()
    places = [place for place, word in enumerate(words) if word != GAP]
    for first, last in zip(places, places[WORDS - 1 :] or places[-1:]):
        run = " ".join("" if word == GAP else re.escape(word) for word in words[first : last + 1])
        yield re.sub(" +", lambda blanks: " " if len(blanks[0]) == 1 else ".{0,120}?", run)


def untested(found: Collection[str], told: str) -> list[str]:
    """Return the messages of which no test has so many words; those that other messages have, too, say nothing, unless it has no others."""
    every = "\n".join(map(bare, found))
    own = {text: [run for run in runs(text) if len(re.findall(run, every)) == 1] or [*runs(text)] for text in found}
    return [text for text, some in own.items() if not any(re.search(run, told) for run in some)]


def test_the_page_has_every_message_and_no_other() -> None:
    assert not lacking(), f"correct docs/messages.md:\n{lacking()}"


def test_every_message_has_a_remedy() -> None:
    assert [text for text, remedy in rows().items() if len(remedy.split()) < 2] == []


def test_every_message_has_a_test() -> None:
    assert untested(messages(), in_tests()) == [], "no test provokes them and looks at their words"


def test_a_message_without_a_test_is_found() -> None:
    told = "\n".join(map(bare, (f"job {GAP}: it has gone; look there", "no worker .* there, see (it)", "a short one")))
    known = [f"job {GAP}: it has gone", f"{GAP} has gone; look there", f"no worker of {GAP} there, see {GAP}", f"short {GAP}"]
    assert untested(known, told) == [known[2]]
    unknown = ["another short one", f"short {GAP} thing"]
    assert untested([f"worker {GAP} there, see it", *unknown], told) == unknown
    invented = "the moon is made of cheese"
    assert untested([invented], in_tests()) == [invented]


def test_messages_are_collected_from_all_kinds_of_code() -> None:
    found = messages()
    assert len(found) > 150
    python = 'X = "gone {}"\nraise QueueError(f"no {a} there" + b if c else X.format(1))\nself._say(f"waiting for {d}")\n'
    python += 'm.fail_json(msg="bad luck")\n'
    assert in_python(python) == {f"no {GAP} there{GAP}", f"gone {GAP}", f"waiting for {GAP}", "bad luck"}
    python = 'why = f"it has {n} jobs too many"\nwhy = f"held by {x}"\nProblem(a, b, f"is {why}", "mend it")\nsaid.append(f"{x} is back")\n'
    assert in_python(python) == {f"it has {GAP} jobs too many", f"is {GAP}; mend it"} and f"{GAP} is back" in in_python(python, says=True)
    assert in_python('S = "\\nif x:\\n    sys.exit(\'no %s here\' % y)\\n"') == {f"no {GAP} here"}
    tasks: list[Any] = [{"block": [{"ansible.builtin.assert": {"that": "x", "fail_msg": "no {{ x }}"}}]}]
    tasks.append({"ansible.builtin.fail": {"msg": "a {% if b %}c{% endif %}"}})
    assert {one for text in in_yaml(tasks) for one in plain(text)} == {f"no {GAP}", f"a {GAP}c{GAP}"}
    assert plain("{{ 'User ' ~ x ~ ' is gone' if y else 'No Podman here' }}.") == {f"User {GAP} is gone.", "No Podman here."}
    assert in_shell('x || die "needs $a, and ${b[*]} is $(c --d "e")"') == {f"needs {GAP}, and {GAP} is {GAP}"}


if __name__ == "__main__":
    print(lacking())
