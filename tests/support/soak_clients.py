"""The clients of a soak: relying parties of every habit, signers, and the two CAs that push to the registry.

They ask at a steady, modest pace, each over a connection of its own, and never try again: what is not answered is
trouble, which only an announced event may cause. Only the CAs come again with the same Idempotency-Key, as
docs/registry.md tells them to, until they are acknowledged.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import random
import ssl
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import aiohttp

from lakthan import der
from support.endure_clients import _BETWEEN, _HEAD, _TAIL
from support.soak_diary import Diary
from support.soak_oracle import Oracle
from support.soak_world import AHEAD, LIVE, World

PATIENCE_SECONDS = 10.0
_AGAIN_SECONDS = 0.5
_HOT = 100
_REQUESTS = 500
_SERVED = 0.05
_AWAY = (OSError, EOFError, TimeoutError, ValueError)


@dataclass(frozen=True)
class Rates:
    """Questions of each kind in a second, and changes."""

    kinds: dict[str, float]
    changes: float

    @property
    def total(self) -> float:
        """Questions a second."""
        return sum(self.kinds.values())


# Modest on purpose: all of it, clients and database included, takes two fifths of a core.
USUAL = Rates(
    {
        "GET": 50,
        "POST": 40,
        "POST, new connection": 4,
        "nonce": 25,
        "never issued": 6,
        "published": 40,
        "published, nonce": 5,
        "token": 22,
        "token, known client": 4,
    },
    changes=2.5,
)


class Connection:
    """A connection to a service, opened when it is needed, and after so many requests anew: so no worker keeps all."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._left = _REQUESTS
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, message: bytes, *, last: bool = False) -> tuple[int, bytes]:
        """The HTTP status and the body. Raises what `_AWAY` lists. `last`: of this connection."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                if self._streams is None:
                    self._streams = await asyncio.open_connection("127.0.0.1", self._port())
                reader, writer = self._streams
                writer.write(message)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
        except BaseException:
            self.leave()
            raise
        self._left -= 1
        if last or not self._left or b"\r\nconnection: close\r\n" in head:
            self.leave()
        return int(head.split(b" ", 2)[1]), body

    def leave(self) -> None:
        """End it."""
        self._left = _REQUESTS
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def post(path: str, media_type: str, body: bytes, **fields: str) -> bytes:
    """A POST."""
    more = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    head = f"POST {path} HTTP/1.1\r\nHost: pki\r\nContent-Type: {media_type}\r\n{more}Content-Length: {len(body)}\r\n"
    return f"{head}\r\n".encode() + body


def get(question: bytes) -> bytes:
    """A GET as RFC 9919 §6 writes it."""
    return f"GET /{quote(base64.b64encode(question).decode(), safe='')} HTTP/1.1\r\nHost: pki\r\n\r\n".encode()


@dataclass
class Population:
    """The certificates of an authority: those that are asked about, and what may become of them."""

    all: list[int] = field(default_factory=list)
    good: deque[int] = field(default_factory=deque)
    held: deque[int] = field(default_factory=deque)
    changed: deque[int] = field(default_factory=lambda: deque(maxlen=50))

    def add(self, serial_number: int) -> None:
        """It was issued, and this is acknowledged."""
        self.all.append(serial_number)
        self.good.append(serial_number)

    def draw(self) -> tuple[str, int]:
        """What the CA does next, and to which certificate."""
        draw = random.random()
        if draw < 0.15 and self.held:
            return "unhold", self.held.popleft()
        if draw < 0.65 and len(self.good) > _HOT // 2:
            # Those that all ask about as well as the others.
            self.good.rotate(random.randrange(len(self.good)))
            return ("hold" if draw < 0.3 else "revoke"), self.good.popleft()
        return "issue", _new_serial_number()

    def done(self, what: str, serial_number: int) -> None:
        """It is acknowledged."""
        if what == "issue":
            self.add(serial_number)
        elif what == "unhold":
            self.good.append(serial_number)
        elif what == "hold":
            self.held.append(serial_number)

    def any(self) -> int:
        """One to ask about: mostly one of those that everybody asks about, often one that has just changed."""
        draw = random.random()
        if draw < 0.2 and self.changed:
            return random.choice(self.changed)
        return random.choice(self.all[:_HOT] if draw < 0.75 else self.all)


class Clients:
    """All of them. `times`: seconds that each kind took since `take_times`; `served`: when the question of the latest
    success of each kind was sent, in seconds of `time.monotonic`; `under_way`: requests that show a token, a secret or
    a certificate.
    """

    def __init__(self, world: World, diary: Diary, oracle: Oracle, rates: Rates = USUAL) -> None:
        self._world = world
        self._diary = diary
        self._oracle = oracle
        self._rates = rates
        self.populations = {LIVE: Population(), AHEAD: Population()}
        self.times: dict[str, list[float]] = {}
        self.served: dict[str, float] = {}
        self.asked: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        self.under_way: Counter[Hashable] = Counter()
        # Renewed by the operator: the token of one CA, the certificate of the other, the signers' secret.
        self.token = ""
        self.client: ssl.SSLContext | None = None
        self.secret = world.secret
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._keys = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Until the end of the block. Raises what ended one of them."""
        ways: dict[str, Callable[[Connection], Awaitable[str]]] = {
            "GET": lambda line: self._ask(line, "GET", LIVE),
            "POST": lambda line: self._ask(line, "POST", LIVE),
            "POST, new connection": lambda line: self._ask(line, "POST, new connection", LIVE),
            "nonce": lambda line: self._ask(line, "nonce", LIVE),
            "never issued": lambda line: self._ask(line, "never issued", LIVE),
            "published": lambda line: self._ask(line, "published", AHEAD),
            "published, nonce": lambda line: self._ask(line, "published, nonce", AHEAD),
            "token": lambda line: self._stamp(line, ""),
            "token, known client": lambda line: self._stamp(line, "signers"),
        }
        for of, per_second in self._rates.kinds.items():
            clients = 2 if per_second >= 20 else 1
            for _ in range(clients):
                self._start(self._go_on(of, ways[of], per_second / clients))
        for name in (LIVE, AHEAD):
            self._start(self._change_and_change(name, self._rates.changes * (0.8 if name == LIVE else 0.2)))
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in ended:
            if isinstance(each, Exception):
                raise each

    def _start(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        self._tasks.append(asyncio.create_task(work))

    def ended(self) -> list[asyncio.Task[None]]:
        """Those that have ended by themselves."""
        return [task for task in self._tasks if task.done()]

    def take_times(self) -> dict[str, list[float]]:
        """What was measured since the last time."""
        taken, self.times = self.times, {}
        return taken

    async def _go_on(self, of: str, ask: Callable[[Connection], Awaitable[str]], per_second: float) -> None:
        service = self._world.services["tsa" if of.startswith("token") else "ocsp"]
        line = Connection(lambda: service.port)
        next_at = time.monotonic() + random.random() / per_second
        try:
            while True:
                await asyncio.sleep(max(0.0, next_at - time.monotonic()))
                # What could not be asked in time is not made up for.
                next_at = max(next_at + random.uniform(0.5, 1.5) / per_second, time.monotonic())
                sent = time.monotonic()
                self.asked[of] += 1
                try:
                    words = await ask(line)
                except _AWAY as error:
                    words = type(error).__name__
                self._done(of, sent, words)
        finally:
            line.leave()

    def _done(self, of: str, sent: float, words: str) -> None:
        if words:
            self._diary.trouble(of, words, sent)
            return
        self.times.setdefault(of, []).append(time.monotonic() - sent)
        self.served[of] = sent

    async def _ask(self, line: Connection, of: str, authority: str) -> str:
        never = of == "never issued"
        serial_number = int.from_bytes(b"\x5e" + os.urandom(15)) if never else self.populations[authority].any()
        nonce = os.urandom(16) if "nonce" in of else None
        question = self._oracle.issuers[authority].question(serial_number, nonce)
        message = get(question) if of in ("GET", "published") else post("/", "application/ocsp-request", question)
        sent = time.monotonic()
        status, body = await line.ask(message, last="new" in of)
        if status != 200:
            return f"HTTP {status}"
        # Published answers have no nonce; with one the responder's own key signs.
        return self._oracle.judge(of, authority, serial_number, nonce=nonce, sent=sent, body=body)

    async def _stamp(self, line: Connection, profile: str) -> str:
        imprint, nonce = os.urandom(32), b"\x5a" + os.urandom(7)
        request = b"".join((_HEAD, imprint, _BETWEEN, nonce, _TAIL))
        known = {"Authorization": f"Bearer {self.secret}"} if profile else {}
        path = f"/tsa/{profile}" if profile else "/"
        sent_at = time.time()
        with self._shown(self.secret if profile else ""):
            status, body = await line.ask(post(path, "application/timestamp-query", request, **known))
        if status != 200:
            return f"HTTP {status}"
        return self._oracle.judge_token(request, imprint, nonce, sent_at, body)

    # ---- the CAs

    async def fill(self, certificates: dict[str, int]) -> None:
        """The first certificates of each authority, many at once."""
        self._context.load_verify_locations(self._world.folder / "tls-root.pem")
        async with aiohttp.ClientSession() as session:
            for name, count in certificates.items():
                made = [_new_serial_number() for _ in range(count)]
                body = {"changes": [{"change": "issue", "serial_number": _hex(each)} for each in made]}
                status, text = await self._push(session, name, "/v1/changes", body, f"first-{name}")
                assert status == 200, text
                for each in made:
                    self.populations[name].add(each)

    async def _change_and_change(self, name: str, per_second: float) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS)) as session:
            while True:
                await asyncio.sleep(random.uniform(0.5, 1.5) / per_second)
                await self._change(session, name)

    async def _change(self, session: aiohttp.ClientSession, name: str) -> None:
        population = self.populations[name]
        what, serial_number = population.draw()
        turn = None
        if what != "issue":
            status: Literal["good", "revoked"] = "good" if what == "unhold" else "revoked"
            turn = self._oracle.truth[name].ask(der.integer_content(serial_number), status, time.monotonic())
            population.changed.append(serial_number)
        served = random.random() < _SERVED
        path = f"/v1/certificates/{_hex(serial_number)}/{what}{'?wait=served' if served else ''}"
        key = f"soak-{next(self._keys)}"
        while not await self._is_acknowledged(session, name, path, key, served=served):  # noqa: ASYNC110 - comes again
            await asyncio.sleep(_AGAIN_SECONDS)
        if turn is not None:
            turn.acknowledged = time.monotonic()
        self.changes[what] += 1
        if what == "issue":
            self._oracle.announce(serial_number)
        population.done(what, serial_number)

    async def _is_acknowledged(
        self, session: aiohttp.ClientSession, name: str, path: str, key: str, *, served: bool
    ) -> bool:
        sent = time.monotonic()
        self.asked["change"] += 1
        try:
            status, text = await self._push(session, name, path, {}, key)
            words = "" if status == 200 else f"HTTP {status} {text[:200]}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            words = type(error).__name__
        self._done("change, served" if served else "change", sent, words)
        return not words

    async def _push(
        self, session: aiohttp.ClientSession, name: str, path: str, body: object, key: str
    ) -> tuple[int, str]:
        return await self.call(session, "POST", path, by=name, json=body, key=key)

    async def call(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        *,
        by: str,
        key: str = "",
        **more: Any,  # noqa: ANN401 - as aiohttp's
    ) -> tuple[int, str]:
        """A call to the registry: of one CA with its token, of the other with its certificate."""
        headers = {"Idempotency-Key": key} if key else {}
        context = self._context
        if by == LIVE:
            headers["Authorization"] = f"Bearer {self.token}"
        else:
            assert self.client is not None
            context = self.client
        url = f"https://127.0.0.1:{self._world.services['registry'].port}{path}"
        with self._shown(self.token if by == LIVE else context):
            async with session.request(method, url, headers=headers, ssl=context, **more) as reply:
                return reply.status, await reply.text()

    @contextmanager
    def _shown(self, proof: Hashable) -> Iterator[None]:
        """While somebody shows this token, secret or certificate."""
        self.under_way[proof] += 1
        try:
            yield
        finally:
            self.under_way[proof] -= 1


def _new_serial_number() -> int:
    return int.from_bytes(b"\x20" + os.urandom(15))


def _hex(serial_number: int) -> str:
    text = f"{serial_number:X}"
    return text.rjust(len(text) + len(text) % 2, "0")
