"""What both clients, of OCSP and of time-stamps, share of HTTP: bounded reading, and sentences for whatever goes wrong.

Trusted: nobody. Addresses come out of certificates that are not verified yet, so only http and https are followed, and
what comes back is at most `LARGEST_BODY` octets that others verify.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp

LARGEST_BODY = 1024 * 1024


class TransportError(Exception):
    """No answer came. The message says why."""


@contextmanager
def explained(timeout_seconds: float) -> Iterator[None]:
    """Turn what aiohttp and the system raise into `TransportError` with a sentence for people."""
    try:
        yield
    except TimeoutError as error:
        raise TransportError(f"no answer within {timeout_seconds:g} s") from error
    except aiohttp.InvalidURL as error:
        raise TransportError("it is not a usable URL") from error
    except aiohttp.ClientConnectorDNSError as error:
        raise TransportError("its name cannot be found (DNS)") from error
    except aiohttp.ClientConnectorError as error:
        # asyncio puts the address into strerror, and the reader has that already.
        cause = error.os_error
        raise TransportError(f"no connection: {os.strerror(cause.errno) if cause.errno else cause}") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise TransportError(f"the connection failed: {str(error) or type(error).__name__}") from error


def check_scheme(url: str) -> None:
    """Raise `TransportError` for anything but http and https."""
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise TransportError("only http:// and https:// can be asked")


def refuse_redirect(reply: aiohttp.ClientResponse) -> None:
    """Raise `TransportError` when the server sends elsewhere."""
    if HTTPStatus.MULTIPLE_CHOICES <= reply.status < HTTPStatus.BAD_REQUEST:
        to = reply.headers.get("Location", "nowhere")
        raise TransportError(f"it sends elsewhere, to {to}: ask there with --url, if you trust it")


async def read(reply: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises `TransportError` when it is longer than `LARGEST_BODY`."""
    octets = bytearray()
    async for chunk in reply.content.iter_any():
        octets += chunk
        if len(octets) > LARGEST_BODY:
            raise TransportError(f"it sends more than {LARGEST_BODY} octets")
    return bytes(octets)


def media_type_of(reply: aiohttp.ClientResponse) -> str:
    """The Content-Type without parameters, in lower case; empty when there is none."""
    return reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def http_words(status: int) -> str:
    """`404 Not Found`."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
