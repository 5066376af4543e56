"""The host that the tests of podman, sage_image and sage_container share: a ready user with a base image."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = str(ROOT / "tests" / "host" / "host")
BASE = "localhost/sage-base"
IMAGE = "localhost/sagequeue-sagemath:10.7-pycryptosat"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def make(request, tmp_path_factory):
    """Yield a Host (of the conftest beside this file) with methods for what its user does.

    It is one host for all: to start one that runs changes nothing, and the first to end the session removes it.
    """
    name = f"d-{os.getpid()}"
    parent = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))

    class SageHost(parent.Host):
        def play(self, role, **options):
            return super().play(role, **{"sagequeue_user": self.user, **options})

        def podman(self, *arguments, **options):
            return self.exec("env", "XDG_RUNTIME_DIR=/run/user/1001", "podman", *arguments, user=self.user, **options).stdout.strip()

        def systemctl(self, *arguments, **options):
            return self.exec(
                "env", "XDG_RUNTIME_DIR=/run/user/1001", "systemctl", "--user", *arguments, user=self.user, **options
            ).stdout.strip()

        def image(self, name=IMAGE):
            shown = self.podman("image", "inspect", name, check=False)
            return (json.loads(shown or "[]") or [None])[0]

        def build(self, **variables):
            """The image role with what a site without a registry, behind a proxy, gives it."""
            return self.play("sage_image", **{"sage_image_base": BASE, "sage_image_ca_bundle": BUNDLE, **variables})

    host = SageHost(name, tmp_path_factory.mktemp(name))
    subprocess.run([HOST, "up", name], check=True)
    try:
        yield host
    finally:
        subprocess.run([HOST, "down", name], check=False)


def give_base(host):
    if host.podman("image", "exists", BASE, check=False) == "" and host.image(BASE):
        return
    archive = subprocess.run(
        [str(ROOT / "tests" / "host" / "make-sage-base")], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    with open(archive, "rb") as stream:
        subprocess.run(
            [HOST, "exec", host.name, "-u", host.user, "podman", "import", "--quiet", "-", BASE],
            stdin=stream,
            stdout=subprocess.DEVNULL,
            check=True,
        )
