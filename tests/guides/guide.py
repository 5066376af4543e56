# MIT licence, see LICENSE.
"""A guide, followed to the letter: its commands are run in order on clean hosts, and their output is compared with what the guide shows.

In a guide,

- a block ```console has commands, each behind `$ ` (or behind `NAME$ `, where the guide has several machines), and what they print;
- `...` on a line of its own stands for any output;
- a block after "Save this as `PATH`:" is written to that file;
- what differs from time to time (times, sizes, ids, which worker) may differ: see MASKS.

`python tests/guides/test_guides.py GUIDE.md` follows a guide on new hosts, and writes the real output into it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = REPOSITORY / "docs" / "guides"
HOST = str(REPOSITORY / "tests" / "host" / "host")
# Where the guides take the checkout from.
UPSTREAM = "https://github.com/sagequeue/batch"

NUMBER = r"\d+(?:[.,]\d+)*"
MASKS = [
    # What is told only where it takes long.
    (r"(?m)^.*: for \d+ (s|min)\n", ""),
    # Also where a table's column has cut it off.
    (r"\d{4}-\d\d-\d\d[T ][\d:.]+(Z|\+00:00)?|\b\d{8}T\d{6}Z", "TIME"),
    (r"\b[0-9a-f]{32,64}\b", "ID"),
    (r"\bpid \d+|\[\d+\]", "pid N"),
    (rf"\b({NUMBER} to )?{NUMBER} ?(ms|s|min|h|d|an hour|bytes|B|[KMG]i?B?)(?![A-Za-z0-9_])", "SOME"),
    (r"\bPython 3\.\d+\.\d+", "Python 3"),
    # Which of its workers took a job.
    (r"\b([a-z]\w*)-\d+\b", r"\1-N"),
    (r"\[[#-]+\]", "BAR"),
    (r"token=[\w-]+", "token=TOKEN"),
    (r"-{3,}", "--"),
]


@dataclass
class Step:
    """A command, or a file to save."""

    machine: str
    command: str
    expected: str
    # Where in the guide the output stands.
    start: int = 0
    end: int = 0
    path: str = ""


@dataclass
class Guide:
    """The text of a guide, and the steps in it."""

    path: Path
    text: str = ""
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = self.path.read_text()
        for block in re.finditer(r"(?:Save this as `([^`]+)`:\n\n)?^```(\w+)\n(.*?)^```$", self.text, flags=re.MULTILINE | re.DOTALL):
            path, kind, body = block.groups()
            if path:
                self.steps.append(Step("", "", body, path=path))
            elif kind == "console":
                self._commands(body, block.start(3))

    def _commands(self, body: str, offset: int) -> None:
        prompts = list(re.finditer(r"^(\w*)\$ (.*)\n", body, flags=re.MULTILINE))
        assert prompts and prompts[0].start() == 0, f"{self.path.name}: a console block begins with a command: {body[:60]}"
        for prompt, following in zip(prompts, [*prompts[1:], None]):
            end = following.start() if following else len(body)
            self.steps.append(Step(prompt.group(1), prompt.group(2), body[prompt.end() : end], offset + prompt.end(), offset + end))

    def machines(self) -> list[str]:
        """Return the names of the machines that the guide speaks of, empty where there is but one."""
        return sorted({step.machine for step in self.steps if step.command})


def masked(text: str) -> str:
    """Return an output without what differs from time to time, nor blanks and line breaks that come of it."""
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return " ".join(text.split())


def fits(expected: str, real: str) -> bool:
    """Tell whether the real output is as the guide shows. Lines may come in another order: who is first differs."""
    if sorted(map(masked, expected.split("\n"))) == sorted(map(masked, real.split("\n"))):
        return True
    parts = re.split(r"^\.\.\.$", expected, flags=re.MULTILINE)
    return re.fullmatch(r"\s*.*\s*".join(re.escape(masked(part)) for part in parts), masked(real), flags=re.DOTALL) is not None


class Machine:
    """A login of the test host's ordinary user, in which one command runs after the other."""

    def __init__(self, host: str, names: dict[str, str]) -> None:
        self.host = host
        # In a guide, hosts have the names that they have there.
        self.names = names
        # What waits for ever is cut off, and the test fails.
        words = ["timeout", "1800", HOST, "exec", host, "-u", "researcher", "bash", "--noprofile", "--norc"]
        self._shell = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self.run("export LANG=C.UTF-8 XDG_RUNTIME_DIR=/run/user/$(id -u)")

    def run(self, command: str) -> tuple[str, int]:
        """Run a command; return what it printed, and its exit status."""
        assert self._shell.stdin and self._shell.stdout
        mark = f"END-{os.urandom(8).hex()}"
        self._shell.stdin.write(f"{{ {command}\n}} </dev/null; printf '\\n%s %s\\n' {mark} $?\n")
        self._shell.stdin.flush()
        printed = ""
        for line in self._shell.stdout:
            if line.startswith(mark):
                for host, name in self.names.items():
                    printed = printed.replace(host, name)
                return printed[:-1], int(line.split()[1])
            printed += line
        raise AssertionError(f"the shell ended at {command!r}: {printed}")

    def save(self, path: str, text: str) -> None:
        """Write a file."""
        quoted = f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
        printed, status = self.run(f'mkdir -p "$(dirname {quoted})" && printf %s {shlex.quote(text)} > {quoted}')
        assert not status, printed

    def close(self) -> None:
        """End the login."""
        assert self._shell.stdin
        self._shell.stdin.close()
        self._shell.wait(timeout=60)


def give_checkout(host: str) -> None:
    """Put what is to be tested where the guides take it from, as a commit of its own, whatever of it is committed here."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout.split(b"\0")
    present = b"\0".join(one for one in files if one and os.path.lexists(REPOSITORY / one.decode()))
    pack = subprocess.run(
        ["tar", "-c", "--null", "--no-recursion", "-T", "-"], cwd=REPOSITORY, input=present, capture_output=True, check=True
    )
    script = f"""
        mkdir -p /srv/batch && cd /srv/batch && tar -x --no-same-owner
        git init --quiet . && git add --all && git -c user.name=x -c user.email=x@example.org commit --quiet -m x
        git config --system url./srv/batch.insteadOf {UPSTREAM} && git config --system --add safe.directory '*'
    """
    subprocess.run([HOST, "exec", host, "sh", "-euc", script], input=pack.stdout, check=True)


def follow(guide: Guide, machines: dict[str, Any], write: bool = False) -> list[str]:
    """Follow a guide.

    Args:
        guide: which.
        machines: a Machine for each of the guide's.
        write: go on where an output differs, and write the real one into the guide.

    Returns:
        What was not as the guide says.
    """
    wrong, text = [], guide.text
    last = next(iter(machines.values()))
    shift = 0
    for step in guide.steps:
        if step.path:
            last.save(step.path, step.expected)
            continue
        last = machines[step.machine]
        real, status = last.run(step.command)
        if write:
            print(f"{step.machine}$ {step.command}\n{real}", end="", flush=True)
        if not fits(step.expected, real):
            wrong.append(f"$ {step.command}\n--- the guide:\n{step.expected}--- really (exit status {status}):\n{real}")
            if not write:
                break
            text = text[: step.start + shift] + real + text[step.end + shift :]
            shift += len(real) - (step.end - step.start)
    if write:
        guide.path.write_text(text)
    return wrong
