# MIT licence, see LICENSE.
"""Machines for tests of a shared file system: each has a kernel of its own (User Mode Linux) on the root of one test host.

The host's kernel need not know NFS, the machines' kernels do: one is a real NFS server, the others mount from it. Their network is
a bridge in the host, so each can be cut off; a machine that is powered off is a process that is killed.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HOST = str(REPOSITORY / "tests" / "host" / "host")
PACKAGES = "user-mode-linux nfs-kernel-server nfs-common e2fsprogs kmod iproute2 python3"
MOUNT = "mount -t nfs4 -o vers=4.2,hard,actimeo=0,lookupcache=none 10.99.0.1:/ /shared"


class Host:
    """The test host on which the machines run."""

    def __init__(self, name: str) -> None:
        self.name = name
        subprocess.run([HOST, "up", name, "--bare"], check=True)
        # The server of the host itself is not wanted, only its programs.
        self.sh("printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; apt-get update -qq; "
                f"DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends {PACKAGES} >/dev/null 2>&1")
        self.sh("mkdir -p /machines /shared /export /lib/modules; ln -sfn /usr/lib/uml/modules/* /lib/modules/; "
                "ip link add br0 type bridge; ip address add 10.99.0.254/24 dev br0; ip link set br0 up; "
                "truncate -s 512M /machines.disk; mkfs.ext4 -q /machines.disk")
        subprocess.run([HOST, "podman", "cp", str(Path(__file__).with_name("machine-init")), f"{name}:/machine-init"], check=True)
        self.machines: list[Machine] = []

    def sh(self, script: str, check: bool = True) -> str:
        done = subprocess.run([HOST, "exec", self.name, "sh", "-euc", script], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def down(self) -> None:
        subprocess.run([HOST, "down", self.name], check=True)


class Machine:
    """One machine."""

    def __init__(self, host: Host, name: str, address: str) -> None:
        self.host, self.name, self.address = host, name, address
        self._asked = itertools.count()
        host.sh(f"ip tuntap add tap-{name} mode tap; ip link set tap-{name} master br0; ip link set tap-{name} up")
        self.power_on()

    def power_on(self) -> None:
        disk = "ubd0=/machines.disk" if self.name == "server" else ""
        self.host.sh(
            f"rm -f /machines/{self.name}/up; "
            "TMPDIR=/var/tmp setsid linux.uml mem=384M rootfstype=hostfs rw quiet init=/machine-init con=null con0=null "
            f"{disk} umid={self.name} vec0:transport=tap,ifname=tap-{self.name},depth=64 machine={self.name} "
            f"address={self.address} >/var/log/{self.name}.log 2>&1 </dev/null & "
        )
        until(lambda: self.host.sh(f"ls /machines/{self.name}/up", check=False), 60, f"{self.name} is up")
        if self.name != "server":
            self.sh(f"for n in 1 2 3 4 5 6 7 8 9; do {MOUNT} && exit; sleep 1; done; exit 1")

    def power_off(self) -> None:
        """As if its plug was pulled."""
        # Not the shell that says it.
        self.host.sh(f"pkill -KILL -f 'umid=[{self.name[0]}]{self.name[1:]} '; sleep 1")

    def cut(self, off: bool = True) -> None:
        """Cut its network, or join it again."""
        self.host.sh(f"ip link set tap-{self.name} {'nomaster' if off else 'master br0'}")

    def start(self, script: str) -> str:
        """Have a script run; return what it is called."""
        name = f"/machines/{self.name}/{next(self._asked)}"
        self.host.sh(f"printf %s {shlex.quote(script)} >{name}.new.ask.tmp; mv {name}.new.ask.tmp {name}.ask")
        return name

    def sh(self, script: str, seconds: float = 60, check: bool = True) -> str:
        """Run a script and return what it says."""
        name = self.start(script)
        status = until(lambda: self.host.sh(f"cat {name}.rc", check=False), seconds, f"{self.name} runs {script[:300]}")
        said = self.host.sh(f"cat {name}.out")
        assert not check or status == "0", f"{self.name}: {script}\n{said}"
        return said


def until(what, seconds, why):
    """Wait for something to be true; return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"after {seconds} s still not so: {why}"
        time.sleep(1)
