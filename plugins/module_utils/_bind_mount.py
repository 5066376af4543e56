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
from ._posix_acl import Acl

SHOWN = 50

# What happens to a file while others work in the folder: it is gone, or it is another one now.
_VANISHED = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE)
_ACL_REFUSED = (errno.EOPNOTSUPP, errno.EROFS)


class BindMountError(Exception):
    """A folder cannot be prepared."""


@dataclass(frozen=True)
class Extent:
    inside: int
    outside: int
    count: int


def parse_id_map(text: str) -> list[Extent]:
    """The lines of /proc/self/uid_map, as seen inside the user namespace."""
    extents = []
    for line in text.splitlines():
        words = line.split()
        if len(words) != 3 or not all(word.isdigit() for word in words):
            raise BindMountError(f"this is no line of a uid map: {line!r}")
        extents.append(Extent(*map(int, words)))
    return extents


def host_id(extents: list[Extent], inside: int) -> int | None:
    for extent in extents:
        if extent.inside <= inside < extent.inside + extent.count:
            return extent.outside + inside - extent.inside
    return None


@dataclass(frozen=True)
class Sharing:
    """Who shares. Without a container_id the container's user is the user itself (keep-id)."""

    uid: int
    gid: int
    container_id: int | None = None
    extents: tuple[Extent, ...] = ()

    def owns(self, uid: int) -> bool:
        """Is this id the user's own, or one of those that its containers write as?"""
        return uid == self.uid or any(e.outside <= uid < e.outside + e.count for e in self.extents)

    def may_keep(self, uid: int) -> bool:
        return uid == self.uid if self.container_id is None else self.owns(uid)

    def named(self) -> list[int]:
        return [self.uid] if self.container_id is None else [self.uid, self.container_id]


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


@dataclass
class State:
    """Owner, group, special bits and ACLs of one file or folder."""

    uid: int
    gid: int
    setgid: bool
    acl: Acl
    default: Acl | None = None

    def __str__(self) -> str:
        text = f"{self.uid}:{self.gid} {self.acl}{' setgid' if self.setgid else ''}"
        return text if self.default is None else f"{text} default {self.default}"


def _shared(acl: Acl, sharing: Sharing, rights: int, named: bool) -> Acl:
    """The ACL with these rights for both users and the group, nobody else's, and other named entries as they were."""
    users = dict(acl.users)
    if named:
        users.update({uid: rights for uid in sharing.named()})
    extended = bool(users or acl.groups)
    return Acl(rights, rights, 0, users, dict(acl.groups), rights if extended else None)


def _wanted_folder(now: State, sharing: Sharing, top: bool) -> State:
    default = now.default or Acl(0, 0, 0)
    fits = (
        sharing.may_keep(now.uid)
        and now.acl.other == 0
        and all(now.acl.rights_of(uid, now.uid) == 7 for uid in sharing.named())
        and now.default is not None
        and default.other == 0
        and default.owner == 7
        and all(default.rights_of(uid, -1) == 7 for uid in sharing.named())
    )
    # A program may close a folder of its own to the group (mode 0700); the folder at the top is ours.
    mask = now.acl.group if now.acl.mask is None else now.acl.mask
    ours = now.uid == sharing.uid and now.gid == sharing.gid and now.setgid and mask == 7
    if fits and (ours or not top):
        return now
    return State(
        uid=now.uid if sharing.may_keep(now.uid) and not top else sharing.uid,
        gid=sharing.gid,
        setgid=True,
        acl=_shared(now.acl, sharing, 7, named=True),
        default=_shared(default, sharing, 7, named=True),
    )


def _wanted_file(now: State, sharing: Sharing) -> State:
    # A file that its owner made read-only stays so, for both. Programs stay programs.
    rights = 4 | now.acl.owner & 3
    if (
        sharing.may_keep(now.uid)
        and now.acl.other == 0
        and all(now.acl.rights_of(uid, now.uid) & rights == rights for uid in sharing.named())
    ):
        return now
    return State(
        uid=now.uid if sharing.may_keep(now.uid) else sharing.uid,
        gid=sharing.gid,
        setgid=now.setgid,
        acl=_shared(now.acl, sharing, rights, named=sharing.container_id is not None),
    )


def _look(path: str, info: os.stat_result) -> State:
    folder = stat.S_ISDIR(info.st_mode)
    return State(
        uid=info.st_uid,
        gid=info.st_gid,
        setgid=bool(info.st_mode & stat.S_ISGID),
        acl=posix_acl.read(path, posix_acl.ACCESS) or Acl.from_mode(info.st_mode),
        default=posix_acl.read(path, posix_acl.DEFAULT) if folder else None,
    )


def _granting(now: Acl, wanted: Acl, sharing: Sharing) -> Acl:
    """What everybody has now, and what the two users will have."""
    mask = now.group if now.mask is None else now.mask
    users = {uid: rights & mask for uid, rights in now.users.items()}
    for uid in (sharing.uid, *sharing.named()):
        users[uid] = users.get(uid, 0) | wanted.owner
    groups = {gid: rights & mask for gid, rights in now.groups.items()}
    return Acl(now.owner | wanted.owner, now.group & mask, now.other, users, groups, mask | wanted.owner)


def _change(path: str, now: State, wanted: State, sharing: Sharing) -> None:
    if (wanted.uid, wanted.gid) != (now.uid, now.gid):
        # The old owner and group keep what they have until the new ones are there.
        posix_acl.write(path, posix_acl.ACCESS, _granting(now.acl, wanted.acl, sharing))
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
        wanted = _wanted_folder(now, self.sharing, top) if stat.S_ISDIR(info.st_mode) else _wanted_file(now, self.sharing)
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
