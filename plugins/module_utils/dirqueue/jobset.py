# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A jobset's definition: what it may say, what it means, where it is kept."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import batch
from .errors import MalformedJob, QueueError, explain, is_shortage
from .job import check_name, is_name, own_values
from .layout import Layout, open_own, sync_folder

SUPERVISORS = ("systemd", "supervisord", "slurm", "htcondor")
ENGINES = ("slurm", "htcondor")


class Key(NamedTuple):
    """One key of a definition: how it is checked, its default, and what it is."""

    check: str
    default: Any
    about: str


# A default of None is worked out from the host and the other keys: Jobset._default. Keys are checked in this order.
KEYS: dict[str, Key] = {
    "script": Key("text", None, "the program's file, relative to workdir"),
    "runner": Key("runner", None, "how a job's command is executed"),
    "supervisor": Key("supervisor", None, "who keeps the workers alive"),
    "command": Key("words", None, "what runs the script"),
    "args": Key("words", [], "arguments after the script, without --stride and --offset"),
    "stride": Key("positive", 1, "into how many parts the run is split"),
    "workers": Key("count", 1, "how many jobs run at a time"),
    "workdir": Key("path", None, "the folder on the host in which jobs run"),
    "container": Key("text", "sagemath", "the container of podman_exec"),
    "container_workdir": Key("text", "/home/sage/notebooks", "workdir as a container sees it"),
    "image": Key("text", None, "the image of podman_run, or the .sif of apptainer"),
    "run_options": Key("words", None, "further options of podman run, or of apptainer exec"),
    "inputs": Key("words", [], "files and folders in workdir that a condor_job is sent beside its script"),
    "outputs": Key("words", [], "patterns of the files that a condor_job sends back; none: all that it has made"),
    "gate_file": Key("text", None, "the stop file, relative to workdir"),
    "solved_pattern": Key("text", "off={offset} stride={stride}", "how a gate's text names the job that solved it"),
    "timeout": Key("seconds", 0, "seconds after which a job is ended; 0: never"),
    "attempts": Key("positive", 3, "failed attempts after which a job is failed"),
    "recoveries": Key("positive", 10, "dead workers after which a job is failed"),
    "grace": Key("seconds", 8, "seconds a job has to end after SIGTERM"),
    "environment": Key("mapping", {}, "environment variables of the job"),
    "secrets": Key("secrets", {}, "more of them, with values that nothing shows"),
    "podman_secrets": Key("mapping", {}, "environment variables of podman_run that hold a secret of podman's: its name"),
    "recover_every": Key("positive", 60, "seconds between two searches for orphans"),
    "log_size": Key("bytes", "64M", "bytes at which a job's log is turned over; 0: never"),
    "log_keep": Key("count", 1, "how many older pieces of a job's log stay"),
    "state_file": Key("text", "", "the file, relative to workdir, in which a job's program keeps the number of the case it did last"),
    "cases": Key("count", 0, "how many cases all jobs have together; 0: not known"),
    "state_counts": Key("flag", False, "whether the state file's number is how many cases of its part are done"),
    "on_done": Key("words", [], "a command, an http(s) or a mailto address for when nothing is pending or running any more"),
    "on_failed": Key("words", [], "the same for when a job has failed"),
    "hook_limit": Key("seconds", 30, "seconds that such a call may take"),
    "enabled": Key("flag", False, "whether setup starts the workers"),
    "idle": Key("seconds", 60, "under an engine: seconds without a job after which a worker leaves"),
    "lease": Key("seconds", 120, "under an engine: seconds after which a worker that can't reach the queue ends its job and itself"),
    "time_limit": Key("count", 0, "under slurm: seconds after which a worker puts its job back and is started anew; 0: never asked for"),
    "memory": Key("bytes", 0, "under an engine: memory of a worker with its job; 0: the engine's default"),
    "disk": Key("bytes", 0, "under an engine: scratch disk of a worker with its job; 0: the engine's default"),
    "cpus": Key("positive", 1, "under an engine: processors of a worker with its job"),
    "gpus": Key("count", 0, "under an engine: GPUs of a worker with its job"),
    "account": Key("text", "", "under an engine: the account, or accounting group, that pays"),
    "partition": Key("text", "", "under slurm: the partition"),
    "qos": Key("text", "", "under slurm: the quality of service"),
    "engine_options": Key("options", {}, "under an engine: further options of sbatch, or commands of condor_submit"),
}
# What a host may say for all its jobsets, and what holds where it says nothing.
_HOST = {"home": "~", "runner": "process", "supervisor": "systemd", "sage_command": ["sage"], "image": "", "sif": ""}
# More than any definition needs: what is larger is not read.
_MAX_BYTES = 1 << 20
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# Variables that a podman client itself would obey: in its own environment they would change what it does.
PODMAN_OBEYS = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|LD_.*|XDG_.*|DBUS_.*|_?CONTAINER.*|PODMAN.*|DOCKER_.*|BUILDAH_.*|NETAVARK_.*|REGISTRY.*"
    r"|STORAGE.*|GO(?!OGLE).*|GNUPGHOME|SSL_.*|NOTIFY_SOCKET|LISTEN_.*|(?i:(https?|ftp|no|all)_proxy))\Z"
)
# Variables of a job that the worker makes.
_WORKERS_OWN = re.compile(r"(JOB|SAGEQUEUE)_")
# An option in args whose value state_file may name: --rank 3, --rank=3.
_OPTION = re.compile(r"--([a-z][a-z0-9_-]*)(?:=(.*))?\Z", re.DOTALL)
_OPTION_NAME = re.compile(r"[A-Za-z+][A-Za-z0-9_.+-]{0,99}\Z")
_ADDRESS = re.compile(r"(https?)://[^/\s]+|(mailto):[A-Za-z0-9_][A-Za-z0-9_.+=-]*(@[A-Za-z0-9.-]+)?\Z")
_PODMAN_SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}\Z")


