# Copyright: sagequeue contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection.

"""Who shares a folder, a user and a rootless container's user, and which owner and rights its files get for that."""

from __future__ import annotations

from dataclasses import dataclass

from ._posix_acl import Acl


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
    """The id on the host of one inside the user namespace. None where it has none."""
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


def wanted_folder(now: State, sharing: Sharing, top: bool) -> State:
    """How a folder should be; at the top it is the user's own. As it is now, where both get in already."""
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


def wanted_file(now: State, sharing: Sharing) -> State:
    """How a file should be. As it is now, where both have the rights that its owner has left it."""
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


def granting(now: Acl, wanted: Acl, sharing: Sharing) -> Acl:
    """What everybody has now, and what the two users will have."""
    mask = now.group if now.mask is None else now.mask
    users = {uid: rights & mask for uid, rights in now.users.items()}
    for uid in (sharing.uid, *sharing.named()):
        users[uid] = users.get(uid, 0) | wanted.owner
    groups = {gid: rights & mask for gid, rights in now.groups.items()}
    return Acl(now.owner | wanted.owner, now.group & mask, now.other, users, groups, mask | wanted.owner)
