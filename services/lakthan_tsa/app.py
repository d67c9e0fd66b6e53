"""The HTTP edge of the authority: paths, clients, limits, headers, and the protocol's word for every failure (RFC 3161
§3.4).

The profile `default` is at `/`; every profile is at `/tsa/NAME`, and at `/tsa/NAME/SECRET` for clients that know no
other way to say who they are.

Whatever could be meant as a request gets 200 and a TimeStampResp, also when it is refused: clients show the reason in a
TimeStampResp and throw away the body of any other status. The headers are what the pickiest clients take: the media
type in lower case and without parameters, a Content-Length, never chunked, never 201, no redirect. Media types of
requests are taken liberally: with parameters, in any case, octet-stream, or none at all.

When the service stops, the front takes no more connections and ends those that it has after the request in flight: a
client goes to another instance at once, which a 503 with Retry-After would make it wait for.

`Words` says what is answered; `Edge` brings it to the client by aiohttp, and `quick.Short` by the wire.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from lakthan.errors import SignerBusy, SignerUnusable, StoreUnavailable, TimeNotAvailable
from lakthan.store.tokens import DuplicateSerial
from lakthan.telemetry.logs import log
from lakthan.telemetry.request_log import request_log
from lakthan.web.front import BodyTooLarge, may_work, raw_target, read_body
from lakthan.web.sources import network_of
from lakthan_tsa.syntax import PKIFailureInfo, Rejection, refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lakthan_tsa.credentials import Credentials
    from lakthan_tsa.metrics import TSAMetrics
    from lakthan_tsa.profiles import Profile
    from lakthan_tsa.quota import Quota
    from lakthan_tsa.service import TSAService

# A request with the longest hash, a policy and a nonce of 160 bits has less than 200 octets.
LARGEST_BODY = 16 * 1024
REPLY = {"Content-Type": "application/timestamp-reply", "Cache-Control": "no-store"}
SHARE_USED_UP = "There are too many requests, most of them from where you are; ask again in 1 s.\n"
_GREETING = "This is a time-stamp authority (RFC 3161). POST a TimeStampReq as application/timestamp-query to "
_QUERY = "application/timestamp-query"
_SOMETHING_ELSE = ("text/", "multipart/", "image/", "audio/", "video/", "font/")
_SOMETHING_ELSE_EXACTLY = frozenset(
    {
        "application/json",
        "application/xml",
        "application/x-www-form-urlencoded",
        "application/pdf",
        "application/ocsp-request",
        "application/timestamp-reply",
    }
)


@dataclass(frozen=True, slots=True)
class Gate:
    """A profile and who may come in: known clients (`credentials`), each within its `quota`; None: no such rule."""

    profile: Profile
    credentials: Credentials | None = None
    quota: Quota | None = None


class Words:
    """What is said to a TimeStampReq, whichever way it came, and counted."""

    def __init__(self, service: TSAService, metrics: TSAMetrics) -> None:
        self.service = service
        self._metrics = metrics

    async def reply(self, encoded: bytes, profile: Profile) -> bytes:
        """A TimeStampResp, whatever happens."""
        try:
            response = await self.service.answer(encoded, profile)
        except Exception as error:  # noqa: BLE001 - `refuse` has a word for each, and a log line for a defect
            return self.refuse(error)
        self._metrics.granted.count += 1
        if request_log.due():
            request_log.note(outcome="granted", profile=profile.name)
        return response

    def refuse(self, error: Exception) -> bytes:
        """The protocol's word for a failure. What went wrong inside is for the log; the client learns what to do."""
        failure, text = PKIFailureInfo.SYSTEM_FAILURE, "something went wrong here, and has been noted"
        if isinstance(error, Rejection):
            failure, text = error.fail_info, error.text
        elif isinstance(error, TimeNotAvailable):  # the guard has logged what changed
            failure, text = PKIFailureInfo.TIME_NOT_AVAILABLE, "the clock cannot be trusted now; ask again later"
        elif isinstance(error, StoreUnavailable | DuplicateSerial):
            log.warning("no record, no token", problem=str(error))
            text = "the token could not be recorded; ask again"
        elif isinstance(error, SignerBusy):
            log.warning("the key is busy", problem=str(error))
            text = "too many requests wait for the key; ask again"
        elif isinstance(error, SignerUnusable):
            log.error("cannot sign", problem=str(error))
            text = "the key cannot be used now; ask again later"
        else:
            log.error("a defect: a request was answered with systemFailure", exc_info=error)
        self._metrics.rejected[failure].inc()
        request_log.note(outcome=failure.label, problem=text)
        return refusal(Rejection(failure, text))


