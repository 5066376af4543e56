# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runner condor_job: each command is a job of HTCondor's, which is sent its files, and sends back what it has made.

Such a job goes on without whoever submitted it. So no worker waits for each: one keeper looks after all of a jobset, see
keeper.py. What there is of a claim lies in a folder, run/condor/CLAIM: what the node is given to run, what was submitted,
HTCondor's log of events, and at the end what the command printed and made. HTCondor's queue knows the claim, too.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple, Optional

from ..errors import NotReady, QueueError
from ..jobset import Jobset
from ..layout import sync_file_system, sync_folder
from .base import Command, Runner, end_carriers
from .client import PATIENCE, ask

# Seconds beyond its grace that HTCondor gets to end a job.
_SLACK = 60.0
# What a process carries that submits a job. The job itself may run on this very host, and carry the claim.
_SUBMITS = {"SAGEQUEUE_SUBMITS": "1"}
_REMOVED = "3"
# Status of a job, as condor_q says it.
_EVENT = re.compile(r"([0-9]{3}) \(0*([0-9]+)\.0*([0-9]+)\.[0-9]+\) (\S+ \S+) ?(.*)")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})")
# Commands of condor_submit that would break what the runner does.
_OURS = {
    *("universe", "executable", "arguments", "initialdir", "queue", "log", "output", "error", "batch_name", "kill_sig", "remove_kill_sig"),
    *("should_transfer_files", "when_to_transfer_output", "transfer_executable", "transfer_input_files", "transfer_output_files"),
    *("transfer_output_remaps", "preserve_relative_paths", "want_graceful_removal", "job_max_vacate_time", "max_retries", "environment"),
    *("stream_output", "stream_error", "on_exit_remove", "on_exit_hold", "leave_in_queue", "retry_until", "success_exit_code"),
}

_SUBMIT = """\
universe = vanilla
executable = {folder}/.sagequeue.sh
transfer_executable = true
should_transfer_files = YES
when_to_transfer_output = ON_EXIT
initialdir = {workdir}
preserve_relative_paths = true
transfer_input_files = {inputs}
transfer_output_files = .sagequeue.tar
transfer_output_remaps = ".sagequeue.tar={folder}/files.tar"
output = {folder}/output
error = {folder}/error
log = {folder}/events
batch_name = sagequeue.{jobset}
kill_sig = SIGTERM
remove_kill_sig = SIGTERM
want_graceful_removal = true
job_max_vacate_time = {grace}
{options}
+SagequeueClaim = "{claim}"
+SagequeueBase = {base}
+SagequeueJob = "{job}"
queue
"""

# It passes SIGTERM on, and packs what was made, of which HTCondor must find a file in any case.
_SCRIPT = """\
#!/bin/sh
: "${{HOME:=$PWD}}" "${{PATH:=/usr/local/bin:/usr/bin:/bin}}"
export HOME PATH
{exports}
: >.sagequeue.tar
mkdir .sagequeue && {{ {inputs}; }} && cd .sagequeue || exit 74
find . -type f {had} >../.sagequeue.had
{command} </dev/null 2>&1 &
pid=$!
trap 'kill -TERM "$pid" 2>/dev/null' TERM
while :; do
    wait "$pid"
    status=$?
    kill -0 "$pid" 2>/dev/null || break
done
find . -type f {made} | grep -vxFf ../.sagequeue.had >../.sagequeue.made
tar -cf ../.sagequeue.tar --no-recursion --verbatim-files-from -T ../.sagequeue.made || {{ [ "$status" -ne 0 ] || status=74; }}
exit "$status"
"""


class Story(NamedTuple):
    """What HTCondor's log of events says of a job."""

    id: str = ""
    # Since when it runs, and where; 0: it does not.
    began: float = 0.0
    where: str = ""
    # It has ended by itself: when, and with which exit status or signal.
    ended: float = 0.0
    exit_status: Optional[int] = None
    signal: Optional[int] = None
    peak_kib: Optional[int] = None
    # Why it is held, and that reason's number; 0: it is not.
    held: str = ""
    held_code: int = 0
    # Why it was removed.
    removed: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return bool(self.ended or self.removed)


