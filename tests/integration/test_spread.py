# MIT licence, see LICENSE.
"""A jobset over three hosts, each with a queue of its own in a folder of this machine. The tests build on each other, in this order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.definitions import store
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.jobset import Jobset
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.layout import Layout

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTS = ("h1", "h2", "h3")
ANSIBLE = str(Path(sys.executable).with_name("ansible-playbook"))
# Nobody listens there.
AWAY = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


class Spread:
    """Three hosts, and what is in their queues."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "inventory"
        self.inventory.mkdir()
        self.record = self.inventory / ".spread" / "quick.json"
        self.jobset = {"script": "part.sh", "command": ["/bin/sh"], "workdir": str(folder), "stride": 9, "workers": 2}
        self.write()
        # What setup leaves, but for the workers: each host would need a supervisor.
        host = {
            "home": str(folder),
            "runner": "process",
            "supervisor": "supervisord",
            "image": "",
            "container": "",
            "slice": {},
            "stop_margin": 0,
        }
        for name in HOSTS:
            for path, text in (("bin/sagequeue", ""), ("etc/host.json", json.dumps(host))):
                (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / name / path).write_text(text)
            layout = Layout(str(folder / name), "quick")
            layout.create()
            store(layout, Jobset("quick", self.jobset, {**host, "sage_command": []}))

    def write(self, **changes: dict[str, Any]) -> None:
        """Write the inventory, with more variables for some hosts."""
        known = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        hosts = {host: {**known, "sagequeue_root": str(self.folder / host), **changes.get(host, {})} for host in HOSTS}
        text = yaml.safe_dump({"sagequeue": {"hosts": hosts, "vars": {"sagequeue_jobsets": {"quick": self.jobset}}}})
        (self.inventory / "hosts.yml").write_text(text)

    def command(self, name: str, *options: str, **variables: Any) -> tuple[int, dict[str, Any]]:
        """Run a playbook; return its exit status and its document."""
        done = subprocess.run(self.words(name, *options, **variables), capture_output=True, text=True, check=False, cwd=REPOSITORY)
        document = json.loads(done.stdout)
        print(name, options, variables, failures(document), document["errors"], sep="\n")
        return done.returncode, document

    def words(self, name: str, *options: str, **variables: Any) -> list[str]:
        given = {"jobset": "quick", "output": "json", "start": False, **variables}
        return [ANSIBLE, "-i", str(self.inventory), f"playbooks/{name}.yml", "-e", json.dumps(given), *options]

    def where(self) -> dict[str, str]:
        """Return where each job is, as HOST/STATE; of one in two queues, both."""
        found: dict[str, str] = {}
        for path in sorted(self.folder.glob("h?/var/quick/queue/*/*.env")):
            name, place = path.stem, f"{path.parts[-6]}/{path.parts[-2]}"
            found[name] = f"{found[name]} {place}" if name in found else place
        return found

    def rename(self, host: str, source: str, target: str, count: int) -> None:
        """Let jobs change their state."""
        folder = self.folder / host / "var/quick/queue"
        for path in sorted((folder / source).glob("*.env"))[:count]:
            path.rename(folder / target / path.name)


