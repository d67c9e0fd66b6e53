"""A service in the test's own event loop, on real ports; and what comes back from it over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

from lakthan.config import Config

Serve = Callable[[Config, Callable[[int, int], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True)
class Reply:
    """What came back."""

    http_status: int
    headers: CIMultiDictProxy[str]
    body: bytes


@asynccontextmanager
async def running(serve: Serve, config: Config) -> AsyncIterator[tuple[int, int]]:
    """Serve until the end of the block. Gives the public and the admin port."""
    ready: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def until_asked(port: int, admin_port: int) -> None:
        ready.set_result((port, admin_port))
        await stop.wait()

    service = asyncio.ensure_future(serve(config, until_asked))
    either: list[asyncio.Future[Any]] = [service, ready]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if service.done():
        await service
    try:
        yield ready.result()
    finally:
        stop.set()
        await service


async def samples(session: aiohttp.ClientSession, admin_url: str) -> dict[str, float]:
    """Every sample of /metrics by its name with labels."""
    async with session.get(f"{admin_url}/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}
