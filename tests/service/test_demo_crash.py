"""`kill -9` in the middle of work: what was acknowledged is still there, and no serial number comes twice.

A demo stamps and revokes under load; it is killed at once, alone or with every process that it had started; it is
started again in the same folder, and works on.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from lakthan import der
from lakthan.errors import StoreUnavailable
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from lakthan.store.records import CRLReason
from lakthan_cli.demo import folder
from support.demo import Demo, on_free_ports, running, started
from support.programs import need
from support.tsa import TimeStampResp, request_for, tst_info_of

pytestmark = pytest.mark.timeout(180)
STAMPERS = 16
REVOKERS = 4


@dataclass
class Kept:
    """What clients hold in their hands: granted tokens by serial number, and acknowledged revocations.

    `twice`: serial numbers that came a second time.
    """

    tokens: dict[int, bytes] = field(default_factory=dict)
    revoked: list[bytes] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)

    def keep(self, response: bytes) -> None:
        """File a reply."""
        token: bytes = TimeStampResp.load(response)["time_stamp_token"].dump()
        serial_number: int = tst_info_of(response)["serial_number"].native
        if serial_number in self.tokens:
            self.twice.append(serial_number)
        self.tokens[serial_number] = token


async def work(demo: Demo, kept: Kept, enough: Callable[[], bool], at_enough: Callable[[], None]) -> None:
    """Stamp and revoke concurrently until `enough()`, call `at_enough` in full swing, and stop when the demo is gone,
    or, when it is not, in good order.
    """
    called = asyncio.Event()

    async def stamp(session: aiohttp.ClientSession) -> None:
        while not called.is_set():
            query = request_for(secrets.token_bytes(32), nonce=secrets.randbits(63))
            headers = {"Content-Type": "application/timestamp-query"}
            async with session.post(demo.urls["tsa"], data=query, headers=headers) as response:
                body = await response.read()
            if is_granted(body):
                kept.keep(body)

    async def revoke(writer: ChangeWriter, authority_id: int) -> None:
        while not called.is_set():
            serial_number = der.integer_content(secrets.randbits(120))
            await writer.revoke(authority_id, serial_number, reason=CRLReason.SUPERSEDED, actor="crash test")
            kept.revoked.append(serial_number)

    async def watch() -> None:
        deadline = time.monotonic() + 60
        while not enough():
            assert time.monotonic() < deadline, f"{len(kept.tokens)} tokens, {len(kept.revoked)} revocations only"
            await asyncio.sleep(0.005)
        at_enough()
        called.set()

    async with registry(demo) as pool, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        writer = ChangeWriter(pool)
        authority = await AuthorityAdmin(pool).find_authority("public-ca")
        assert authority is not None
        hands = [stamp(session) for _ in range(STAMPERS)] + [revoke(writer, authority.id) for _ in range(REVOKERS)]
        ends = await asyncio.gather(watch(), *hands, return_exceptions=True)
    for end in ends:
        # A connection that broke under the kill is what was meant to happen; everything else is a failure.
        if isinstance(end, BaseException) and not isinstance(
            end, aiohttp.ClientError | StoreUnavailable | ConnectionError
        ):
            raise end


def is_granted(response: bytes) -> bool:
    """True for a reply with a token."""
    return str(TimeStampResp.load(response)["status"]["status"].native) == "granted"


@asynccontextmanager
async def registry(demo: Demo) -> AsyncIterator[asyncpg.Pool]:
    """A pool on the demo's database that acts as the registry."""
    found = folder.read_running(demo.directory)
    assert found is not None
    assert found.registry is not None
    pool = await open_pool(
        found.registry, role="lakthan_registry", min_size=1, max_size=REVOKERS, application_name="lakthan-test"
    )
    try:
        yield pool
    finally:
        pool.terminate()  # its server may be dead


