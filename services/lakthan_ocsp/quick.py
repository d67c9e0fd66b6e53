"""The short way of a request: from the wire's octets to the wire's octets, without task, request object or headers.

Four ways, from short to long. Octets that were answered in this second are answered in the same octets. An answer that
is remembered has the rest of its octets ready. One that needs nothing but a quick signature is signed on the spot. For
everything else somebody has to wait, in a task, and the connection is told later. What is said is `app.Words` in all of
them; here it is only put into octets, the same that aiohttp would write.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from time import perf_counter, time
from typing import TYPE_CHECKING, NamedTuple

from lakthan.keys.line import asker
from lakthan.web.response_heads import date_and_server, response_head
from lakthan.web.wire import LATER, Connection, Head, is_plain_target
from lakthan_ocsp import get_request
from lakthan_ocsp.app import LARGEST_BODY, NEVER_CACHED, Words
from lakthan_ocsp.syntax import OCSPResponseStatus, RequestError
from lakthan_ocsp.this_second import Said, ThisSecond

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lakthan_ocsp.app import Reply
    from lakthan_ocsp.cache import Answer, AnswerCache
    from lakthan_ocsp.metrics import OCSPMetrics, Tally
    from lakthan_ocsp.nonces import Ready, Signed
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
        self,
        words: Words,
        cache: AnswerCache,
        metrics: OCSPMetrics,
        *,
        changes_heard: Callable[[], bool],
        may_recall: Callable[[], bool] | None = None,
    ) -> None:
        self._words = words
        self._service = words.service
        self._ready_answers = words.service.ready_answers
        self._by_spelling = cache.by_spelling
        self._this_second = ThisSecond()
        self._by_request = self._this_second.by_request
        self._metrics = metrics
        self._observe = metrics.request_seconds.observe
        self._took = metrics.slow.took
        self._changes_heard = changes_heard
        self._may_recall = may_recall or changes_heard
        self._tasks: set[asyncio.Task[None]] = set()

    def route(self, head: Head) -> object | None:  # noqa: ARG002 - see `Quick`
        """See `Quick`. A POST is a request wherever it goes to, and whatever it says that it is."""
        return True

    def known(self, request: bytes) -> bytes | None:
        """See `Remembering`."""
        started = perf_counter()
        said = self._by_request.get(request)
        if said is None:
            return None
        answer, response, tally = said
        this_second = self._this_second
        if not (this_second.begins <= time() < this_second.ends and answer.until and self._may_recall()):
            return None
        tally.count += 1
        if tally.count >= tally.sample_at:
            self._words.sample(tally, answer)
        self._observe(perf_counter() - started)
        return response

    def ready(self, request: bytes) -> bytes | None:
        """See `Remembering`."""
        return self._ready(request, perf_counter())

    def known_post(self, body: bytes, request: bytes = b"") -> bytes | None:
        """See `Remembering`."""
        started = perf_counter()
        answer = self._by_spelling.get(body)
        if answer is None or body[0] != _SEQUENCE:
            return None
        return self._remembered(answer, answer.posts, started, request)

    def ready_post(self, body: bytes, request: bytes = b"") -> bytes | None:
        """See `Remembering`."""
        return self._ready(body, perf_counter(), request)

    def known_get(self, target: bytes, request: bytes = b"") -> bytes | None:
        """See `Remembering`."""
        started = perf_counter()
        answer = self._by_spelling.get(target)
        if answer is None or target[0] == _SEQUENCE:
            return None
        return self._remembered(answer, answer.gets, started, request)

    def _remembered(self, answer: Answer, tally: Tally | None, started: float, request: bytes) -> bytes | None:
        """An answer whose head is ready; kept under the whole `request`, if there is one."""
        now = time()
        if tally is None or not answer.since <= now < answer.head_until or not self._may_recall():
            return None
        tally.count += 1
        if tally.count >= tally.sample_at:
            self._words.sample(tally, answer)
        response = b"".join((answer.head, date_and_server(now), answer.body))
        if request:
            self._this_second.note(request, Said(answer, response, tally), now)
        self._observe(perf_counter() - started)
        return response

    def _ready(self, asked: bytes, started: float, request: bytes = b"") -> bytes | None:
        """An answer that lacked nothing but the nonce and the signature. `asked`: a body, or a whole request; found by
        `request` from now on too, if that is given.
        """
        ready = self._ready_answers.find(asked)
        if ready is None or not self._changes_heard():
            return None
        now = time()
        signed = ready.sign(asked, now)
        if signed is None:
            return None
        tbs, signature = signed
        before, between, after = ready.frames.get(len(signature)) or _frame(ready, signed, now)
        response = b"".join((before, tbs, between, signature, after))
        self._metrics.nonces += 1
        tally = ready.terms.tally
        tally.count += 1
        if tally.count >= tally.sample_at:
            self._words.sample(tally)
        if request:
            self._ready_answers.note(request, ready)
        self._observe(perf_counter() - started)
        return response

    def post(self, _route: object, body: bytes, connection: Connection) -> bytes | None:
        """See `Quick`."""
        return self._respond("POST", body, body, connection, perf_counter())

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
                if not connection.may_work():
                    return self._give(method, self._service.kept(request, now), now)
                answer = self._service.at_once(request, spelling, now)
                if answer is None:
                    asked = _Asked(method, request, spelling, now, connection, started)
                    if not self._service.after_look_up(request, spelling, now, partial(self._told, asked)):
                        self._begin(asked)
                    return LATER
        except Exception as error:  # noqa: BLE001 - `refuse` has a word for each, and a log line for a defect
            return _octets(self._words.refuse(method, error))
        response = self._give(method, answer, now)
        self._took(perf_counter() - started, method=method)
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
            asker.set(asked.connection.source)  # the look-up was for many
            self._begin(asked)
            return
        self._took(perf_counter() - asked.started, method=asked.method)
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
        self._took(perf_counter() - asked.started, method=asked.method)
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


def _frame(ready: Ready, signed: Signed, now_seconds: float) -> tuple[bytes, bytes, bytes]:
    """The frame of signatures of this length: HTTP's head and OCSP's, in the second for which the answer is ready."""
    tbs_octets, signature_octets = len(signed.tbs), len(signed.signature)
    before, between, after = ready.template.frame(tbs_octets, signature_octets)
    length = len(before) + tbs_octets + len(between) + signature_octets + len(after)
    before = b"".join((_NEVER_CACHED_HEAD, b"%d\r\n" % length, date_and_server(now_seconds), before))
    frame = ready.frames[signature_octets] = before, between, after
    return frame


def _octets(reply: Reply) -> bytes:
    body = reply.body
    if reply.headers is NEVER_CACHED:
        return b"".join((_NEVER_CACHED_HEAD, b"%d\r\n" % len(body), date_and_server(), body))
    return b"".join((_head(reply.headers, len(body)), date_and_server(), body))


def _head(headers: Mapping[str, str], content_length: int) -> bytes:
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("ascii")
    return response_head(b"200 OK", fields, content_length)


_NEVER_CACHED_HEAD = _head(NEVER_CACHED, 0).removesuffix(b"0\r\n")