def requests(jobset: Jobset, ours: set[str]) -> dict[str, str]:
    """Return what a jobset asks HTCondor for, as commands of condor_submit.

    Args:
        jobset: its definition.
        ours: the commands that may not be among its engine_options.
    Raises:
        QueueError: one is.
    """
    given = {
        "request_cpus": str(jobset.cpus),
        "request_memory": str(-(-jobset.memory >> 20)) if jobset.memory else "",
        "request_disk": str(-(-jobset.disk >> 10)) if jobset.disk else "",
        "request_gpus": str(jobset.gpus or ""),
        "accounting_group": jobset.account,
    }
    for key in ("partition", "qos", "time_limit"):
        if getattr(jobset, key):
            raise QueueError(f"jobset {jobset.name}: {key} is for the supervisor slurm, not htcondor; take it out")
    for key, value in jobset.engine_options.items():
        if key.lower() in ours:
            raise QueueError(f"jobset {jobset.name}: engine_options has {key}, which sagequeue itself needs under htcondor; take it out")
        given[key] = value
    return {key: value for key, value in given.items() if value}


class CondorJob(Runner, name="condor_job"):
    """Has HTCondor run commands."""

    keeps = True

    def folder(self, claim: str) -> str:
        """Return the folder of a claim."""
        return os.path.join(self.layout.condor, claim)

    def ready(self) -> str:
        """See Runner.ready."""
        workdir = self.jobset.workdir
        if not os.path.isdir(workdir):
            raise NotReady(f"the folder {workdir} (workdir) is not there; make it, or run setup")
        for name in (self.jobset.script, *(name for name in self.jobset.inputs if "{" not in name)):
            if not os.path.exists(os.path.join(workdir, name)):
                path = os.path.join(workdir, name)
                raise NotReady(f"{path}, which jobs are to be sent, is not there; put it there, or correct the jobset")
        self.queued()
        return "htcondor"

    def submit(self, command: Command, carries: dict[str, str], inputs: list[str], outputs: list[str], back: list[str]) -> None:
        """Have HTCondor run a command. If that fails, it may do so all the same: queued tells.

        Args:
            command: what to run; its output is not looked at.
            carries: the variables that tell whose it is, all of them.
            inputs: files and folders in workdir that it is sent.
            outputs: patterns of what it is to send back; none: all files that it has made.
            back: files that it sends back in any case, also those that it was sent.
        Raises:
            NotReady: HTCondor does not take it.
            OSError: its folder can't be made.
        """
        jobset, claim = self.jobset, carries["SAGEQUEUE_CLAIM"]
        folder = self.folder(claim)
        fill = {
            "folder": folder,
            "workdir": jobset.workdir,
            "inputs": ", ".join(inputs),
            "jobset": jobset.name,
            "grace": math.ceil(jobset.grace),
            "options": "\n".join(f"{key} = {value}" for key, value in requests(jobset, _OURS).items()),
            "claim": claim,
            "base": _quoted(self.layout.base),
            "job": carries["SAGEQUEUE_JOB"],
        }
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        os.makedirs(folder, mode=0o700)
        with open(os.path.join(folder, ".sagequeue.sh"), "x", opener=_private, encoding="utf-8", errors="surrogateescape") as file:
            file.write(script(command, inputs, outputs, back))
        with open(os.path.join(folder, "job.sub"), "x", opener=_private, encoding="utf-8", errors="surrogateescape") as file:
            file.write(_SUBMIT.format(**fill))
        sync_folder(self.layout.condor)
        said = os.path.join(folder, "submitted")
        with open(said, "xb", opener=_private) as out:
            # Not by a call that closes what is ours first: see Runner._spawn.
            variables = {**carries, **_SUBMITS}
            try:
                pid = self._spawn(["condor_submit", "-terse", os.path.join(folder, "job.sub")], variables, out.fileno(), "/")
            except FileNotFoundError as exc:
                raise NotReady("condor_submit is not installed; run this on a host of the htcondor pool (pool.yml makes one)") from exc
        deadline = time.monotonic() + PATIENCE
        ended, status = os.waitpid(pid, os.WNOHANG)
        while not ended:
            time.sleep(0.01)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise NotReady(f"condor_submit has not answered for {PATIENCE} s; see whether HTCondor runs (systemctl status condor)")
            ended, status = os.waitpid(pid, os.WNOHANG)
        if status:
            with open(said, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file if line.strip()]
            raise NotReady(f"HTCondor does not take the jobs of jobset {jobset.name}: {'; '.join(lines[-3:])}")

    def queued(self) -> dict[str, tuple[str, str, str]]:
        """Return the jobs of this jobset that HTCondor has in its queue: by id their status, claim and name.

        Raises:
            NotReady: it does not answer.
        """
        constraint = f"SagequeueBase == {_quoted(self.layout.base)}"
        found = _condor("condor_q", "-constraint", constraint, "-af", "ClusterId", "ProcId", "JobStatus", "SagequeueClaim", "SagequeueJob")
        words = (line.split() for line in found.splitlines())
        return {f"{one[0]}.{one[1]}": (one[2], one[3], one[4]) for one in words if len(one) == 5}

    def remove(self, ids: list[str]) -> None:
        """Have HTCondor end jobs: SIGTERM, and when its grace is over SIGKILL. Does not wait for it.

        Raises:
            NotReady: it does not answer.
        """
        if ids:
            try:
                _condor("condor_rm", *ids)
            except NotReady:
                # Those that have just ended can't be, and those that are ending need not be.
                if any(status != _REMOVED for one, (status, _claim, _name) in self.queued().items() if one in ids):
                    raise

    def end(self, *wanted: dict[str, str]) -> None:
        """See Runner.end."""
        end_carriers(*({**carries, **_SUBMITS} for carries in wanted))
        claims = {carries.get("SAGEQUEUE_CLAIM", "") for carries in wanted}
        jobs = {carries["SAGEQUEUE_JOB"] for carries in wanted if "SAGEQUEUE_CLAIM" not in carries}
        deadline = time.monotonic() + self.jobset.grace + _SLACK
        while True:
            there = {one: status for one, (status, claim, name) in self.queued().items() if claim in claims or name in jobs}
            if not there:
                return
            self.remove([one for one, status in there.items() if status != _REMOVED])
            if time.monotonic() > deadline:
                left = ", ".join(sorted(there)[:5])
                raise NotReady(f"HTCondor has not ended its jobs {left} yet (see condor_q); until it has, they are not run anew")
            time.sleep(0.3)

    def lasting(self, *wanted: dict[str, str], ended: bool = True) -> set[str]:
        """See Runner.lasting: what is in HTCondor's queue, or has ended there by itself."""
        claims = {carries["SAGEQUEUE_CLAIM"] for carries in wanted if "SAGEQUEUE_CLAIM" in carries}
        if not claims:
            return set()
        # Who is about to submit one is ended first: only then is what the queue says the last word.
        end_carriers(*({"SAGEQUEUE_CLAIM": claim, **_SUBMITS} for claim in claims))
        there = {claim for _status, claim, _name in self.queued().values()}
        over = {claim for claim in claims if self.story(claim).ended}
        # Without its folder, nobody could tell how it ends.
        return {claim for claim in (claims & there) - over if os.path.isdir(self.folder(claim))} | (over if ended else set())

    def story(self, claim: str) -> Story:
        """Return what HTCondor says of a claim's job."""
        try:
            with open(os.path.join(self.folder(claim), "events"), encoding="utf-8", errors="replace") as file:
                return read_events(file.read())
        except FileNotFoundError:
            return Story()

    def printed(self, claim: str) -> Iterator[bytes]:
        """Yield what a command has printed, piece by piece, once it has ended."""
        for name in ("output", "error"):
            with contextlib.suppress(FileNotFoundError), open(os.path.join(self.folder(claim), name), "rb") as file:
                while data := file.read(1 << 16):
                    yield data

    def collect(self, claim: str) -> list[str]:
        """Put what a command has sent back into workdir, each file whole or not at all; return what was left out, and why.

        Raises:
            OSError: it can't be written; try again.
            tarfile.TarError: what was sent back can't be read.
        """
        # A worker of another kind has no use for it.
        import tarfile

        path, odd = os.path.join(self.folder(claim), "files.tar"), []
        if not os.path.exists(path) or not os.path.getsize(path):
            return []
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                parts = os.path.normpath(member.name).split("/")
                if not member.isfile() or os.path.isabs(member.name) or ".." in parts:
                    odd.append(f"{member.name}: not a plain file below workdir")
                    continue
                target = os.path.join(self.jobset.workdir, *parts)
                source = archive.extractfile(member)
                temporary = f"{target}.{claim}.new"
                try:
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    with open(temporary, "wb") as file:
                        os.fchmod(file.fileno(), member.mode & 0o777)
                        if source:
                            shutil.copyfileobj(source, file)
                    os.rename(temporary, target)
                except (IsADirectoryError, NotADirectoryError, FileExistsError) as exc:
                    odd.append(f"{member.name}: {exc.strerror}")
                finally:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary)
        fd = os.open(self.jobset.workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)
        return odd

    def folders(self) -> set[str]:
        """Return the claims of which there is a folder."""
        with contextlib.suppress(FileNotFoundError):
            return set(os.listdir(self.layout.condor))
        return set()

    def forget(self, claims: set[str]) -> None:
        """Remove the folders of claims that hold no job any more."""
        for claim in claims:
            shutil.rmtree(self.folder(claim), ignore_errors=True)

    def why_lost(self, running: object) -> str:
        """See Runner.why_lost: HTCondor says so itself."""
        return ""


