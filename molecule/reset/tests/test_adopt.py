"""What the older shell scripts have left, under their own units and amid a job in the container: taken over, and done to its end."""

from __future__ import annotations

import pytest
import yaml

WORKER = """#!/bin/bash
# As theirs: claims by a rename, then writes its record; obeys SIGTERM only between two jobs, and takes any end for a result.
shutdown=0
trap 'shutdown=1' TERM
while [ "$shutdown" = 0 ]; do
    job=$(find "$PENDING_DIR" -maxdepth 1 -type f -name '*.env' -print -quit)
    [ -n "$job" ] || { sleep 0.1; continue; }
    base=$(basename "$job")
    mv "$job" "$RUNNING_DIR/$base"
    printf 'OWNER_PID=%s\\nOWNER_WORKER_ID=1\\nOWNER_TS=2026-04-26T17:38:29-04:00\\n' $$ > "$RUNNING_DIR/$base.owner"
    offset=$(grep '^OFFSET=' "$RUNNING_DIR/$base" | cut -d= -f2)
    podman exec -w "$CONTAINER_WORKDIR" "$SERVICE" "$SAGE_BIN" "$SCRIPT" --stride "$STRIDE" --offset "$offset" \\
        >> "$LOG_DIR/rook_off$offset.log" 2>&1 &
    wait $!
    rm -f "$RUNNING_DIR/$base.owner"
    mv "$RUNNING_DIR/$base" "$FAILED_DIR/$base"
done
"""
ENVIRONMENT = """PROJECT_ROOT=/home/researcher/src
JOBSET=rook
PENDING_DIR=/home/researcher/src/var/rook/queue/pending
RUNNING_DIR=/home/researcher/src/var/rook/queue/running
DONE_DIR=/home/researcher/src/var/rook/queue/done
FAILED_DIR=/home/researcher/src/var/rook/queue/failed
LOG_DIR=/home/researcher/src/var/rook/log
LOG_PREFIX=rook

# theirs
SERVICE=sagemath
CONTAINER_WORKDIR=/sage
SAGE_BIN=./sage
STRIDE=4
SCRIPT=/home/sage/notebooks/older.sage
STOP_FILE_CONT=/home/sage/notebooks/rook_stop.txt
STOP_FILE_HOST=/home/researcher/Jupyter/rook_stop.txt
SAGE_BASE_ARGS="--note \\"a b\\" --stop_file /home/sage/notebooks/rook_stop.txt"
"""
UNITS = {
    "sagequeue@.service": "[Service]\nEnvironmentFile=%h/.config/sagequeue/sagequeue.env\nExecStart=%h/src/bin/sagequeue-worker.sh %i\n"
    "[Install]\nWantedBy=default.target\n",
    "sagequeue-recover.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    "sagequeue-recover.timer": "[Timer]\nOnActiveSec=5\nOnUnitActiveSec=5\n[Install]\nWantedBy=timers.target\n",
}
# Waits until it is let go, and appends who runs it: two solvers of one offset would show.
SOLVER = """import os, sys, time
os.chdir("/home/sage/notebooks")
offset = sys.argv[sys.argv.index("--offset") + 1]
open(f"ran.{offset}", "a").write("began\\n")
while not os.path.exists("go.older"):
    # A number of Sage's is none for Python.
    time.sleep(float(0.2))
open(f"ran.{offset}", "a").write(f"ended {factor(12)} {sys.argv[sys.argv.index('--note') + 1]}\\n")
"""


def write(site, path, text):
    site.sh(f"mkdir -p $(dirname {path}); cat >{path} <<'END'\n{text}END")