def _runners() -> list[str]:
    # The one thing that a definition asks of what rests on it: only there is it known which there are.
    from .runners import NAMES

    return NAMES


def nearest(word: str, words: list[str]) -> str:
    """Return a hint that names the nearest of some words, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(word, words, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


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
            setattr(self, key, self._checked(key, rule.check, value, home))
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

    def _checked(self, key: str, check: str, value: Any, home: str) -> Any:
        where = f"jobset {self.name}: {key}"
        if check in ("positive", "count", "seconds"):
            kind = float if check == "seconds" else int
            least = 1 if check == "positive" else 0
            try:
                number = kind(str(value))
            except ValueError:
                number = -1
            if isinstance(value, bool) or not least <= number < 10**9:
                raise QueueError(f"{where} is {value!r}; it must be a number of at least {least}")
            return number
        if check == "bytes":
            match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", str(value).upper())
            number = int(match.group(1)) << " KMG".index(match.group(2) or " ") * 10 if match else -1
            # A size below a block is a slip of the pen: 64 for 64M.
            if isinstance(value, bool) or not (number == 0 or 4096 <= number < 2**60):
                raise QueueError(f"{where} is {value!r}; it must be a number of bytes of at least 4K, such as 64M, or 0")
            return number
        if check == "flag":
            if str(value).lower() not in ("true", "false", "yes", "no"):
                raise QueueError(f"{where} is {value!r}; it must be true or false")
            return str(value).lower() in ("true", "yes")
        if check == "words":
            try:
                words = shlex.split(value) if isinstance(value, str) else value
            except ValueError as exc:
                raise QueueError(f"{where} is {value!r}; it can't be split into words ({exc})") from exc
            if not isinstance(words, list) or any("\0" in str(word) for word in words):
                raise QueueError(f"{where} is {value!r}; it must be a list of words or one line")
            return [str(word) for word in words]
        if check == "options":
            # A line each of what is submitted.
            pairs = value.items() if isinstance(value, dict) else [("", None)]
            if not all(_OPTION_NAME.match(str(name)) and not re.search(r"[\0\r\n]", str(text)) for name, text in pairs):
                raise QueueError(f"{where} is {value!r}; it must be a mapping of options' names, without --, to values of one line")
            return {str(name): str(text) for name, text in pairs}
        if check in ("mapping", "secrets"):
            if not isinstance(value, dict):
                # No message may show what could be a secret.
                shown = "no mapping" if check == "secrets" else repr(value)
                raise QueueError(f"{where} is {shown}; it must be a mapping of names to values")
            for name, text in value.items():
                if not _ENVIRONMENT_NAME.match(str(name)):
                    raise QueueError(f"{where} has {name!r}, which can't be an environment variable's name")
                if "\0" in str(text):
                    raise QueueError(f"{where}: the value of {name} has a NUL byte")
            return {str(name): str(text) for name, text in value.items()}
        if not isinstance(value, str) or "\0" in value or "\n" in value:
            raise QueueError(f"{where} is {value!r}; it must be one line of text")
        choices: Sequence[str] = _runners() if check == "runner" else SUPERVISORS if check == "supervisor" else ()
        if choices and value not in choices:
            raise QueueError(f"{where} is {value!r}{nearest(value, list(choices))} (it can be {', '.join(choices)})")
        if check == "path":
            value = home + value[1:] if value == "~" or value.startswith("~/") else value
            if not os.path.isabs(value):
                raise QueueError(f"{where} is {value!r}; it must be an absolute path, or begin with ~/")
        return value

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


def path_of(root: str, name: str) -> str:
    """Return where a jobset's definition is kept."""
    check_name(name)
    return os.path.join(os.path.abspath(os.path.expanduser(root)), "etc", "jobsets", f"{name}.json")


