"""Honest clients, each at an address of its own, who ask at an ordinary pace, and two witnesses at the flood's address.

Every answer is kept with its time and looked at when the flood is over.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter, time

from support.floods_answers import Answer, Question, content_length, problem, refusal
from support.floods_callers import FROM
from support.floods_got import Times
from support.floods_house import LIVE, REMEMBERED, SLOW_KEY, House

CLIENTS = 12
WITNESSES = 2
_ASK_EVERY_SECONDS = 0.05
# A client that gives up has got nothing.
_PATIENCE_SECONDS = 10.0
# So many of them make a new connection for every question.
_NEW_EVERY_TIME = 3

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Seen:
    """What came, as it came, and what did not come, by what it was. `closed`: after how many seconds connections ended
    without an answer.
    """

    answers: list[Answer] = field(default_factory=list)
    failed: collections.Counter[str] = field(default_factory=collections.Counter)
    closed: list[float] = field(default_factory=list)

    def after(self, seconds: float) -> Seen:
        """The same without what was asked in the first seconds."""
        if not self.answers:
            return self
        begun = min(each.asked for each in self.answers)
        return Seen([each for each in self.answers if each.asked >= begun + seconds], self.failed, self.closed)

    def judged(self, service: str, *, may_be_closed: bool = False) -> Judged:
        """Look at every answer. `may_be_closed`: the end of a connection is a refusal, else a fault."""
        judged = Judged(wrong=collections.Counter(self.failed))
        if self.closed and may_be_closed:
            judged.refused["closed"].seconds += self.closed
        elif self.closed:
            judged.wrong["closed"] = len(self.closed)
        for answer in self.answers:
            word = refusal(service, answer.head, answer.body)
            if word:
                judged.refused[word].seconds.append(answer.seconds)
            elif wrong := problem(service, answer):
                judged.wrong[wrong] += 1
            else:
                judged.answered[answer.question.kind].seconds.append(answer.seconds)
        return judged


@dataclass
class Judged:
    """How long right answers took, by what they cost, and refusals, by their word; how many were wrong, or nothing."""

    answered: dict[str, Times] = field(default_factory=lambda: {each: Times() for each in (REMEMBERED, LIVE, SLOW_KEY)})
    refused: dict[str, Times] = field(default_factory=lambda: collections.defaultdict(Times))
    wrong: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def right(self) -> int:
        """How many answers were."""
        return sum(len(each.seconds) for each in self.answered.values())

    @property
    def refusals(self) -> int:
        """Of all words."""
        return sum(len(each.seconds) for each in self.refused.values())


class Crowd:
    """They ask `service` of the house. `seen`, `witnessed`: what they get now; give them others to count anew. The
    witnesses ask only while there is a flood (`witnessed` is not None), the dearest that the flood asks for.
    """

    def __init__(self, house: House, service: str, *, slow_key: bool) -> None:
        self._house = house
        self._service = service
        self._slow_key = slow_key
        self._going = True
        self.seen = Seen()
        self.witnessed: Seen | None = None

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """They ask until the end of the block, and then wait for the last answers."""
        asking = [asyncio.create_task(self._ask_on(number)) for number in range(CLIENTS)]
        asking += [asyncio.create_task(self._witness(number)) for number in range(WITNESSES)]
        try:
            yield
        finally:
            self._going = False
            await asyncio.gather(*asking)

    async def _ask_on(self, number: int) -> None:
        client = _Client(self._house.services[self._service].port, f"127.0.1.{number + 1}")
        await asyncio.sleep(_ASK_EVERY_SECONDS * number / CLIENTS)
        questions = self._house.questions(self._service)
        for _ in range(number):
            next(questions)
        await self._go_on(client, lambda: next(questions), lambda: self.seen, keeps=number >= _NEW_EVERY_TIME)

    async def _witness(self, number: int) -> None:
        client = _Client(self._house.services[self._service].port, FROM)
        await asyncio.sleep(_ASK_EVERY_SECONDS * number / WITNESSES)
        questions = self._house.questions(self._service)
        wanted = SLOW_KEY if self._slow_key else LIVE
        await self._go_on(
            client, lambda: next(each for each in questions if each.kind == wanted), lambda: self.witnessed, keeps=False
        )

    async def _go_on(
        self, client: _Client, question: Callable[[], Question], seen: Callable[[], Seen | None], *, keeps: bool
    ) -> None:
        while self._going:
            began = perf_counter()
            # An answer belongs to the time in which it was asked for.
            now_seen = seen()
            if now_seen is not None:
                try:
                    answer = await client.ask(question())
                except TimeoutError:
                    now_seen.failed["nothing"] += 1
                    client.close()
                except (OSError, EOFError):
                    now_seen.closed.append(perf_counter() - began)
                    client.close()
                else:
                    now_seen.answers.append(answer)
                    if not keeps or b"connection: close" in answer.head.lower():
                        client.close()
            await asyncio.sleep(max(0.0, began + _ASK_EVERY_SECONDS - perf_counter()))
        client.close()


class _Client:
    def __init__(self, port: int, address: str) -> None:
        self._port = port
        self._address = address
        self._kept: Streams | None = None

    async def ask(self, question: Question) -> Answer:
        """On the connection that there is, or a new one. Raises `OSError`, `EOFError`, `TimeoutError`."""
        asked, began = time(), perf_counter()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            head, body = await self._exchange(question.octets, again=self._kept is not None)
        return Answer(question, head, body, asked, time(), perf_counter() - began)

    def close(self) -> None:
        """The next question makes a new connection."""
        if self._kept is not None:
            with suppress(OSError):
                self._kept[1].close()
            self._kept = None

    async def _exchange(self, octets: bytes, *, again: bool) -> tuple[bytes, bytes]:
        """A kept connection that has ended is replaced, as clients do."""
        if self._kept is None:
            self._kept = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))
        reader, writer = self._kept
        try:
            writer.write(octets)
            head = await reader.readuntil(b"\r\n\r\n")
        except (ConnectionError, EOFError):
            self.close()
            if not again:
                raise
            return await self._exchange(octets, again=False)
        return head, await reader.readexactly(content_length(head))
