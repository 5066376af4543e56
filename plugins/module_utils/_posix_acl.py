# Copyright: sagequeue contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection.

"""POSIX ACLs as the kernel stores them: one system call sets the mode and all entries at once.

setfacl and chmod one after the other leave a moment in which one of two users has lost access.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF


@dataclass
class Acl:
    owner: int
    group: int
    other: int
    users: dict[int, int] = field(default_factory=dict)
    groups: dict[int, int] = field(default_factory=dict)
    mask: int | None = None

    @classmethod
    def from_mode(cls, mode: int) -> Acl:
        return cls(owner=mode >> 6 & 7, group=mode >> 3 & 7, other=mode & 7)

    @classmethod
    def unpack(cls, data: bytes) -> Acl:
        acl = cls(0, 0, 0)
        for tag, rights, who in _ENTRY.iter_unpack(data[_VERSION.size:]):
            if tag == _USER_OBJ:
                acl.owner = rights
            elif tag == _USER:
                acl.users[who] = rights
            elif tag == _GROUP_OBJ:
                acl.group = rights
            elif tag == _GROUP:
                acl.groups[who] = rights
            elif tag == _MASK:
                acl.mask = rights
            elif tag == _OTHER:
                acl.other = rights
        return acl

    def pack(self) -> bytes:
        entries = [(_USER_OBJ, self.owner, _NO_ID)]
        entries += [(_USER, rights, who) for who, rights in sorted(self.users.items())]
        entries.append((_GROUP_OBJ, self.group, _NO_ID))
        entries += [(_GROUP, rights, who) for who, rights in sorted(self.groups.items())]
        if self.mask is not None:
            entries.append((_MASK, self.mask, _NO_ID))
        entries.append((_OTHER, self.other, _NO_ID))
        return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)

    def rights_of(self, uid: int, owner: int) -> int:
        """What the user with this id may do, its groups and everybody else's rights left aside."""
        if uid == owner:
            return self.owner
        return self.users.get(uid, 0) & (7 if self.mask is None else self.mask)

    def __str__(self) -> str:
        parts = [f"u::{_text(self.owner)}"]
        parts += [f"u:{who}:{_text(rights)}" for who, rights in sorted(self.users.items())]
        parts.append(f"g::{_text(self.group)}")
        parts += [f"g:{who}:{_text(rights)}" for who, rights in sorted(self.groups.items())]
        if self.mask is not None:
            parts.append(f"m::{_text(self.mask)}")
        parts.append(f"o::{_text(self.other)}")
        return ",".join(parts)


def _text(rights: int) -> str:
    return "".join(letter if rights & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


def read(path: str, kind: str) -> Acl | None:
    """The ACL, or None where there is none beyond the mode."""
    try:
        return Acl.unpack(os.getxattr(path, kind))
    except OSError as exc:
        if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def write(path: str, kind: str, acl: Acl) -> None:
    os.setxattr(path, kind, acl.pack())