def defined(root: str) -> list[str]:
    """Return the names of the jobsets that have a definition on this host."""
    folder = os.path.dirname(path_of(root, "x"))
    try:
        return sorted(entry[:-5] for entry in os.listdir(folder) if entry.endswith(".json") and is_name(entry[:-5]))
    except FileNotFoundError:
        return []


def _text(path: str) -> str:
    with open(path, "rb", opener=open_own) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    return data.decode("utf-8")


def load(root: str, name: str) -> Jobset:
    """Read a jobset's definition.

    Raises:
        QueueError: it is not defined here, or can't be read; names those that are defined.
    """
    try:
        definition = json.loads(_text(path_of(root, name)))
    except FileNotFoundError as exc:
        names = defined(root)
        known = f"defined are {', '.join(names)}" if names else "none is; run setup"
        raise QueueError(f"jobset {name} is not defined on this host{nearest(name, names)} ({known})") from exc
    except (OSError, ValueError, RecursionError) as exc:
        if is_shortage(exc):
            raise
        raise QueueError(f"jobset {name}: {path_of(root, name)} can't be read ({exc}); run setup to write it anew") from exc
    return Jobset(name, definition)


def stored_text(jobset: Jobset) -> str:
    """Return the definition file's text."""
    return json.dumps(jobset.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def current_text(root: str, name: str) -> str:
    """Return the text that a jobset's definition file has now, empty where there is none.

    Raises:
        QueueError: it can't be read.
    """
    try:
        return _text(path_of(root, name))
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        return "(not UTF-8)\n"
    except (OSError, ValueError) as exc:
        raise QueueError(f"jobset {name}: {path_of(root, name)} can't be read ({exc}); remove it, and run setup again") from exc


def store(layout: Layout, jobset: Jobset) -> None:
    """Write a jobset's definition, private to the user, all or nothing."""
    path = path_of(layout.root, jobset.name)
    temporary = f"{path}.{os.urandom(8).hex()}.new"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(stored_text(jobset))
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
        sync_folder(os.path.dirname(path))
    except OSError as exc:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise QueueError(f"jobset {jobset.name}: can't write {explain(exc, path)}") from exc


def forget(root: str, name: str) -> None:
    """Remove a jobset's definition; its queue, logs and state files stay."""
    path = path_of(root, name)
    os.unlink(path)
    sync_folder(os.path.dirname(path))
