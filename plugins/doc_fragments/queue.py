# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that the queue_* modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """Options and return values of a module that works on one jobset's queue."""

    DOCUMENTATION = r"""
options:
  jobset:
    description: The jobset's name. It must be defined on the host, see M(sagequeue.batch.queue_jobset).
    type: str
    required: true
  root:
    description: The batch user's sagequeue folder.
    type: path
    default: ~/sagequeue
notes:
  - Run it as the batch user. The queue is private to that user.
requirements:
  - Python 3.8 or newer on the host
"""

    ACTIONS = r"""
options: {}
attributes:
  check_mode:
    description: Says what would become of each job, and changes nothing.
    support: full
  diff_mode:
    description: Shows the jobs whose state changes, with their states before and after.
    support: full
  idempotent:
    description: A second run with the same options changes nothing.
    support: full
"""
