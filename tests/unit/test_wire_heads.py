"""Which request heads the wire takes upon itself, and which it leaves to aiohttp."""

from __future__ import annotations

import pytest

from lakthan.web.wire_heads import forget_oldest, is_plain_target, read_get_fields, read_post_head

PLAIN = b"Host: ocsp.example\r\nUser-Agent: a client/1.0 (x; y)\r\nAccept: */*\r\nConnection: Keep-Alive\r\n\r\n"


def post(*fields: bytes, line: bytes = b"POST / HTTP/1.1") -> bytes:
    """A head."""
    return b"".join(each + b"\r\n" for each in (line, *fields, b""))


def test_a_plain_post_is_understood() -> None:
    """Target, length and fields are read; names in any case, blanks around values do not count."""
    head = read_post_head(post(b"hOST: a", b"content-length:   17 ", b"Content-Type: application/ocsp-request"))
    assert head is not None
    assert (head.target, head.content_length) == (b"/", 17)
    assert head.fields[b"content-type"] == b"application/ocsp-request"


@pytest.mark.parametrize(
    "fields",
    [
        [b"Host: a"],  # no length
        [b"Content-Length: 1"],  # no host
        [b"Host: a", b"Host: a", b"Content-Length: 1"],
        [b"Host: a", b"Content-Length: 1", b"Content-Length: 1"],
        [b"Host: a", b"Content-Length: 1", b"Content-Length: 2"],
        [b"Host: a", b"Content-Length: +1"],
        [b"Host: a", b"Content-Length: 1, 1"],
        [b"Host: a", b"Content-Length: 0x1"],
        [b"Host: a", b"Content-Length: -1"],
        [b"Host: a", b"Content-Length: 9999999999"],
        [b"Host: a", b"Content-Length: 1", b"Transfer-Encoding: chunked"],
        [b"Host: a", b"Content-Length: 1", b"Expect: 100-continue"],
        [b"Host: a", b"Content-Length: 1", b"Upgrade: h2c"],
        [b"Host: a", b"Content-Length: 1", b"Connection: close, upgrade"],
        [b"Host: a", b"Content-Length: 1", b"Connection: keep-alive, upgrade"],
        [b"Host: a", b"Content-Length: 1", b"Authorization: Basic eA=="],
        [b"Host: a", b"Content-Length: 1", b"If-None-Match: x"],
        [b"Host: a", b"Content-Length: 1", b"X-Unheard-Of: x"],
        [b"Host: a", b"Content-Length : 1"],
        [b"Host: a", b" Content-Length: 1"],
        [b"Host: a", b"Content-Length: 1", b"Accept: a", b" folded"],
        [b"Host: a", b"Content-Length: 1", b"Accept: a\rb"],
        [b"Host: a", b"Content-Length: 1", b"Accept: a\nTransfer-Encoding: chunked"],
        [b"Host: a", b"Content-Length: 1", b"Accept: a\x00b"],
        [b"Host: a", b"Content-Length: 1", b"Accept: \xe9"],
        [b"Host: a b", b"Content-Length: 1"],
        [b"Host:", b"Content-Length: 1"],
        [b"Host: a", b"Content-Length: 1", b"Accept"],
        [b"Host: a", b"Content-Length: 1", b"Accept: " + b"x" * 2000],
    ],
)
def test_everything_doubtful_is_left_to_aiohttp(fields: list[bytes]) -> None:
    """Whatever could be read in two ways, or changes the answer, is not understood."""
    assert read_post_head(post(*fields)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"POST / HTTP/1.0",
        b"POST / HTTP/2",
        b"POST  / HTTP/1.1",
        b"POST http://a/ HTTP/1.1",
        b"POST * HTTP/1.1",
        b"POST /a b HTTP/1.1",
        b"POST /# HTTP/1.1",
        b"post / HTTP/1.1",
        b"POST / HTTP/1.1 ",
    ],
)
def test_other_request_lines(line: bytes) -> None:
    """Other versions, forms of target and spellings are not understood."""
    assert read_post_head(post(b"Host: a", b"Content-Length: 1", line=line)) is None


def test_gets() -> None:
    """A GET has no body; a second request behind it is not part of its fields."""
    assert read_get_fields(PLAIN) is not None
    assert read_get_fields(b"Content-Length: 0\r\n" + PLAIN) is None
    assert read_get_fields(PLAIN + b"GET / HTTP/1.1\r\n" + PLAIN) is None
    assert read_get_fields(PLAIN[:-2]) is None


@pytest.mark.parametrize(("connection", "last"), [(b"close", True), (b"Close", True), (b"keep-alive", False)])
def test_the_last_request_of_a_connection(connection: bytes, *, last: bool) -> None:
    """A client that wants the connection closed after the answer is understood."""
    head = read_post_head(post(b"Host: a", b"Content-Length: 1", b"Connection: " + connection))
    assert head is not None
    assert head.closes is last


@pytest.mark.parametrize(
    ("target", "plain"), [(b"/MFQ%2B+/=-_", True), (b"/", True), (b"", False), (b"/a b", False), (b"/\xff", False)]
)
def test_targets(target: bytes, *, plain: bool) -> None:
    """What base64 in a path is made of is plain; blanks and other octets are not."""
    assert is_plain_target(target) is plain


def test_the_tables_are_bounded() -> None:
    """A full table loses its oldest eighth, and no more."""
    table = {bytes((number,)): number for number in range(16)}
    forget_oldest(table, 17)
    assert len(table) == 16
    forget_oldest(table, 16)
    assert list(table.values()) == list(range(2, 16))
