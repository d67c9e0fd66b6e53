"""The machine under the bench: which core does what, programs that are started and ended, and what they have used.

Promises: whatever `Children` started has ended when its block ends, by its own process id. Servers run on the first
core that this process may use, load on the second; PostgreSQL inherits the second, because the process that starts it
sits there.

Refuses to know what is measured.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.backends.openssl import backend

_READY_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")
# Program → the Debian package that has it.
PACKAGES = {"wrk": "wrk", "nginx": "nginx-light", "cfssl": "golang-cfssl", "openssl": "openssl"}


class BenchError(Exception):
    """The bench cannot go on; the text says what to do."""


def program(name: str) -> str:
    """The path of a program. Raises `BenchError` that names its package."""
    # /usr/sbin: where an ordinary user of Debian does not look.
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise BenchError(f"{name} is not here; on Debian: apt install {PACKAGES[name]}")
    return found


def choose_cores() -> tuple[int, int]:
    """The core for servers and the core for load; the same one where there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[1] if len(cores) > 1 else cores[0]


def free_port() -> int:
    """A port of the loopback address that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Child:
    """One program that was started."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    def failed(self, what: str) -> BenchError:
        """The error that shows the end of the program's output."""
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return BenchError(f"{self.name} {what}:\n" + "\n".join(f"    {line}" for line in lines))

    def tree(self) -> list[int]:
        """The process and all below it."""
        parents: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # it has ended meanwhile
                    continue
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            waiting += parents.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """The processor time that the whole tree has used since its start."""
        ticks = 0
        for pid in self.tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS

    def resident_mib(self) -> float:
        """The memory of the largest process of the tree, in MiB."""
        sizes = []
        for pid in self.tree():
            status = Path(f"/proc/{pid}/status").read_text()
            sizes += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
        return max(sizes) / 1024


@dataclass(frozen=True)
class Server:
    """A program that listens."""

    child: Child
    port: int


class Children:
    """All programs of a run."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[Child] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._started):
            self.end(child)

    def start(
        self, name: str, command: Sequence[str], cores: Iterable[int], environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start a program on these cores only."""
        log = self._logs / f"{name}.log"
        chosen = set(cores)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                preexec_fn=lambda: os.sched_setaffinity(0, chosen),  # noqa: PLW1509 - no threads run here yet
            )
        child = Child(name, process, log)
        self._started.append(child)
        return child

    def end(self, child: Child) -> None:
        """End it in an orderly way, or by force when it takes too long."""
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
            try:
                child.process.wait(20)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        if child in self._started:
            self._started.remove(child)


def idle_seconds(cores: Iterable[int]) -> float:
    """How long these cores have had nothing to do since the machine was started."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            ticks += int(fields[3]) + int(fields[4])  # idle, and idle while something waits for a disk
    return ticks / _TICKS


def run_on(core: int, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end on one core."""
    return subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    )


def wait_for_port(child: Child, port: int) -> None:
    """Return when something listens there. Raises `BenchError` when the program ends or takes too long."""
    _wait(child, lambda: _connects(port))


def wait_for_line(child: Child, text: str) -> None:
    """Return when the program has printed this. Raises `BenchError` when it ends or takes too long."""
    _wait(child, lambda: text in child.log.read_text(errors="replace"))


def wait_until_ready(child: Child, admin_port: int) -> None:
    """Return when /readyz says yes. Raises `BenchError` when the program ends or takes too long."""
    _wait(child, lambda: _is_ready(admin_port))


def _wait(child: Child, there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not there():
        if child.process.poll() is not None:
            raise child.failed("ended at once")
        if time.monotonic() > deadline:
            raise child.failed(f"is not ready after {_READY_SECONDS:.0f} s")
        time.sleep(0.02)


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_ready(admin_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def describe(pinned: str) -> dict[str, str]:
    """What the figures depend on, for the report. `pinned`: what has which core."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    first_line = subprocess.run([program("openssl"), "version"], capture_output=True, text=True, check=True).stdout
    return {
        "processor": model,
        "cores": f"{pinned}, of {os.cpu_count()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": sys.version.split()[0],
        "cryptography's OpenSSL": backend.openssl_version_text(),
        "peers' OpenSSL": first_line.strip(),
    }
