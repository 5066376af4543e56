#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_shared
short_description: Prove that a folder which two hosts share can hold a queue
version_added: 0.1.0
description:
  - One host answers, in the background, while another one asks. They have nothing but the folder.
  - Proves that a write is seen, that renames are atomic, and that locks hold between the two. Fails with the reason otherwise.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: The same, since nothing that it makes stays.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: N/A
  idempotent:
    description: It changes nothing.
    support: full
options:
  root:
    description: The queue's root.
    type: path
    default: ~/sagequeue
  side:
    description: What this host does.
    type: str
    choices: [answer, ask]
    required: true
  name:
    description: What the two hosts call this proof. Of a name's second use nothing is left of the first.
    type: str
    required: true
  other:
    description: The other host's name, for people.
    type: str
    default: the other host
notes:
  - Run it as the batch user.
seealso:
  - module: sagequeue.batch.queue_workers
"""

EXAMPLES = r"""
- name: Prove it
  sagequeue.batch.queue_shared:
    root: /shared/sagequeue
    side: ask
    name: "1"
"""

RETURN = r"""
msg:
  description: What was proved.
  returned: success
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._queue_module import root_of
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import shared
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError, explain


def main() -> None:
    """Run the module."""
    os.umask(0o077)
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "~/sagequeue"},
            "side": {"type": "str", "choices": ["answer", "ask"], "required": True},
            "name": {"type": "str", "required": True},
            "other": {"type": "str", "default": "the other host"},
        },
        supports_check_mode=True,
    )
    root = root_of(module.params["root"])
    folder = os.path.join(root, f".proof-{module.params['name']}")
    said = "answered"
    try:
        if module.params["side"] == "answer":
            shared.answer(folder)
        else:
            said = shared.prove(root, folder, module.params["other"])
    except (QueueError, OSError) as exc:
        module.fail_json(msg=explain(exc, root))
    module.exit_json(changed=False, msg=said)


if __name__ == "__main__":
    main()
