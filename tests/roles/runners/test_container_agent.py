"""Jobs that the agent starts in a real container are what podman exec would have made of them."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[3]
USER = "researcher"
IMAGE = "localhost/small:1"
ENV = ["env", "XDG_RUNTIME_DIR=/run/user/1001"]
# The host's own programs serve as an image.
MAKE_IMAGE = (
    "cd /; tar -c --one-file-system --ignore-failed-read --exclude=usr/share --exclude=usr/lib/gcc --exclude=usr/lib/systemd"
    " usr bin lib lib64 sbin etc/passwd etc/group etc/alternatives 2>/dev/null | podman import --quiet --change ENV=IMAGE_SAYS=x - " + IMAGE
)
CONTAINERS = {
    # As the role sage_container makes it.
    "same-user": ["--userns=keep-id:uid=1000,gid=1000", "--user=1000:1000"],
    "root": [],
    # Somebody whom the host's user is not, in the container.
    "mapped": ["--user=1000:1000"],
    "limited": [
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--ulimit=nofile=234",
        "--ulimit=core=0",
        "--umask=0027",
        "--env=EMPTY=x",
    ],
}
FILES = {"a-script": "#!/bin/sh\necho $0 $*\n", "no-interpreter": "#!/no/such\n", "not-a-program": "echo x\n"}


def program() -> bytes:
    """The program sagequeue."""
    buffer = io.BytesIO()
    source = ROOT / "plugins" / "module_utils" / "dirqueue"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("__main__.py", "import sys\nfrom dirqueue.cli import main\nsys.exit(main(program=sys.argv[0]))\n")
        for module in sorted(source.rglob("*.py")):
            archive.write(module, str(Path("dirqueue") / module.relative_to(source)))
    return b"#!/usr/bin/python3\n" + buffer.getvalue()


@pytest.fixture(scope="module")
def box(request, tmp_path_factory):
    name = f"xc-{os.getpid()}"
    parent = request.config.pluginmanager.get_plugin(str(Path(__file__).parents[1] / "conftest.py"))
    subprocess.run([parent.HOST, "up", name], check=True)
    host = parent.Host(name, tmp_path_factory.mktemp(name))
    try:
        host.exec("loginctl", "enable-linger", USER)
        host.sh(MAKE_IMAGE, user=USER)
        host.write("/home/researcher/sagequeue/bin/sagequeue", program())
        host.write("/home/researcher/compare.py", Path(__file__).with_name("compare.py").read_bytes())
        for file, text in FILES.items():
            host.write(f"/home/researcher/work/{file}", text.encode())
        host.sh("cd ~researcher; chmod -R a+rX,u+w . ; chmod a+x work/* sagequeue/bin/*; chown -R researcher: work sagequeue")
        yield host
    finally:
        subprocess.run([parent.HOST, "down", name], check=False)


def start(box, name, options=()):
    """Start a container outside of the session, which ends with this call."""
    box.exec(
        *ENV, "systemd-run", "--user", "--quiet", "--collect", "--service-type=forking", "--property=KillMode=none",
        "podman", "run", "--detach", "--replace", "--name", name, "--pull=never", "--volume=/home/researcher/work:/work", *options,
        IMAGE, "bash", "-c", "while :; do sleep 1000; done", user=USER,
    )  # fmt: skip


@pytest.fixture
def sagemath(box):
    """A container that workers find by its name."""
    start(box, "sagemath", CONTAINERS["same-user"])
    yield box
    box.exec(*ENV, "podman", "rm", "--force", "--time=0", "sagemath", user=USER)


# Defines the jobset t anew, with a job a, and starts a worker.
WORK = """
cd; rm -rf sagequeue/var sagequeue/etc
python3 - <<EOF
import os, sys
sys.path.insert(0, "sagequeue/bin/sagequeue")
from dirqueue.definitions import store
from dirqueue.jobset import Jobset
from dirqueue.layout import Layout
from dirqueue.queue import Queue
layout = Layout("sagequeue", "t")
layout.create()
keys = {"script": "job.sh", "command": "sh", "workdir": os.path.abspath("work"), "runner": "podman_exec", "container_workdir": "/work"}
definition = Jobset("t", {**keys, "grace": 1})
store(layout, definition)
with Queue(layout, definition) as queue:
    queue.enqueue([("a", {})])
