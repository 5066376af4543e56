"""The notebooks, run by real Sage: SAGEQUEUE_TEST_SAGE names its program.

What a witness claims is checked here once more, with code that shares nothing with the notebook.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

SAGE = os.environ.get("SAGEQUEUE_TEST_SAGE")
NOTEBOOKS = Path(__file__).parents[2] / "files" / "notebooks"
ISO = r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00\] "

pytestmark = pytest.mark.skipif(not SAGE, reason="SAGEQUEUE_TEST_SAGE does not name a sage program")


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    # Sage writes the preparsed script beside the script, so it gets a copy.
    for notebook in NOTEBOOKS.glob("*.sage"):
        shutil.copy(notebook, tmp_path)
    return tmp_path


def start(workdir: Path, *args: str, script: str = "rank_boundary_sat_v18.sage") -> subprocess.Popen[str]:
    assert SAGE is not None
    return subprocess.Popen(
        [SAGE, script, *args],
        cwd=workdir,
        env={**os.environ, "SAGE_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(workdir: Path, *args: str, script: str = "rank_boundary_sat_v18.sage") -> tuple[int, str, str]:
    process = start(workdir, *args, script=script)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rank(graph: str, r: int, *more: str) -> list[str]:
    """The arguments that the shipped jobsets give."""
    fixed = "--solver sat --sat_backend cryptominisat --scan_all_J --want_solution --resume --progress_every 1"
    return ["--graph", graph, "--rank", str(r), *fixed.split(), "--stop_file", "stop.txt", *more]


def done(out: str) -> list[tuple[int, str]]:
    return [(int(g), v) for g, v in re.findall(r"DONE gidx=(\d+) .*verdict=(\w+)", out)]


def lines_until(process: subprocess.Popen[str], text: str) -> str:
    """What the program prints until a line holds the text; it must be there at once, so be flushed."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without {text!r}:\n{seen}")


def test_selftest(workdir: Path) -> None:
    status, out, err = run(workdir, "--selftest")
    assert (status, err) == (0, "")
    assert re.search(r"SELFTEST ok: 3 graphs, [1-9]\d* cases SAT and [1-9]\d* UNSAT", out)


def test_petersen_r1_has_no_solution_in_any_case(workdir: Path) -> None:
    status, out, err = run(workdir, *rank("petersen", 1))
    assert (status, err) == (0, "")
    assert done(out) == [(gidx, "UNSAT") for gidx in range(9)]
    assert all(re.match(ISO, line) for line in out.splitlines())
    assert re.search(ISO + r"START gidx=3 case=4/9 J=0,1,2,3,4,6,7,8\n", out)
    assert re.search(ISO + r"DONE gidx=3 case=4/9 verdict=UNSAT dt=[\d.]+s\n", out)
    assert out.splitlines()[-1].endswith("cases=9: UNSAT in all its cases")
    assert not (workdir / "stop.txt").exists()
    state = workdir / "state_petersen_r1_stride1_off0.txt"
    assert state.read_text().split()[0] == "8"
    assert state.stat().st_mode & 0o777 & ~0o660 == 0

    status, out, _ = run(workdir, *rank("petersen", 1))
    assert status == 0 and done(out) == []
    assert out.splitlines()[-1].endswith("UNSAT in all its cases")


def test_parts_take_their_own_cases(workdir: Path) -> None:
    _, out, _ = run(workdir, *rank("petersen", 1, "--stride", "4", "--offset", "1"))
    assert done(out) == [(1, "UNSAT"), (5, "UNSAT")]
    _, out, _ = run(workdir, *rank("petersen", 1, "--stride", "20", "--offset", "19"))
    assert done(out) == [] and "cases=0 of 9" in out


