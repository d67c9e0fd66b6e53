"""The time-stamp authority as a process of its own: started, used by command-line clients, stopped, killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import asyncpg

from support.programs import need
from support.tsa import request_for, tst_info_of, write_configuration

HEADERS = {"Content-Type": "application/timestamp-query"}


@dataclass
class Process:
    """A running `python -m lakthan_tsa`."""

    process: asyncio.subprocess.Process
    url: str
    log: list[dict[str, object]] = field(default_factory=list)


@asynccontextmanager
async def started(config: Path) -> AsyncIterator[Process]:
    """Start the process and wait until it says that it serves; kill what is left of it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lakthan_tsa", "--config", str(config), stderr=asyncio.subprocess.PIPE
    )
    try:
        log = []
        assert process.stderr is not None
        async for line in process.stderr:
            log.append(json.loads(line))
            if log[-1]["event"] == "serving timestamps":
                break
        else:
            raise AssertionError(f"it did not start: {log}")
        yield Process(process, f"http://127.0.0.1:{log[-1]['port']}/", log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ask_until_refused(url: str, tokens: list[bytes]) -> None:
    """Ask for tokens, one after another, as long as there is an answer."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.post(url, data=request_for(), headers=HEADERS) as reply:
                    tokens.append(await reply.read())
            except aiohttp.ClientError:
                return


async def test_curl_and_openssl(database_url: str, tmp_path: Path) -> None:
    """What the manual says: `openssl ts -query`, `curl`, `openssl ts -verify`, and the verdict is OK. SIGTERM ends the
    process with exit code 0.
    """
    openssl, curl = need("openssl"), need("curl")
    (tmp_path / "data").write_text("ຫຼັກຖານ")

    async def run(*arguments: object) -> str:
        done = await asyncio.to_thread(
            subprocess.run, list(map(str, arguments)), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout + done.stderr)

    async with started(write_configuration(tmp_path, database_url)) as tsa:
        await run(openssl, "ts", "-query", "-data", "data", "-sha512", "-cert", "-out", "q.tsq")
        await run(curl, "-sSf", "-H", "Content-Type: application/timestamp-query", "--data-binary", "@q.tsq",
                  "-o", "r.tsr", tsa.url)  # fmt: skip
        verdict = await run(openssl, "ts", "-verify", "-queryfile", "q.tsq", "-in", "r.tsr", "-CAfile", "root.pem")
        assert "Verification: OK" in verdict
        tsa.process.send_signal(signal.SIGTERM)
        assert await tsa.process.wait() == 0


async def test_stop_under_load(database_url: str, tmp_path: Path) -> None:
    """When the process is asked to stop, every answer that was given is a granted token that is on record."""
    tokens: list[bytes] = []
    async with started(write_configuration(tmp_path, database_url)) as tsa:
        clients = [asyncio.create_task(ask_until_refused(tsa.url, tokens)) for _ in range(8)]
        while len(tokens) < 50:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        tsa.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)
        assert await tsa.process.wait() == 0
    await all_on_record(tokens, database_url)


async def test_killed_in_mid_load(database_url: str, tmp_path: Path) -> None:
    """Killed while stamping and started again, twice: no serial number comes twice, and every token that a client got
    is on record.

    TSA-T3.
    """
    config = write_configuration(tmp_path, database_url)
    tokens: list[bytes] = []
    for _ in range(3):
        enough = len(tokens) + 50
        async with started(config) as tsa:
            clients = [asyncio.create_task(ask_until_refused(tsa.url, tokens)) for _ in range(8)]
            while len(tokens) < enough:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            os.kill(tsa.process.pid, signal.SIGKILL)
            await asyncio.gather(*clients)
    await all_on_record(tokens, database_url)


async def all_on_record(responses: list[bytes], database_url: str) -> None:
    """Assert that the tokens have different serial numbers, and that the log has all of them."""
    serial_numbers = [tst_info_of(response)["serial_number"].native for response in responses]
    assert len(set(serial_numbers)) == len(serial_numbers)
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch("SELECT serial_number FROM timestamp_token")
    finally:
        await connection.close()
    assert {int.from_bytes(row["serial_number"], "big") for row in rows} >= set(serial_numbers)


async def test_wrong_configuration(tmp_path: Path) -> None:
    """A mistake ends the process at once with code 2 and one line that says what is wrong."""
    config = write_configuration(tmp_path, "postgresql://nobody@127.0.0.1:1/none")
    (tmp_path / "tsu.key").unlink()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "lakthan_tsa", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    [error] = [line for line in map(json.loads, done.stderr.splitlines()) if line["level"] != "info"]
    assert "tsu.key cannot be read" in error["problem"]
