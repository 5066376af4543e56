# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a jobset's definition means, and which of its keys fit together.

What it may contain is in keys.py, and where it is kept in definitions.py.
"""

from __future__ import annotations

import functools
import json
import os
import re
from typing import Any

from . import batch
from .errors import MalformedJob, QueueError, nearest
from .job import check_name, own_values
from .keys import ENGINES, KEYS, checked

# What a host may say for all its jobsets, and what holds where it says nothing.
_HOST = {"home": "~", "runner": "process", "supervisor": "systemd", "sage_command": ["sage"], "image": "", "sif": ""}
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# Variables that a podman client itself would obey: in its own environment they would change what it does.
PODMAN_OBEYS = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|LD_.*|XDG_.*|DBUS_.*|_?CONTAINER.*|PODMAN.*|DOCKER_.*|BUILDAH_.*|NETAVARK_.*|REGISTRY.*"
    r"|STORAGE.*|GO(?!OGLE).*|GNUPGHOME|SSL_.*|NOTIFY_SOCKET|LISTEN_.*|(?i:(https?|ftp|no|all)_proxy))\Z"
)
# Variables of a job that the worker makes.
_WORKERS_OWN = re.compile(r"(JOB|SAGEQUEUE)_")
# An option in args whose value state_file may name: --rank 3, --rank=3.
_OPTION = re.compile(r"--([a-z][a-z0-9_-]*)(?:=(.*))?\Z", re.DOTALL)
_ADDRESS = re.compile(r"(https?)://[^/\s]+|(mailto):[A-Za-z0-9_][A-Za-z0-9_.+=-]*(@[A-Za-z0-9.-]+)?\Z")
_PODMAN_SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}\Z")


def fill(text: str, values: dict[str, str]) -> str:
    """Put values in the place of {name}.

    Raises:
        MalformedJob: a name has no value.
    """

    def value(match: re.Match[str]) -> str:
        if match.group(1) not in values:
            raise MalformedJob(f"{text!r} asks for {match.group(0)}, which this job does not have")
        return values[match.group(1)]

    return _PLACEHOLDER.sub(value, text)


class Jobset:
    """A checked definition. Its keys are attributes; see KEYS."""

    script: str
    command: list[str]
    args: list[str]
    stride: int
    workers: int
    runner: str
    supervisor: str
    workdir: str
    container: str
    container_workdir: str
    image: str
    run_options: list[str]
    inputs: list[str]
    outputs: list[str]
    gate_file: str
    solved_pattern: str
    timeout: float
    attempts: int
    recoveries: int
    grace: float
    environment: dict[str, str]
    secrets: dict[str, str]
    podman_secrets: dict[str, str]
    recover_every: int
    log_size: int
    log_keep: int
    state_file: str
    cases: int
    state_counts: bool
    on_done: list[str]
    on_failed: list[str]
    hook_limit: float
    idle: float
    lease: float
    time_limit: int
    memory: int
    disk: int
    cpus: int
    gpus: int
    account: str
    partition: str
    qos: str
    engine_options: dict[str, str]
    enabled: bool

    def __init__(self, name: str, definition: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        """Check a definition and fill in what it leaves out.

        Args:
            name: the jobset's name.
            definition: its keys.
            defaults: the host's own: home, runner, supervisor, sage_command (of the runner process), image, sif.
        Raises:
            QueueError: names the jobset, the key, the reason and, for a misspelt key, the nearest.
        """
        self.name = check_name(name)
        if not isinstance(definition, dict):
            raise QueueError(f"jobset {name}: its definition is not a mapping of keys to values")
        try:
            json.dumps(definition, ensure_ascii=False, default=str).encode("utf-8")
        except (UnicodeEncodeError, ValueError, TypeError, RecursionError) as exc:
            raise QueueError(f"jobset {name}: its definition can't be written as JSON in UTF-8: {exc}") from exc
        for key in definition:
            if key not in KEYS:
                raise QueueError(f"jobset {name}: unknown key {key!r}{nearest(str(key), list(KEYS))} (keys are {', '.join(KEYS)})")
        if not definition.get("script"):
            raise QueueError(f"jobset {name}: the key 'script' is missing: name the program's file, relative to workdir")
        host = {**_HOST, **{key: value for key, value in (defaults or {}).items() if value is not None}}
        home = os.path.expanduser(str(host["home"]))
        for key, rule in KEYS.items():
            value = definition.get(key)
            if key == "image" and self.runner == "apptainer" and str(value).startswith("~/"):
                value = home + str(value)[1:]
            if value is None:
                value = self._default(key, host) if rule.default is None else rule.default
            setattr(self, key, checked(name, key, value, home))
        self._check_together()

    def _default(self, key: str, host: dict[str, Any]) -> Any:
        if key == "command":
            return host["sage_command"] if self.runner == "process" else ["/sage/sage"]
        if key == "run_options":
            return [] if self.runner == "apptainer" else ["--userns=keep-id:uid=1000,gid=1000"]
        if key == "image" and self.runner == "apptainer":
            return host["sif"]
        worked_out = {"workdir": "~/Jupyter", "gate_file": f"{self.name}_stop.txt"}
        return worked_out[key] if key in worked_out else host[key]

    def _check_together(self) -> None:
        for word in [*self.args, *self.command]:
            if re.match(r"--(stride|offset)(=|\Z)", word):
                raise QueueError(
                    f"jobset {self.name}: args has {word}, which the worker itself adds from the key stride and the "
                    "job's OFFSET; take it out"
                )
        if "/" in self.gate_file or self.gate_file in ("", ".", ".."):
            raise QueueError(f"jobset {self.name}: gate_file is {self.gate_file!r}; it must be a file's name in workdir")
        if os.path.isabs(self.state_file) or ".." in self.state_file.split("/") or self.state_file.endswith("/"):
            raise QueueError(f"jobset {self.name}: state_file is {self.state_file!r}; it must be a file's name relative to workdir")
        for key in ("on_done", "on_failed"):
            words = getattr(self, key)
            if words and words[0].startswith(("http:", "https:", "mailto:")) and (len(words) > 1 or not _ADDRESS.match(words[0])):
                # Its value may be a secret, so no message shows it.
                raise QueueError(f"jobset {self.name}: {key} is no address; one is a word, https://HOST/PATH or mailto:NAME@HOST")
            if words and not words[0]:
                raise QueueError(f"jobset {self.name}: {key} names no program")
        if self.lease < 10:
            raise QueueError(f"jobset {self.name}: lease is {self.lease:g}; it must be at least 10 s")
        if not self.hook_limit:
            raise QueueError(f"jobset {self.name}: hook_limit is 0; it must be some seconds")
        if self.runner in ("podman_run", "apptainer") and not self.image:
            raise QueueError(f"jobset {self.name}: the runner {self.runner} needs the key 'image'")
        if self.runner == "apptainer" and not os.path.isabs(self.image):
            raise QueueError(f"jobset {self.name}: image is {self.image!r}; for apptainer it must be the absolute path of a .sif")
        if self.podman_secrets and self.runner != "podman_run":
            hint = "; give them to the container (sage_container_secrets)" if self.runner == "podman_exec" else ""
            raise QueueError(f"jobset {self.name}: podman_secrets are for the runner podman_run, not {self.runner}{hint}")
        if self.runner == "condor_job" and self.supervisor in ENGINES:
            raise QueueError(
                f"jobset {self.name}: the runner condor_job gives its jobs to HTCondor from this host: "
                f"its supervisor is systemd or supervisord, not {self.supervisor}"
            )
        for key in ("inputs", "outputs"):
            for name in getattr(self, key):
                if self.runner != "condor_job":
                    raise QueueError(f"jobset {self.name}: {key} are for the runner condor_job, not {self.runner}; take them out")
                check_sent(f"jobset {self.name}: {key} has {name!r}", name)
        if self.runner == "condor_job":
            check_sent(f"jobset {self.name}: script is {self.script!r}", self.script)
        for name in (*self.secrets, *self.podman_secrets):
            reason = "a variable that podman obeys" if PODMAN_OBEYS.match(name) else "a variable that the worker sets"
            if PODMAN_OBEYS.match(name) or _WORKERS_OWN.match(name):
                raise QueueError(f"jobset {self.name}: the secret {name} can't be passed on: {name} is {reason}; name it otherwise")
            if (name in self.secrets) + (name in self.podman_secrets) + (name in self.environment) > 1:
                raise QueueError(f"jobset {self.name}: {name} is given twice, in two of environment, secrets and podman_secrets")
        for name, secret in self.podman_secrets.items():
            if not _PODMAN_SECRET.match(secret):
                raise QueueError(f"jobset {self.name}: podman_secrets: {secret!r} of {name} can't be the name of a secret of podman's")

    @property
    def processes(self) -> int:
        """How many workers there are: of the runner condor_job, one keeps all jobs."""
        return min(1, self.workers) if self.runner == "condor_job" else self.workers

    def to_dict(self) -> dict[str, Any]:
        """Return the definition with everything filled in."""
        return {key: getattr(self, key) for key in KEYS}

    @functools.cached_property
    def gate(self) -> str:
        """The gate file's path on the host."""
        return os.path.join(self.workdir, self.gate_file)

    def job_name(self, offset: int | str) -> str:
        """Return the name of the job of an offset (the older scripts' names, too)."""
        return f"{self.name}_off{offset}"

    def offset_jobs(self, offsets: list[int] | None = None) -> batch.Lines:
        """Return the jobs of some offsets, or of the whole stride.

        Raises:
            QueueError: an offset is outside the stride.
        """
        for offset in offsets or []:
            if not 0 <= offset < self.stride:
                raise QueueError(f"jobset {self.name}: offset {offset} is outside the stride; offsets go from 0 to {self.stride - 1}")
        return batch.numbered(self.job_name(""), range(self.stride) if offsets is None else offsets)

    def placeholders(self, job: str, values: dict[str, str]) -> dict[str, str]:
        """Return what {name} stands for in the arguments and in solved_pattern of one job."""
        own = {key.lower(): value for key, value in own_values(values).items()}
        return {**own, "stride": str(self.stride), "job": job, "jobset": self.name, "gate_file": self.gate_file}

    def argv(self, job: str, values: dict[str, str]) -> list[str]:
        """Return the command of one job.

        Raises:
            MalformedJob: OFFSET is outside the stride, or an argument asks for a key that the job lacks.
        """
        names = self.placeholders(job, values)
        # A bare name without a command would be looked for in PATH.
        script = self.script if self.command or "/" in self.script else f"./{self.script}"
        words = [*self.command, script, *(fill(word, names) for word in self.args)]
        if "OFFSET" in values:
            if not re.match(r"[0-9]{1,9}\Z", values["OFFSET"]) or int(values["OFFSET"]) >= self.stride:
                raise MalformedJob(f"OFFSET={values['OFFSET']} is outside the stride {self.stride}")
            words += ["--stride", str(self.stride), "--offset", values["OFFSET"]]
        return words

    def state_path(self, job: str, values: dict[str, str]) -> str:
        """Return where a job's program keeps how far it is, relative to workdir.

        {name} is what args gives for --name, beside all that may stand in args.

        Raises:
            MalformedJob: it asks for what neither args nor the job has, or leads out of workdir.
        """
        names = self.placeholders(job, values)
        given: dict[str, str] = {}
        for word, following in zip(self.args, [*self.args[1:], "--"]):
            option = _OPTION.match(word)
            text = following if option and option.group(2) is None else option.group(2) if option else "--"
            if option and not text.startswith("--"):
                given[option.group(1).replace("-", "_")] = fill(text, names)
        path = fill(self.state_file, {**given, **names})
        if os.path.isabs(path) or not {"", ".", ".."}.isdisjoint(path.split("/")):
            raise MalformedJob(f"its state file {path!r} is not a file's name relative to workdir")
        return path

    def names_job(self, text: str, job: str, values: dict[str, str]) -> bool:
        """Tell whether a gate's text names this job as the one that solved the jobset."""
        try:
            wanted = fill(self.solved_pattern, self.placeholders(job, values))
        except MalformedJob:
            return False
        return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text) is not None


def check_sent(what: str, name: str) -> None:
    """Refuse what can't be the name of a file or folder in workdir that HTCondor is told of."""
    if not {"", ".", ".."}.isdisjoint(name.split("/")) or re.search(r"[,\r\n]|^\s|\s\Z|^[.]sagequeue", name):
        raise QueueError(f"{what}; it must be a name relative to workdir, without . and .., commas, and spaces around it")
