"""Several processes for one service: one port, one scrape, restarted after a crash, stopped together."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import ACTOR, OCSPReply, request_for
from support.running import samples
from support.tsa import request_for as tsa_request_for
from support.tsa import tst_info_of, write_configuration

Seen = Callable[[Mapping[str, object]], None]


@dataclass
class Supervisor:
    """A running `lakthan serve ocsp --workers 2`, its authority, and what it has logged so far."""

    process: asyncio.subprocess.Process
    url: str
    admin_url: str
    session: aiohttp.ClientSession
    ca: Issued
    writer: ChangeWriter
    authority_id: int
    log: list[dict[str, object]] = field(default_factory=list)

    def pids(self) -> dict[int, int]:
        """The process of each worker, as last started."""
        started = [line for line in self.log if line["event"] == "worker started"]
        return {int(str(line["worker"])): int(str(line["pid"])) for line in started}

    async def ask(self, certificate: Issued) -> list[str]:
        """One request on a connection of its own."""
        headers = {"Connection": "close"}
        body = request_for(certificate, self.ca)
        async with self.session.post(self.url, data=body, headers=headers) as reply:
            return OCSPReply(reply.status, reply.headers, await reply.read()).cert_statuses

    async def metrics(self) -> dict[str, float]:
        """The one scrape."""
        return await samples(self.session, self.admin_url)

    async def until(self, true: Callable[[], object]) -> None:
        """Return when something is so."""
        async with asyncio.timeout(60):
            while not true():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_ready(self) -> None:
        """Return when every worker is ready."""
        await until_ready(self.session, self.admin_url)


async def until_ready(session: aiohttp.ClientSession, admin_url: str, *, one: bool = False) -> None:
    """Return when every worker of a supervisor is ready, or at least `one`."""
    async with asyncio.timeout(60):
        while True:
            async with session.get(f"{admin_url}/readyz") as reply:
                text = await reply.text()
                if reply.status == 200 and (one or ("running" not in text and "starting" not in text)):
                    return
            await asyncio.sleep(0.05)


@dataclass
class Started:
    """A supervisor, and what it has logged so far."""

    process: asyncio.subprocess.Process
    url: str
    admin_url: str
    session: aiohttp.ClientSession
    log: list[dict[str, object]]


@asynccontextmanager
async def two_workers(module: str, config: Path) -> AsyncIterator[Started]:
    """Start a service with two workers as operators do; kill what is left of it at the end."""
    async with with_workers(module, config, 2) as started:
        yield started


@asynccontextmanager
async def with_workers(
    module: str, config: Path, workers: int, *, seen: Seen | None = None, **variables: str
) -> AsyncIterator[Started]:
    """The same with so many workers. `variables`: of its environment; `seen`: is given each line of the log, and then
    one worker that is ready is enough for a beginning.
    """
    command = [sys.executable, "-m", module, "--config", str(config), "--workers", str(workers)]
    environment = {**os.environ, **variables}
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
    log: list[dict[str, object]] = []
    started = asyncio.Event()

    async def follow() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            log.append(json.loads(line))
            if seen is not None:
                seen(log[-1])
            if log[-1]["event"] == "starting workers":
                started.set()

    following = asyncio.create_task(follow())
    try:
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(60):
                await started.wait()
            said = next(line for line in log if line["event"] == "starting workers")
            url, admin_url = (f"http://127.0.0.1:{said[name]}" for name in ("port", "admin_port"))
            await until_ready(session, admin_url, one=seen is not None)
            yield Started(process, url, admin_url, session, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await following


@asynccontextmanager
async def supervised(
    database_url: str,
    folder: Path,
    workers: int = 2,
    settings: str = "",
    variables: Mapping[str, str] | None = None,
    *,
    seen: Seen | None = None,
) -> AsyncIterator[Supervisor]:
    """An authority, and its responder with two workers, or as many. `settings`: further tables; `variables`, `seen`:
    see `with_workers`.
    """
    ca = new_ca("Public CA")
    certificate, key = new_responder(ca).write(folder, "responder")
    pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=2, application_name="test")
    authority_id = await AuthorityAdmin(pool).add_authority("public-ca", [ca.der])
    config = folder / "lakthan.toml"
    config.write_text(
        f"""
        [ocsp]
        port = 0
        admin_port = 0
        database.url = "{database_url}"
        [[ocsp.responders]]
        authority = "public-ca"
        certificate = "{certificate.name}"
        key = "file:{key.name}"
        {settings}
        """
    )
    try:
        async with with_workers("lakthan_ocsp", config, workers, seen=seen, **variables or {}) as started:
            yield Supervisor(
                started.process,
                started.url,
                started.admin_url,
                started.session,
                ca,
                ChangeWriter(pool),
                authority_id,
                started.log,
            )
    finally:
        await pool.close()


@pytest.fixture
async def supervisor(database_url: str, tmp_path: Path) -> AsyncIterator[Supervisor]:
    """Two workers."""
    async with supervised(database_url, tmp_path) as running:
        yield running


def answered_by(metrics: dict[str, float]) -> dict[str, float]:
    """Requests that each worker answered."""
    name = 'lakthan_ocsp_requests_total{method="POST",outcome="successful",worker="%d"}'
    return {str(number): metrics[name % number] for number in range(2)}


async def test_all_workers_answer_and_one_scrape_shows_them(supervisor: Supervisor) -> None:
    """Connections are spread over the workers; every series of each is in the one scrape, its memory too."""
    good = issue("good", supervisor.ca)
    await supervisor.writer.issue(supervisor.authority_id, good.serial_number, actor=ACTOR)
    asked = 0
    async with asyncio.timeout(30):
        while asked < 20 or not all(answered_by(await supervisor.metrics()).values()):
            assert await supervisor.ask(good) == ["good"]
            asked += 1
    metrics = await supervisor.metrics()
    assert sum(answered_by(metrics).values()) == asked
    for number in ("0", "1"):
        assert metrics[f'lakthan_worker_up{{worker="{number}"}}'] == 1
        assert metrics[f'lakthan_worker_restarts_total{{worker="{number}"}}'] == 0
        assert metrics[f'process_resident_memory_bytes{{worker="{number}"}}'] > 0
        assert metrics[f'lakthan_ocsp_feed_trusted{{worker="{number}"}}'] == 1
    async with supervisor.session.get(f"{supervisor.admin_url}/readyz") as reply:
        assert "worker 0: change feed: ok\n" in await reply.text()
    async with supervisor.session.get(f"{supervisor.admin_url}/livez") as reply:
        assert reply.status == 200


async def test_a_revocation_reaches_every_worker(supervisor: Supervisor) -> None:
    """No worker goes on saying good."""
    good = issue("good", supervisor.ca)
    await supervisor.writer.issue(supervisor.authority_id, good.serial_number, actor=ACTOR)
    for _ in range(20):
        assert await supervisor.ask(good) == ["good"]
    heard = [f'lakthan_ocsp_status_changes_total{{worker="{number}"}}' for number in range(2)]
    before = await supervisor.metrics()
    await supervisor.writer.revoke(supervisor.authority_id, good.serial_number, actor=ACTOR)
    async with asyncio.timeout(10):
        after = before
        while any(after[name] == before[name] for name in heard):
            after = await supervisor.metrics()
    for _ in range(20):
        assert await supervisor.ask(good) == ["revoked"]


async def test_a_crashed_worker_is_replaced(supervisor: Supervisor) -> None:
    """While it is away the other one answers every new connection; then both are there again."""
    good = issue("good", supervisor.ca)
    await supervisor.writer.issue(supervisor.authority_id, good.serial_number, actor=ACTOR)
    before = supervisor.pids()
    os.kill(before[0], signal.SIGKILL)
    await supervisor.until(lambda: any("started again" in str(line["event"]) for line in supervisor.log))
    # The one scrape says so, and still has all of the other one.
    metrics = await supervisor.metrics()
    assert metrics['lakthan_worker_up{worker="0"}'] == 0
    assert metrics['lakthan_ocsp_feed_trusted{worker="1"}'] == 1
    assert 'lakthan_ocsp_feed_trusted{worker="0"}' not in metrics
    for _ in range(10):
        assert await supervisor.ask(good) == ["good"]
    await supervisor.until(lambda: supervisor.pids()[0] != before[0])
    await supervisor.until_ready()
    metrics = await supervisor.metrics()
    assert supervisor.pids()[1] == before[1]
    assert metrics['lakthan_worker_restarts_total{worker="0"}'] == 1
    assert metrics['lakthan_worker_up{worker="0"}'] == 1


async def test_sigterm_stops_all(supervisor: Supervisor) -> None:
    """Workers drain, nothing is left behind, and the exit code says that it was asked for."""
    supervisor.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        assert await supervisor.process.wait() == 0
    await supervisor.until(lambda: sum(line["event"] == "stopping" for line in supervisor.log) == 2)
    for pid in supervisor.pids().values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_workers_do_not_outlive_their_supervisor(supervisor: Supervisor) -> None:
    """Killed hard, the supervisor cannot say goodbye; its workers stop all the same."""
    supervisor.process.kill()
    await supervisor.process.wait()
    await supervisor.until(lambda: sum(line["event"] == "stopping" for line in supervisor.log) == 2)


async def test_what_cannot_be_served_ends_at_once(database_url: str, tmp_path: Path) -> None:
    """A wrong key is said once by each worker, and the exit code is that of a wrong configuration."""
    config = tmp_path / "lakthan.toml"
    config.write_text(
        f"""
        [ocsp]
        port = 0
        admin_port = 0
        database.url = "{database_url}"
        [[ocsp.responders]]
        authority = "public-ca"
        certificate = "missing.pem"
        key = "file:missing.key"
        """
    )
    command = [sys.executable, "-m", "lakthan_ocsp", "--config", str(config), "--workers", "2"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert b"missing.pem" in said


async def test_one_that_cannot_begin_leaves_the_others_at_work(database_url: str, tmp_path: Path) -> None:
    """A worker that is late finds something broken at its first start: it tries again, and the other one goes on."""
    late: list[int] = []

    def stop_the_second(line: Mapping[str, object]) -> None:
        if line["event"] == "worker started" and line["worker"] == 1 and not late:
            late.append(int(str(line["pid"])))
            os.kill(late[0], signal.SIGSTOP)

    key = tmp_path / "responder.key"
    async with supervised(database_url, tmp_path, seen=stop_the_second) as supervisor:
        good = issue("good", supervisor.ca)
        octets = key.read_bytes()
        key.write_bytes(b"broken")
        os.kill(late[0], signal.SIGCONT)
        await supervisor.until(
            lambda: any(line["event"] == "a worker ended and is started again" for line in supervisor.log)
        )
        key.write_bytes(octets)
        await supervisor.until_ready()
        assert supervisor.process.returncode is None
        assert await supervisor.ask(good) == ["unknown"]


async def test_a_time_stamp_authority_of_two_workers(database_url: str, tmp_path: Path) -> None:
    """Both stamp on one port, with serial numbers of their own."""
    config = write_configuration(tmp_path, database_url)
    async with two_workers("lakthan_tsa", config) as tsa:
        headers = {"Content-Type": "application/timestamp-query", "Connection": "close"}
        serial_numbers: list[int] = []
        by_worker = [f'lakthan_tsa_requests_total{{outcome="granted",worker="{number}"}}' for number in range(2)]
        shown: dict[str, float] = {}
        async with asyncio.timeout(60):
            while not all(shown.get(name) for name in by_worker):
                async with tsa.session.post(tsa.url, data=tsa_request_for(), headers=headers) as reply:
                    serial_numbers.append(int(tst_info_of(await reply.read())["serial_number"].native))
                shown = await samples(tsa.session, tsa.admin_url)
        assert len(set(serial_numbers)) == len(serial_numbers)
        assert not [line for line in tsa.log if line["level"] == "error"]
