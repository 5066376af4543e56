# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent: a process in the container that starts a worker's jobs there, one at a time.

Runner podman_exec starts it by one podman exec, so cgroup, capabilities, limits, user and environment are what that
gives, and jobs inherit them. This text reaches it as the first message on descriptor 3, a socket whose other end the
worker alone holds. The container's own Python runs it, 3.8 or newer.

The worker says "ping N", which is repeated, or "run", with what the job prints into as a descriptor: a number of words,
the folder, the words, the variables, each ended by NUL. The agent says "ready", and of a job "ended STATUS KIB", as
wait(2) and getrusage(2) have it. When the socket is closed, worker or agent are not wanted any more: the job is killed.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import signal
import socket
import time


def variables(pairs: list[bytes]) -> dict[bytes, bytes]:
    """Return NAME=VALUE pairs as a mapping."""
    return dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)


def start(folder: bytes, words: list[bytes], environment: dict[bytes, bytes], output: int) -> int:
    """Start a job as podman exec would; return its pid, or the negative of an exit status, if it can't be started.

    Raises:
        OSError: the container is short of something.
    """
    status = 127
    try:
        os.chdir(folder)
        places = [folder] if b"/" in words[0] else environment.get(b"PATH", b"").split(b":")
        files = [file for file in (os.path.join(place, words[0]) for place in places) if os.path.isfile(file)]
        status = 126 if files else 127
        file = next((file for file in files if os.access(file, os.X_OK)), b"")
        if not file:
            raise OSError(0, "not executable" if files else "no such program", words[0])
        status = 1
        actions = [(os.POSIX_SPAWN_OPEN, 0, b"/dev/null", os.O_RDONLY, 0), *((os.POSIX_SPAWN_DUP2, output, fd) for fd in (1, 2))]
        # A vfork(2) within, which takes half of a fork's time. The two signals are those that Python ignores.
        return os.posix_spawn(file, words, environment, file_actions=actions, setsid=True, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.ENOMEM, errno.ENFILE, errno.EMFILE):
            raise
        os.write(output, b"the job can't be started: %s\n" % str(exc).encode("utf-8", "backslashreplace"))
        return -status


def end(pid: int, claim: bytes) -> None:
    """Kill a job: its group, and what else carries its claim."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
    for _look in range(100):
        found = False
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                if claim in file.read().split(b"\0"):
                    os.kill(int(entry), signal.SIGKILL)
                    found = True
        if not found:
            break
        time.sleep(0.02)


def main(channel: socket.socket) -> None:
    """Serve one worker, until the channel is closed."""
    # What this process was started with, but for its own name: Python changes os.environ to its taste.
    with open("/proc/self/environ", "rb") as file:
        inherited = variables([pair for pair in file.read().split(b"\0") if not pair.startswith(b"SAGEQUEUE_AGENT=")])
    channel.set_inheritable(False)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    pid, claim = 0, b""
    with contextlib.suppress(OSError):
        # Starts nothing. A Python or a C library that lacks the means ends here.
        os.posix_spawn(b"/", [b"/"], {}, setsid=True)
    try:
        channel.send(b"ready")
        while True:
            events = dict(waiting.poll())
            if woken in events:
                os.read(woken, 4096)
            if pid:
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                if ended:
                    pid = 0
                    channel.send(b"ended %d %d" % (status, usage.ru_maxrss))
            asked = events.get(channel.fileno(), 0)
            if asked & (select.POLLHUP | select.POLLERR):
                # What may still wait to be read, nobody wants any more.
                return
            if not asked:
                continue
            message, ancillary, _flags, _address = channel.recvmsg(1 << 18, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            outputs = array.array("i", b"".join(data for _level, _kind, data in ancillary))
            if message.startswith(b"ping "):
                channel.send(message)
            elif message.startswith(b"run\0") and outputs and not pid:
                fields = message.split(b"\0")[1:-1]
                count = int(fields[0])
                own = variables(fields[2 + count :])
                claim = b"SAGEQUEUE_CLAIM=" + own[b"SAGEQUEUE_CLAIM"]
                pid = start(fields[1], fields[2 : 2 + count], {**inherited, **own}, outputs[0])
                os.close(outputs[0])
                if pid < 0:
                    channel.send(b"ended %d 0" % (-pid << 8))
                    pid = 0
            else:
                return
    except (OSError, ValueError, LookupError):
        # Short of something, or not what a worker says: it sees the channel closed, and does without.
        return
    finally:
        if pid:
            end(pid, claim)


if __name__ == "__main__":
    main(socket.socket(fileno=3))
