"""Hostile requests by the thousand: the parser and the whole service keep their word for all of them.

`./run fuzz --requests 1000000` does the same for longer.
"""

from __future__ import annotations

import collections
import random
from pathlib import Path

import pytest

from lakthan import der
from lakthan_ocsp.syntax import RequestError, parse_request
from support.differ import UNEXPLAINED, difference, ours
from support.fuzz import Client, Findings, campaign, http_message, target
from support.judge import LABELS, MEDIA_TYPE, UNKNOWN, HTTPReply, Judge, Wrong
from support.mutate import Mutator, Named, extension, honest_requests, nonce, request

NONCE, LOCATOR, PREFERRED = (f"1.3.6.1.5.5.7.48.1.{number}" for number in (2, 7, 8))
CA = Named(der.sequence(), b"a key")
HONEST = honest_requests([CA, Named(der.sequence(), b"another key")], [b"\x05", b"\x06" * 16])


@pytest.mark.parametrize("seed", [1, 2])
def test_the_parser_keeps_its_word(seed: int) -> None:
    """OCSP-1: ten thousand hostile requests give a request or malformedRequest, and nothing else is ever raised.

    What a request quotes is in the octets that came: a CertID is never made up.
    """
    mutator = Mutator(HONEST, seed)
    seen: collections.Counter[str] = collections.Counter()
    for _ in range(10_000):
        octets = mutator.next()
        try:
            parsed = parse_request(octets, max_cert_ids=50)
        except RequestError as error:
            seen[error.status.label] += 1
            continue
        seen["request"] += 1
        assert 1 <= len(parsed.cert_ids) <= 50
        assert all(cert_id.encoded in octets and cert_id.serial_number for cert_id in parsed.cert_ids)
        assert parsed.nonce is None or parsed.nonce in octets
    assert set(seen) == {"request", "malformedRequest"}
    assert min(seen.values()) > 1000


def test_three_readers_disagree_for_known_reasons_only() -> None:
    """Where ours, asn1crypto and pyca judge a request differently, there is a decision of ours that explains it."""
    mutator = Mutator(HONEST, 3)
    reasons = collections.Counter(difference(mutator.next()) for _ in range(3000))
    assert [reason for reason in reasons if reason and reason.startswith(UNEXPLAINED)] == []
    assert reasons[None] > 2000


def test_an_extension_that_is_used_is_read_to_its_end() -> None:
    """Octets after the preferred algorithms are malformed here; two others pass over them, and that has its reason."""
    value = der.sequence(der.sequence(der.sequence(der.object_identifier("1.2.840.10045.4.3.2")))) + der.sequence()
    octets = request(CA.cert_id(b"\x05"), extensions=[extension(PREFERRED, value)])
    assert "octets too many" in ours(octets)
    assert "to their end" in (difference(octets) or "")


async def test_the_service_keeps_its_word(database_url: str, tmp_path: Path) -> None:
    """OCSP-9, OCSP-Q21: six thousand hostile requests over HTTP, and each reply is a refusal or says what is on record.

    No answer is about another CertID than the one that was sent, none is *good* without an announcement, none has
    another nonce, and no warning is logged, because a hostile request is nothing unusual.
    """
    async with target(database_url, tmp_path) as at:
        findings = await campaign(at, 6000, seed=4, compare_every=10_000)
    assert findings.faults() == []
    assert sum(findings.replies.values()) == 6000
    assert {"good", "revoked", "unknown", "malformedRequest", "unauthorized"} <= set(findings.replies)
    assert findings.verified == 30


async def test_what_is_no_use_here_costs_nobody_the_answer(database_url: str, tmp_path: Path) -> None:
    """A client that signs, names itself, wants its request forwarded, prefers an algorithm or sends extensions that
    nobody knows gets the status all the same; so do those who write the nonce, the version or the number in their way.

    OCSP-4, OCSP-5, OCSP-6, OCSP-18, OCSP-31, OCSP-38, OCSP-Q22, OCSP-Q25, OCSP-Q30, OCSP-Q35, OCSP-Q36.
    """
    async with target(database_url, tmp_path) as at:
        ca, good = at.issuers[0], b"\x05"
        named = der.encode(0xA1, der.encode(0xA4, ca.subject))
        algorithm = der.sequence(der.object_identifier("1.2.840.10045.4.3.2"))
        certs = der.encode(0xA0, der.sequence(der.sequence(der.integer(1))))
        signed = der.encode(0xA0, der.sequence(algorithm, der.bit_string(bytes(70)), certs))
        cert_id = ca.cert_id(good)
        requests = [
            request(cert_id, before=named),
            request(cert_id, before=named, after=signed),
            request(cert_id, before=der.encode(0xA0, der.integer(0))),
            request(cert_id, extensions=[extension(LOCATOR, der.sequence(ca.subject, der.sequence()))]),
            request(cert_id, extensions=[extension(PREFERRED, der.sequence(der.sequence(algorithm)))]),
            request(cert_id, extensions=[extension("1.3.6.1.4.1.55555.1", b"anything")]),
            request(cert_id, extensions=[extension(NONCE, b"a bare nonce")]),
            request(cert_id, single=[nonce(bytes(32))]),
            request(ca.cert_id(good, null=True)),
            request(ca.cert_id(b"\x00\x00" + good)),
        ]
        client = Client(at.port)
        said = [at.judge.judge(each, await client.send(http_message(each, random.Random(1)))) for each in requests]
        await client.close()
    assert said == ["good"] * len(requests)


def test_one_seed_gives_one_sequence() -> None:
    """A finding can be repeated: the same seed makes the same requests, another makes others."""
    one, again, other = Mutator(HONEST, 7), Mutator(HONEST, 7), Mutator(HONEST, 8)
    sequence = [one.next() for _ in range(100)]
    assert [again.next() for _ in range(100)] == sequence
    assert [other.next() for _ in range(100)] != sequence


@pytest.mark.parametrize(
    ("status", "media_type", "body", "fault"),
    [
        (500, "text/plain", b"", "HTTP status 500"),
        (200, "text/html", b"", "with text/html"),
        (200, MEDIA_TYPE, b"", "not DER"),
        (200, MEDIA_TYPE, bytes.fromhex("30030a0104"), "more in it than its status"),
        (200, MEDIA_TYPE, bytes.fromhex("30030a0101"), "understood got malformedRequest"),
        (200, MEDIA_TYPE, bytes.fromhex("30030a0102"), "understood got internalError"),
        (200, MEDIA_TYPE, bytes.fromhex("30030a010600"), "octets too many"),
    ],
)
def test_the_judge_can_be_displeased(status: int, media_type: str, body: bytes, fault: str) -> None:
    """The checks above can fail: each kind of wrong reply is called wrong."""
    with pytest.raises(Wrong, match=fault):
        Judge({}, {}).judge(HONEST[0], HTTPReply(status, media_type, body))
    assert LABELS[UNKNOWN] == "unknown"


def test_growing_memory_and_logged_lines_are_faults() -> None:
    """A campaign that saw nothing wrong in the replies still fails when memory grew or something was logged."""
    grown = Findings(memory_mib=[100.0, 110.0, 120.0, 130.0, 190.0], logged=["error: x"])
    assert grown.growth_mib == 70.0
    assert len(grown.faults()) == 2
    assert Findings(memory_mib=[100.0, 120.0, 120.0, 121.0]).faults() == []
