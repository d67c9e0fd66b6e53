"""NTP servers on loopback, whose time and manners a test can change while they run (RFC 5905)."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

SECOND = 1_000_000_000
_1900 = 2_208_988_800


def timestamp(realtime_ns: int) -> bytes:
    """The 64-bit timestamp: seconds since 1900 and a fraction."""
    seconds, rest = divmod(realtime_ns, SECOND)
    return struct.pack(">II", (seconds + _1900) % 2**32, rest * 2**32 // SECOND)


def short(seconds: float) -> bytes:
    """The 32-bit format of root delay and root dispersion."""
    return struct.pack(">I", round(seconds * 65536))


@dataclass
class NTPServer(asyncio.DatagramProtocol):
    """One server. Everything may be changed at any time; `answer` tells what it would send."""

    offset: float = 0.0  # seconds that its time is ahead of this machine's
    stratum: int = 1
    leap: int = 0
    root_delay: float = 0.001
    root_dispersion: float = 0.001
    precision: int = -20
    version: int = 4
    reference_id: bytes = b"TEST"
    silent: bool = False
    forged: bool = False  # answers what nobody asked, before the true answer
    asked: int = 0
    port: int = 0
    transmits: list[bytes] = field(default_factory=list)
    transport: asyncio.DatagramTransport | None = None

    def now_ns(self) -> int:
        """Its time."""
        return time.time_ns() + round(self.offset * SECOND)

    def answer(self, request: bytes, received_ns: int) -> bytes:
        """Its answer to a client's packet."""
        return (
            bytes([self.leap << 6 | self.version << 3 | 4, self.stratum, 4])
            + struct.pack(">b", self.precision)
            + short(self.root_delay)
            + short(self.root_dispersion)
            + self.reference_id
            + timestamp(received_ns - SECOND)
            + request[40:48]
            + timestamp(received_ns)
            + timestamp(self.now_ns())
        )

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """It listens."""
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A client asks."""
        received_ns = self.now_ns()
        self.asked += 1
        self.transmits.append(data[40:48])
        if self.silent or self.transport is None:
            return
        if self.forged:
            blind = data[:40] + bytes(8)  # who does not see the request cannot know its transmit timestamp
            self.transport.sendto(self.answer(blind, received_ns + 3600 * SECOND), addr)
        self.transport.sendto(self.answer(data, received_ns), addr)

    @property
    def address(self) -> str:
        """As in `ntp_servers`."""
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def ntp_servers(count: int) -> AsyncIterator[list[NTPServer]]:
    """So many of them, until the end of the block."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(count):
            transport, server = await loop.create_datagram_endpoint(NTPServer, local_addr=("127.0.0.1", 0))
            stack.callback(transport.close)
            servers.append(server)
        yield servers
