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
import os
import shutil
import signal
import time
from collections.abc import Iterator

from ..carriers import end_carriers
from ..errors import NotReady
from ..layout import sync_file_system, sync_folder
from .base import Command, Runner
from .client import PATIENCE, ask
from .condor_events import Story, read_events
from .condor_submit import description, quoted, script

# Seconds beyond its grace that HTCondor gets to end a job.
_SLACK = 60.0
# What a process carries that submits a job. The job itself may run on this very host, and carry the claim.
_SUBMITS = {"SAGEQUEUE_SUBMITS": "1"}
# Status of a job, as condor_q says it.
_REMOVED = "3"


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
        described = description(jobset, self.layout.base, folder, carries, inputs)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        os.makedirs(folder, mode=0o700)
        with open(os.path.join(folder, ".sagequeue.sh"), "x", opener=_private, encoding="utf-8", errors="surrogateescape") as file:
            file.write(script(command, inputs, outputs, back))
        with open(os.path.join(folder, "job.sub"), "x", opener=_private, encoding="utf-8", errors="surrogateescape") as file:
            file.write(described)
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
        constraint = f"SagequeueBase == {quoted(self.layout.base)}"
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
