"""The HTTP edge of the responder: methods, limits, headers, and the protocol's word for every failure.

RFC 6960 appendix A and RFC 9919 §6 and §7. Whatever was meant as OCSP is answered with status 200 and an
OCSPResponse, also when it is refused: clients do not read the bodies of 4xx and 5xx, and intermediaries keep them.
Refusals and answers that bind nobody are never cacheable. The media type of a request is ignored, as half of the
clients get it wrong; paths are never normalised, as they are the request.

`Words` says what is answered, in headers and octets; `Edge` brings it to the client by aiohttp, and `quick.Short` by
the wire.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import ShareUsedUp, SignerBusy, SignerUnusable, StoreUnavailable
from lakthan.telemetry.logs import log
from lakthan.telemetry.request_log import request_log
from lakthan.web.front import BodyTooLarge, may_work, raw_target, read_body
from lakthan_ocsp import get_request, governor
from lakthan_ocsp.responder import refusal
from lakthan_ocsp.syntax import CertStatusChoice, OCSPResponseStatus, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lakthan_ocsp.cache import Answer
    from lakthan_ocsp.metrics import OCSPMetrics, Tally
    from lakthan_ocsp.service import OCSPService

LARGEST_BODY = 64 * 1024
MEDIA_TYPE = "application/ocsp-response"
NEVER_CACHED = {"Content-Type": MEDIA_TYPE, "Cache-Control": "max-age=0, no-cache, no-store"}
_GREETING = "This is an OCSP responder (RFC 6960). POST an OCSPRequest here, or GET it in base64.\n"
# The tag of the SEQUENCE that every OCSPRequest is, and what every target begins with.
_BEGINS = {"POST": b"\x30", "GET": b"/"}
_REFUSALS = {status: refusal(status) for status in OCSPResponseStatus}
_http_date = lru_cache(256)(governor.http_date)


class Reply(NamedTuple):
    """A response with status 200. `etag`: '' when the answer may not be kept."""

    headers: Mapping[str, str]
    body: bytes
    etag: str = ""


class Words:
    """What is said to an OCSPRequest, whichever way it came, and counted."""

    def __init__(self, service: OCSPService, metrics: OCSPMetrics) -> None:
        self.service = service
        self._metrics = metrics

    async def reply(
        self, method: str, encoded: bytes, spelling: bytes, now: datetime, may_work: Callable[[], bool]
    ) -> Reply:
        """The answer to a request, or the refusal. `may_work`: whether more than a memory may be asked."""
        try:
            answer = self.remembered(method, spelling, now)
            if answer is None:
                request = self.service.read(encoded)
                if not may_work():
                    return self.give(method, self.service.kept(request, now), now)
                answer = self.service.at_once(request, spelling, now)
                if answer is None:
                    answer = await self.service.answer(request, spelling, now)
        except Exception as error:  # noqa: BLE001 - `refuse` has a word for each, and a log line for a defect
            return self.refuse(method, error)
        return self.give(method, answer, now)

    def remembered(self, method: str, spelling: bytes, now: datetime) -> Answer | None:
        """An answer that was given before. A POST's body that reads like the target of a GET is not one."""
        return self.service.cached(spelling, now) if spelling[:1] == _BEGINS[method] else None

    def give(self, method: str, answer: Answer, now: datetime) -> Reply:
        """An answer."""
        source = "cache" if answer.given else answer.source
        self._metrics.answered(method, source, answer.outcomes, answer.hashes)
        if request_log.due(notable=CertStatusChoice.REVOKED.value in answer.outcomes):
            self._note(method, source, answer.outcomes, answer)
        answer.given = True
        return _reply(answer, now)

    def sample(self, tally: Tally, answer: Answer | None = None) -> None:
        """The request that was counted just now, by the short way, gets a line."""
        tally.sample_at = tally.count + request_log.interval(notable=CertStatusChoice.REVOKED.value in tally.outcomes)
        self._note(tally.method, tally.source, tally.outcomes, answer)

    def _note(self, method: str, source: str, outcomes: Sequence[str], answer: Answer | None) -> None:
        asked = answer.certificate if answer is not None else None
        request_log.note(
            method=method,
            outcome=",".join(outcomes),
            source=source,
            certificate=asked and f"{asked.authority_id}:{asked.serial_number.hex()}",
        )

    def refuse(self, method: str, error: Exception) -> Reply:
        """The protocol's word for a failure; what went wrong inside is for the log."""
        if isinstance(error, RequestError):
            status = error.status
        elif isinstance(error, ShareUsedUp):  # counted by the wire; a line for each would be a flood too
            self._metrics.requests[method, OCSPResponseStatus.TRY_LATER].inc()
            return Reply(NEVER_CACHED, _REFUSALS[OCSPResponseStatus.TRY_LATER])
        elif isinstance(error, StoreUnavailable | SignerBusy):
            log.warning("try later", problem=str(error))
            status = OCSPResponseStatus.TRY_LATER
        elif isinstance(error, SignerUnusable):
            log.error("cannot sign", problem=str(error))
            status = OCSPResponseStatus.INTERNAL_ERROR
        else:
            log.error("a defect: a request was answered with internalError", exc_info=error)
            status = OCSPResponseStatus.INTERNAL_ERROR
        self._metrics.requests[method, status].inc()
        request_log.note(method=method, outcome=status.label, problem=str(error))
        return Reply(NEVER_CACHED, _REFUSALS[status])


