"""A headless Chromium that a test talks to through two pipes, in its DevTools protocol."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
_SECONDS_MOST = 60.0


def _pipe() -> tuple[int, int]:
    """Both ends, with numbers that leave those of the browser free."""
    pair = []
    for end in os.pipe():
        pair.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return pair[0], pair[1]


class Page:
    """One page. ``events`` are what the browser told of by itself since it was opened: (name, parameters)."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        (ours_in, self._out), (self._in, ours_out) = _pipe(), _pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        # It reads descriptor 3 and writes descriptor 4; the shell moves ours there.
        command = [
            "bash", "-c", f'exec "$@" 3<&{ours_in} 4>&{ours_out} {ours_in}<&- {ours_out}>&-', "bash", PROGRAM, *flags,
            f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, pass_fds=(ours_in, ours_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours_in)
        os.close(ours_out)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(_SECONDS_MOST)
        os.close(self._in)
        os.close(self._out)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The browser's answer. AssertionError where it refuses, or does not answer."""
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]  # type: ignore[no-any-return]
            self.events.append((told.get("method", ""), told.get("params", {})))

    def open(self, path: Path) -> None:
        """Shows a file, until all of it is there."""
        self.ask("Page.navigate", url=path.as_uri())
        while self.value("document.readyState") != "complete" or self.value("location.protocol") != "file:":
            time.sleep(0.02)

    def value(self, expression: str) -> Any:
        """What a piece of JavaScript gives, as JSON would have it."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key goes down and up."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _SECONDS_MOST
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._in, 1 << 16) if ready else b""
            assert chunk, "the browser does not answer"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)  # type: ignore[no-any-return]
