# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One archive for a bug report: what a host says of itself, its units, container and queues, bounded, without secrets."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import re
import select
import signal
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Callable, cast

from . import __version__, definitions, owner, progress, progress_text, wsl
from .diag_sources import BOOTED, CONTAINER, DISK, FILES, HOST, SYSTEMD, UNITS, WSL
from .errors import QueueError, explain
from .layout import Layout, open_own
from .queue import Queue
from .redact import GONE, Redactor

# What one thing may take: bytes that are kept of it, from its end where it is a log, and seconds.
_SIZE = 256 << 10
_SECONDS = 10.0
# So many entries of a folder are listed.
_ENTRIES = 1000
# Commands at a time.
_AT_ONCE = 8
# An environment variable whose value may be a secret, by its name; and a unit's or a container's line that sets variables.
_SECRET_NAME = re.compile(r"(?i)pass|secret|token|key|credential|auth|licen[cs]e|private")
_SETS = re.compile(r"(?im)(^\s*(?:Default)?Environment\s*=\s*\"?[A-Za-z_]\w*=).*$|((?:--env|-e)(?:=|\s+|\",\s+\")?[A-Za-z_]\w*=)[^\s\"]+")


def _text(data: bytes) -> str:
    """Return a command's output: wsl.exe writes UTF-16."""
    return data.decode("utf-16-le" if data[1:2] == b"\0" else "utf-8", "replace").replace("\r\n", "\n")