def test_petersen_r4_has_a_solution(workdir: Path) -> None:
    status, out, err = run(workdir, *rank("petersen", 4, "--stride", "2", "--offset", "0"))
    assert (status, err) == (0, "")
    assert done(out) == [(0, "SAT")]
    witness = json.loads(re.search(r"WITNESS (\{.*\})", out)[1])  # type: ignore[index]
    check_witness(witness, 4)

    text = (workdir / "stop.txt").read_text()
    assert text.startswith("SAT gidx=0 off=0 stride=2 graph=petersen rank=4 ")
    assert ",".join(map(str, witness["perm"])) in text
    assert [path.name for path in workdir.glob("*.new")] == []

    # Solved and gated: the next part does not begin.
    status, out, _ = run(workdir, *rank("petersen", 4, "--stride", "2", "--offset", "1"))
    assert status == 0 and done(out) == [] and re.search(ISO + "STOP ", out)
    assert (workdir / "stop.txt").read_text() == text
    # With the gate open again, the part that found it goes on behind its solution.
    (workdir / "stop.txt").unlink()
    _, out, _ = run(workdir, *rank("petersen", 4, "--stride", "2", "--offset", "0"))
    assert "RESUME after gidx=0" in out and done(out)[0][0] == 2


def check_witness(witness: dict[str, Any], r: int) -> None:
    points = [{a, b} for a, b in itertools.combinations(range(5), 2)]
    assert sorted(witness["perm"]) == list(range(10))
    order = [points[u] for u in witness["perm"]]
    size = len(order)

    # Row masks of B: over GF(2) a sum is an exclusive or.
    masks = [0] * (size - 1)
    for k in range(size):
        kept = order[:k] + order[k + 1 :]
        for i, u in enumerate(kept):
            masks[i] ^= sum(1 << j for j, v in enumerate(kept) if not u & v)
    assert witness["B"] == ["".join(str(mask >> j & 1) for j in range(size - 1)) for mask in masks]

    basis: list[int] = []
    for mask in masks:
        for b in basis:
            mask = min(mask, mask ^ b)
        if mask:
            basis.append(mask)
    assert len(basis) == witness["rank_B"] <= r

    Y = witness["Y"]
    kdim = size - 1 - r
    assert len(witness["J"]) == kdim and len(Y) == size - 1
    assert [Y[row] for row in witness["J"]] == ["0" * s + "1" + "0" * (kdim - 1 - s) for s in range(kdim)]
    for t in range(kdim):
        column = sum(1 << j for j in range(size - 1) if Y[j][t] == "1")
        assert all(bin(mask & column).count("1") % 2 == 0 for mask in masks)


def test_a_stop_file_of_somebody_else_is_left_alone(workdir: Path) -> None:
    """It appears while a case is being solved, so that only the creation itself can notice it."""
    notebook = workdir / "rank_boundary_sat_v18.sage"
    source = notebook.read_text()
    late = '    text = "SAT gidx='
    assert source.count(late) == 1
    notebook.write_text(source.replace(late, '    open("stop.txt", "w").write("the operator was first")\n' + late))
    status, out, _ = run(workdir, *rank("petersen", 4))
    assert status == 0 and "WITNESS" in out and "somebody else" in out
    assert (workdir / "stop.txt").read_text() == "the operator was first"
    assert not (workdir / "state_petersen_r4_stride1_off0.txt").exists()


@pytest.mark.parametrize(
    ("lie", "fault"),
    [
        ("found[0][1], found[0][0] = found[0][0], found[0][1]", "B is not the boundary matrix of P"),
        ("found[0][0] = found[0][1]", "P is not a permutation matrix"),
        ("found[2][8] = [1 - found[2][8][0]] + found[2][8][1:]", "B Y is not zero"),
        ("found[2][0] = [0] * 5", "Y_J is not the identity"),
    ],
)
def test_a_false_solution_is_refused(workdir: Path, lie: str, fault: str) -> None:
    """The solver's answer is spoilt on its way to the verification."""
    notebook = workdir / "rank_boundary_sat_v18.sage"
    source = notebook.read_text()
    before = "        wrong = faults(A, rank, J, *found)\n        if wrong:\n"
    assert source.count(before) == 1
    notebook.write_text(source.replace(before, f"        {lie}\n{before}"))
    status, out, _ = run(workdir, *rank("petersen", 4))
    assert status == 1
    assert re.search("ERROR gidx=0 .*" + re.escape(fault), out)
    assert "WITNESS" not in out and not (workdir / "stop.txt").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_resume_after_a_kill(workdir: Path, how: signal.Signals) -> None:
    process = start(workdir, *rank("petersen", 1))
    seen = lines_until(process, "START gidx=3")
    begin = time.monotonic()
    process.send_signal(how)
    process.communicate()
    assert time.monotonic() - begin < 2
    assert process.returncode == (143 if how is signal.SIGTERM else -9)
    assert done(seen) == [(0, "UNSAT"), (1, "UNSAT"), (2, "UNSAT")]

    status, out, _ = run(workdir, *rank("petersen", 1))
    assert status == 0
    first = done(out)[0][0]
    assert first in (3, 4) and f"RESUME after gidx={first - 1}" in out
    assert [gidx for gidx, _ in done(out)] == list(range(first, 9))


