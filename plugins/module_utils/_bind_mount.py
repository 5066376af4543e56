# Copyright: sagequeue contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection.

"""Give a user and a rootless container's user the same rights below a folder.

Root walks through folders that a user may change at the same time. So every file is opened relative to its folder, without
following links, and is looked at and changed through that one descriptor. Rights are granted before any are taken away, each
file's in one system call: whoever has access before and after has it at every moment between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field

from . import _posix_acl as posix_acl
from ._bind_mount_rights import BindMountError, Sharing, State, granting, wanted_file, wanted_folder
from ._posix_acl import Acl

SHOWN = 50

# What happens to a file while others work in the folder: it is gone, or it is another one now.
_VANISHED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE)
_ACL_REFUSED = (errno.EOPNOTSUPP, errno.EROFS)


@dataclass
class Report:
    walked: int = 0
    changed: int = 0
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)

    def change(self, path: str, before: str, after: str) -> None:
        self.changed += 1
        if self.changed <= SHOWN:
            self.before.append(f"{path} {before}")
            self.after.append(f"{path} {after}")

    def skip(self, path: str, why: str) -> None:
        self.left_alone.append(f"{path}: {why}")


def _look(path: str, info: os.stat_result) -> State:
    folder = stat.S_ISDIR(info.st_mode)
    return State(
        uid=info.st_uid,
        gid=info.st_gid,
        setgid=bool(info.st_mode & stat.S_ISGID),
        acl=posix_acl.read(path, posix_acl.ACCESS) or Acl.from_mode(info.st_mode),
        default=posix_acl.read(path, posix_acl.DEFAULT) if folder else None,
    )


def _change(path: str, now: State, wanted: State, sharing: Sharing) -> None:
    if (wanted.uid, wanted.gid) != (now.uid, now.gid):
        # The old owner and group keep what they have until the new ones are there.
        posix_acl.write(path, posix_acl.ACCESS, granting(now.acl, wanted.acl, sharing))
        os.chown(path, wanted.uid, wanted.gid)
    posix_acl.write(path, posix_acl.ACCESS, wanted.acl)
    if wanted.default is not None and wanted.default != now.default:
        posix_acl.write(path, posix_acl.DEFAULT, wanted.default)
    if wanted.default is not None and wanted.setgid:
        # Last, because changing the owner or the ACL may take the bit away.
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if not mode & stat.S_ISGID:
            os.chmod(path, mode | stat.S_ISGID)


class Walk:
    def __init__(self, sharing: Sharing, storage: str | None, check: bool) -> None:
        self.sharing = sharing
        self.storage = os.path.realpath(storage) if storage else None
        self.check = check
        self.report = Report()

    def folder(self, path: str) -> None:
        """Prepare the folder at PATH and everything below it. A link at PATH itself is the user's choice of a place."""
        real = os.path.realpath(path)
        if self.storage is not None and os.path.commonpath([real, self.storage]) == real:
            raise BindMountError(
                f"{path} holds Podman's storage ({self.storage}), which must not inherit its ACLs. Name a folder that does not."
            )
        top = _open_real(real)
        if top is None:
            if self.check:
                self.report.change(path, "absent", f"{self.sharing.uid}:{self.sharing.gid} folder, mode 2770")
                return
            top = self._make(real)
        try:
            info = os.fstat(top)
            if not stat.S_ISDIR(info.st_mode):
                raise BindMountError(f"{path} is no folder. Move it away, then run this again.")
            if not self.sharing.owns(info.st_uid) and (info.st_uid != 0 or real != os.path.abspath(path)):
                raise BindMountError(
                    f"{path} is the folder {real}, which belongs to uid {info.st_uid} and not to the user (uid {self.sharing.uid}). "
                    "Give it to the user, or name another folder."
                )
            self._one(top, path, info, top=True)
            self._below(top, path, info.st_dev)
        finally:
            os.close(top)

    def _make(self, real: str) -> int:
        parent = _open_real(os.path.dirname(real))
        if parent is None:
            raise BindMountError(f"{real} cannot be made: its parent folder does not exist.")
        try:
            name = os.path.basename(real)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError as exc:
            raise BindMountError(f"{real} cannot be made: {exc.strerror}.") from exc
        finally:
            os.close(parent)

    def _below(self, top: int, path: str, device: int) -> None:
        for root, folders, files, fd in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            here = os.path.normpath(os.path.join(path, root))
            folders[:] = [name for name in folders if self._entry(fd, name, os.path.join(here, name), device)]
            for name in files:
                self._entry(fd, name, os.path.join(here, name), device)

    def _entry(self, parent: int, name: str, path: str, device: int) -> bool:
        """Prepare one entry of a folder. True for a folder to go into."""
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError as exc:
            if exc.errno not in _VANISHED:
                self.report.skip(path, str(exc.strerror))
            return False
        try:
            info = os.fstat(fd)
            folder = stat.S_ISDIR(info.st_mode)
            if not folder and not stat.S_ISREG(info.st_mode):
                return False
            if info.st_dev != device:
                self.report.skip(path, "another file system is mounted there")
                return False
            if info.st_uid != 0 and not self.sharing.owns(info.st_uid):
                self.report.skip(path, f"it belongs to another user (uid {info.st_uid})")
                return False
            if info.st_uid == 0 and not folder and info.st_nlink > 1 and self.sharing.uid != 0:
                # It may be a second name of a file elsewhere in the system.
                self.report.skip(path, "it belongs to root and has more than one name")
                return False
            self._one(fd, path, info, top=False)
            return folder
        except OSError as exc:
            self.report.skip(path, str(exc.strerror))
            return False
        finally:
            os.close(fd)

    def _one(self, fd: int, path: str, info: os.stat_result, top: bool) -> None:
        self.report.walked += 1
        link = f"/proc/self/fd/{fd}"
        now = _look(link, info)
        wanted = wanted_folder(now, self.sharing, top) if stat.S_ISDIR(info.st_mode) else wanted_file(now, self.sharing)
        if wanted == now:
            return
        if not self.check:
            try:
                _change(link, now, wanted, self.sharing)
            except OSError as exc:
                if top and exc.errno in _ACL_REFUSED:
                    raise BindMountError(
                        f"{path} lies on a file system that takes no ACLs ({exc.strerror}). "
                        "Use a folder on a Linux file system (in WSL: not below /mnt/c)."
                    ) from exc
                if top:
                    raise BindMountError(f"{path} cannot be changed: {exc.strerror}.") from exc
                raise
        self.report.change(path, str(now), str(wanted))


def _open_real(path: str) -> int | None:
    """Open a path of real folders, refusing a link that somebody puts into it meanwhile. None where it does not exist."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in path.strip("/").split("/"):
        try:
            new = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise BindMountError(f"{path} cannot be opened at {name!r}: {exc.strerror}.") from exc
        finally:
            os.close(fd)
        fd = new
    return fd
