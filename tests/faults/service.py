"""A service at work: `lakthan serve NAME --workers 2`, started and stopped as an operator does."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import aiohttp

from support.edge import until
from support.upgrade_check import check_out, environment_of, previous_release

OCSP_PORT, OCSP_ADMIN, TSA_PORT, TSA_ADMIN = 6960, 6961, 3161, 3162
# A service that has ended is seen at once; one that lives is only slow, as all are on a machine with more to do.
PATIENCE_SECONDS = 300.0
WORKERS = 2
_TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Code:
    """Whose code runs: `python` with the folders in `paths`."""

    python: Path
    paths: tuple[Path, ...]

    def environment(self, others: Mapping[str, str]) -> dict[str, str]:
        """What a process of it is started with."""
        return {**others, "PYTHONPATH": os.pathsep.join(map(str, self.paths))}


THIS = Code(Path(sys.executable), (_TESTS,))


@cache
def previous() -> Code:
    """The release before this one, checked out once for this process."""
    home = Path(tempfile.mkdtemp(prefix="lakthan-previous-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    code = check_out(previous_release(), home / "code")
    return Code(environment_of(code), (code / "shared", code / "services"))


class Service:
    """One of the two, with two workers. `broken`: a variant of `support.fault_broken` instead; it has one process."""

    def __init__(
        self, name: str, config: Path, environment: Mapping[str, str], *, code: Code = THIS, broken: str = ""
    ) -> None:
        self.name = name
        self._log = config.with_name(f"{name}.log")
        self._log_position = 0
        self._config = config
        # A broken build has no supervisor: that would start sound workers.
        self._broken = broken
        self._others = environment
        self.code = code
        self._process: subprocess.Popen[bytes] | None = None
        self.admin_url = f"http://127.0.0.1:{OCSP_ADMIN if name == 'ocsp' else TSA_ADMIN}"
        self.url = f"http://127.0.0.1:{OCSP_PORT if name == 'ocsp' else TSA_PORT}/"

    def start(self) -> None:
        """Start it."""
        module = ["support.fault_broken", self._broken, self.name] if self._broken else [f"lakthan_{self.name}"]
        workers = [] if self._broken else ["--workers", str(WORKERS)]
        command = [str(self.code.python), "-P", "-m", *module, "--config", str(self._config), *workers]
        with self._log.open("ab") as log:
            self._log_position = log.tell()
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self.code.environment(self._others))

    async def until_ready(self) -> None:
        """Return when all of its workers serve, and it is ready. Raises `AssertionError` when it has ended."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            await until(lambda: self._is_ready(session), seconds=PATIENCE_SECONDS)

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        self.check_alive()
        # /readyz is the word of one worker, too: the other one may still be at its start.
        if self._log.read_bytes()[self._log_position :].count(b'"event": "serving ') < (1 if self._broken else WORKERS):
            return False
        with suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"{self.admin_url}/readyz") as reply:
                return reply.status == 200
        return False

    def check_alive(self) -> None:
        """Raises `AssertionError` with the end of its log when it has ended."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise AssertionError(f"{self.name} ended with {code}:\n{self._log.read_text()[-2000:]}")

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        assert self._process is not None
        if self._broken:
            return [self._process.pid]
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(word) for word in children.split()]

    async def until_workers(self, count: int) -> None:
        """Return when there are so many."""

        async def enough() -> bool:
            return len(self.workers()) >= count

        await until(enough, seconds=PATIENCE_SECONDS)

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        assert self._process is not None
        for worker in self.workers() if self._process.poll() is None else []:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)
        self._process.terminate()
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def errors(self) -> list[str]:
        """What it logged as defects."""
        found = []
        for line in self._log.read_text().splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if "defect" in event.get("event", "") or event.get("level") == "critical":
                    found.append(str(event["event"]))
        return found
