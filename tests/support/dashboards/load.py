"""A few minutes of life for the picture in the docs: traffic that comes in waves, revocations, and a database that once
stands still for a moment.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import asyncpg

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from support.dashboards.plot import Span
from support.scraped import Clients, World

_THREADS = 3
_WAVES = 2
# So long the load has been going on when the picture begins, because a rate looks back.
_BEFORE_SECONDS = 20
# When the database stands still, as a share of the time, and for how long.
_STILL_AT, _STILL_SECONDS = 0.62, 1.2
AUTHORITY = "public-ca"


def live(world: World, seconds: float, tell: Callable[[float], None]) -> Span:
    """Ask and revoke for so long. `tell` hears how much of it is over."""
    begin = time.time() + _BEFORE_SECONDS
    seconds += _BEFORE_SECONDS
    end = time.monotonic() + seconds
    stop = threading.Event()
    workers = [threading.Thread(target=_clients, args=(world, stop, seconds)) for _ in range(_THREADS)]
    workers.append(threading.Thread(target=lambda: asyncio.run(_store(world.database_url, stop, seconds))))
    for worker in workers:
        worker.start()
    try:
        while time.monotonic() < end:
            tell(1 - (end - time.monotonic()) / seconds)
            time.sleep(0.5)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    return Span(begin, time.time())


def _clients(world: World, stop: threading.Event, seconds: float) -> None:
    began, number = time.monotonic(), 0
    with Clients(world) as clients:
        while not stop.is_set():
            number += 1
            for name in ("good", "good", "revoked", "good", "held", "good"):
                clients.ask(name)
            if number % 3 == 0:
                clients.ask("good", nonce=True)
                clients.ask("good", to="edge")
                clients.ask_about_a_new_one()
                clients.stamp()
            if number % 100 == 0:
                clients.misbehave()
            share = (time.monotonic() - began) / seconds
            stop.wait(0.03 * (1.3 - math.sin(2 * math.pi * _WAVES * share)))


async def _store(url: str, stop: threading.Event, seconds: float) -> None:
    """Issue and revoke; and once hold everybody up who must ask the database."""
    pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=1, application_name="dashboards")
    began, held = time.monotonic(), False
    try:
        found = await AuthorityAdmin(pool).find_authority(AUTHORITY)
        assert found is not None
        writer = ChangeWriter(pool)
        while not stop.is_set():
            serial_number = b"\x30" + secrets.token_bytes(15)
            await writer.issue(found.id, serial_number, not_after=datetime.now(UTC) + timedelta(days=1), actor="load")
            await writer.revoke(found.id, serial_number, actor="load")
            await asyncio.sleep(0.2)
            if not held and time.monotonic() - began > seconds * _STILL_AT:
                held = True
                await _stand_still(url)
    finally:
        await pool.close()


async def _stand_still(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE certificate_status IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(_STILL_SECONDS)
    finally:
        await connection.close()