@pytest.fixture(scope="module")
def older(site):
    site.sh("mkdir -p ~/src/var/rook/log && cd ~/src/var/rook && mkdir -p queue/pending queue/running queue/done queue/failed")
    write(site, "~/src/bin/sagequeue-worker.sh", WORKER)
    write(site, "~/.config/sagequeue/sagequeue.env", ENVIRONMENT)
    write(site, "~/Jupyter/older.sage", SOLVER)
    for name, text in UNITS.items():
        write(site, f"~/.config/systemd/user/{name}", text)
    for offset, state, more in ((0, "pending", ""), (1, "pending", "ATTEMPTS=2\n"), (2, "done", ""), (3, "failed", "ATTEMPTS=3\n")):
        write(site, f"~/src/var/rook/queue/{state}/rook_off{offset}.env", f"OFFSET={offset}\nENQUEUED_AT=2026-04-26T16:00:00-04:00\n{more}")
    site.sh(
        "chmod 755 ~/src/bin/*.sh; echo UNSAT >~/src/var/rook/log/rook_off2.log; systemctl --user daemon-reload;"
        " systemctl --user enable --now sagequeue@1 sagequeue-recover.timer"
    )
    site.until(lambda: site.sh("cat ~/Jupyter/ran.* 2>/dev/null || true") == "began", 60, "a job of the older scripts runs")
    yield site.sh("ls ~/src/var/rook/queue/running/*.env")
    # What is theirs is not for teardown to remove.
    site.sh(
        f"rm -r ~/src ~/.config/sagequeue; cd ~/.config/systemd/user && rm {' '.join(UNITS)} && systemctl --user daemon-reload;"
        " rmdir --ignore-fail-on-non-empty default.target.wants timers.target.wants 2>/dev/null || true"
    )


def test_their_units_are_disabled_and_their_jobs_come_over(site, older):
    predicted = site.play("adopt", **{"from": "/home/researcher/src"}, check=True).said.splitlines()[0]
    # The service, too, if the timer has just started it.
    assert predicted.startswith("would be stopped and disabled: ") and "sagequeue-recover.timer, sagequeue@1.service" in predicted
    assert site.sh("systemctl --user is-active sagequeue@1") == "active"

    said = site.play("adopt", **{"from": "/home/researcher/src"}).said
    assert "sagequeue-recover.timer, sagequeue@1.service; their files stay" in said
    assert "rook: ran when their workers were stopped" in said
    active = site.sh("systemctl --user is-active sagequeue@1 sagequeue-recover.timer || true").split()
    assert active in (["failed", "inactive"], ["inactive", "inactive"])
    assert site.sh("systemctl --user is-enabled sagequeue@1 || true") == "disabled"
    assert not site.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep 'older[.]sage' || true"), "a solver of theirs runs"
    # What ran is pending, or an orphan for recovery to judge, as far as their worker came with it.
    left = {state: site.sh(f"ls ~/sagequeue/var/rook/queue/{state}").split() for state in ("pending", "running", "done", "failed")}
    assert sorted(left["pending"] + left["running"]) == ["rook_off0.env", "rook_off1.env"]
    assert (left["done"], left["failed"]) == (["rook_off2.env"], ["rook_off3.env"])
    assert site.sh("cat ~/sagequeue/var/rook/queue/*/rook_off1.env | grep ATTEMPTS") == "ATTEMPTS=2"
    assert site.play("adopt", **{"from": "/home/researcher/src"}).said.startswith("nothing is left to do")


def test_the_jobs_are_done_by_the_definition_that_was_read(site, older):
    site.jobsets["rook"] = yaml.safe_load(site.sh("cat ~/sagequeue/adopted/rook.yml"))["sagequeue_jobsets"]["rook"]
    site.write_inventory()
    site.setup()
    site.play("start", jobset="rook")
    site.play("retry_failed", jobset="rook")
    site.sh("touch ~/Jupyter/go.older")
    site.until_counts("rook", seconds=180, done=4)
    ran = {offset: site.sh(f"cat ~/Jupyter/ran.{offset} 2>/dev/null || true").splitlines() for offset in range(4)}
    ended = ["began", "ended 2^2 * 3 a b"]
    first = 0 if older.endswith("off0.env") else 1
    assert ran == {first: ["began", *ended], 1 - first: ended, 2: [], 3: ended}
    assert site.sh("cat ~/sagequeue/var/rook/log/rook_off2.log") == "UNSAT"
