"""The HTTP edge of the registry: who may come in, how much may be sent, and the word for every failure (RFC 9457).

Every request goes the same way: operation, caller, role and scope, room, body, work, reply. A refusal on the way is a
`Problem`; it is counted, and what a known caller was refused is put on record before the answer leaves. Bodies are read
after the caller is known, so that nobody unknown makes the registry take in megabytes.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from aiohttp import HttpVersion11, web

from lakthan.errors import LakthanError, StoreUnavailable
from lakthan.telemetry.logs import log
from lakthan_registry.api import CRL_MEDIA_TYPES, JSON, ROUTES, Route
from lakthan_registry.calls import Call
from lakthan_registry.problems import MEDIA_TYPE, FieldError, Headers, Problem, not_found, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from lakthan_registry.calls import Handler
    from lakthan_registry.identity import Authenticator, Caller
    from lakthan_registry.metrics import RegistryMetrics

_MOST_AT_ONCE = 8
_MOST_CRLS_AT_ONCE = 2
_KEY = re.compile(r"[!-~]{1,255}")
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_FIELD_IN_MESSAGE = re.compile(r"(?:field|unknown field) `(?P<field>[^`]+)`")


if TYPE_CHECKING:
    # What was refused, to whom (None: nobody knows), by which operation.
    Audit = Callable[[Problem, Caller | None, str], Awaitable[None]]


class Edge:
    """Answers every request of the public port. `handlers`: what each operation does, by its name."""

    def __init__(
        self, authenticator: Authenticator, handlers: Mapping[str, Handler], audit: Audit, metrics: RegistryMetrics
    ) -> None:
        self._authenticator = authenticator
        self._handlers = handlers
        self._audit = audit
        self._metrics = metrics
        self._at_once: dict[tuple[int, bool], int] = {}

    def application(self) -> web.Application:
        """The aiohttp application with every route of the API."""

        @web.middleware
        async def nothing_here(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            try:
                return await handler(request)
            except web.HTTPException as error:
                return self._refuse(_from_aiohttp(error), "none")

        async def go_ahead_later(_: web.Request) -> None:
            """The go-ahead for a body is sent when the caller is known, not before (RFC 9110 §10.1.1)."""

        application = web.Application(middlewares=[nothing_here])
        for route in ROUTES:
            application.router.add_route(route.method, route.path, self._serve(route), expect_handler=go_ahead_later)
        return application

    def _serve(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        slow = self._metrics.slow(route.operation)

        async def serve(http_request: web.Request) -> web.StreamResponse:
            began = time.perf_counter()
            with self._metrics.in_flight.track_inprogress():
                response = await self._answer(route, http_request)
            slow.took(time.perf_counter() - began, operation=route.operation, status=response.status)
            return response

        return serve

    async def _answer(self, route: Route, http_request: web.Request) -> web.Response:
        call = Call(route, datetime.now(UTC), dict(http_request.match_info))
        try:
            async with asyncio.timeout(route.timeout_seconds):
                return await self._work(call, http_request)
        except Problem as raised:
            problem = raised
        except StoreUnavailable as error:
            log.warning("the store is away", operation=route.operation, problem=str(error))
            problem = unavailable("the database cannot be used now")
        except TimeoutError:
            problem = unavailable(f"this took longer than {route.timeout_seconds:.0f} s and was given up", seconds=10)
        except (ConnectionError, asyncio.IncompleteReadError):
            problem = Problem("malformed-request", "the body ended early", hint="send the whole body")
        except Exception:  # noqa: BLE001 - a defect: the client gets 500, the log the traceback
            log.exception("a defect: a request was answered with 500", operation=route.operation)
            problem = Problem("internal", "a defect, which has been noted", hint="tell the registry's operator when")
        await self._put_on_record(problem, call)
        response = self._refuse(problem, route.operation, short=route.operation.startswith("ejbca"))
        if not http_request.content.is_eof():
            response.force_close()  # the rest of the body is left unread
        return response

    async def _work(self, call: Call, http_request: web.Request) -> web.Response:
        route = call.route
        if route.roles:
            await self._admit(call, http_request)
        call.query = _read_query(route, http_request)
        call.key = _read_key(route, http_request)
        with self._room(call):
            if route.raw:
                with tempfile.TemporaryFile() as file:
                    await _spool(http_request, route, file)
                    call.body = file
                    result = await self._handlers[route.operation](call)
            else:
                if route.request is not None:
                    call.raw = await _read_json(http_request, route)
                    call.body = _decode(call.raw, route.request)
                result = await self._handlers[route.operation](call)
        self._metrics.requests.labels(route.operation, str(route.status)).inc()
        if result is None:
            return web.Response(status=route.status, headers={"Cache-Control": "no-store"})
        return web.Response(
            status=route.status,
            body=msgspec.json.encode(result) + b"\n",  # for people at a terminal
            headers={"Content-Type": JSON, "Cache-Control": "no-store"},
        )

    async def _admit(self, call: Call, http_request: web.Request) -> None:
        """Find out who calls, and whether the operation is for such callers."""
        route = call.route
        call.caller = caller = await self._authenticator.identify(http_request, call.now)
        caller.check()
        if caller.role not in route.roles:
            raise Problem(
                "wrong-role",
                f"{caller.name} is a {caller.role}; this is for {' and '.join(sorted(route.roles))}",
                hint="use a credential with that role; the registrar makes them",
            )
        if route.scope and caller.role == "publisher":
            caller.demand_scope(route.scope)

    def _room(self, call: Call) -> _Room:
        return _Room(self._at_once, call)

    async def _put_on_record(self, problem: Problem, call: Call) -> None:
        """Refused writes of known callers, and everybody who was not let in."""
        if problem.status >= 500 or problem.status == 429:
            return
        if problem.status not in {401, 403} and not (call.route.writes and call.caller is not None):
            return
        log.warning("a caller was refused", operation=call.route.operation, problem=problem.kind)
        try:
            await self._audit(problem, call.caller, call.route.operation)
        except LakthanError as error:
            self._metrics.unaudited.inc()
            log.error("a refusal could not be put on record", problem=problem.kind, reason=str(error))
        except Exception:  # noqa: BLE001 - a defect; the client still hears the refusal
            self._metrics.unaudited.inc()
            log.exception("a defect: a refusal could not be put on record", problem=problem.kind)

    def _refuse(self, problem: Problem, operation: str, *, short: bool = False) -> web.Response:
        self._metrics.refusals.labels(problem.kind).inc()
        self._metrics.requests.labels(operation, str(problem.status)).inc()
        return web.Response(
            status=problem.status,
            body=problem.encode(short=short) + b"\n",
            headers={"Content-Type": MEDIA_TYPE, **problem.fields()},
        )


class _Room:
    """A place among the requests of one credential that are worked on; there are few, so nobody crowds out others."""

    def __init__(self, at_once: dict[tuple[int, bool], int], call: Call) -> None:
        self._at_once = at_once
        self._call = call

    def __enter__(self) -> None:
        if self._call.caller is None:
            return
        key = (self._call.caller.id, self._call.route.raw)
        most = _MOST_CRLS_AT_ONCE if self._call.route.raw else _MOST_AT_ONCE
        if self._at_once.get(key, 0) >= most:
            raise Problem(
                "too-many-requests",
                f"{most} requests of this credential are being worked on",
                hint="wait for their answers; many changes belong into one request to /v1/changes",
                headers=Headers(retry_after_seconds=1),
            )
        self._at_once[key] = self._at_once.get(key, 0) + 1

    def __exit__(self, *_: object) -> None:
        if self._call.caller is not None:
            key = (self._call.caller.id, self._call.route.raw)
            self._at_once[key] -= 1
            if not self._at_once[key]:
                del self._at_once[key]


def _from_aiohttp(error: web.HTTPException) -> Problem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(
            "method-not-allowed",
            f"this is not for {error.method}",
            hint=f"use {allowed}",
            headers=Headers(allow=allowed),
        )
    if error.status == 404:
        return not_found("nothing is here", hint="see /openapi.json for what there is")
    return Problem("malformed-request", error.reason, hint="see /openapi.json for what can be asked")


def _read_query(route: Route, http_request: web.Request) -> Any:  # noqa: ANN401 - a struct of the route's own type
    query = http_request.query
    twice = sorted({name for name in query if len(query.getall(name)) > 1})
    if twice:
        raise _invalid(f"/{twice[0]}", twice[0], "given more than once")
    try:
        return msgspec.convert(dict(query), route.query, strict=False)
    except msgspec.ValidationError as error:
        raise _not_as_described(error, "query") from error


def _read_key(route: Route, http_request: web.Request) -> str:
    given = http_request.headers.getall("Idempotency-Key", [])
    if not route.keyed or not given:
        return ""
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise Problem(
            "malformed-request",
            "the Idempotency-Key is not one string of 1 to 255 visible ASCII characters",
            hint="a random UUID for each request is fine",
        )
    return given[0]


def _demand_media_type(http_request: web.Request, allowed: tuple[str, ...]) -> None:
    media_type = http_request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type not in allowed or http_request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(
            "unsupported-media-type",
            f"{media_type or 'no media type'} is not {' or '.join(allowed)}, or the body is compressed",
            hint=f"with curl, add: -H 'Content-Type: {allowed[0]}'",
        )


async def _chunks(http_request: web.Request, limit: int, take: Callable[[bytes], object]) -> None:
    """Hand the body over piece by piece. Raises `Problem` once there is more than `limit` octets."""
    too_large = Problem(
        "too-large",
        f"more than {limit} octets",
        hint="send the changes in several requests; each may hold 10,000",
    )
    if (http_request.content_length or 0) > limit:
        raise too_large
    if "Expect" in http_request.headers and http_request.version >= HttpVersion11:
        await http_request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        http_request.writer.output_size = 0  # what went out is not yet the response
    length = 0
    async for chunk in http_request.content.iter_any():
        length += len(chunk)
        if length > limit:
            raise too_large
        take(chunk)


async def _read_json(http_request: web.Request, route: Route) -> bytes:
    _demand_media_type(http_request, (JSON,))
    body = bytearray()
    await _chunks(http_request, route.largest_body, body.extend)
    return bytes(body)


async def _spool(http_request: web.Request, route: Route, file: BinaryIO) -> None:
    _demand_media_type(http_request, CRL_MEDIA_TYPES)
    await _chunks(http_request, route.largest_body, file.write)
    file.flush()


def _decode(body: bytes, kind: type[msgspec.Struct]) -> Any:  # noqa: ANN401 - a struct of this type
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _not_as_described(error, "body") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("malformed-request", f"the body is not JSON: {error}", hint="send one JSON object") from error


def _not_as_described(error: msgspec.ValidationError, where: str) -> Problem:
    """The field that msgspec means, as a JSON pointer: `… - at `$.changes[3].change`` is /changes/3/change."""
    text = str(error)
    found = _AT.search(text)
    path = found["path"] if found else ""
    named = _FIELD_IN_MESSAGE.search(text)
    pointer = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", path).replace(".", "/").replace("/ //", "/")
    if named:
        pointer += f"/{named['field']}"
    detail = _AT.sub("", text)
    index = re.match(r"/\w+/(\d+)(?:/|$)", pointer)
    field = pointer.rpartition("/")[2]
    said = FieldError(pointer or "/", f"{detail} ({where})", "" if field.isdigit() else field, index and int(index[1]))
    return _invalid_of(said)


def _invalid(pointer: str, field: str, detail: str) -> Problem:
    return _invalid_of(FieldError(pointer, detail, field))


def _invalid_of(error: FieldError) -> Problem:
    return Problem(
        "invalid",
        f"{error.pointer}: {error.detail}",
        hint="nothing was changed; correct this field and send the whole request again (see /openapi.json)",
        errors=[error],
    )