def kill(processes: set[int]) -> None:
    """Kill them all at once: each is stopped before the first one dies, so that none can tidy up."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            os.kill(process, number)


async def check_record(demo: Demo, kept: Kept) -> None:
    """Every token that a client holds is on record as it is, and every acknowledged revocation is, and is answered."""
    async with registry(demo) as pool:
        rows = await pool.fetch("SELECT serial_number, token_sha256 FROM timestamp_token")
        on_record = {int.from_bytes(row["serial_number"], "big", signed=True): row["token_sha256"] for row in rows}
        changes = await pool.fetch("SELECT serial_number FROM status_change WHERE actor = 'crash test'")
    for serial_number, token in kept.tokens.items():
        assert on_record.get(serial_number) == sha256(token).digest()
    assert set(kept.revoked) <= {row["serial_number"] for row in changes}
    print(
        f"{len(kept.tokens)} tokens in hand, {len(on_record)} on record; "
        f"{len(kept.revoked)} revocations acknowledged, {len(changes)} on record"
    )


def statuses(demo: Demo, serial_numbers: list[bytes]) -> list[str]:
    """What `openssl ocsp` says of certificates of the Public CA, in one verified answer."""
    command: list[str | Path] = [need("openssl"), "ocsp", "-issuer", "ca.pem", "-CAfile", "root.pem"]
    for serial_number in serial_numbers:
        command += ["-serial", f"0x{serial_number.hex()}"]
    done = subprocess.run(
        [*command, "-url", demo.urls["ocsp"]],
        cwd=demo.pki,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    assert "Response verify OK" in done.stdout, done.stdout
    return re.findall(r"^0x\w+: (\w+)$", done.stdout, re.MULTILINE)


def none_left(processes: set[int]) -> None:
    """Wait until all of these are gone. Raises `AssertionError` after 15 seconds."""
    deadline = time.monotonic() + 15
    while left := {process for process in processes if is_running(process)}:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def is_running(process: int) -> bool:
    """False for one that is gone, or dead and not yet buried by its parent."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("victims", ["the demo's process", "every process"])
async def test_a_killed_demo_loses_nothing_and_repeats_nothing(tmp_path: Path, victims: str) -> None:
    """Two lives with a kill in full swing between them: each token that a client got is on record, each revocation
    that was acknowledged is too and is answered, no serial number came twice, and the second life works as well.
    """
    first, second = Kept(), Kept()
    with started(tmp_path / "demo", *on_free_ports()) as demo:
        demo.until_ready()
        processes = demo.family()
        assert len(processes) > 4

        def strike() -> None:
            kill({demo.process.pid} if victims == "the demo's process" else demo.family())

        await work(demo, first, lambda: len(first.tokens) >= 400 and len(first.revoked) >= 40, strike)
        assert demo.process.wait(timeout=15) == -signal.SIGKILL
        none_left(processes)
        pki = {path: path.read_bytes() for path in demo.pki.rglob("*.pem")}
    with running(tmp_path / "demo") as demo:
        await check_record(demo, first)
        assert {path: path.read_bytes() for path in demo.pki.rglob("*.pem")} == pki
        assert statuses(demo, first.revoked[-40:]) == ["revoked"] * 40
        await work(demo, second, lambda: len(second.tokens) >= 200 and len(second.revoked) >= 20, lambda: None)
        await check_record(demo, second)
        assert first.twice == second.twice == []
        assert not first.tokens.keys() & second.tokens.keys()
        assert statuses(demo, second.revoked[-20:]) == ["revoked"] * 20


async def test_a_stop_under_load_breaks_nothing_off(tmp_path: Path) -> None:
    """Ctrl-C in full swing: the demo ends by itself with exit code 0, leaves no process, and what it had granted and
    acknowledged until then is on record at the next start.
    """
    kept = Kept()
    with started(tmp_path / "demo", *on_free_ports()) as demo:
        demo.until_ready()
        processes = demo.family()
        await work(demo, kept, lambda: len(kept.tokens) >= 200, lambda: os.kill(demo.process.pid, signal.SIGINT))
        assert await asyncio.to_thread(demo.process.wait, 60) == 0, demo.told
        assert "Traceback" not in demo.told
        none_left(processes)
    with running(tmp_path / "demo") as demo:
        await check_record(demo, kept)
        assert kept.twice == []
