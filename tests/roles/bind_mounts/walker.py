"""Runs on the test host, beside a copy of the module's library: the walk alone, and who gets in."""

from __future__ import annotations

import json
import os
import pwd
import sys

from lib._bind_mount import Walk
from lib._bind_mount_rights import Sharing, host_id, parse_id_map


def walk(folder, user, userns, id_map):
    entry = pwd.getpwnam(user)
    extents = parse_id_map(id_map)
    container = host_id(extents, 1000) if userns == "mapped" else None
    Walk(Sharing(entry.pw_uid, entry.pw_gid, container, tuple(extents)), None, check=False).folder(folder)


def access(folder, uid, gid):
    """Everything that this user may read and write; the groups of root are dropped."""
    # A container sees the folder as a mount, not through the user's home.
    os.chdir(folder)
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    found = []
    for root, _folders, files in os.walk("."):
        if os.access(root, os.R_OK | os.W_OK | os.X_OK):
            found.append(os.path.normpath(os.path.join(folder, root)))
        for name in files:
            path = os.path.join(root, name)
            if os.access(path, os.R_OK | os.W_OK):
                found.append(os.path.normpath(os.path.join(folder, path)))
    print(json.dumps(sorted(found)))


{"walk": walk, "access": access}[sys.argv[1]](*sys.argv[2:])
