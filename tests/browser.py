"""A headless Chromium over its debugging pipe (Chrome DevTools Protocol): no driver, no library, no port.

`--remote-debugging-pipe` reads JSON messages, each ended by a zero byte, from file descriptor 3 and writes to 4.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")


def find_browser() -> str | None:
    """The browser that $POSTTRAIN_BROWSER names, or one of the usual names on the path; None where there is none."""
    named = os.environ.get("POSTTRAIN_BROWSER")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page of a running browser."""

    def __init__(self, to_browser: BinaryIO, from_browser: BinaryIO) -> None:
        self._to, self._from = to_browser, from_browser
        self._count, self._rest = 0, b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol, and wait for its result. Events that come before it are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._read()).get("id") != self._count:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from.fileno(), 1 << 16)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, path: Path, *, width: int, height: int = 900) -> None:
        """Show a file in a window of that width, as a phone does where it is narrow."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + 60
        while self.evaluate("document.readyState !== 'complete' || location.protocol !== 'file:'"):
            assert time.monotonic() < until, f"{path} was not loaded"
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and requests for anything but the file itself."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(f"exception: {params['exceptionDetails']['text']}")
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(f"console: {params['args']}")
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {params['entry']['text']}")
            elif method == "Network.requestWillBeSent" and params.get("type") != "Document":
                found.append(f"request: {params['request']['url'][:200]}")
        return found

    def screenshot(self, path: Path) -> None:
        """The whole page, from top to bottom, as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are none of the descriptors that the browser wants."""
    ends = os.pipe()
    above = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return above[0], above[1]


@contextlib.contextmanager
def browser(binary: str, profile: Path) -> Iterator[Page]:
    """A page in a browser of its own; the browser ends with the block."""
    command = [binary, "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
    command += ["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # it does not start as root otherwise
    read_in, write_in = _pipe()
    read_out, write_out = _pipe()
    # The shell moves the two ends to the places that the browser reads and writes.
    shell = f'exec 3<&{read_in} 4>&{write_out}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command], pass_fds=(read_in, write_out), stderr=subprocess.DEVNULL
    )
    os.close(read_in)
    os.close(write_out)
    with os.fdopen(write_in, "wb") as to_browser, os.fdopen(read_out, "rb") as from_browser:
        try:
            yield Page(to_browser, from_browser)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
