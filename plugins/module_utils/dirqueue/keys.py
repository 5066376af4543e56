# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a jobset's definition may contain: its keys, the defaults, and how each kind of value is checked."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import QueueError, nearest

RUNNERS = (
    "apptainer",
    "condor_job",
    "docker_exec",
    "podman_exec",
    "podman_run",
    "process",
)
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
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OPTION_NAME = re.compile(r"[A-Za-z+][A-Za-z0-9_.+-]{0,99}\Z")


def checked(jobset: str, key: str, value: Any, home: str) -> Any:
    """Return the value of a key as a Jobset has it.

    Args:
        jobset: whose key it is.
        key: one of KEYS.
        value: as it was given, or the default.
        home: the folder that ~ stands for.
    Raises:
        QueueError: it is none of its kind; names the jobset, the key and what it must be.
    """
    where, check = f"jobset {jobset}: {key}", KEYS[key].check
    if check in ("positive", "count", "seconds"):
        return _number(where, check, value)
    if check == "bytes":
        return _bytes(where, value)
    if check == "flag":
        return _flag(where, value)
    if check == "words":
        return _words(where, value)
    if check == "options":
        return _options(where, value)
    if check in ("mapping", "secrets"):
        return _mapping(where, check, value)
    return _text(where, check, value, home)


def _number(where: str, check: str, value: Any) -> float:
    kind = float if check == "seconds" else int
    least = 1 if check == "positive" else 0
    try:
        number = kind(str(value))
    except ValueError:
        number = -1
    if isinstance(value, bool) or not least <= number < 10**9:
        raise QueueError(f"{where} is {value!r}; it must be a number of at least {least}")
    return number


def _bytes(where: str, value: Any) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", str(value).upper())
    number = int(match.group(1)) << " KMG".index(match.group(2) or " ") * 10 if match else -1
    # A size below a block is a slip of the pen: 64 for 64M.
    if isinstance(value, bool) or not (number == 0 or 4096 <= number < 2**60):
        raise QueueError(f"{where} is {value!r}; it must be a number of bytes of at least 4K, such as 64M, or 0")
    return number


def _flag(where: str, value: Any) -> bool:
    if str(value).lower() not in ("true", "false", "yes", "no"):
        raise QueueError(f"{where} is {value!r}; it must be true or false")
    return str(value).lower() in ("true", "yes")


def _words(where: str, value: Any) -> list[str]:
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as exc:
        raise QueueError(f"{where} is {value!r}; it can't be split into words ({exc})") from exc
    if not isinstance(words, list) or any("\0" in str(word) for word in words):
        raise QueueError(f"{where} is {value!r}; it must be a list of words or one line")
    return [str(word) for word in words]


def _options(where: str, value: Any) -> dict[str, str]:
    # A line each of what is submitted.
    pairs = value.items() if isinstance(value, dict) else [("", None)]
    if not all(_OPTION_NAME.match(str(name)) and not re.search(r"[\0\r\n]", str(text)) for name, text in pairs):
        raise QueueError(f"{where} is {value!r}; it must be a mapping of options' names, without --, to values of one line")
    return {str(name): str(text) for name, text in pairs}


def _mapping(where: str, check: str, value: Any) -> dict[str, str]:
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


def _text(where: str, check: str, value: Any, home: str) -> str:
    if not isinstance(value, str) or "\0" in value or "\n" in value:
        raise QueueError(f"{where} is {value!r}; it must be one line of text")
    choices: Sequence[str] = RUNNERS if check == "runner" else SUPERVISORS if check == "supervisor" else ()
    if choices and value not in choices:
        raise QueueError(f"{where} is {value!r}{nearest(value, list(choices))} (it can be {', '.join(choices)})")
    if check != "path":
        return str(value)
    path = home + value[1:] if value == "~" or value.startswith("~/") else str(value)
    if not os.path.isabs(path):
        raise QueueError(f"{where} is {path!r}; it must be an absolute path, or begin with ~/")
    return path
