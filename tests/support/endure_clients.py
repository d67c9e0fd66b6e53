"""Clients of the endurance run, and the ledger of everything that they were ever told.

A client asks every worker over a connection that it keeps open, one request after another, each with an imprint and a
nonce of its own, and takes no reply on trust: the octets of a grant must carry both, and the serial number that
stands between them goes into the ledger. Of some replies asn1crypto says what they are, so that the cheap reading is
itself judged.
"""

from __future__ import annotations

import asyncio
import collections
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Protocol, Self

from asn1crypto import tsp

from support.tsa import failure, request_for, tst_info_of

# With a certificate, a nonce of eight octets and SHA-256: what most clients send.
_IMPRINT, _NONCE = bytes.fromhex("a5") * 32, bytes.fromhex("5a") * 8
_TEMPLATE = request_for(_IMPRINT, nonce=int.from_bytes(_NONCE, "big"), cert_req=True)
_HEAD, _BETWEEN, _TAIL = (
    _TEMPLATE[: _TEMPLATE.index(_IMPRINT)],
    _TEMPLATE[_TEMPLATE.index(_IMPRINT) + 32 : _TEMPLATE.index(_NONCE)],
    _TEMPLATE[_TEMPLATE.index(_NONCE) + 8 :],
)
_IMPRINT_HEAD = tsp.TimeStampReq.load(_TEMPLATE)["message_imprint"].dump()[:-32]
_HTTP = (
    "POST / HTTP/1.1\r\nHost: tsa\r\nContent-Type: application/timestamp-query\r\n"
    f"Content-Length: {len(_TEMPLATE)}\r\n\r\n"
).encode()
_GRANTED = bytes.fromhex("3003020100")
_REPLY_SECONDS = 30.0
# Who was refused comes again, but not at once.
_PAUSE_SECONDS = 0.02


class HasPort(Protocol):
    """Something that can be asked; the port changes when it is started again, and is 0 while it is away."""

    port: int


@dataclass
class Ledger:
    """What the clients hold in their hands.

    `granted`: by serial number (content octets), the SHA-256 of the token and the era in which it came. `era`: counted
    up at a backup and at a restore. `twice`: serial numbers that came a second time. `refused`: by failInfo, or how the
    connection ended. `wrong`: replies that should not be. `sent_at`: for each worker, when the latest request that was
    granted had been sent (`time.monotonic`). `latest`: the latest of `refused`, and when (UTC).
    """

    granted: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    era: int = 0
    twice: list[bytes] = field(default_factory=list)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    sent_at: dict[int, float] = field(default_factory=dict)
    latest: str = "nothing but grants"
    sample_every: int = 500

    def keep(self, token: bytes, serial_number: bytes) -> None:
        """File a token."""
        if serial_number in self.granted:
            self.twice.append(serial_number)
        self.granted[serial_number] = (sha256(token).digest(), self.era)

    def refuse(self, label: str) -> None:
        """Write down that somebody was refused."""
        self.refused[label] += 1
        self.latest = f"{datetime.now(UTC):%H:%M:%S.%f} {label}"

    def read(self, body: bytes, imprint: bytes, nonce: bytes) -> bool:
        """Judge a reply and write it down; True when it grants a token. Raises `ValueError` for one that is wrong."""
        if int.from_bytes(body[2:4], "big") + 4 != len(body) or body[4:9] != _GRANTED:
            try:
                bits, _ = failure(body)
            except AssertionError as error:
                raise ValueError("neither a grant nor a refusal") from error
            self.refuse(" ".join(sorted(map(_label, bits))))
            return False
        # messageImprint, then serialNumber; the nonce is what comes last in such a TSTInfo (RFC 3161 §2.4.2).
        at = body.index(_IMPRINT_HEAD + imprint) + len(_IMPRINT_HEAD) + 32
        if body[at] != 2 or not 0 < body[at + 1] <= 20:
            raise ValueError("no serialNumber behind the messageImprint")
        end = at + 2 + body[at + 1]
        serial_number = body[at + 2 : end]
        body.index(b"\x02\x08" + nonce, end, end + 48)
        if len(self.granted) % self.sample_every == 0:
            info = tst_info_of(body)
            read = (info["serial_number"].contents, info["message_imprint"]["hashed_message"].native)
            if (*read, info["nonce"].contents) != (serial_number, imprint, nonce):
                raise ValueError("asn1crypto reads another token than the client")
        self.keep(body[9:], serial_number)
        return True


def _label(bit: str) -> str:
    """The RFC's spelling of asn1crypto's: systemFailure, not system_failure."""
    first, *others = bit.split("_")
    return first + "".join(map(str.capitalize, others))


class Connection:
    """A client's connection to one worker, opened again whenever it breaks. `turns`: how many of its requests have come
    to an end, whichever.
    """

    def __init__(self, ledger: Ledger, worker: HasPort, number: int) -> None:
        self._ledger = ledger
        self._worker = worker
        self._number = number
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.turns = 0

    async def keep_asking(self) -> None:
        """Ask until cancelled."""
        try:
            while True:
                granted = await self._ask()
                self.turns += 1
                if not granted:
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            self._hang_up()

    async def _ask(self) -> bool:
        imprint, nonce = os.urandom(32), b"\x5a" + os.urandom(7)
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                body = await self._post(b"".join((_HTTP, _HEAD, imprint, _BETWEEN, nonce, _TAIL)))
            if body is not None and self._ledger.read(body, imprint, nonce):
                self._ledger.sent_at[self._number] = sent_at
                return True
        except TimeoutError:
            self._hang_up()
            self._ledger.wrong.append(f"no reply within {_REPLY_SECONDS:.0f} s")
        except ConnectionRefusedError:
            self._ledger.refuse("(nobody there)")
        except (OSError, EOFError):
            self._hang_up()
            self._ledger.refuse("(connection broke)")
        except (ValueError, LookupError) as error:
            self._hang_up()
            self._ledger.wrong.append(f"{type(error).__name__}: {error}")
        return False

    async def _post(self, message: bytes) -> bytes | None:
        """The body of the reply, None when its HTTP status is not 200."""
        if self._streams is None:
            if not self._worker.port:
                raise ConnectionRefusedError
            self._streams = await asyncio.open_connection("127.0.0.1", self._worker.port)
        reader, writer = self._streams
        writer.write(message)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
        body = await reader.readexactly(int(headers[b"content-length"]))
        if headers.get(b"connection") == b"close":
            self._hang_up()
        if lines[0].split(b" ")[1] != b"200":
            self._ledger.refuse(f"HTTP {lines[0].split(b' ')[1].decode()}")
            return None
        if headers[b"content-type"] != b"application/timestamp-reply":
            raise ValueError("a reply of another media type")
        return body

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


class Crew:
    """Clients at work, each with a connection to every worker: `async with Crew(ledger, workers, 8) as crew`."""

    def __init__(self, ledger: Ledger, workers: Sequence[HasPort], clients: int) -> None:
        self._connections = [
            Connection(ledger, worker, number) for _ in range(clients) for number, worker in enumerate(workers)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(connection.keep_asking()) for connection in self._connections]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def turn_over(self) -> None:
        """Return when every request that is under way has come to its end."""
        before = [(connection, connection.turns) for connection in self._connections]
        while any(connection.turns == turns for connection, turns in before):
            self.demand_life()
            await asyncio.sleep(0.002)

    def demand_life(self) -> None:
        """Raise what ended a client that has ended by itself."""
        for task in self._tasks:
            if task.done():
                task.result()
