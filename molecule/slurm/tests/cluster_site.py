"""A pool of three hosts under an engine, driven as an operator drives it: by the playbooks."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import yaml
from batch_site import HOST, SAGE, Site

ROOT = Path(__file__).resolve().parents[3]
# A job of as many seconds as its key SECONDS says, which notes when it begins and ends, its node, and that it is alive.
SCRIPT = """\
host=$(hostname)
note() { echo "$1 $SAGEQUEUE_JOB $$ $host $(date +%s.%N)" >>/shared/work/ledger; }
note begin
# Once, and whole, however often the signal comes, to this and to all that it runs.
trap 'trap "" TERM; note end; exit 143' TERM
end=$(($(date +%s) + ${JOB_SECONDS:-0}))
while [ "$(date +%s)" -lt "$end" ]; do touch "/shared/work/alive.$SAGEQUEUE_JOB.$$.$host"; sleep 0.3; done
note end
"""


class Cluster(Site):
    """The hosts, the first of which is the controller and the batch host."""

    SAGE = {**SAGE, "workdir": "/shared/work", "workers": 2, "idle": 5}

    def __init__(self, engine, folder, jobsets, asked=None):
        self.engine = engine
        # What the jobset long has the engine asked for, see ad.
        self.asked = asked
        self.hosts = [f"sagequeue-{engine}-{name}" for name in ("c", "n1", "n2")]
        super().__init__(self.hosts[0], folder)
        self.jobsets = jobsets
        self.write_inventory()
        self.play("pool")
        for name in self.sh("ls /shared/sagequeue/var").split():
            # What an earlier run may have left.
            if name in jobsets:
                self.play("stop", jobset=name, ok=False)
                self.sh(f"rm -rf /shared/sagequeue/var/{name}")
        self.play("setup")
        self.sh(f"rm -rf /shared/work; mkdir -p /shared/work && cat >/shared/work/job.sh <<'E'\n{SCRIPT}E")

    def write_inventory(self):
        super().write_inventory()
        known = yaml.safe_load((self.inventory / "hosts.yml").read_text())["sagequeue"]["hosts"][self.name]
        nodes = getattr(self, "nodes", self.hosts[1:])
        addresses = {
            name: subprocess.run([HOST, "address", name], capture_output=True, text=True, check=True).stdout.strip() for name in self.hosts
        }
        # A machine that is busy with three hosts answers late.
        hosts = {name: {**known, "ansible_host": addresses[name], "ansible_timeout": 60} for name in self.hosts}
        groups = {
            "sagequeue": {"hosts": {self.name: hosts[self.name]}},
            f"{self.engine}_controller": {"hosts": {self.name: hosts[self.name]}},
            f"{self.engine}_compute": {"hosts": {name: hosts[name] for name in nodes}},
        }
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump(groups))
        common = yaml.safe_load((ROOT / "molecule" / self.engine / "group_vars/all/all.yml").read_text())
        (self.inventory / "group_vars" / "all" / "common.yml").write_text(yaml.safe_dump(common))

    def progress(self, jobset):
        return json.loads(self.sh(f"/shared/sagequeue/bin/sagequeue progress {jobset} --json"))[0]

    def host(self, *words):
        return subprocess.run([HOST, *words], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout

    def enqueue(self, jobset, seconds, **more):
        """Enqueue jobs that take so many seconds each."""
        listed = self.folder / f"{jobset}.jobs"
        listed.write_text("".join(f"{jobset}_{n} SECONDS={s}\n" for n, s in enumerate(seconds)))
        return self.play("enqueue", jobset=jobset, jobs_file=str(listed), **more)

    def noted(self):
        """The lines of the jobs' notes: what, job, pid, host, when."""
        for line in self.sh("cat /shared/work/ledger 2>/dev/null || true").splitlines():
            what, job, pid, host, when = line.split()
            yield what, job, pid, host, float(when)

    def ledger(self):
        """What the jobs noted: job, pid, host, when it began and when it ended (None: it did not say)."""
        runs = {}
        for what, job, pid, host, when in self.noted():
            runs.setdefault((job, pid, host), {})[what] = when
        return [(job, host, found["begin"], found.get("end")) for (job, _pid, host), found in runs.items()]

    def last_alive(self):
        """When each run of a job was last alive, by job: pairs of when it began and that."""
        alive = {}
        for line in self.sh("cd /shared/work; stat --format='%n %.Y' alive.* 2>/dev/null || true").splitlines():
            name, when = line.split()
            alive[tuple(name.split(".")[1:])] = float(when)
        runs = {}
        for what, job, pid, host, when in self.noted():
            if what == "begin":
                runs.setdefault(job, []).append((when, alive.get((job, pid, host), when)))
        return runs

    def never_two_at_once(self):
        """No job ran a second time while its first run was still alive."""
        for job, runs in self.last_alive().items():
            for first, second in itertools.pairwise(sorted(runs)):
                assert first[1] < second[0], f"{job} ran twice at once: {runs}"
        return True

    def fresh(self, jobset):
        """Let nothing of a jobset's earlier runs stay."""
        self.play("stop", jobset=jobset)
        self.play("purge_queue", jobset=jobset, confirm=jobset, remove_logs=True)
        self.sh(f"rm -f /shared/work/ledger /shared/work/alive.* /shared/sagequeue/var/{jobset}/run/history.jsonl")

    def cut(self, host, off=True):
        """Cut a host off the network, or join it again."""
        chains = "".join(f"chain {hook} {{ type filter hook {hook} priority 0; policy drop; }}; " for hook in ("input", "output"))
        self.host("exec", host, "nft", f"table inet cut {{ {chains} }}" if off else "delete table inet cut")

    def busy(self, jobset):
        """A node on which a job of the jobset runs."""
        return next(host for job, host, _begin, end in self.ledger() if end is None and job.startswith(f"{jobset}_"))

    def states(self, jobset):
        """The state of each of the jobset's workers, as status says it."""
        lines = [line.split() for line in self.play("status", jobset=jobset).said.splitlines()]
        return {words[0]: words[1:] for words in lines if words and words[0].startswith(f"{jobset}-")}

    def queued(self, jobset="", ended=False):
        """The workers that the engine has in its queue; ended: those, too, that have left it."""
        if self.engine == "slurm":
            which = f"--states={'all' if ended else 'R,PD,CG'} {jobset and f'--name=sagequeue.{jobset}'}"
            return self.sh(f"squeue --noheader --array {which}").splitlines()
        which = f"""-constraint 'SagequeueJobset {f'== "{jobset}"' if jobset else 'isnt undefined'}' -af ClusterId ProcId"""
        return self.sh(f"condor_q {which}; {f'condor_history {which}' if ended else ''}").splitlines()

    def ad(self, jobset):
        """What the engine was asked for, of one worker that it has in its queue."""
        if self.engine == "slurm":
            said = self.sh(f"scontrol show job --oneliner $(squeue -h -r -o %i --name=sagequeue.{jobset} | head -1)")
            return dict(word.split("=", 1) for word in said.split() if "=" in word)
        return json.loads(self.sh(f"""condor_q -json -constraint 'SagequeueJobset == "{jobset}"'"""))[0]

    def comes_back(self, jobset):
        """Whether the engine was asked to bring the jobset's workers back after the failure of their node."""
        ad = self.ad(jobset)
        return ad["Requeue"] == "1" if self.engine == "slurm" else ad.get("PeriodicRemove", False) is False

    def history(self, jobset):
        return [json.loads(line) for line in self.sh(f"cat /shared/sagequeue/var/{jobset}/run/history.jsonl || true").splitlines()]
