# Copyright: sagequeue contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: wsl_conf
short_description: Merge settings into wsl.conf or .wslconfig
version_added: 0.1.0
description:
  - Sets single keys in C(/etc/wsl.conf) or in the Windows user's C(.wslconfig), and leaves every other byte as it is.
  - Comments, unknown keys, sections that appear twice, CRLF line ends, byte order marks, UTF-16 and a missing newline at the end are kept.
  - Section and key names match whatever their case. A key that appears several times gets the value everywhere.
author:
  - sagequeue (@sagequeue)
attributes:
  check_mode:
    support: full
    description: Can run in C(check_mode) and return changed status prediction without modifying target.
  diff_mode:
    support: full
    description: Returns details on what has changed when in diff mode.
  idempotent:
    support: full
    description: A second run with the same options changes nothing.
options:
  path:
    description: The file. It is made if it is missing; its folder has to exist.
    type: path
    required: true
  settings:
    description: The settings to merge.
    type: list
    elements: dict
    required: true
    suboptions:
      section:
        description: The section, without brackets.
        type: str
        required: true
      key:
        description: The key.
        type: str
        required: true
      value:
        description: The value.
        type: str
        required: true
      rule:
        description:
          - V(set) gives the key this value.
          - V(keep) does so only if the key has no value yet.
          - V(at_least) does so only if the value that is there is no number, or a smaller one.
        type: str
        choices: [set, keep, at_least]
        default: set
  newline:
    description: The line end for a file that has none yet. Otherwise new lines end like the file's first line.
    type: str
    choices: [lf, crlf]
    default: lf
  backup:
    description: Keep a copy of the old file beside it.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Let systemd be PID 1
  sagequeue.batch.wsl_conf:
    path: /etc/wsl.conf
    settings:
      - {section: boot, key: systemd, value: "true"}
      - {section: boot, key: initTimeout, value: "60000", rule: at_least}
"""

RETURN = r"""
kept:
  description: Settings that were not made because of their rule, with the value that is there.
  returned: always
  type: list
  elements: dict
  sample: [{section: boot, key: command, value: service cron start}]
backup_file:
  description: The copy of the old file.
  returned: when a copy was made
  type: str
  sample: /etc/wsl.conf.4711.2026-01-02@03:04:05~
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sagequeue.batch.plugins.module_utils._inifile import (
    IniError,
    Setting,
    decode,
    merge,
)


def read(module, path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        module.fail_json(msg=f"Cannot read {path}: {exc.strerror}.")


def shown(data):
    """The text as a person wants to see it in a diff."""
    text, codec, bom = decode(data)
    return text if codec.startswith("utf-16") else data[len(bom):].decode("utf-8", "replace")


def write(module, path, data):
    """The whole file or nothing: the new text goes beside the old one and is renamed over it."""
    handle, temporary = tempfile.mkstemp(dir=module.tmpdir)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        module.atomic_move(temporary, path)
    except OSError as exc:
        module.fail_json(msg=f"Cannot write {path}: {exc.strerror}.")


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "settings": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "section": {"type": "str", "required": True},
                    "key": {"type": "str", "required": True, "no_log": False},
                    "value": {"type": "str", "required": True},
                    "rule": {"type": "str", "choices": ["set", "keep", "at_least"], "default": "set"},
                },
            },
            "newline": {"type": "str", "choices": ["lf", "crlf"], "default": "lf"},
            "backup": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    # A link (dotfiles kept elsewhere) stays a link: its target is changed.
    path = os.path.realpath(module.params["path"])
    before = read(module, path)
    settings = [Setting(**setting) for setting in module.params["settings"]]
    newline = "\r\n" if module.params["newline"] == "crlf" else "\n"
    try:
        after, kept = merge(before, settings, newline)
        diff = {
            "before_header": path,
            "after_header": path,
            "before": shown(before),
            "after": shown(after),
        }
    except IniError as exc:
        module.fail_json(msg=f"Cannot merge settings into {path}: {exc}. Repair or remove the file, then run again.")
    result = {
        "changed": before != after,
        "diff": diff,
        "kept": [entry._asdict() for entry in kept],
    }
    if result["changed"] and not module.check_mode:
        if module.params["backup"] and os.path.exists(path):
            result["backup_file"] = module.backup_local(path)
        write(module, path, after)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
