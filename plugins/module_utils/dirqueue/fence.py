# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a job from running twice where several hosts share its queue.

A host that is cut off can't be asked whether its worker lives, and the file server gives the worker's lock to the next who asks.
So a worker has a lease. While it lives it renews that by touching its lock's file. Where it can't for as long as the lease, a
process beside it, the guard, kills it and all that it runs. Others believe that it is dead only some time later, by the
file server's clock (owner.why_dead). The guard has the worker's lock, too: so while the lock is held, not all is ended yet.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import threading
import time

from . import owner
from .carriers import end_carriers
from .errors import NotReady


class Fence:
    """The lease of this process, and its guard.

    Args:
        holder: this process as a holder of jobs. What it runs carries the name of its lock (SAGEQUEUE_HOLDER).
        lease: seconds.
    """

    def __init__(self, holder: owner.Holder, lease: float) -> None:
        self._holder = holder
        self._lease = lease
        read, self._write = os.pipe2(os.O_CLOEXEC)
        worker = os.getpid()
        # Nothing may be read from a disk that is out of reach by then: a fork has all that it needs.
        self._guard = os.fork()
        if self._guard == 0:
            try:
                os.close(self._write)
                _guard(read, worker, holder.lock, lease)
            finally:
                os._exit(0)
        os.close(read)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while True:
            # Before, not after: what counts at the file server is the moment in between.
            began = _now()
            with contextlib.suppress(OSError):
                self._holder.touch()
                os.write(self._write, f"{began:.3f}\n".encode())
            if self._ended.wait(self._lease / 6):
                return

    def close(self) -> None:
        """End the guard, which ends whatever jobs have left behind, and return when it is gone."""
        self._ended.set()
        self._thread.join()
        os.close(self._write)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._guard, 0)


def _now() -> float:
    # Goes on while the host is suspended.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _guard(read: int, worker: int, lock: str, lease: float) -> None:
    """Be the guard: watch until the worker has ended, or its lease has; then nothing of it may be left."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()
    renewed = _now()
    while True:
        if select.select([read], [], [], min(1.0, max(0.0, renewed + lease - _now())))[0]:
            data = os.read(read, 4096)
            if not data:
                break
            renewed = max(renewed, float(data.split()[-1]))
        if _now() >= renewed + lease:
            os.kill(worker, signal.SIGKILL)
            break
    while True:
        with contextlib.suppress(NotReady, OSError, MemoryError):
            end_carriers({"SAGEQUEUE_HOLDER": lock})
            return
