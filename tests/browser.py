"""A headless Chromium driven over a pipe, for tests that look at pages as users do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """Pages from files; ``requests`` holds every address that was asked for, ``errors`` what their scripts threw."""

    def __init__(self, folder: Path) -> None:
        to, self.write = os.pipe()
        self.read, of = os.pipe()

        def pipes() -> None:
            a, b = os.dup(to), os.dup(of)
            os.dup2(a, 3)
            os.dup2(b, 4)

        command = [str(chromium()), *FLAGS.split(), "--disable-sync", f"--user-data-dir={folder}", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to)
        os.close(of)
        self.number, self.rest, self.session = 0, b"", None
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict:
        while b"\0" not in self.rest:
            data = os.read(self.read, 1 << 20)
            assert data, "the browser has ended"
            self.rest += data
        first, self.rest = self.rest.split(b"\0", 1)
        event = json.loads(first)
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(event["params"])[:500])
        return event

    def open(self, path: Path) -> float:
        """Show a page; the seconds until it had loaded."""
        begin = time.perf_counter()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while self.value("document.readyState") != "complete":
            time.sleep(0.01)
        return time.perf_counter() - begin

    def value(self, expression: str):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, path: Path) -> None:
        import base64

        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)