class Edge:
    """The function that answers every HTTP request of the public port that comes by aiohttp.

    OCSP-34, OCSP-45, OCSP-57, OCSP-Q10, OCSP-Q12, OCSP-Q16, OCSP-Q18, OCSP-Q53, OCSP-Q56.
    """

    def __init__(self, words: Words, metrics: OCSPMetrics) -> None:
        self._words = words
        self._metrics = metrics

    async def __call__(self, http_request: web.BaseRequest) -> web.StreamResponse:
        """One request, one response."""
        if http_request.method == "POST":
            try:
                encoded = await read_body(http_request, LARGEST_BODY)
            except BodyTooLarge:
                return self._http_refusal(413, f"An OCSPRequest has at most {LARGEST_BODY} octets.\n")
            return await self._respond(http_request, encoded, encoded)
        if http_request.method in ("GET", "HEAD"):
            return await self._get(http_request)
        response = self._http_refusal(405, _GREETING)
        response.headers["Allow"] = "GET, HEAD, POST"
        return response

    async def _get(self, http_request: web.BaseRequest) -> web.Response:
        target = raw_target(http_request)
        if len(target) > get_request.LONGEST_TARGET:
            return self._http_refusal(414, "The target is too long: send the request by POST.\n")
        if target in ("/favicon.ico", "/robots.txt"):
            return self._http_refusal(404, _GREETING)
        try:
            encoded = get_request.decode(target)
        except ValueError as error:
            return _response(self._words.refuse("GET", RequestError(OCSPResponseStatus.MALFORMED_REQUEST, str(error))))
        if encoded is None:
            return web.Response(text=_GREETING, headers={"Cache-Control": "max-age=300"})
        condition = http_request.headers.get("If-None-Match", "")
        return await self._respond(http_request, encoded, target.encode("utf-8", "surrogateescape"), condition)

    async def _respond(
        self, http_request: web.BaseRequest, encoded: bytes, spelling: bytes, condition: str = ""
    ) -> web.Response:
        started = perf_counter()
        method = "POST" if http_request.method == "POST" else "GET"
        reply = await self._words.reply(method, encoded, spelling, datetime.now(UTC), lambda: may_work(http_request))
        self._metrics.slow.took(perf_counter() - started, method=method)
        if reply.etag and reply.etag in condition:
            self._metrics.not_modified.inc()
            return web.Response(status=304, headers=reply.headers)
        return _response(reply)

    def _http_refusal(self, code: int, text: str) -> web.Response:
        self._metrics.http_refusals.labels(str(code)).inc()
        return web.Response(status=code, text=text, headers={"Cache-Control": "no-store"})


def _response(reply: Reply) -> web.Response:
    return web.Response(body=reply.body, headers=reply.headers)


def _reply(answer: Answer, now: datetime) -> Reply:
    """What caches may do with an answer (RFC 9919 §6 and §7.2); nothing, when it has a nonce or binds nobody.

    OCSP-47, OCSP-49, OCSP-Q52, OCSP-Q54.
    """
    if answer.for_one_client or not answer.authoritative:
        return Reply(NEVER_CACHED, answer.body)
    seconds = answer.governor.seconds_to_keep(now, answer.span.renew_at)
    etag = f'"{HashAlgorithm.SHA_256.digest(answer.body).hex()}"'
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Cache-Control": f"max-age={seconds}, public, no-transform, must-revalidate",
        "ETag": etag,
        "Last-Modified": _http_date(answer.span.this_update),
        "Expires": _http_date(answer.span.next_update),
    }
    return Reply(headers, answer.body, etag)
