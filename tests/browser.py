"""Chromium without a window, asked over its pipe: no package and no port is needed for it."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# The child's files 3 and 4 are those that the browser reads from and writes to.
_START = "import os, sys; os.dup2({0}, 103); os.dup2({1}, 104); os.dup2(103, 3); os.dup2(104, 4); os.execv(*{2})"


def find_browser():
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page at a time. ``messages`` are the errors and warnings that its console has shown."""

    def __init__(self, write, read, longest):
        self._write, self._read, self._longest, self._left, self._number = write, read, longest, b"", 0
        self.messages, self._events = [], []
        (target,) = (each for each in self.ask("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self._session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **given):
        """What the browser answers to a command of its DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def open(self, path, width=1200, height=900, dark=False):
        """Opens a file and waits until it has loaded."""
        self.messages, self._events = [], []
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def run(self, script):
        """The value of a JavaScript expression, a promise's when it is kept."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def picture(self, path, whole=True):
        """Writes a PNG file of the page."""
        content = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))

    def _next(self):
        end = time.monotonic() + self._longest
        while b"\0" not in self._left:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"the browser says nothing for {self._longest} s")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self._left += part
        text, _, self._left = self._left.partition(b"\0")
        found = json.loads(text)
        self._note(found.get("method"), found.get("params", {}))
        return found

    def _note(self, method, given):
        if method:
            self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.messages.append(given["exceptionDetails"]["exception"].get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.messages.append(str(given["args"]))
        elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.messages.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not given["request"]["url"].startswith(("data:", "file:")):
            self.messages.append(f"asks for {given['request']['url']}")


@contextlib.contextmanager
def browser(longest=120):
    """A :class:`Browser` until the block ends; ``longest`` are the seconds to wait for an answer."""
    here, there = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        line = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        line += ["--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={folder}"]
        code = _START.format(here[0], there[1], (line[0], [*line, "about:blank"]))
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", code], pass_fds=(here[0], there[1]), stderr=subprocess.DEVNULL
        )
        os.close(here[0])
        os.close(there[1])
        try:
            found = Browser(here[1], there[0], longest)
            yield found
            with contextlib.suppress(EOFError, OSError):
                del found._session
                found.ask("Browser.close")
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
            child.wait()
            os.close(here[1])
            os.close(there[0])