def is_something_else(media_type: str) -> bool:
    """True for the media type of a body that is certainly no TimeStampReq. Clients send all kinds for one that is."""
    return media_type in _SOMETHING_ELSE_EXACTLY or media_type.startswith(_SOMETHING_ELSE)


def is_authenticode(encoded: bytes, media_type: str) -> bool:
    """True for Base64 of a SEQUENCE: what signtool sends with /t, a protocol older than RFC 3161."""
    return encoded.startswith(b"MI") and media_type != _QUERY


def media_type_of(content_type: str) -> str:
    """Without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


class Gates:
    """The paths of the public port."""

    def __init__(self, gates: Iterable[Gate]) -> None:
        self._by_path = {f"/tsa/{gate.profile.name}": gate for gate in gates}
        self.default = self._by_path.get("/tsa/default")
        if self.default is not None:
            self._by_path |= {"/": self.default, "": self.default}

    def find(self, target: str) -> Gate | None:
        """The gate at this path itself."""
        return self._by_path.get(target.partition("?")[0])

    def find_above(self, target: str) -> tuple[Gate | None, str]:
        """The gate and the secret behind it, for clients that know no other way to say who they are."""
        above, _, secret = target.partition("?")[0].rpartition("/")
        return (self._by_path.get(above) if above else None), secret


class Edge:
    """The function that answers every HTTP request of the public port that comes by aiohttp."""

    def __init__(self, words: Words, gates: Gates, metrics: TSAMetrics) -> None:
        self._words = words
        self._metrics = metrics
        self._gates = gates
        self._greeting = f"{_GREETING}{'/' if gates.default is not None else '/tsa/ and the name of a profile'}\n"

    async def __call__(self, http_request: web.BaseRequest) -> web.StreamResponse:
        """One request, one response."""
        target, secret = raw_target(http_request), ""
        gate = self._gates.find(target)
        if gate is None:
            gate, secret = self._gates.find_above(target)
            if gate is None:
                return self._http_refusal(404, f"Nothing is here. {self._greeting}")
        if http_request.method != "POST":
            return self._http_refusal(405, self._greeting, Allow="POST")
        media_type = media_type_of(http_request.headers.get("Content-Type", ""))
        if is_something_else(media_type):
            return self._http_refusal(415, f"{self._greeting}With curl, add: -H 'Content-Type: {_QUERY}'\n")
        if http_request.content_length is None and "Transfer-Encoding" not in http_request.headers:
            return self._http_refusal(411, self._greeting)
        refused = self._stop(gate, secret, http_request)
        if refused is not None:
            return refused
        if not may_work(http_request):
            return self._http_refusal(429, SHARE_USED_UP, **{"Retry-After": "1"})
        try:
            encoded = await read_body(http_request, LARGEST_BODY)
        except BodyTooLarge:
            response = self._http_refusal(413, f"A TimeStampReq has at most {LARGEST_BODY} octets: it is a hash.\n")
            response.force_close()  # the rest of the body is left unread
            return response
        if is_authenticode(encoded, media_type):
            return self._http_refusal(415, "This looks like the old Authenticode protocol; with signtool use /tr.\n")
        started = time.perf_counter()
        response = web.Response(body=await self._words.reply(encoded, gate.profile), headers=REPLY)
        self._metrics.slow.took(time.perf_counter() - started, profile=gate.profile.name)
        return response

    def _stop(self, gate: Gate, secret: str, http_request: web.BaseRequest) -> web.Response | None:
        """The refusal of a client that may not come in, or not now; None for everybody else."""
        who = ""
        if gate.credentials is not None:
            client = gate.credentials.find(http_request.headers.get("Authorization", ""), secret)
            if client is None:
                log.warning("a client was refused", profile=gate.profile.name, problem="no known secret")
                response = self._http_refusal(401, "This profile serves known clients: send your secret.\n")
                response.headers.add("WWW-Authenticate", 'Basic realm="time-stamps", charset="UTF-8"')
                response.headers.add("WWW-Authenticate", 'Bearer realm="time-stamps"')
                return response
            if gate.profile.name not in client.profiles:
                log.warning(
                    "a client was refused", profile=gate.profile.name, problem="not its profile", client=client.name
                )
                return self._http_refusal(403, "You may not use this profile; ask the operator for it.\n")
            who = client.name
        if gate.quota is not None:
            wait = gate.quota.take(who or network_of(http_request.remote or ""), time.monotonic())
            if wait > 0:
                seconds = math.ceil(wait)
                text = f"You ask more often than agreed; ask again in {seconds} s.\n"
                return self._http_refusal(429, text, **{"Retry-After": str(seconds)})
        return None

    def _http_refusal(self, code: int, text: str, **headers: str) -> web.Response:
        self._metrics.http_refusals.labels(str(code)).inc()
        return web.Response(status=code, text=text, headers={"Cache-Control": "no-store", **headers})
