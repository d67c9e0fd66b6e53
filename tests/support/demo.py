"""A running demo: `lakthan demo` as a process of its own, on free ports, with its folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 90.0


@dataclass(slots=True)
class Demo:
    """`urls`: by service (`ocsp`, `tsa`, `publication`), as the ready line says them."""

    directory: Path
    process: subprocess.Popen[bytes]
    urls: dict[str, str] = field(default_factory=dict)

    @property
    def pki(self) -> Path:
        """The folder with the certificates."""
        return self.directory / "pki"

    @property
    def printed(self) -> str:
        """What it has written to standard output so far."""
        return self.directory.with_suffix(".out").read_text(encoding="utf-8")

    @property
    def told(self) -> str:
        """What it has written to standard error so far."""
        return self.directory.with_suffix(".err").read_text(encoding="utf-8")

    def lakthan(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a `lakthan` command on this demo."""
        return lakthan(*arguments, "--dir", self.directory)

    def until_ready(self) -> None:
        """Wait for the ready line. Raises `AssertionError` with what was printed when it does not come."""
        deadline = time.monotonic() + START_SECONDS
        while "lakthan demo ready" not in self.printed or not self.printed.endswith("\n"):
            assert self.process.poll() is None, f"the demo ended:\n{self.told}"
            assert time.monotonic() < deadline, f"the demo did not get ready:\n{self.told}"
            time.sleep(0.05)
        words = self.printed.splitlines()[0].removeprefix("lakthan demo ready: ").split(" ")
        self.urls = dict(word.split("=", 1) for word in words)

    def family(self) -> set[int]:
        """The numbers of its process and of every one below it."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                number, _, rest = path.read_text().partition(" ")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            parents[int(number)] = int(rest.rpartition(")")[2].split()[1])
        found = {self.process.pid}
        while below := {number for number, parent in parents.items() if parent in found} - found:
            found |= below
        return found

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stop it and give its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def lakthan(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a `lakthan` command with no database in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "lakthan_cli", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
    )


def environment() -> dict[str, str]:
    """The environment of this process without what would lead a demo elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "LAKTHAN_COMMAND")}


def on_free_ports() -> list[str]:
    """Options of `lakthan demo` that keep it off the usual ports."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return ["--ocsp-port", str(one.getsockname()[1]), "--tsa-port", str(other.getsockname()[1])]


@contextmanager
def started(directory: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Demo]:
    """Start a demo in `directory`; it need not be ready yet. It is killed at the end when it still runs.

    `variables`: environment variables besides those of this process. The demo leads a process group of its own.
    """
    command = [sys.executable, "-m", "lakthan_cli", "demo", "--dir", str(directory), *arguments]
    with directory.with_suffix(".out").open("wb") as out, directory.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=environment() | dict(variables or {}), start_new_session=True
        )
    try:
        yield Demo(directory, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def running(directory: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Demo]:
    """A demo that is ready, and stopped in good order at the end."""
    with started(directory, *arguments, variables=variables) as demo:
        demo.until_ready()
        yield demo
        if demo.process.poll() is None:
            assert demo.stop() == 0, demo.told
