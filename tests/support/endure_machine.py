"""What the endurance run breaks and mends: an embedded, durable PostgreSQL and TSA processes on it.

Every way of breaking comes with the way of mending that an operator would take. All of it blocks; the run calls it from
a thread while clients keep asking. A kill stops every victim before the first one dies, so that none can tidy up.

What a kill cannot show is a lost page cache: that needs a power cut. PostgreSQL runs with fsync on, as in earnest.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import asyncpg

from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.embedded_process import postmaster_state, server_processes
from lakthan.store.migrate import migrate
from support.tsa import write_configuration

START_SECONDS = 60.0
_TESTS = Path(__file__).parents[1]


class Worker:
    """A TSA process. `port`: where it stamps, 0 while it is away. `module`: what `python -m` runs, with arguments."""

    def __init__(self, config: Path, log: Path, module: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", *module, "--config", str(config)]
        self._log = log
        self._log_position = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._log_position = log.tell()
            environment = {**os.environ, "PYTHONPATH": str(_TESTS)}  # where the broken variants are
            self._process = subprocess.Popen(self._command, stderr=log, env=environment)

    def until_serving(self) -> None:
        """Wait until it says that it serves. Raises `AssertionError` with its log."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            lines = self._log.read_bytes()[self._log_position :].splitlines(keepends=True)
            events = [json.loads(line) for line in lines if line.endswith(b"\n")]
            ports = [event["port"] for event in events if event["event"] == "serving timestamps"]
            if ports:
                self.port = ports[0]
                return
            assert self._process.poll() is None, f"a worker ended at once: {events[-3:]}"
            assert time.monotonic() < deadline, f"a worker does not start: {events[-3:]}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.port = 0

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        assert self._process is not None
        self._process.terminate()
        self.port = 0
        return self._process.wait(30)

    def complaints(self) -> collections.Counter[str]:
        """What it logged as an error, with how often, over all its lives."""
        events = []
        for line in self._log.read_bytes().splitlines():
            with suppress(ValueError):  # the last line of a life that was killed may be half written
                events.append(json.loads(line))
        return collections.Counter(event["event"] for event in events if event["level"] in ("error", "critical"))


class Machine:
    """PostgreSQL and `workers`, started by `start`; all that is left is killed by `close`.

    `folder` is used up: it holds the data folders of all time lines.
    """

    def __init__(self, folder: Path, workers: int = 2, module: Sequence[str] = ("lakthan_tsa",)) -> None:
        self._folder = folder
        self._server = EmbeddedPostgres(folder)
        self._data = folder / "postgres" / "data"
        self._backup = folder / "backup"
        self._earlier = folder / "earlier"
        config = folder / "lakthan.toml"
        self.workers = [Worker(config, folder / f"worker-{number}.log", module) for number in range(workers)]

    def start(self) -> None:
        """Make everything and start it."""
        self._server.start()
        asyncio.run(self._fill())
        write_configuration(self._folder, self._server.url("tsa"))
        self.start_workers(range(len(self.workers)))

    async def _fill(self) -> None:
        await migrate(self._server.url())
        await self._server.ensure_logins({"tsa": "lakthan_tsa"})

    def close(self) -> None:
        """Leave no process behind."""
        for worker in self.workers:
            worker.kill()
        self._server.stop()

    def start_workers(self, numbers: Iterable[int]) -> None:
        """Start these workers, and wait for all of them."""
        starting = [self.workers[number] for number in numbers]
        for worker in starting:
            worker.start()
        for worker in starting:
            worker.until_serving()

    def kill_worker(self, number: int) -> None:
        """SIGKILL for one worker."""
        self.workers[number].kill()

    def start_database(self) -> None:
        """Start PostgreSQL on the data folder as it is; it recovers by itself."""
        self._server.start()

    def stop_database(self) -> None:
        """Stop PostgreSQL in good order ("fast"), and copy the data folder: yesterday's backup."""
        self._server.stop()
        shutil.copytree(self._data, self._backup, symlinks=True)

    def kill_database(self) -> None:
        """SIGKILL for every process of PostgreSQL at once."""
        victims = server_processes(self._data)
        assert len(victims) > 5, "PostgreSQL was not running"
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for victim in victims:
                os.kill(victim, number)
        self._server.stop()  # there is nothing left to stop; it collects the dead

    def quit_database(self) -> None:
        """`pg_ctl stop -m immediate`: SIGQUIT, no checkpoint, nothing finished, recovery at the next start."""
        postmaster, _ = postmaster_state(self._data)
        os.kill(postmaster, signal.SIGQUIT)
        deadline = time.monotonic() + START_SECONDS
        while server_processes(self._data):
            assert time.monotonic() < deadline, "PostgreSQL outlives an immediate shutdown"
            time.sleep(0.002)
        self._server.stop()

    def kill_everything(self) -> None:
        """SIGKILL for all of PostgreSQL and every worker."""
        self.kill_database()
        for worker in self.workers:
            worker.kill()

    def start_everything(self) -> None:
        """PostgreSQL first; without it workers do not start."""
        self.start_database()
        self.start_workers(range(len(self.workers)))

    def restore(self) -> None:
        """Put the data folder of the dead PostgreSQL aside, yesterday's backup in its place, and start that."""
        home = self._earlier / "postgres"
        home.mkdir(parents=True)
        shutil.copy2(self._folder / "postgres" / "pgpass", home)
        self._data.rename(home / "data")
        shutil.copytree(self._backup, self._data, symlinks=True)
        self._server.start()

    def records(self) -> dict[bytes, bytes]:
        """Every record of the present time line: the token's SHA-256 by serial number."""
        return asyncio.run(_read(self._server.url()))

    def earlier_records(self) -> dict[bytes, bytes] | None:
        """Every record of the time line that the restore ended; None when there was none."""
        if not self._earlier.exists():
            return None
        with EmbeddedPostgres(self._earlier) as server:
            return asyncio.run(_read(server.url()))


async def _read(url: str) -> dict[bytes, bytes]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT serial_number, token_sha256 FROM timestamp_token")
    finally:
        await connection.close()
    records = {row["serial_number"]: row["token_sha256"] for row in rows}
    assert len(records) == len(rows), "the token log itself has a serial number twice"
    return records
