#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_program
short_description: Put the program sagequeue on a host
version_added: 0.1.0
description:
  - Writes the queue's library, zipped, as one program file that the host's own Python runs.
  - The file is replaced by a rename. A worker that runs notices it after its current job and starts anew.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: Says whether the program would be replaced.
    support: full
  diff_mode:
    description: Shows the versions before and after.
    support: full
  idempotent:
    description: A second run changes nothing, as the file is the same byte by byte.
    support: full
options:
  path:
    description: The program's file. Folders that are missing are made, private to the user.
    type: path
    required: true
  python:
    description: The Python that runs it. Empty, the system's own C(/usr/bin/python3), or what Ansible uses where there is none.
    type: str
    default: ""
  link:
    description: A symbolic link to the program, such as one in a folder that most login shells have in PATH. A file of that name stays.
    type: path
    version_added: 0.1.0
notes:
  - Run it as the batch user, who then owns the program.
"""

EXAMPLES = r"""
- name: Put the program on the host
  sagequeue.batch.queue_program:
    path: /home/anna/sagequeue/bin/sagequeue
"""

RETURN = r"""
version:
  description: The program's version.
  returned: success
  type: str
"""

import contextlib
import importlib.util
import io
import marshal
import os
import pkgutil
import sys
import zipfile
import zlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils import dirqueue
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import cli

_START = "import sys\n\nfrom dirqueue.cli import main\n\nraise SystemExit(main(program=sys.argv[0]))\n"


def sources() -> dict[str, bytes]:
    """Return the program's files: the library that came along with this module."""
    names = sorted(found.name for found in pkgutil.walk_packages(dirqueue.__path__, dirqueue.__name__ + "."))
    files = {"__main__.py": _START.encode()}
    for name in [dirqueue.__name__, *names]:
        found = importlib.util.find_spec(name)
        inner = "dirqueue" + name[len(dirqueue.__name__) :].replace(".", "/")
        inner += "/__init__.py" if found.submodule_search_locations is not None else ".py"
        files[inner] = found.loader.get_data(found.loader.get_filename(name))
    return files


def header(source: bytes) -> bytes:
    """Return what a file that is compiled begins with: see PEP 552."""
    return importlib.util.MAGIC_NUMBER + b"\1\0\0\0" + importlib.util.source_hash(source)


def is_library(name: str) -> bool:
    """Tell whether a file of the program is kept compiled, too."""
    return name.startswith("dirqueue/")


def packed(python: str, files: dict[str, bytes]) -> bytes:
    """Return the program: its files, zipped."""
    # To compile all of it at each start would take longer than what it does. An interpreter of another kind takes the source.
    compiled = {
        name + "c": header(source) + marshal.dumps(compile(source, name, "exec", dont_inherit=True))
        for name, source in files.items()
        if is_library(name)
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, source in sorted({**files, **compiled}.items()):
            entry = zipfile.ZipInfo(inner, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, source)
    return b"#!" + os.fsencode(python) + b"\n" + buffer.getvalue()


def essence(program: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return what makes a program this one: its first line and its files, of what is compiled the header that names interpreter and source.

    The rest of what is compiled may differ each time: before Python 3.11 it depends on how strings are hashed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(program)) as archive:
            files = {name: archive.read(name)[: 16 if name.endswith("c") else None] for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        files = {}
    return program.partition(b"\n")[0], files


def version_of(module: AnsibleModule, path: str) -> str:
    """Return what the program that is there says of its version, empty where there is none."""
    if not os.path.exists(path):
        return ""
    return module.run_command([path, "--version"])[1].strip() or "sagequeue (unknown)"


def linked(module: AnsibleModule, path: str, link: str, diff: dict[str, str]) -> bool:
    """Make the link; return whether it was another, or none."""
    before = os.readlink(link) if os.path.islink(link) else ""
    if before == path:
        return False
    if not before and os.path.lexists(link):
        module.fail_json(msg=f"{link} is there already, and is no link. Move it away, or set queue_runtime_link=false.")
    diff["before"] += f"{link} -> {before}\n" if before else ""
    diff["after"] += f"{link} -> {path}\n"
    if not module.check_mode:
        try:
            # Not private: others' programs lie there, too.
            os.umask(0o022)
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(path, f"{link}.{os.getpid()}.new")
            os.rename(f"{link}.{os.getpid()}.new", link)
        except OSError as exc:
            module.fail_json(msg=f"can't make the link {link}: {exc.strerror}")
    return True


def main() -> None:
    """Run the module."""
    os.umask(0o077)
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "python": {"type": "str", "default": ""},
            "link": {"type": "path"},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    # The system's own: virtual environments come and go.
    python = module.params["python"] or ("/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable)
    files = sources()
    wanted = b"#!" + os.fsencode(python), {**files, **{name + "c": header(text) for name, text in files.items() if is_library(name)}}
    try:
        with open(path, "rb") as file:
            current = file.read()
    except FileNotFoundError:
        current = b""
    except OSError as exc:
        module.fail_json(msg=f"can't write the program {path}: {exc.strerror}")
    changed = essence(current) != wanted or os.stat(path).st_mode & 0o777 != 0o755
    diff = dict.fromkeys(("before", "after"), f"sagequeue {cli.__version__}\n")
    if changed:
        before = version_of(module, path) + "\n"
        diff = {"before": before, "after": diff["after"] if before != diff["after"] else f"sagequeue {cli.__version__} (other contents)\n"}
    if changed and not module.check_mode:
        temporary = f"{path}.{os.getpid()}.new"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(packed(python, files))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o755)
            os.rename(temporary, path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            module.fail_json(msg=f"can't write the program {path}: {exc.strerror}")
    if module.params["link"]:
        changed = linked(module, path, module.params["link"], diff) or changed
    module.exit_json(changed=changed, version=cli.__version__, diff=diff)


if __name__ == "__main__":
    main()
