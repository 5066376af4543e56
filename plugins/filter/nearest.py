# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: nearest
short_description: The one of some names that a misspelt name was meant to be
version_added: 0.1.0
author: sagequeue (@sagequeue)
description:
  - Finds the name that is most like the given one, for an error that helps.
positional: names
options:
  _input:
    description: The name that is not among the names.
    type: str
    required: true
  names:
    description: The names that there are.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Help with a misspelt name
  ansible.builtin.debug:
    msg: "Did you mean {{ 'petersn' | sagequeue.batch.nearest(['petersen', 'rook_r3']) }}?"
"""

RETURN = r"""
_value:
  description: The nearest name, or an empty string where none is near.
  type: str
"""

import difflib


def nearest(name, names):
    return next(iter(difflib.get_close_matches(str(name), [str(one) for one in names], n=1)), "")


class FilterModule:
    def filters(self):
        return {"nearest": nearest}