class Diag:
    """What is collected.

    Args:
        root: the sagequeue folder.
        names: the jobsets to look at; none: all that are defined.
        container: the long-lived container.
        more: further texts, by name, such as the versions on the controller.
    """

    def __init__(self, root: str, names: list[str] | None = None, container: str = "sagemath", more: dict[str, str] | None = None) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        self.container = container
        self.names = names or definitions.defined(self.root)
        self.parts: dict[str, str] = dict(more or {})
        self.notes: list[str] = []
        # Every value that must not be in the archive, of all jobsets and of the container; and the names of those that Podman keeps.
        self.secrets: set[str] = set()
        # Podman takes its time to say that there is nothing.
        self.contained = bool(glob.glob(os.path.expanduser("~/.config/containers/systemd/*"))) or not definitions.defined(self.root)
        self.kept: set[str] = {f"{self.container}-jupyter-token"}
        self._find_secrets()

    def _find_secrets(self) -> None:
        for name in definitions.defined(self.root):
            try:
                one = definitions.load(self.root, name)
            except (QueueError, OSError) as exc:
                self.notes.append(f"jobset {name}: {explain(exc, name)}")
                self.contained = True
                # What can't be understood may hold secrets all the same: none of it is taken, but what looks like one is looked for.
                with contextlib.suppress(QueueError):
                    self.secrets.update(re.findall(r'"((?:[^"\\]|\\.){4,})"', definitions.current_text(self.root, name)))
                continue
            self.contained = self.contained or one.runner not in ("process", "condor_job")
            self.secrets.update(one.secrets.values())
            self.secrets.update(value for key, value in one.environment.items() if _SECRET_NAME.search(key))
            self.kept.update(one.podman_secrets.values())
        with contextlib.suppress(OSError), open(os.path.join(self.root, "etc", "jupyter.token"), "rb") as file:
            self.secrets.add(file.read(_SIZE).decode("utf-8", "replace").strip())

    def _ask_for(self, secret: str) -> None:
        # Older Podmans don't show it; then it can be in no output of theirs either.
        status, shown = self._run(["podman", "secret", "inspect", "--showsecret", "--format", "{{.SecretData}}", secret])
        if status == 0:
            self.secrets.update({shown.strip("\n"), shown.strip()})

    def _run(self, argv: list[str]) -> tuple[int | None, str]:
        """Return a command's exit status and what it said; the status is None where it could not be run to its end."""
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "PAGER": "cat", "WSL_UTF8": "1"}
        environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError:
            return None, "(not on this host)"
        except OSError as exc:
            return None, f"(can't be run: {exc.strerror})"
        data, left_out, until = b"", 0, time.monotonic() + _SECONDS
        with cast(IO[bytes], process.stdout) as output:
            while select.select([output], [], [], max(0, until - time.monotonic()))[0]:
                piece = os.read(output.fileno(), 1 << 16)
                if not piece:
                    break
                data += piece
                left_out += max(0, len(data) - _SIZE)
                data = data[-_SIZE:]
            ended = process.poll() is None and time.monotonic() >= until
            with contextlib.suppress(ProcessLookupError):
                # All of it: what it has left behind may hold the pipe open.
                os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        before = f"({left_out} bytes before this are left out)\n" if left_out else ""
        return (None if ended else status), before + _text(data) + (f"\n(ended after {_SECONDS:g} s)" if ended else "")

    def _fill(self, text: str) -> str:
        return text.replace("{root}", self.root).replace("{container}", self.container)

    def collect(self) -> None:
        """Collect everything; what can't be had is noted, and no error."""
        tasks: dict[str, Callable[[], str]] = {}
        windows = WSL if wsl.is_wsl() else {}
        containers = CONTAINER if self.contained else {}
        left_out = () if os.path.isdir(BOOTED) else SYSTEMD
        if left_out:
            self.parts["units/systemd.txt"] = f"(systemd does not run here: {', '.join(left_out)} were not asked)\n"
        for folder, commands in (("container", containers), ("units", UNITS), ("host", HOST), ("disk", DISK), ("wsl", windows)):
            for name, argv in commands.items():
                if argv[0] not in left_out:
                    words = [self._fill(word) for word in argv]
                    tasks[f"{folder}/{name}.txt"] = lambda words=words: self._command(words)  # type: ignore[misc]
        for folder, patterns in FILES.items():
            for pattern in patterns:
                for path in sorted(glob.glob(os.path.expanduser(self._fill(pattern))))[:100]:
                    if os.path.isfile(path):
                        inside = os.path.relpath(path, self.root) if path.startswith(self.root + "/") else path.lstrip("/")
                        tasks[f"{folder}/files/{inside}"] = lambda path=path: self._file(path)  # type: ignore[misc]
        tasks["disk/root.txt"] = lambda: self._command(["df", "-hT", self.root]) + self._command(["df", "-i", self.root])
        tasks["disk/size.txt"] = lambda: self._command(["du", "-x", "-d", "2", "-h", os.path.join(self.root, "var")])
        tasks["host/environment.txt"] = self._environment
        tasks["container/inspect.txt"] = self._inspect if self.contained else lambda: "(no jobset on this host asks for a container)\n"
        for name in self.names:
            tasks[f"queues/{name}/queue.txt"] = lambda name=name: self._queue(name)  # type: ignore[misc]
            tasks[f"queues/{name}/definition.json"] = lambda name=name: self._definition(name)  # type: ignore[misc]
            for end in ("history", "gates"):
                path = getattr(Layout(self.root, name), end)
                tasks[f"queues/{name}/{end}.jsonl"] = lambda path=path: self._file(path)  # type: ignore[misc]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # What takes longest comes first.
            found = pool.map(self._task, tasks.values())
            asked = pool.map(self._ask_for, self.kept if self.contained else [])
            self.parts.update(zip(tasks, found))
            list(asked)

    def _task(self, call: Callable[[], str]) -> str:
        began = time.monotonic()
        try:
            text = call()
        except (OSError, QueueError, MemoryError, ValueError) as exc:
            text = f"(can't be had: {explain(exc, self.root)})\n"
        seconds = time.monotonic() - began
        return _SETS.sub(rf"\1\2{GONE}", text) + (f"(took {seconds:.1f} s)\n" if seconds > 2 else "")

    def _command(self, argv: list[str]) -> str:
        status, text = self._run(argv)
        return f"$ {' '.join(argv)}\n{text.rstrip()}\n" + (f"(exit status {status})\n" if status else "")

    def _inspect(self) -> str:
        """Return what Podman says of the container, without the values of its environment."""
        status, text = self._run(["podman", "inspect", self.container])
        if status != 0:
            return text
        found = json.loads(text)
        for one in found:
            config = one.get("Config", {})
            config["Env"] = [f"{word.partition('=')[0]}={GONE}" for word in config.get("Env") or []]
            # The command that made it repeats them.
            words = config.get("CreateCommand") or []
            config["CreateCommand"] = [re.sub(r"^(--env=|-e)?([A-Za-z_]\w*)=.*$", rf"\1\2={GONE}", word) for word in words]
        return json.dumps(found, indent=1)

    def _environment(self) -> str:
        shown = (
            "PATH",
            "HOME",
            "USER",
            "LANG",
            "SHELL",
            "XDG_RUNTIME_DIR",
            "DBUS_SESSION_BUS_ADDRESS",
            "WSL_DISTRO_NAME",
            "WSL_INTEROP",
            "TZ",
        )
        return "".join(f"{name}={value if name in shown else GONE}\n" for name, value in sorted(os.environ.items()))

    def _file(self, path: str) -> str:
        with open(path, "rb", opener=open_own) if path.startswith(self.root) else open(path, "rb") as file:
            # What /proc shows has no size.
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _SIZE))
            text = _text(file.read(_SIZE))
        return (f"({size - _SIZE} bytes before this are left out)\n" if size > _SIZE else "") + text

    def _definition(self, name: str) -> str:
        shown = definitions.load(self.root, name).to_dict()
        for key in ("secrets", "environment"):
            shown[key] = dict.fromkeys(shown[key], GONE)
        return json.dumps(shown, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _queue(self, name: str) -> str:
        """Return how a queue stands, and a list of its files."""
        layout = Layout(self.root, name)
        lines = []
        try:
            with Queue(layout, definitions.load(self.root, name)) as queue:
                found: dict[str, Any] = progress.summary(queue)
            found["running"] = found["running"][:_ENTRIES]
            lines += [progress_text.line(found), json.dumps(found, indent=1)]
        except (QueueError, OSError) as exc:
            lines.append(f"(can't be asked: {explain(exc, layout.base)})")
        for folder in layout.folders():
            entries: list[str] = []
            count = 0
            with contextlib.suppress(OSError), os.scandir(folder) as listing:
                for count, one in enumerate(listing, 1):
                    if count <= _ENTRIES:
                        entries.append(one.name)
            lines.append(f"\n{folder}: {count} entries" + (f", {_ENTRIES} of them listed" if count > _ENTRIES else ""))
            for entry in sorted(entries):
                with contextlib.suppress(OSError):
                    is_ = os.lstat(os.path.join(folder, entry))
                    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(is_.st_mtime))
                    lines.append(f"{is_.st_mode:06o} {is_.st_nlink} {is_.st_uid}:{is_.st_gid} {is_.st_size:9} {when} {entry!r}")
        return "\n".join(lines) + "\n"

    def archive(self, folder: str = "") -> str:
        """Write the archive, private to the user, all or nothing; return its path.

        Raises:
            QueueError: it can't be written.
        """
        redact = Redactor(self.secrets, guess=True)
        now, node = owner.now(), os.uname().nodename
        folder = os.path.abspath(os.path.expanduser(folder or os.path.join(self.root, "diag")))
        first = name = f"sagequeue-diag-{node}-{re.sub('[^0-9T]', '', now[:19])}Z"
        count = 1
        # Two may be asked for within a second.
        while os.path.lexists(path := os.path.join(folder, f"{name}.tar.gz")):
            count += 1
            name = f"{first}-{count}"
        index = [
            f"sagequeue {__version__} on {node}, {now}",
            f"root {self.root}, jobsets {', '.join(self.names) or '(none)'}",
            *self.notes,
            "",
        ]
        index += [f"{len(text):8} {inside}" for inside, text in sorted(self.parts.items())]
        index += [
            "",
            f"{GONE} stands for secrets of jobsets, of Podman as far as it shows them, Jupyter's token, and what is named like a secret.",
        ]
        index += ["No job's log and no job's own file are in here. Names of hosts, users, folders and jobs are."]
        files = {"README.txt": "\n".join(index) + "\n", **dict(sorted(self.parts.items()))}
        temporary = f"{path}.{os.getpid()}.new"
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:
                for inside, text in files.items():
                    data = redact(text).encode("utf-8", "replace")
                    entry = tarfile.TarInfo(f"{name}/{redact(inside)}")
                    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                    tar.addfile(entry, io.BytesIO(data))
            os.replace(temporary, path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise QueueError(f"can't write the archive {explain(exc, path)}; name another folder") from exc
        return path


def said(path: str) -> str:
    """Return where an archive is, in words."""
    windows = wsl.windows_path(path)
    where = f"{path} ({os.path.getsize(path) >> 10} KiB)" + (f"; in Windows {windows}" if windows else "")
    return f"Attach this archive to a bug report: {where}. It holds no job's log and no known secret; look into it before you send it."
