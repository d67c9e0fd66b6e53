"""The clients of `support.estate`: a CA that revokes, signers, relying parties. What they are told, they write down.

They are never content with silence: whoever waits for them (`Clients.until`) hears at once of a client or a service
that has ended by itself, and when nothing comes any more, what came, what did not, and what each was told last.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
from cryptography.x509 import ocsp

from lakthan.store.feed import BOUND
from support.endure_clients import Crew, Ledger

if TYPE_CHECKING:
    from support.estate import Estate
    from support.service_process import ServiceProcess

_TIMEOUT = aiohttp.ClientTimeout(total=15)
_PAUSE_SECONDS = 0.02
_BREATH_SECONDS = 0.002
_PATIENCE_SECONDS = 120.0
_LAST_LINES = 5
_MOST = 800
CA = "the CA"


@dataclass
class TimedLedger(Ledger):
    """Also when each token came."""

    received: dict[bytes, datetime] = field(default_factory=dict)

    def keep(self, token: bytes, serial_number: bytes) -> None:
        """See `Ledger`."""
        super().keep(token, serial_number)
        self.received[serial_number] = datetime.now(UTC)


@dataclass
class Books:
    """What the clients were told.

    `revoked`: by serial number, when the registry's acknowledgement came. `heard`: how often each word was heard, by
    who said it, and `slowest` the longest that took, in seconds. `served`: how `?wait=served` ended. `wrong`: a good
    that came although the question was sent after the acknowledgement. `refused`: by service, everything that was no
    success; `latest`: by service, the latest of these in full.
    """

    revoked: dict[int, datetime] = field(default_factory=dict)
    tokens: TimedLedger = field(default_factory=TimedLedger)
    heard: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    slowest: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    served: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    refused: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    latest: dict[str, str] = field(default_factory=dict)


def said(body: bytes) -> str:
    """The word of an OCSPResponse: `good`, `revoked`, `unknown`, or the OCSPResponseStatus without an answer."""
    response = ocsp.load_der_ocsp_response(body)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return response.response_status.name.lower()
    return response.certificate_status.name.lower()


def _shown(text: str) -> str:
    """Not all of it, but how it begins and how it ends: of a traceback both count."""
    return text if len(text) <= _MOST else f"{text[: _MOST // 2]} … {text[-_MOST // 2 :]}"


@dataclass
class _Awaited:
    """One thing that is waited for: how many there are, from how many on, and to how many. `at`: when the latest came,
    in seconds of `time.monotonic`.
    """

    what: str
    count: Callable[[], int]
    more: int
    first: int = 0
    latest: int = 0
    at: float = 0.0

    def __post_init__(self) -> None:
        self.first = self.latest = self.count()
        self.at = time.monotonic()

    def there(self) -> bool:
        """True when all have come."""
        now = self.count()
        if now != self.latest:
            self.latest, self.at = now, time.monotonic()
        return now >= self.first + self.more

    def silence(self) -> float:
        """For how many seconds nothing has come."""
        return time.monotonic() - self.at

    def __str__(self) -> str:
        return f"{self.what}: {self.latest - self.first} of {self.more}, the latest {self.silence():.1f} s ago"


class Clients:
    """The CA, the signers and the relying parties, at work. `registry`: to whom the CA pushes; `served`: it asks to
    hear when every responder answers by its revocation. `below()` raises when what all of them need has ended.
    """

    def __init__(
        self, estate: Estate, responders: dict[str, ServiceProcess], below: Callable[[], None] = lambda: None
    ) -> None:
        self._estate = estate
        self._books = estate.books
        self._below = below
        self.responders = responders
        self.registry: ServiceProcess | None = None
        self.served = False
        self._tsa: Sequence[ServiceProcess] = ()
        self._crew: Crew | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._allowed = len(estate.books.revoked)

    def allow(self, revocations: int) -> None:
        """The CA may revoke so many more."""
        self._allowed += revocations

    @asynccontextmanager
    async def running(
        self, registry: ServiceProcess | None, tsa: Sequence[ServiceProcess], signers: int
    ) -> AsyncIterator[None]:
        """Work until the end of the block."""
        self.registry, self._tsa = registry, tsa
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session, Crew(self._books.tokens, tsa, signers) as crew:
            self._crew = crew
            self._tasks = [
                asyncio.create_task(self._ask(session), name="the relying party"),
                asyncio.create_task(self._revoke(session), name=CA),
            ]
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks)
                self._demand_life()

    async def until(self, *, revoked: int = 0, tokens: int = 0, heard: int = 0) -> None:
        """Let the CA revoke so many more, and return when so many were acknowledged, granted, heard from each.

        Raises `AssertionError` when nothing comes of one kind for `_PATIENCE_SECONDS`, however slow it may be, and as
        soon as a client or a service has ended by itself.
        """
        books = self._books
        self.allow(revoked)
        awaited = [
            _Awaited("revocations", lambda: len(books.revoked), min(revoked, self._estate.left)),
            _Awaited("tokens", lambda: len(books.tokens.granted), tokens),
            *(_Awaited(f"answers of the {name}", books.heard[name].total, heard) for name in self.responders),
        ]
        while missing := [each for each in awaited if not each.there()]:
            self._demand_life()
            assert max(each.silence() for each in missing) <= _PATIENCE_SECONDS, self._stalled(awaited)
            await asyncio.sleep(0.01)

    def _services(self) -> dict[str, ServiceProcess]:
        """Who is asked, by name."""
        registry = {} if self.registry is None else {"registry": self.registry}
        return registry | {f"tsa {number}": each for number, each in enumerate(self._tsa, 1)} | self.responders

    def _demand_life(self) -> None:
        """Raises `AssertionError` when somebody has ended by himself."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                raise AssertionError(f"{task.get_name()} has ended by itself") from task.exception()
        if self._crew is not None:
            self._crew.demand_life()
        for name, service in self._services().items():
            ended = service.port and service.exit_code is not None
            assert not ended, f"{name} ended by itself with {service.exit_code}: {service.text()[-2000:]}"
        self._below()

    def _stalled(self, awaited: list[_Awaited]) -> str:
        """What there is to say when it takes too long."""
        books = self._books
        lines = [f"nothing comes any more for {_PATIENCE_SECONDS:.0f} s:", *map(str, awaited)]
        lines += [f"{who} was told last: {words}" for who, words in books.latest.items()]
        lines.append(f"the signers were told last: {books.tokens.latest}; wrong: {books.tokens.wrong[-3:]}")
        lines += [f"no success, {who}: {dict(counts)}" for who, counts in books.refused.items()]
        lines.append(f"no success, tsa: {dict(books.tokens.refused)}")
        lines.append(f"certificates left: {self._estate.left}; revocations allowed: {self._allowed}")
        for name, service in self._services().items():
            state = f"port {service.port}" if service.running else f"not running, exit code {service.exit_code}"
            lines.append(f"{name} ({state}) logged last:")
            lines += [f"  {_shown(line)}" for line in service.text().splitlines()[-_LAST_LINES:]]
        return "\n".join(lines)

    def _refused(self, by: str, words: str, detail: str = "") -> None:
        """Take down what was no success."""
        self._books.refused[by][words] += 1
        at = datetime.now(UTC).strftime("%H:%M:%S.%f")
        self._books.latest[by] = f"{at} {words}{detail and ': '}{_shown(detail)}"

    async def _revoke(self, session: aiohttp.ClientSession) -> None:
        tls = self._estate.tls()
        while True:
            registry = self.registry
            if (
                registry is None
                or not self._estate.left
                or not registry.port
                or len(self._books.revoked) >= self._allowed
            ):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            serial_number = self._estate.next_certificate()
            url = f"https://127.0.0.1:{registry.port}/v1/certificates/{serial_number:X}/revoke"
            url += "?wait=served" if self.served else ""
            # A key, because an acknowledgement may be lost after the commit: who then comes without one is told for
            # ever that the certificate was already revoked (docs/registry.md).
            headers = {
                "Authorization": f"Bearer {self._estate.token}",
                "Idempotency-Key": f"revoke-{serial_number:X}",
            }
            acknowledged = False
            try:
                async with session.post(url, json={}, headers=headers, ssl=tls) as reply:
                    acknowledged = reply.status == 200
                    if acknowledged and self.served:
                        self._books.served[(await reply.json())["served"]] += 1
                    if not acknowledged:
                        self._refused("registry", f"HTTP {reply.status}", await reply.text())
            except (aiohttp.ClientError, TimeoutError) as error:
                self._refused("registry", type(error).__name__, str(error))
            if acknowledged:
                self._books.revoked[serial_number] = datetime.now(UTC)
            else:
                self._estate.again(serial_number)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        """About one certificate after another, of each responder, for ever."""
        for serial_number in itertools.cycle(self._estate.serial_numbers):
            question = self._estate.question(serial_number)
            for name, responder in list(self.responders.items()):
                if not responder.port:
                    continue
                # Without ?wait=served a notification is on its way for a moment, or trust runs out by the bound.
                known = self._books.revoked.get(serial_number)
                revoked_before = known is not None and (self.served or datetime.now(UTC) - known > BOUND)
                sent_at = time.monotonic()
                detail = ""
                try:
                    async with session.post(f"http://127.0.0.1:{responder.port}", data=question) as reply:
                        word = said(await reply.read()) if reply.status == 200 else f"HTTP {reply.status}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    word, detail = type(error).__name__, str(error)
                self._books.heard[name][word] += 1
                self._books.slowest[name] = max(self._books.slowest[name], time.monotonic() - sent_at)
                if word not in ("good", "revoked"):
                    self._refused(name, word, detail)
                if word == "good" and revoked_before:
                    self._books.wrong.append(f"{name}: {serial_number:X} is good after it was acknowledged as revoked")
            await asyncio.sleep(_BREATH_SECONDS)