EOF
export XDG_RUNTIME_DIR=/run/user/1001
"""


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_job_is_the_same_by_either_way(box, name):
    start(box, name, CONTAINERS[name])
    try:
        done = box.exec(*ENV, "python3", "compare.py", "/home/researcher/sagequeue/bin/sagequeue", name, "/work", user=USER)
    finally:
        box.exec(*ENV, "podman", "rm", "--force", "--time=0", name, user=USER)
    found = json.loads(done.stdout)
    for case, ways in found.items():
        agent, podman = ways["agent"], ways["podman exec"]
        if podman[0] in (1, 126, 127):
            # Each says in its own words why it can't start a job.
            assert agent[2] and podman[2]
            agent, podman = agent[:2], podman[:2]
        if case == "output":
            # Podman has a pipe for each of the two, and mixes them as it likes.
            agent[2], podman[2] = "".join(sorted(agent[2])), "".join(sorted(podman[2]))
        differ = [line for line in zip("".join(agent[2:]).splitlines(), "".join(podman[2:]).splitlines()) if line[0] != line[1]]
        assert agent == podman, (case, differ[:5])
    variables = found["environment"]["agent"][2].encode("latin-1").decode()
    assert "\0JOB_A=ä 'x' $y\nz\0" in variables and "SAGEQUEUE_CLAIM=" in variables and "SAGEQUEUE_AGENT" not in variables
    assert ("NoNewPrivs:\t1" in found["inherited"]["agent"][2]) == (name == "limited")


def test_without_a_python_in_the_container_podman_exec_serves(sagemath):
    sagemath.exec(*ENV, "podman", "exec", "--user=0", "sagemath", "sh", "-c", "rm /usr/bin/python3*", user=USER)
    sagemath.write("/home/researcher/work/job.sh", b"echo hello")
    said = sagemath.sh(WORK + "sagequeue/bin/sagequeue worker t-1 --until-idle; cat sagequeue/var/t/log/a.log", user=USER)
    assert "job a: done" in said and "hello" in said
    assert said.count("no agent in the container sagemath (") == 1 and "python3" in said


def test_a_worker_that_is_killed_takes_its_job_along(sagemath):
    """Also what has left the job's session; and the worker's next life runs the job once more, and once only."""
    sagemath.write("/home/researcher/work/job.sh", b"echo $$ >>/work/started; [ -e /work/go ] && exit; setsid sleep 4321 & sleep 1234")
    sagemath.sh("rm -f work/started work/go; touch work/started; chmod 666 work/started", user=USER)
    look = "podman exec sagemath sh -c 'cat /proc/[0-9]*/cmdline' | tr '\\0' ' '"
    said = sagemath.sh(
        WORK
        + "sagequeue/bin/sagequeue worker t-1 & worker=$!; for n in $(seq 300); do [ -s work/started ] && break; sleep 0.1; done; sleep 1;"
        f"{look}; echo killed; kill -9 $worker; sleep 2; {look}; echo worked; touch work/go;"
        "sagequeue/bin/sagequeue worker t-1 --until-idle; wc -l <work/started",
        user=USER,
    )
    before, _, after = said.partition("killed")
    after, _, worked = after.partition("worked")
    assert "sleep 4321" in before and "sleep 1234" in before and "python3 -ISc" in before
    assert "sleep 4321" not in after and "sleep 1234" not in after and "python3 -ISc" not in after
    assert "job a: running -> pending" in worked and "job a: done" in worked and worked.rstrip().endswith("2")


def test_podman_remembers_nothing_of_a_worker_that_has_ended(sagemath):
    sagemath.write("/home/researcher/work/job.sh", b"echo hello")
    work = "sagequeue/bin/sagequeue worker t-1 --until-idle; podman inspect --format 'left: {{.ExecIDs}}' sagemath"
    assert "left: []" in sagemath.sh(WORK + work, user=USER)


# What goes away in mid-job, and what the job's file says then.
LOST = {
    "container": ("podman restart --time=0 sagemath", "the container was started anew while the job ran"),
    "agent": (
        'kill -9 $(grep -lsz "^SAGEQUEUE_AGENT=[^ ]* $worker " /proc/[0-9]*/environ | cut -d/ -f3)',
        "the agent that had started the job in the container went away",
    ),
}


@pytest.mark.parametrize("what", LOST)
def test_what_is_lost_in_mid_job(sagemath, what):
    kill, reason = LOST[what]
    script = b"exec 9>>/work/lock; flock -n 9 || echo overlap >>/work/started; echo $$ >>/work/started; [ -e /work/go ] && exit; sleep 1234"
    sagemath.write("/home/researcher/work/job.sh", script)
    sagemath.sh("rm -f work/started work/go; touch work/started work/lock; chmod 666 work/started work/lock", user=USER)
    said = sagemath.sh(
        WORK
        + "sagequeue/bin/sagequeue worker t-1 --until-idle & worker=$!;"
        + f"for n in $(seq 300); do [ -s work/started ] && break; sleep 0.1; done; touch work/go; {kill}; wait $worker;"
        + "wc -l <work/started; cat work/started sagequeue/var/t/run/history.jsonl",
        user=USER,
    )
    assert "runner_lost" in said and reason in said and "job a: done" in said and "\n2\n" in said and "overlap" not in said
    assert said.count("no agent in the container sagemath (") == (what == "agent")


def test_what_it_costs(sagemath):
    """Figures, and no more: a test can't know what else the machine does."""
    words = ["compare.py", "/home/researcher/sagequeue/bin/sagequeue", "sagemath", "/work", "50"]
    done = sagemath.exec(*ENV, "python3", *words, user=USER)
    medians = {by: statistics.median(seconds) for by, seconds in json.loads(done.stdout).items()}
    for by, seconds in medians.items():
        print(f"{by}: {seconds * 1000:.2f} ms, {seconds / medians['crun exec']:.3f} of crun exec")
    assert set(medians) == {"agent", "crun exec", "podman exec"}
