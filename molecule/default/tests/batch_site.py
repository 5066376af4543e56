"""One batch host, driven as an operator drives it: by the playbooks, through ansible-runner."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from pathlib import Path

import ansible_runner
import yaml

ROOT = Path(__file__).resolve().parents[3]
HOST = str(ROOT / "tests" / "host" / "host")
USER = "researcher"
SETTINGS = {
    "sage_image_base": "localhost/sagequeue-sage-base:latest",
    "sage_image_ca_bundle": "/etc/ssl/certs/ca-certificates.crt",
}


# A jobset of three short jobs of real Sage, with nine cases together; see give_notebook.
SAGE = {
    "script": "rank_boundary_sat_v18.sage",
    "args": "--graph petersen --rank 1 --solver sat --sat_backend cryptominisat --scan_all_J --want_solution --resume "
            "--stop_file {gate_file} --progress_every 1",
    "stride": 3,
    "state_file": "state_{graph}_r{rank}_stride{stride}_off{offset}.txt",
    "environment": {"SAGE_NUM_THREADS": "1"},
}


class Play:
    """What a run of a playbook did, from its events."""

    def __init__(self, run):
        self.rc = run.rc
        self.events = [event for event in run.events if event["event"].startswith(("runner_on", "runner_item_on"))]

    def results(self, kind):
        for event in self.events:
            if event["event"] == f"runner_on_{kind}":
                yield event["event_data"]["task"], event["event_data"]["res"]

    @property
    def changed(self):
        return [task for task, result in self.results("ok") if result.get("changed")]

    @property
    def changed_roles(self):
        """The parts of setup that changed something."""
        data = [event["event_data"] for event in self.events if event["event"] == "runner_on_ok"]
        return {one.get("role", "") for one in data if one["res"].get("changed")}

    @property
    def errors(self):
        """What failed, the items of loops included."""
        failed = [event for event in self.events if event["event"] in ("runner_on_failed", "runner_item_on_failed")]
        return "\n".join(str(event["event_data"]["res"].get("msg", "")) for event in failed)

    @property
    def said(self):
        """What the play says at its end, as one text."""
        messages = [result["msg"] for _task, result in self.results("ok") if "msg" in result]
        return "\n".join(map(str, messages[-1])) if isinstance(messages[-1], list) else str(messages[-1])

    def result(self, task):
        return next(result for name, result in self.results("ok") if name == task)


class Site:
    """A test host and its inventory."""

    def __init__(self, name, folder, jobsets=None, user=USER):
        self.name = name
        self.folder = folder
        self.runs = 0
        self.inventory = folder / "inventory"
        (self.inventory / "group_vars" / "all").mkdir(parents=True)
        shipped = yaml.safe_load((ROOT / "inventories/local/group_vars/all/jobsets.yml").read_text())
        self.jobsets = {**shipped["sagequeue_jobsets"], **(jobsets or {})}
        self.user = user
        self.write_inventory()

    def write_inventory(self):
        said = [subprocess.run([HOST, *words], capture_output=True, text=True, check=True).stdout.strip()
                for words in (["address", self.name], ["key"])]
        variables = {
            "ansible_host": said[0],
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": said[1],
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_pipelining": True,
            **SETTINGS,
        }
        hosts = {"sagequeue": {"hosts": {self.name: variables}}}
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
        (self.inventory / "group_vars" / "all" / "jobsets.yml").write_text(yaml.safe_dump({"sagequeue_jobsets": self.jobsets}))

    def play(self, name, *, check=False, ok=True, collections=ROOT / "playbooks" / "collections", **variables):
        self.runs += 1
        folder = self.folder / f"run{self.runs}"
        folder.mkdir()
        run = ansible_runner.run(
            private_data_dir=str(folder),
            playbook=str(collections / "ansible_collections" / "sagequeue" / "batch" / "playbooks" / f"{name}.yml"),
            inventory=str(self.inventory),
            extravars=variables,
            cmdline="--check --diff" if check else None,
            envvars={"ANSIBLE_COLLECTIONS_PATH": str(collections)},
            quiet=True,
        )
        play = Play(run)
        if ok:
            assert run.status == "successful", play.errors or run.stdout.read()[-4000:]
        return play

    def run(self, *command, user=None, check=True):
        who = ["-u", user] if user else []
        done = subprocess.run([HOST, "exec", self.name, *who, *command], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{shlex.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, script, *, root=False, check=True):
        """The output of a script, run by the host's user in a login session."""
        return self.run("sh", "-euc", script, user=None if root else USER, check=check).stdout.strip()

    def give_notebook(self, host, folder):
        """Put the program of SAGE into a folder of a host."""
        source = (ROOT / "files/notebooks" / SAGE["script"]).read_text()
        subprocess.run([HOST, "exec", host, "-u", USER, "sh", "-c", f"cat >{folder}/{SAGE['script']}"], input=source, text=True, check=True)

    def progress(self, jobset):
        return json.loads(self.sh(f"~/sagequeue/bin/sagequeue progress {jobset} --json"))[0]

    def until(self, what, seconds, why):
        """Wait for something to be true of the host; return it."""
        deadline = time.monotonic() + seconds
        while True:
            found = what()
            if found:
                return found
            assert time.monotonic() < deadline, f"after {seconds} s still not so: {why}"
            time.sleep(1)

    def until_counts(self, jobset, seconds=300, **wanted):
        def look():
            counts = self.progress(jobset)["counts"]
            return all(counts[state] == number for state, number in wanted.items())

        self.until(look, seconds, f"{jobset} has {wanted}")

    def forget(self, jobset, state="state_petersen_r2_*"):
        """Let the jobset be done anew: neither jobs, nor logs, nor what the notebook keeps of earlier runs stay."""
        self.play("stop", jobset=jobset)
        self.play("purge_queue", jobset=jobset, confirm=jobset, remove_logs=True)
        self.sh(f"cd ~/Jupyter && rm -f {state} {jobset}_stop.txt")
