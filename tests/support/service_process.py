"""A service in a process of its own, of this checkout or of another one: started, watched by its log, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]
START_SECONDS = 60.0


class ServiceProcess:
    """`python -m MODULE --config CONFIG`. `code`: the checkout whose code runs, this one when left out; `python`: of
    the environment that it needs. `port` and `admin_port`: 0 while it does not serve.
    """

    def __init__(
        self, module: str, config: Path, log: Path, *, code: Path | None = None, python: Path = Path(sys.executable)
    ) -> None:
        self.module = module
        self._command = [str(python), "-P", "-m", module, "--config", str(config)]
        self._paths = [_TESTS] if code is None else [code / "shared", code / "services"]
        self._log = log
        self._log_position = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.admin_port = 0

    def start(self) -> None:
        """Start it; it need not serve yet."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, self._paths))}
        with self._log.open("ab") as log:
            self._log_position = log.tell()
            self._process = subprocess.Popen(self._command, stderr=log, stdout=log, env=environment)

    @property
    def running(self) -> bool:
        """True until it has ended, whether it serves or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def events(self) -> list[dict[str, Any]]:
        """What this life has logged."""
        found = []
        for line in self._log.read_bytes()[self._log_position :].splitlines(keepends=True):
            if line.endswith(b"\n"):
                with suppress(ValueError):  # a traceback that the log did not write
                    found.append(json.loads(line))
        return found

    def text(self) -> str:
        """The same as it stands there."""
        return self._log.read_bytes()[self._log_position :].decode(errors="replace")

    def complaints(self) -> list[str]:
        """What this life logged as an error, and tracebacks."""
        found = [str(each) for each in self.events() if each.get("level") in ("error", "critical")]
        return found + (["a traceback"] if "Traceback" in self.text() else [])

    def serves(self) -> bool:
        """True once it has said that it serves; then the ports are known."""
        for event in self.events():
            if str(event.get("event")).startswith("serving ") and "port" in event:
                self.port, self.admin_port = event["port"], event["admin_port"]
                return True
        return False

    async def until_serving(self) -> None:
        """Wait until it says that it serves. Raises `AssertionError` with what it logged."""
        deadline = time.monotonic() + START_SECONDS
        while not self.serves():
            assert self.running, f"{self.module} ended at once with {self.exit_code}: {self.text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.module} does not start: {self.text()[-2000:]}"
            await asyncio.sleep(0.02)

    async def until_event(self, words: str) -> dict[str, Any]:
        """The first event that has these words in it, when it comes; whether the process ends or not."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            ended = not self.running
            for event in self.events():
                if words in json.dumps(event):
                    return event
            assert not ended, f"{self.module} ended without saying {words!r}: {self.text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.module} never said {words!r}: {self.text()[-2000:]}"
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.port = self.admin_port = 0

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        assert self._process is not None
        self._process.terminate()
        self.port = self.admin_port = 0
        return self._process.wait(30)
