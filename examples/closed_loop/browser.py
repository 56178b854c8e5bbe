"""One tab of a headless Chromium, with a keyboard: Chromium's own debugging pipe, and no package beside Python's own.

The person of this example judges in it, and the tests of the annotation page do.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 300.0

# The pipe's ends have to be the descriptors 3 and 4.
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Tab:
    """One tab of a headless Chromium with a profile of its own, over the DevTools protocol: JSON, ended by NUL."""

    def __init__(self, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # What it leaves in its temporary folder goes with that one; a short name, as that of a socket has to be.
        self._scratch = tempfile.mkdtemp(prefix="chromium-")
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(to_read), str(to_write), str(CHROMIUM), *options],
            pass_fds=(to_read, to_write),
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": self._scratch},
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        self.another()

    def another(self) -> None:
        """Open one more tab of the same browser, and speak to it from now on."""
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # its own group: the browser starts processes of its own
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                read = os.read(self._read, 1 << 20)
                assert read, "the browser has ended"
                self._buffer += read
            line, _, self._buffer = self._buffer.partition(b"\0")
            said = json.loads(line)
            if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(said["params"]))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page; a promise is awaited."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, expression: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < end, f"{expression} never came: {self.value('document.body.innerText')}"
            time.sleep(0.03)

    def sees(self, text: str) -> None:
        self.until(f"(document.body?.innerText ?? '').includes({json.dumps(text)})")

    def press(self, *keys: str) -> None:
        codes = {"Enter": 13, "Tab": 9, "Backspace": 8, "Escape": 27}
        for key in keys:
            named = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())), "text": key}
            if key in codes:
                named["text"] = "\r" if key == "Enter" else ""
            for kind in ("keyDown" if named["text"] else "rawKeyDown", "keyUp"):
                self.call("Input.dispatchKeyEvent", type=kind, **named)

    def enter(self, link: str, name: str) -> None:
        """Open the link to judge and say who one is."""
        self.call("Page.navigate", url=link)
        self.sees("Who is judging?")
        self.call("Input.insertText", text=name)
        self.press("Enter")

    def settle(self) -> None:
        """Until keys count again: shortly after an item came they do not, and nothing on the page shows it."""
        time.sleep(0.43)

    def picture(self, file: Path, *, width: int, height: int) -> None:
        """A PNG of the page by daylight, at twice the size in pixels."""
        daylight = [{"name": "prefers-color-scheme", "value": "light"}]
        self.call("Emulation.setEmulatedMedia", features=daylight)
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=False)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
