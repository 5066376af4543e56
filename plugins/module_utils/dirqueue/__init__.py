# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dirqueue: a durable job queue in a directory. Standard library only, Python 3.8 or newer."""

from __future__ import annotations

__version__ = "0.1.0"
