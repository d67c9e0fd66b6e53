"""Which request heads the wire understands fully; every other one is aiohttp's business.

A head is understood when nothing in it could change the meaning of the request or the shape of its answer: HTTP/1.1,
one Host, a plain target, a decimal Content-Length for POST and none for GET, and else only fields that the services
never look at. `Expect`, `Transfer-Encoding`, `Upgrade`, conditions, credentials, a field twice, a field that is not on
the list, or anything that is not exactly RFC 9112's grammar: not understood. To be wrong in that direction costs
microseconds; in the other direction it would be request smuggling.

Clients send the same head again and again, so what was found is remembered under the exact octets, in tables that are
bounded: when one is full, its oldest eighth goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple, TypeVar

# Lower case. Fields whose presence changes nothing here; services may read them, `content-type` for one.
HARMLESS = frozenset(
    {
        b"accept",
        b"accept-charset",
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"connection",
        b"content-length",
        b"content-type",
        b"dnt",
        b"forwarded",
        b"from",
        b"host",
        b"if-modified-since",
        b"origin",
        b"pragma",
        b"priority",
        b"referer",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)
# A head that is longer goes to aiohttp, which has limits of its own; so the tables stay within a few megabytes.
LARGEST_FIELDS = 1024
LARGEST_TARGET = 8000
END_OF_GET_LINE = b" HTTP/1.1\r\n"
_MOST_REMEMBERED = 4096

# RFC 9110 §5.1 and §5.5, and of the values only visible ASCII, blanks between.
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[\x21-\x7e](?:[ \t]*[\x21-\x7e])*)?)[ \t]*")
_HOST = re.compile(rb"[0-9A-Za-z.\-_:\[\]]+")
_LENGTH = re.compile(rb"[0-9]{1,9}")
# Origin form only, and no fragment: what else is allowed in a target is for aiohttp to read.
_TARGET = re.compile(rb"/[0-9A-Za-z/+=%\-_.~?&]*")
_POST_LINE = re.compile(rb"POST (/[0-9A-Za-z/+=%\-_.~?&]*) HTTP/1\.1")


class Head(NamedTuple):
    """The head of a POST that was understood. `fields`: by their names in lower case."""

    target: bytes
    content_length: int
    fields: Mapping[bytes, bytes]

    @property
    def closes(self) -> bool:
        """True when the client wants no other answer on this connection."""
        return closes(self.fields)


def is_plain_target(target: bytes) -> bool:
    """True for a request target in origin form that means the same to everybody."""
    return len(target) <= LARGEST_TARGET and _TARGET.fullmatch(target) is not None


def read_post_head(head: bytes) -> Head | None:
    """A POST's head, up to and with the empty line, if it is understood."""
    line, _, rest = head.partition(b"\r\n")
    target = _POST_LINE.fullmatch(line)
    fields = read_fields(rest)
    if target is None or fields is None:
        return None
    length = fields.get(b"content-length", b"")
    if _LENGTH.fullmatch(length) is None:
        return None
    return Head(target[1], int(length), fields)


def closes(fields: Mapping[bytes, bytes]) -> bool:
    """True when the client wants no other answer on this connection (RFC 9112 §9.6)."""
    return fields.get(b"connection", b"").lower() == b"close"


def read_get_fields(octets: bytes) -> Mapping[bytes, bytes] | None:
    """The fields of a GET, up to and with the empty line, if they are understood and no body follows."""
    fields = read_fields(octets)
    return None if fields is None or b"content-length" in fields else fields


def read_fields(octets: bytes) -> Mapping[bytes, bytes] | None:
    """The fields between the request line and the empty line at the end, if all of them are understood."""
    if len(octets) > LARGEST_FIELDS or not octets.endswith(b"\r\n\r\n"):
        return None
    fields: dict[bytes, bytes] = {}
    for line in octets[:-4].split(b"\r\n"):
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name = field[1].lower()
        if name in fields or name not in HARMLESS:
            return None
        fields[name] = field[2]
    if _HOST.fullmatch(fields.get(b"host", b"")) is None:
        return None
    if fields.get(b"connection", b"keep-alive").lower() not in (b"keep-alive", b"close"):
        return None
    return fields


_Known = TypeVar("_Known")


def forget_oldest(table: dict[bytes, _Known], most: int = _MOST_REMEMBERED) -> None:
    """Make room in a full table: drop its oldest eighth."""
    if len(table) >= most:
        for key in list(islice(table, max(1, most // 8))):
            del table[key]
