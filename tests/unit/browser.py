# Copyright (c) the sagequeue.batch authors
# MIT License (see LICENSE or https://opensource.org/licenses/MIT)
# SPDX-License-Identifier: MIT
"""A real Chromium without a window, told what to do by its DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page in a browser.

    Args:
        folder: where it keeps its profile.
        width: of the window, in pixels.
        dark: whether the user prefers dark pages.
    """

    def __init__(self, folder: Path, width: int = 1100, dark: bool = False) -> None:
        assert PROGRAM
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        # It reads from 3 and writes to 4. Not sh: dash knows no numbers above 9.
        words = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "-", PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu"]
        words += [
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={folder}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        with open(folder.with_suffix(".log"), "wb") as log:
            self._process = subprocess.Popen(words, pass_fds=(read, write), stdout=log, stderr=log)
        os.close(read)
        os.close(write)
        self._rest = b""
        self._last = 0
        self._session = ""
        # What it asked for, and what it complained of.
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def close(self) -> None:
        for fd in (self._write, self._read):
            os.close(fd)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        values = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif message.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(values))
        return message

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Ask for one thing, and return the answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": values, **({"sessionId": self._session} if self._session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])

    def open(self, address: str) -> None:
        """Go to a page, and wait until it is there."""
        self.call("Page.navigate", url=address)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def ask(self, script: str) -> Any:
        """Return the value of a script's expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key: Tab, Enter."""
        code = {"Tab": 9, "Enter": 13}[key]
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **(more if kind == "keyDown" else {})
            )

    def picture(self, path: Path) -> None:
        """Write the whole page as a picture."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]))