def script(command: Command, inputs: list[str], outputs: list[str], back: list[str]) -> str:
    """Return what a node runs; see CondorJob.submit."""
    tops = list(dict.fromkeys(name.split("/")[0] for name in inputs))
    named = [re.sub(r"([][*?\\])", r"\\\1", name) for name in back]
    selected = [*(f"./{pattern}{end}" for pattern in outputs for end in ("", "/*")), *(f"./{name}" for name in named)]
    return _SCRIPT.format(
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in command.environment.items()),
        inputs=f"mv -- {shlex.join(tops)} .sagequeue/" if tops else ":",
        # Of what it was sent, only what is asked for by name goes back.
        had=" ".join(f"! -path {shlex.quote(pattern)}" for pattern in selected),
        command=shlex.join(command.argv),
        made=f"\\( {' -o '.join(f'-path {shlex.quote(pattern)}' for pattern in selected)} \\)" if outputs else "",
    )


def read_events(text: str) -> Story:
    """Read HTCondor's log of one job's events. The last may not be whole yet."""
    story = Story()
    for event in text.split("\n...\n")[:-1]:
        lines = event.strip("\n").splitlines()
        match = _EVENT.match(lines[0]) if lines else None
        if not match:
            continue
        number, cluster, process, when, about = match.groups()
        story = story._replace(id=f"{cluster}.{process}")
        detail = [line.strip() for line in lines[1:]]
        if number == "001":
            slot = next((line.partition(":")[2].strip() for line in detail if line.startswith("SlotName:")), "")
            host = re.search(r"alias=([^&>]+)", about)
            story = story._replace(began=_seconds(when), where=slot.rpartition("@")[2] or (host.group(1) if host else about))
        elif number in ("004", "007", "024"):
            # Evicted, or its node was lost: HTCondor runs it again.
            story = story._replace(began=0.0, where="")
        elif number == "005":
            code = re.search(r"\((?:return value|signal) ([0-9]+)\)", event)
            abnormal = "Abnormal termination" in event
            value = int(code.group(1)) if code else 1
            memory = re.search(r"Memory \(MB\)\s*:\s*([0-9]+)", event)
            # The shell on the node says 128 + N where the command ended by signal N.
            ended_by = value if abnormal else value - 128 if 128 < value < 128 + signal.NSIG else None
            story = story._replace(
                ended=_seconds(when),
                exit_status=None if ended_by else value,
                signal=ended_by,
                peak_kib=(int(memory.group(1)) << 10 if memory else 0) or None,
            )
        elif number == "009":
            story = story._replace(removed="; ".join(detail) or "no reason given")
        elif number == "012":
            why = re.search(r"Code ([0-9]+)", event)
            reason = "; ".join(line for line in detail if not line.startswith("Code ")) or "no reason given"
            story = story._replace(held=reason, held_code=int(why.group(1)) if why else 0, began=0.0, where="")
        elif number == "013":
            story = story._replace(held="", held_code=0)
    return story


def _seconds(when: str) -> float:
    """Return the time of an event, which is in this host's own zone; now where it can't be understood."""
    match = _TIME.match(when)
    return time.mktime(time.strptime(" ".join(match.groups()), "%Y-%m-%d %H:%M:%S")) if match else time.time()


def _quoted(text: str) -> str:
    """Return a text as ClassAds write it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o700 if path.endswith(".sh") else 0o600)


def _condor(*words: str) -> str:
    """Return what a command of HTCondor's says.

    Raises:
        NotReady: it fails, or does not answer.
    """
    done = ask(*words)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotReady(f"{words[0]} failed: {'; '.join(lines[:3])}; see whether HTCondor runs on this host (systemctl status condor)")
    return done.stdout