def placement(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the playbook found, for all hosts together."""
    return next(host["results"]["placement"] for host in document["hosts"].values() if "placement" in host["results"])


def failures(document: dict[str, Any]) -> str:
    return "\n".join(one["msg"] for host in document["hosts"].values() for one in host["failures"])


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Spread:
    return Spread(tmp_path_factory.mktemp("spread"))


def test_each_job_gets_one_host(spread: Spread) -> None:
    code, document = spread.command("enqueue", "--check", spread="sequential")
    assert code == 0 and placement(document)["said"][0] == "quick: 9 would be enqueued: 3 on h1, 3 on h2, 3 on h3"
    assert spread.where() == {} and not spread.record.exists()
    code, document = spread.command("enqueue", spread="sequential")
    assert code == 0 and placement(document)["said"][0] == "quick: 9 enqueued: 3 on h1, 3 on h2, 3 on h3"
    assert spread.where() == {f"quick_off{n}": f"h{n % 3 + 1}/pending" for n in range(9)}


def test_it_stays_spread_within_limits_and_drained_hosts_get_nothing(spread: Spread) -> None:
    before = spread.where()
    (spread.folder / "list").write_text("quick_off[0-8]\npart[08-12] A=1\n")
    spread.write(h1={"max_jobs_allowed": 5}, h2={"drained": True}, h3={"max_jobs_allowed": "4", "spread": "smart"})
    code, document = spread.command("enqueue", jobs_file=str(spread.folder / "list"))
    assert code == 0 and sorted(placement(document)["left"]) == ["part11", "part12"]
    room = "were not enqueued: each host has as many jobs as its max_jobs_allowed; enqueue again when some have ended"
    assert any(room in line for line in placement(document)["said"])
    assert "9 were left alone: 3 pending on h1, 3 pending on h2, 3 pending on h3" in placement(document)["said"]
    parts = {"part08": "h1/pending", "part09": "h3/pending", "part10": "h1/pending"}
    assert spread.where() == {**before, **parts}
    assert (spread.folder / "h3/var/quick/queue/pending/part09.env").read_text().startswith("A=1\n")
    spread.write()


def test_jobs_move_off_a_host_that_answers(spread: Spread) -> None:
    spread.rename("h1", "pending", "done", 2)
    spread.rename("h2", "pending", "running", 1)
    before = spread.where()
    code, document = spread.command("move", **{"from": "h2"})
    after, said = spread.where(), "\n".join(placement(document)["said"])
    running = [name for name, place in before.items() if place == "h2/running"]
    assert code == 0 and [name for name, place in after.items() if place.startswith("h2/")] == running
    assert f"{running[0]} still runs there; stop.yml -e sagequeue_hosts=h2 puts back what runs" in said and "2 jobs moved from h2" in said
    assert set(after) == set(before) and all(" " not in place for place in after.values())


def test_a_host_that_cannot_be_asked(spread: Spread) -> None:
    before = spread.where()
    code, document = spread.command("progress")
    found = placement(document)
    assert code == 0 and found["counts"] == {"pending": 9, "running": 1, "done": 2, "failed": 0}
    assert found["said"] == ["quick [#####-------------------------] 2/12 done, 1 running, 9 pending"]
    spread.write(h3=AWAY)
    (spread.folder / "list").write_text("quick_off2\nnew[1-2]\n")
    code, document = spread.command("enqueue", jobs_file=str(spread.folder / "list"))
    assert code != 0 and "does not say where new1 and 1 more would be" in failures(document) and spread.where() == before
    code, document = spread.command("move", **{"from": "h3", "lost": True})
    own = [name for name, place in before.items() if place == "h3/pending"]
    said = "\n".join(placement(document)["said"])
    assert "h3 is given up; it was asked last at 2" in said and ": then it had " in said
    assert "what moved and was pending there still is, and runs there, too, if h3 comes up: then at once -e back=h3" in said
    assert (
        code == 0
        and own
        and all(spread.where()[name].split() in (["h1/pending", "h3/pending"], ["h2/pending", "h3/pending"]) for name in own)
    )
    # It comes back, and a worker has been faster with one of them.
    spread.write()
    spread.rename("h3", "pending", "running", 1)
    found = placement(spread.command("progress")[1])
    assert set(found["twice"]) == set(own) and "h3, which was given up, is back" in "\n".join(found["said"])
    assert sum(found["counts"].values()) == len(spread.where())
    code, document = spread.command("move", back="h3")
    both = {name: place for name, place in spread.where().items() if " " in place}
    assert code == 0 and list(both) == own[:1] and both[own[0]].endswith("h3/running")
    (spread.folder / "h3/var/quick/queue/running" / f"{own[0]}.env").unlink()


def test_a_command_that_is_killed_is_gone_on_with(spread: Spread) -> None:
    (spread.folder / "list").write_text("cut[1-6]\n")
    before = spread.where()
    # It is killed when the record is written: most often before, sometimes amid the enqueueing.
    process = subprocess.Popen(
        spread.words("enqueue", jobs_file=str(spread.folder / "list")), stdout=subprocess.DEVNULL, cwd=REPOSITORY, start_new_session=True
    )
    end = time.monotonic() + 120
    while "cut1" not in spread.record.read_text():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    placed = {name: job[0] for name, job in json.loads(spread.record.read_text())["jobs"].items() if name.startswith("cut")}
    code, _document = spread.command("enqueue", jobs_file=str(spread.folder / "list"), spread="random")
    after = spread.where()
    assert code == 0 and {name: place for name, place in after.items() if name in before} == before
    assert {name: place for name, place in after.items() if name not in before} == {
        name: f"{host}/pending" for name, host in placed.items()
    }
    assert len(placed) == 6
