"""The heads of responses, in octets, exactly as aiohttp would write them.

A response of the short way is three pieces: what `response_head` gives, which does not change and can be kept; then
`date_and_server`, which changes every second; then the body.
"""

from __future__ import annotations

import time
from email.utils import formatdate

from aiohttp.http import SERVER_SOFTWARE

# The end of the head of an answer after which there is no other: the field that aiohttp would add, where it would stand
# (RFC 9112 §9.6).
LAST = b"\r\nConnection: close\r\n\r\n"


def response_head(status_line: bytes, fields: bytes, content_length: int) -> bytes:
    """Everything of a response before `Date`, in the order in which aiohttp writes: fields end with CRLF each."""
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n" % (status_line, fields, content_length)


class _Clock:
    """The two header fields that every response ends with, and the empty line; made once a second."""

    __slots__ = ("_octets", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._octets = b""

    def __call__(self, now_seconds: float | None = None) -> bytes:
        """`Date` and `Server` as aiohttp writes them. `now_seconds`: since the epoch, if the caller knows."""
        second = int(time.time() if now_seconds is None else now_seconds)
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True)
            self._octets = f"Date: {date}\r\nServer: {SERVER_SOFTWARE}\r\n\r\n".encode("ascii")
        return self._octets


date_and_server = _Clock()
