"""Headless Chromium, driven over its debugging pipe with the standard library alone.

`Page.open` loads a file at a size and a colour scheme, and keeps what it logged and asked for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["CHROMIUM", "Page", "browser"]

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")

_FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT_S: Final = 60.0


@dataclass
class Page:
    """A tab; `messages` and `requests` are those since it was last opened."""

    write: int
    read: int
    session: str = ""
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _count: int = 0
    _rest: bytes = b""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        return self._until(lambda m: m.get("id") == self._count)["result"]

    def open(self, path: Path, *, width: int, height: int, dark: bool) -> None:
        """Load a file as a screen of that size shows it, and wait until it is there."""
        self.messages.clear()
        self.requests.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        self.send("Page.navigate", url=path.absolute().as_uri())
        self._until(lambda m: m.get("method") == "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _until(self, wanted: Any) -> dict[str, Any]:
        """Read messages until one is wanted; note the others."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            while b"\0" in self._rest:
                raw, _, self._rest = self._rest.partition(b"\0")
                message: dict[str, Any] = json.loads(raw)
                if wanted(message):
                    assert "error" not in message, message
                    return message
                self._note(message)
            assert select.select([self.read], [], [], deadline - time.monotonic())[0], "no answer"
            part = os.read(self.read, 1 << 16)
            assert part, "chromium has ended"
            self._rest += part

    def _note(self, message: dict[str, Any]) -> None:
        method, given = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(given["entry"]["text"])
        elif method in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown"}:
            self.messages.append(json.dumps(given))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """Start Chromium with a profile of its own; yield a tab; end it."""
    assert CHROMIUM is not None
    from_us, to_us = os.pipe(), os.pipe()  # it reads descriptor 3 and writes descriptor 4
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        script = 'exec "$@" 3<&"$READ" 4>&"$WRITE"'
        process = subprocess.Popen(
            ["bash", "-c", script, "chromium", *command],
            pass_fds=(from_us[0], to_us[1]),
            env={**os.environ, "READ": str(from_us[0]), "WRITE": str(to_us[1])},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_us[0])
        os.close(to_us[1])
        try:
            page = Page(from_us[1], to_us[0])
            made = page.send("Target.createTarget", url="about:blank")
            target = made["targetId"]
            attached = page.send("Target.attachToTarget", targetId=target, flatten=True)
            page.session = attached["sessionId"]
            for domain in ("Page", "Network", "Log", "Runtime"):
                page.send(f"{domain}.enable")
            yield page
            page.session = ""
            page.send("Browser.close")
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            os.close(from_us[1])
            os.close(to_us[0])