def test_a_stop_file_ends_the_run_between_two_cases(workdir: Path) -> None:
    process = start(workdir, *rank("petersen", 1))
    seen = lines_until(process, "START gidx=1")
    (workdir / "stop.txt").write_text("stop requested\n")
    rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    last = done(seen + rest)[-1][0]
    assert last < 8
    assert re.search(ISO + "STOP stop.txt exists", rest)
    assert (workdir / "state_petersen_r1_stride1_off0.txt").read_text().split()[0] == str(last)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "nonsense",
        "4 graph=rook rank=1 stride=4 off=0",
        "5 graph=petersen rank=1 stride=4 off=0",
        "4000",
    ],
)
def test_a_state_of_another_run_is_ignored(workdir: Path, state: str) -> None:
    (workdir / "state_petersen_r1_stride4_off0.txt").write_text(state)
    status, out, _ = run(workdir, *rank("petersen", 1, "--stride", "4"))
    assert status == 0
    assert re.search("RESUME ignores state_petersen_r1_stride4_off0.txt: it ", out)
    assert [gidx for gidx, _ in done(out)] == [0, 4, 8]


def test_a_state_that_is_just_a_number_is_taken(workdir: Path) -> None:
    (workdir / "state_petersen_r1_stride4_off0.txt").write_text("4\n")
    _, out, _ = run(workdir, *rank("petersen", 1, "--stride", "4"))
    assert [gidx for gidx, _ in done(out)] == [8]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "--graph and --rank are required"),
        ("--graph cube --rank 2", "invalid choice: 'cube'"),
        ("--graph petersen --rank 9", "--rank 9 is outside 0..8"),
        ("--graph petersen --rank -1", "--rank -1 is outside 0..8"),
        ("--graph petersen --rank two", "invalid int value: 'two'"),
        ("--graph petersen --rank 2 --stride 0", "--stride 0: a run has at least 1 part"),
        ("--graph petersen --rank 2 --stride 4 --offset 4", "--offset 4 is outside 0..3"),
        ("--graph petersen --rank 2 --progress_every 0", "--progress_every 0: at least 1"),
        ("--graph petersen --rank 2 --stop_file nowhere/stop.txt", "there is no such folder"),
        ("--graph petersen --rank 2 --sat_backend minisat", "invalid choice: 'minisat'"),
        ("--graph petersen --rank 2 --scan_all", "unrecognized arguments: --scan_all"),
    ],
)
def test_bad_arguments(workdir: Path, args: str, message: str) -> None:
    status, out, err = run(workdir, *args.split())
    assert status == 2
    assert message in err
    assert out == "" and not list(workdir.glob("state_*"))


def test_template_counts_stops_and_resumes(workdir: Path) -> None:
    base = ["--limit", "5000", "--chunk", "100", "--progress_every", "1", "--resume", "--stop_file", "stop.txt"]
    found = []
    for offset in range(3):
        status, out, err = run(workdir, *base, "--stride", "3", "--offset", str(offset), script="template.sage")
        assert (status, err) == (0, "")
        found.append(int(re.search(r"RESULT .*: (\d+) found", out)[1]))  # type: ignore[index]
    squares = {a * a + b * b for a in range(71) for b in range(71)}
    assert sum(found) == len([n for n in squares if n < 5000])

    _, out, _ = run(workdir, *base, "--stride", "3", script="template.sage")
    assert "RESUME after 17 of 17 chunks" in out and f": {found[0]} found" in out
    (workdir / "stop.txt").touch()
    status, out, _ = run(workdir, *base, script="template.sage")
    assert status == 0 and "STOP stop.txt exists" in out and "RESULT" not in out
    assert run(workdir, "--offset", "1", script="template.sage")[0] == 2
