"""A line that is slow: what comes in at one port goes out to another place, `delay` later, in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass


@dataclass
class Relay:
    """`delay`: seconds, may be changed at any time."""

    host: str
    port: int
    delay: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            there, back = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while octets := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(octets)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def relaying(port: int, to_host: str, to_port: int) -> AsyncIterator[Relay]:
    """From a port of this side to there."""
    relay = Relay(to_host, to_port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", port)
    try:
        yield relay
    finally:
        server.close()
