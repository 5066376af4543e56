#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: jupyter_url
short_description: Say at which address a browser reaches Jupyter
version_added: 0.1.0
description:
  - Waits until Jupyter answers to its token, and returns the address with the token.
  - Under WSL it can open the address in the Windows user's browser.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: It opens nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: It changes nothing.
    support: full
options:
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
  token_file:
    description: The file that holds the token. Without it, C(etc/jupyter.token) below O(root).
    type: path
    default: ''
  port:
    description: The port on 127.0.0.1.
    type: int
    default: 8888
  wait:
    description: Seconds until Jupyter has to answer.
    type: int
    default: 60
  open:
    description: Open the address in the browser of Windows.
    type: bool
    default: false
notes:
  - The address holds the token. Whoever has it can run programs as the user.
  - Run it as the batch user, who alone can read the token.
requirements:
  - Python 3.8 or newer on the host
"""

EXAMPLES = r"""
- name: Ask for Jupyter's address
  sagequeue.batch.jupyter_url:
  register: jupyter
"""

RETURN = r"""
url:
  description: The address with the token.
  returned: success
  type: str
  sample: http://127.0.0.1:8888/?token=secret
opened:
  description: Whether it was opened.
  returned: success
  type: bool
msg:
  description: The same in one line.
  returned: always
  type: str
"""

import http.client
import os
import time
import urllib.parse

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import root_of
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import wsl
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain

_MORE = "what it says: journalctl --user -u sagemath; setup.yml starts it anew"


def token_in(path: str) -> str:
    """Return the token.

    Raises:
        QueueError: there is none, with the next step.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            token = file.read(1000).strip()
    except FileNotFoundError as exc:
        raise QueueError(
            f"there is no token {path}, so Jupyter does not run here. It runs in the container, which setup.yml starts on a host with "
            "systemd whose jobs run in it (runner podman_exec); where jobs are processes (runner process), Sage comes without Jupyter"
        ) from exc
    except OSError as exc:
        raise QueueError(f"the token can't be read: {explain(exc, path)}; run this as the batch user (-e sagequeue_user=NAME)") from exc
    if not token:
        raise QueueError(f"the token {path} is empty; remove it, and run setup.yml for a new one")
    return token


def status_of(port: int, token: str) -> int:
    """Return how the server answers a question that needs the token."""
    # No proxy stands between this host and itself.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/status", headers={"Authorization": f"token {urllib.parse.quote(token)}"})
        return connection.getresponse().status
    finally:
        connection.close()


def wait_for(port: int, token: str, path: str, seconds: int) -> None:
    """Wait until the server answers to the token.

    Raises:
        QueueError: it does not, with the reason and the next step.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            status = status_of(port, token)
        except (OSError, http.client.HTTPException) as exc:
            why = f"Jupyter does not answer on 127.0.0.1:{port} within {seconds} s ({exc or type(exc).__name__}); {_MORE}"
        else:
            if status == 200:
                return
            why = f"what answers on 127.0.0.1:{port} is no Jupyter that is ready (status {status}); who listens there: ss -ltnp; {_MORE}"
            if status in (401, 403):
                raise QueueError(
                    f"Jupyter on 127.0.0.1:{port} refuses the token in {path}: it was started with another one; setup.yml starts it anew"
                )
        if time.monotonic() >= until:
            raise QueueError(why)
        time.sleep(min(0.5, max(0.05, until - time.monotonic())))


def main() -> None:
    """Run the module."""
    options = {
        "root": {"type": "path", "default": "~/sagequeue"},
        "token_file": {"type": "path", "default": "", "no_log": False},
        "port": {"type": "int", "default": 8888},
        "wait": {"type": "int", "default": 60},
        "open": {"type": "bool", "default": False},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    port = module.params["port"]
    path = module.params["token_file"] or os.path.join(root_of(module.params["root"]), "etc", "jupyter.token")
    try:
        token = token_in(path)
        wait_for(port, token, path, module.params["wait"])
    except QueueError as exc:
        module.fail_json(msg=str(exc))
    url = f"http://127.0.0.1:{port}/?token={urllib.parse.quote(token, safe='')}"
    said, opened = url, False
    if module.params["open"] and not module.check_mode:
        why = wsl.open_address(url)
        opened = not why
        said += " is open in the browser of Windows" if opened else f" could not be opened in Windows ({why}); open it by hand"
    module.exit_json(changed=False, url=url, opened=opened, msg=said)


if __name__ == "__main__":
    main()
