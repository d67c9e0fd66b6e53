"""The HTTP edge of the responder: methods, limits, headers, and the protocol's word for every failure.

RFC 6960 appendix A and RFC 9919 §6 and §7. Whatever was meant as OCSP is answered with status 200 and an
OCSPResponse, also when it is refused: clients do not read the bodies of 4xx and 5xx, and intermediaries keep them.
Refusals and answers that bind nobody are never cacheable. The media type of a request is ignored, as half of the
clients get it wrong; paths are never normalised, as they are the request.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiohttp import web

from lakthan.errors import SignerBusy, SignerUnusable, StoreUnavailable
from lakthan.telemetry.logs import log
from lakthan.web.front import BodyTooLarge, raw_target, read_body
from lakthan_ocsp import get_request
from lakthan_ocsp.governor import http_date
from lakthan_ocsp.responder import refusal
from lakthan_ocsp.syntax import OCSPResponseStatus, RequestError

if TYPE_CHECKING:
    from lakthan_ocsp.cache import Answer
    from lakthan_ocsp.metrics import OCSPMetrics
    from lakthan_ocsp.service import OCSPService

LARGEST_BODY = 64 * 1024
_MEDIA_TYPE = "application/ocsp-response"
_NEVER_CACHED = {"Content-Type": _MEDIA_TYPE, "Cache-Control": "max-age=0, no-cache, no-store"}
_GREETING = "This is an OCSP responder (RFC 6960). POST an OCSPRequest here, or GET it in base64.\n"


class Edge:
    """The function that answers every HTTP request of the public port.

    OCSP-34, OCSP-45, OCSP-57, OCSP-Q10, OCSP-Q12, OCSP-Q16, OCSP-Q18, OCSP-Q53, OCSP-Q56.
    """

    def __init__(self, service: OCSPService, metrics: OCSPMetrics) -> None:
        self._service = service
        self._metrics = metrics

    async def __call__(self, http_request: web.BaseRequest) -> web.StreamResponse:
        """One request, one response."""
        now = datetime.now(UTC)
        if http_request.method == "POST":
            try:
                encoded = await read_body(http_request, LARGEST_BODY)
            except BodyTooLarge:
                return self._http_refusal(413, f"An OCSPRequest has at most {LARGEST_BODY} octets.\n")
            return await self._respond(http_request, "POST", encoded, now)
        if http_request.method in ("GET", "HEAD"):
            return await self._get(http_request, now)
        response = self._http_refusal(405, _GREETING)
        response.headers["Allow"] = "GET, HEAD, POST"
        return response

    async def _get(self, http_request: web.BaseRequest, now: datetime) -> web.Response:
        target = raw_target(http_request)
        if len(target) > get_request.LONGEST_TARGET:
            return self._http_refusal(414, "The target is too long: send the request by POST.\n")
        if target in ("/favicon.ico", "/robots.txt"):
            return self._http_refusal(404, _GREETING)
        try:
            encoded = get_request.decode(target)
        except ValueError:
            return self._refuse("GET", OCSPResponseStatus.MALFORMED_REQUEST)
        if encoded is None:
            return web.Response(text=_GREETING, headers={"Cache-Control": "max-age=300"})
        return await self._respond(http_request, "GET", encoded, now)

    async def _respond(self, http_request: web.BaseRequest, method: str, encoded: bytes, now: datetime) -> web.Response:
        try:
            answer = await self._service.answer(encoded, now)
        except RequestError as error:
            return self._refuse(method, error.status)
        except (StoreUnavailable, SignerBusy) as error:
            log.warning("try later", problem=str(error))
            return self._refuse(method, OCSPResponseStatus.TRY_LATER)
        except SignerUnusable as error:
            log.error("cannot sign", problem=str(error))
            return self._refuse(method, OCSPResponseStatus.INTERNAL_ERROR)
        except Exception:  # noqa: BLE001 - a defect: the client gets the protocol's word, the log the traceback
            log.exception("a defect: a request was answered with internalError")
            return self._refuse(method, OCSPResponseStatus.INTERNAL_ERROR)
        self._metrics.requests[method, OCSPResponseStatus.SUCCESSFUL].inc()
        headers = _headers(answer, now)
        if method == "GET" and answer.etag and answer.etag in http_request.headers.get("If-None-Match", ""):
            self._metrics.not_modified.inc()
            return web.Response(status=304, headers=headers)
        return web.Response(body=answer.body, headers=headers)

    def _refuse(self, method: str, status: OCSPResponseStatus) -> web.Response:
        self._metrics.requests[method, status].inc()
        return web.Response(body=refusal(status), headers=_NEVER_CACHED)

    def _http_refusal(self, code: int, text: str) -> web.Response:
        self._metrics.http_refusals.labels(str(code)).inc()
        return web.Response(status=code, text=text, headers={"Cache-Control": "no-store"})


def _headers(answer: Answer, now: datetime) -> dict[str, str]:
    """What caches may do with an answer (RFC 9919 §6 and §7.2); nothing, when it has a nonce or binds nobody.

    OCSP-47, OCSP-49, OCSP-Q52, OCSP-Q54.
    """
    if not answer.etag or not answer.authoritative:
        return _NEVER_CACHED
    seconds = answer.governor.seconds_to_keep(now, answer.span.renew_at)
    return {
        "Content-Type": _MEDIA_TYPE,
        "Cache-Control": f"max-age={seconds}, public, no-transform, must-revalidate",
        "ETag": answer.etag,
        "Last-Modified": http_date(answer.span.this_update),
        "Expires": http_date(answer.span.next_update),
    }
