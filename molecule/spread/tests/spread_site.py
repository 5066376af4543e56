"""Three hosts with a queue each, driven as an operator drives them: by the playbooks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from batch_site import HOST, SAGE, Site

ROOT = Path(__file__).resolve().parents[3]
# A job of as many seconds as its key SECONDS says, which notes when it begins and ends.
SCRIPT = """\
note() { echo "$1 $SAGEQUEUE_JOB" >>ledger; }
note begin
trap 'note end; exit 143' TERM
end=$(($(date +%s) + ${JOB_SECONDS:-0}))
while [ "$(date +%s)" -lt "$end" ]; do sleep 0.2; done
note end
"""
COMMON = {"script": "job.sh", "command": ["/bin/sh"], "grace": 3, "recover_every": 5}


class Hosts(Site):
    """The hosts; more variables for some are in changes."""

    def __init__(self, folder):
        self.hosts = [f"sagequeue-spread-{name}" for name in "abc"]
        self.changes = {}
        jobsets = {"quick": {**COMMON, "stride": 9, "workers": 2}, "long": {**COMMON, "workers": 2}, "sage": SAGE}
        super().__init__(self.hosts[0], folder)
        self.jobsets = jobsets
        self.write_inventory()
        self.play("setup")
        # What an earlier run may have left.
        for name in jobsets:
            self.play("stop", jobset=name)
        for host in self.hosts:
            self.on(host, "rm -f ~/sagequeue/var/*/queue/*/*.env*")
            self.on(host, f"mkdir -p ~/Jupyter; cat >~/Jupyter/job.sh <<'E'\n{SCRIPT}E\nrm -f ~/Jupyter/ledger")

    def write_inventory(self):
        super().write_inventory()
        known = yaml.safe_load((self.inventory / "hosts.yml").read_text())["sagequeue"]["hosts"][self.name]
        hosts = {}
        for name in self.hosts:
            address = subprocess.run([HOST, "address", name], capture_output=True, text=True, check=True).stdout.strip()
            hosts[name] = {**known, "ansible_host": address, **self.changes.get(name, {})}
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump({"sagequeue": {"hosts": hosts}}))
        common = (ROOT / "molecule/spread/group_vars/all/all.yml").read_text()
        (self.inventory / "group_vars" / "all" / "common.yml").write_text(common)

    def host(self, *words):
        return subprocess.run([HOST, *words], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout

    def on(self, host, script):
        return self.host("exec", host, "-u", "researcher", "sh", "-euc", script).strip()

    def enqueue(self, jobset, names, seconds, **more):
        """Enqueue jobs that take so many seconds each."""
        listed = self.folder / f"{jobset}.jobs"
        listed.write_text(f"{names} SECONDS={seconds}\n")
        return self.play("enqueue", jobset=jobset, jobs_file=str(listed), **more)

    def look(self, jobset):
        """What progress finds on all hosts together."""
        return self.play("progress", jobset=jobset).result("Decide which host gets which job")

    def until_all(self, jobset, seconds=240, **wanted):
        def look():
            found = self.look(jobset)
            return found if all(found["counts"][state] == number for state, number in wanted.items()) else None

        return self.until(look, seconds, f"{jobset} has {wanted}")

    def holds(self, host, jobset, state):
        """The names of a host's jobs in a state."""
        listed = self.on(host, f"cd ~/sagequeue/var/{jobset}/queue/{state} && find . -name '*.env'").split()
        return sorted(name[2:-4] for name in listed)

    def ledger(self, host):
        return [line.split() for line in self.on(host, "cat ~/Jupyter/ledger 2>/dev/null || true").splitlines()]
