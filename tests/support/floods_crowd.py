"""Honest clients, each at an address of its own, who ask at an ordinary pace and look at every answer."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter

from support.floods_house import House, Question

CLIENTS = 12
_ASK_EVERY_SECONDS = 0.05
# A client that gives up has got nothing.
_PATIENCE_SECONDS = 10.0
# So many of them make a new connection for every question.
_NEW_EVERY_TIME = 3


@dataclass
class Seen:
    """What the crowd got: how long answers took, in seconds, and what went wrong, by what it was."""

    seconds: list[float] = field(default_factory=list)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def p99_milliseconds(self) -> float:
        """Of the answers."""
        ordered = sorted(self.seconds)
        return ordered[int(len(ordered) * 0.99)] * 1000 if ordered else float("nan")


class Crowd:
    """`seen`: what they get now; give them another to count anew."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.seen = Seen()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Crowd]:
        """They ask until the end of the block."""
        asking = [asyncio.create_task(self._ask_on(number)) for number in range(CLIENTS)]
        try:
            yield self
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_on(self, number: int) -> None:
        address, keeps = f"127.0.1.{number + 1}", number >= _NEW_EVERY_TIME
        kept: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        await asyncio.sleep(_ASK_EVERY_SECONDS * number / CLIENTS)
        for service, question in self._house.questions():
            began = perf_counter()
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    head, body = await self._ask(service, question, address, kept, again=service in kept)
            except (OSError, EOFError, TimeoutError) as error:
                self.seen.wrong[f"{service}: {type(error).__name__}"] += 1
                _close(kept, service)
            else:
                took = perf_counter() - began
                problem = self._house.problem(service, question, head, body)
                if not problem:
                    self.seen.seconds.append(took)
                elif problem.startswith("refused"):
                    self.seen.refused[f"{service}: {problem.removeprefix('refused ')}"] += 1
                else:
                    self.seen.wrong[f"{service}: {problem}"] += 1
                if not keeps or b"connection: close" in head.lower():
                    _close(kept, service)
            await asyncio.sleep(max(0.0, began + _ASK_EVERY_SECONDS - perf_counter()))

    async def _ask(
        self,
        service: str,
        question: Question,
        address: str,
        kept: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]],
        *,
        again: bool,
    ) -> tuple[bytes, bytes]:
        """On the connection that there is, or a new one; a kept one that has ended is replaced, as clients do."""
        if service not in kept:
            port = (self._house.ocsp if service == "ocsp" else self._house.tsa).port
            kept[service] = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
        reader, writer = kept[service]
        try:
            writer.write(question.octets)
            head = await reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, EOFError):
            _close(kept, service)
            if not again:
                raise
            return await self._ask(service, question, address, kept, again=False)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head, await reader.readexactly(length)


def _close(kept: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]], service: str) -> None:
    if service in kept:
        with suppress(OSError):
            kept.pop(service)[1].close()
