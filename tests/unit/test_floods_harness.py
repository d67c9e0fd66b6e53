"""What `./run floods` looks at can be wrong, and then it says so."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from support.floods_answers import TRY_LATER, Answer, Question, problem, refusal
from support.floods_callers import Lines
from support.floods_got import Got
from support.pki import issue, new_ca, new_responder

_NOW = datetime(2026, 11, 23, 4, 0, tzinfo=UTC)
_HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("this_update", "next_update", "other", "found"),
    [
        (-_HOUR, _HOUR, False, ""),
        (-2 * _HOUR, -_HOUR, False, "nextUpdate is over"),
        (_HOUR, 2 * _HOUR, False, "thisUpdate is in the future"),
        (-_HOUR, None, False, "without nextUpdate"),
        (-_HOUR, _HOUR, True, "another certificate"),
    ],
)
def test_answers_are_looked_at(
    this_update: timedelta, next_update: timedelta | None, found: str, *, other: bool
) -> None:
    """An answer to another question, of the future, or of yesterday is none."""
    ca = new_ca("CA")
    responder, subject, another = new_responder(ca), issue("one", ca), issue("another", ca)
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=subject.certificate,
        issuer=ca.certificate,
        algorithm=hashes.SHA256(),
        cert_status=ocsp.OCSPCertStatus.GOOD,
        this_update=_NOW + this_update,
        next_update=None if next_update is None else _NOW + next_update,
        revocation_time=None,
        revocation_reason=None,
    )
    signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder.certificate)
    body = signed.sign(responder.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    asked = another if other else subject
    question = Question("live", b"", responder.certificate, asked.certificate.serial_number)
    received = _NOW.timestamp()
    assert problem("ocsp", Answer(question, b"HTTP/1.1 200 OK", body, received, received, 0.0)) == found


@pytest.mark.parametrize(
    ("service", "status", "body", "word"),
    [
        ("ocsp", b"200", TRY_LATER, "tryLater"),
        ("ocsp", b"200", b"\x30\x03\x0a\x01\x02", "OCSP 30030a0102"),
        ("ocsp", b"503", b"", "503"),
        ("tsa", b"429", b"later", "429"),
        ("tsa", b"200", bytes(40), "systemFailure"),
        ("tsa", b"200", bytes(2000), ""),
    ],
)
def test_words_of_refusals(service: str, status: bytes, body: bytes, word: str) -> None:
    """Each by its name."""
    assert refusal(service, b"HTTP/1.1 %b\r\n\r\n" % status, body) == word


async def test_an_open_flood_does_not_wait_for_answers() -> None:
    """It offers what it should whether somebody answers or not, and counts every end of it."""

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if len(asked) % 2:
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        asked.append(writer)

    asked: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with server:
        got = Got()
        lines = Lines("ocsp", server.sockets[0].getsockname()[1], lambda: b"GET / HTTP/1.1\r\n\r\n", got)
        await lines.offer(100, 0.5)
        assert got.asked > 10
        assert got.held > 1
        assert set(got.refused) == {"503"}
        assert got.answered == 0
        assert got.open == 0
        for writer in asked:
            writer.close()
