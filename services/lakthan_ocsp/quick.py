"""The short way of a request: from the wire's octets to the wire's octets, without task, request object or headers.

Three ways, from short to long. An answer that is remembered is its finished octets. One that needs nothing but a quick
signature is signed on the spot. For everything else somebody has to wait, in a task, and the connection is told later.
What is said is `app.Words` in all three; here it is only put into octets, the same that aiohttp would write.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from time import perf_counter, time
from typing import TYPE_CHECKING, NamedTuple

from lakthan.web.response_heads import date_and_server, response_head
from lakthan.web.wire import LATER, Connection, Head, is_plain_target
from lakthan_ocsp import get_request
from lakthan_ocsp.app import LARGEST_BODY, NEVER_CACHED, Words
from lakthan_ocsp.syntax import OCSPResponseStatus, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lakthan_ocsp.app import Reply
    from lakthan_ocsp.cache import Answer, AnswerCache
    from lakthan_ocsp.metrics import OCSPMetrics
    from lakthan_ocsp.syntax import OCSPRequest

# The tag of the SEQUENCE that every OCSPRequest is; a target begins with a slash.
_SEQUENCE = 0x30


class _Asked(NamedTuple):
    """A request that somebody waits for. `started`: when it was complete, by `perf_counter`."""

    method: str
    request: OCSPRequest
    spelling: bytes
    now: datetime
    connection: Connection
    started: float


class Short:
    """The `Quick` of the responder, and `Remembering`."""

    largest_body = LARGEST_BODY

    def __init__(
        self, words: Words, cache: AnswerCache, metrics: OCSPMetrics, *, changes_heard: Callable[[], bool]
    ) -> None:
        self._words = words
        self._service = words.service
        self._by_spelling = cache.by_spelling
        self._metrics = metrics
        self._observe = metrics.request_seconds.observe
        self._changes_heard = changes_heard
        self._tasks: set[asyncio.Task[None]] = set()

    def route(self, head: Head) -> object | None:  # noqa: ARG002 - see `Quick`
        """See `Quick`. A POST is a request wherever it goes to, and whatever it says that it is."""
        return True

    def known_post(self, body: bytes) -> bytes | None:
        """See `Remembering`."""
        started = perf_counter()
        answer = self._by_spelling.get(body)
        if answer is None or body[0] != _SEQUENCE or not self._changes_heard():
            return None
        now = time()
        if not answer.since <= now < answer.head_until:
            return None
        answer.posts.count += 1  # type: ignore[union-attr]
        response = b"".join((answer.head, date_and_server(now), answer.body))
        self._observe(perf_counter() - started)
        return response

    def known_get(self, target: bytes) -> bytes | None:
        """See `Remembering`."""
        started = perf_counter()
        answer = self._by_spelling.get(target)
        if answer is None or target[0] == _SEQUENCE or not self._changes_heard():
            return None
        now = time()
        if not answer.since <= now < answer.head_until:
            return None
        answer.gets.count += 1  # type: ignore[union-attr]
        response = b"".join((answer.head, date_and_server(now), answer.body))
        self._observe(perf_counter() - started)
        return response

    def post(self, _route: object, body: bytes, connection: Connection) -> bytes | None:
        """See `Quick`."""
        started = perf_counter()
        response = self._ready(body)
        if response is None:
            return self._respond("POST", body, body, connection, started)
        self._observe(perf_counter() - started)
        return response

    def _ready(self, body: bytes) -> bytes | None:
        """An answer that lacked nothing but the nonce and the signature."""
        if not self._changes_heard():
            return None
        now = time()
        ready = self._service.ready(body, now)
        if ready is None:
            return None
        answer, tally = ready
        tally.count += 1
        return b"".join((_NEVER_CACHED_HEAD, b"%d\r\n" % len(answer), date_and_server(now), answer))

    def get(self, target: bytes, connection: Connection) -> bytes | None:
        """See `Quick`."""
        started = perf_counter()
        # A name with a dot in it is a file that a browser looks for; aiohttp's edge knows what to say.
        if not is_plain_target(target) or b"." in target:
            return None
        try:
            encoded = get_request.decode(target.decode("ascii"))
        except ValueError as error:
            malformed = RequestError(OCSPResponseStatus.MALFORMED_REQUEST, str(error))
            return _octets(self._words.refuse("GET", malformed))
        if encoded is None:
            return None
        return self._respond("GET", encoded, target, connection, started)

    def _respond(
        self, method: str, encoded: bytes, spelling: bytes, connection: Connection, started: float
    ) -> bytes | None:
        """Without the ready made octets."""
        now = datetime.now(UTC)
        try:
            answer = self._words.remembered(method, spelling, now)
            if answer is None:
                request = self._service.read(encoded)
                answer = self._service.at_once(request, spelling, now)
                if answer is None:
                    asked = _Asked(method, request, spelling, now, connection, started)
                    if not self._service.after_look_up(request, spelling, now, partial(self._told, asked)):
                        self._begin(asked)
                    return LATER
        except Exception as error:  # noqa: BLE001 - `refuse` has a word for each, and a log line for a defect
            return _octets(self._words.refuse(method, error))
        response = self._give(method, answer, now)
        self._observe(perf_counter() - started)
        return response

    def _told(self, asked: _Asked, answer: Answer | None, error: Exception | None) -> None:
        """The status has been read."""
        if answer is not None:
            try:
                response = self._give(asked.method, answer, asked.now)
            except Exception as defect:  # noqa: BLE001 - as above
                response = _octets(self._words.refuse(asked.method, defect))
        elif error is not None:
            response = _octets(self._words.refuse(asked.method, error))
        else:
            self._begin(asked)
            return
        self._observe(perf_counter() - asked.started)
        asked.connection.reply(response)

    def _begin(self, asked: _Asked) -> None:
        task = asyncio.create_task(self._later(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _later(self, asked: _Asked) -> None:
        try:
            answer = await self._service.answer(asked.request, asked.spelling, asked.now)
            response = self._give(asked.method, answer, asked.now)
        except Exception as error:  # noqa: BLE001 - as above
            response = _octets(self._words.refuse(asked.method, error))
        self._observe(perf_counter() - asked.started)
        asked.connection.reply(response)

    def _give(self, method: str, answer: Answer, now: datetime) -> bytes:
        again = answer.given
        reply = self._words.give(method, answer, now)
        if again and answer.until:  # it is remembered, and asked for more than once
            self._make_ready(answer, reply, now)
        return _octets(reply)

    def _make_ready(self, answer: Answer, reply: Reply, now: datetime) -> None:
        """Keep the head of the response for as long as it holds."""
        answer.head = _head(reply.headers, len(answer.body))
        answer.head_until = answer.governor.same_max_age_until(now, answer.span.renew_at)
        answer.gets = self._metrics.tally("GET", "cache", answer.outcomes, answer.hashes[0])
        answer.posts = self._metrics.tally("POST", "cache", answer.outcomes, answer.hashes[0])


def _octets(reply: Reply) -> bytes:
    body = reply.body
    if reply.headers is NEVER_CACHED:
        return b"".join((_NEVER_CACHED_HEAD, b"%d\r\n" % len(body), date_and_server(), body))
    return b"".join((_head(reply.headers, len(body)), date_and_server(), body))


def _head(headers: Mapping[str, str], content_length: int) -> bytes:
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("ascii")
    return response_head(b"200 OK", fields, content_length)


_NEVER_CACHED_HEAD = _head(NEVER_CACHED, 0).removesuffix(b"0\r\n")
