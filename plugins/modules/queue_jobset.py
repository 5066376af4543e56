#!/usr/bin/python
# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: queue_jobset
short_description: Define a jobset on a host
version_added: 0.1.0
description:
  - Checks a jobset's definition, writes it below the root, and makes the folders of its queue.
  - Refuses a file system that can't hold a queue, such as a Windows drive under WSL.
  - Workers read a changed definition before their next job.
author:
  - the sagequeue.batch authors (@sagequeue)
attributes:
  check_mode:
    description: Checks the definition and says what would change.
    support: full
  diff_mode:
    description: Shows the definition file before and after, without the values of environment variables and secrets.
    support: full
  idempotent:
    description: A second run with the same options changes nothing.
    support: full
options:
  name:
    description: The jobset's name.
    type: str
    required: true
  definition:
    description:
      - Its keys, see the collection's README. Needed where O(state=present).
      - Values of C(environment) are left out of what the module returns, but Ansible shows its arguments with C(-vvv). What must
        stay secret belongs into O(secrets).
    type: dict
  secrets:
    description:
      - More environment variables of the job, whose values nothing shows.
      - They are kept in the definition file, which is private to the user.
      - The key C(secrets) of a definition is refused, so that no log of Ansible's own can show it.
    type: dict
    default: {}
  defaults:
    description: What the host says for all its jobsets.
    type: dict
    default: {}
    suboptions:
      home:
        description: The batch user's home. By default, the home of the user that the module runs as.
        type: path
      runner:
        description: The runner of jobsets that name none.
        type: str
      supervisor:
        description: The supervisor of jobsets that name none.
        type: str
      sage_command:
        description: What runs the script of jobsets that name no command, with the runner process.
        type: list
        elements: str
      image:
        description: The image of jobsets that name none, with the runner podman_run.
        type: str
      sif:
        description: The same with the runner apptainer, a path.
        type: str
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
  state:
    description: Whether the jobset is defined. Its queue, logs and state files stay in any case.
    type: str
    choices: [present, absent]
    default: present
notes:
  - Run it as the batch user.
seealso:
  - module: sagequeue.batch.queue_enqueue
"""

EXAMPLES = r"""
- name: Define a jobset
  sagequeue.batch.queue_jobset:
    name: rook_r3
    definition:
      script: rank_boundary_sat_v18.sage
      args: --graph rook --rank 3 --resume --stop_file {gate_file}
      stride: 8
      workers: 8
    secrets:
      LICENCE_KEY: "{{ vault_licence_key }}"
"""

RETURN = r"""
definition:
  description: The definition with everything filled in, without the values of environment variables and secrets.
  returned: when O(state=present)
  type: dict
path:
  description: The definition's file.
  returned: success
  type: str
"""

import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils import _host
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue import definitions
from ansible_collections.sagequeue.batch.plugins.module_utils.dirqueue.errors import QueueError


def main() -> None:
    """Run the module."""
    os.umask(0o077)
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "definition": {"type": "dict"},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "defaults": {
                "type": "dict",
                "default": {},
                "options": {
                    "home": {"type": "path"},
                    "runner": {"type": "str"},
                    "supervisor": {"type": "str"},
                    "sage_command": {"type": "list", "elements": "str"},
                    "image": {"type": "str"},
                    "sif": {"type": "str"},
                },
            },
            "root": {"type": "path", "default": "~/sagequeue"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["definition"])],
        supports_check_mode=True,
    )
    secrets = (module.params["definition"] or {}).get("secrets")
    # They are refused, but came all the same.
    module.no_log_values.update(str(value) for value in (secrets.values() if isinstance(secrets, dict) else [secrets]) if value)
    options, check = module.params, module.check_mode
    result: dict[str, Any] = {}
    try:
        if options["state"] == "present":
            wanted, diff = _host.define(
                options["root"], options["name"], options["definition"], options["secrets"], options["defaults"], check
            )
            result["definition"] = json.loads(_host.without_secrets(definitions.stored_text(wanted)))
        else:
            diff = _host.forget(options["root"], options["name"], check)
        path = definitions.path_of(options["root"], options["name"])
    except (QueueError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=bool(diff), path=path, diff=diff[0] if diff else {"before": "", "after": ""}, **result)


if __name__ == "__main__":
    main()
