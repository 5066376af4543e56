# Copyright (c) the sagequeue.batch authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of a hook: a command, a mail or a webhook gets an event."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from types import FrameType
from typing import Any, Optional

from .carriers import end_carriers
from .errors import QueueError, explain
from .jobset import Jobset

# Where sendmail lies on hosts whose users don't have it in their PATH.
_SBIN = ":/usr/sbin:/usr/lib:/usr/local/sbin"


def command(words: list[str], event: dict[str, Any], jobset: Jobset) -> str:
    """Run a command with an event as JSON on its standard input; return why it failed, or nothing."""
    return _start(words, event, jobset, _json(event))


def mail(words: list[str], event: dict[str, Any], jobset: Jobset) -> str:
    """Mail an event; return why it failed, or nothing."""
    program = shutil.which("sendmail", path=os.environ.get("PATH", "") + _SBIN)
    if not program:
        return "there is no sendmail on this host; install a mail transfer agent, or name a command or a webhook"
    from email import policy
    from email.message import EmailMessage

    message = EmailMessage(policy.default.clone(max_line_length=998))
    message["To"] = words[0].partition(":")[2]
    message["Subject"] = "[sagequeue] " + " ".join(event["text"].split())[:200]
    # RFC 3834: no holiday notes in return.
    message["Auto-Submitted"] = "auto-generated"
    message["Message-ID"] = f"<{event['event']}.{event['id']}@{event['host']}>"
    lines = [event["text"], ""] + [f"{key}: {value}" for key, value in event.items() if key not in ("text", "counts") and value != ""]
    message.set_content("\n".join(lines) + "\n")
    return _start([program, "-oi", "--", message["To"]], event, jobset, message.as_bytes())


def post(words: list[str], event: dict[str, Any], jobset: Jobset) -> str:
    """POST an event as JSON; return why it failed, or nothing."""
    import http.client
    import urllib.error
    import urllib.request

    class Stay(urllib.request.HTTPRedirectHandler):
        # A redirected POST would arrive as a GET without the event.
        def redirect_request(self, *_arguments: Any) -> None:
            return None

    def late(_number: int, _frame: Optional[FrameType]) -> None:
        raise TimeoutError(f"no answer within {jobset.hook_limit:g} s")

    headers = {"Content-Type": "application/json", "User-Agent": "sagequeue"}
    # The opener's own time-out holds for each read: who answers by drops would have for ever.
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, jobset.hook_limit)
    try:
        request = urllib.request.Request(words[0], _json(event), headers, method="POST")
        with urllib.request.build_opener(Stay).open(request, timeout=jobset.hook_limit):
            return ""
    except urllib.error.HTTPError as exc:
        return f"it answered {exc.code}"
    except urllib.error.URLError as exc:
        return str(exc.reason)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return str(exc) or type(exc).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _json(event: dict[str, Any]) -> bytes:
    return (json.dumps(event) + "\n").encode()


def _start(words: list[str], event: dict[str, Any], jobset: Jobset, text: bytes) -> str:
    """Run a program with a text on its standard input; return why it failed, or nothing."""
    mark = os.urandom(16).hex()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            # All of it: a pipe holds 64 KiB, and an event has far less.
            os.write(writing, text)
    finally:
        os.close(writing)
    try:
        folder = jobset.workdir if os.path.isdir(jobset.workdir) else "/"
        process = subprocess.Popen(words, stdin=reading, cwd=folder, env=_variables(event, mark), start_new_session=True)
    except OSError as exc:
        return explain(exc, words[0])
    finally:
        os.close(reading)
    try:
        status = process.wait(jobset.hook_limit)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with contextlib.suppress(QueueError):
            end_carriers({"HOOK_MARK": mark})
        return f"has not ended for {jobset.hook_limit:g} s, and was killed"
    return f"exit status {status}" if status > 0 else f"ended by signal {-status}" if status else ""


def _variables(event: dict[str, Any], mark: str) -> dict[str, str]:
    """Return the environment of a hook. Never what a job's processes carry: recovery would end it for one of those."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SAGEQUEUE_", "JOB_", "HOOK_"))}
    flat = {**event, **{f"jobs_{state}": count for state, count in event["counts"].items()}}
    return {
        **inherited,
        **{f"HOOK_{key.upper()}": str(value) for key, value in flat.items() if not isinstance(value, dict)},
        "HOOK_MARK": mark,
    }


def shown(word: str) -> str:
    """Return a hook without what may be a secret: the path of a webhook often is one."""
    scheme, slashes, rest = word.partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2].partition('?')[0]}" if slashes and scheme in ("http", "https") else word
