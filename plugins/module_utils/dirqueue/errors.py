# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong in a way that a person can mend."""

from __future__ import annotations


class QueueError(Exception):
    """The one exception of the library: names the thing, the reason and the next step."""


class MalformedJob(QueueError):
    """A job file, or what it asks for, can't be understood. The text is the reason."""


class NotReady(QueueError):
    """A runner can't run anything now, through no fault of a job. The text says why and what to do."""


class LostClaim(QueueError):
    """A worker finds that the job it ran is no longer its own."""
