"""EJBCA's Cert Safe Publisher at the registry: what its queue sends, in what order and how often it likes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lakthan_registry.ejbca import revocation_time
from support.pki import Issued, issue
from support.registry import JSONReply, Registry, new_client, pem, running_registry, serial

PATH = "/ejbca/cert-safe"
# What java.text.SimpleDateFormat makes of "no date", which EJBCA keeps as -1 milliseconds.
NO_DATE = "1969-12-31 23:59:59 UTC"


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry for EJBCA, which knows client certificates only."""
    async with running_registry(database_url, tmp_path) as running:
        yield running


@pytest.fixture
async def ejbca(registry: Registry) -> Issued:
    """EJBCA's client certificate, bound to CA A."""
    certificate = new_client(registry.clients, "ejbca")
    await registry.bind("ejbca", certificate)
    return certificate


async def send(
    registry: Registry,
    ejbca: Issued,
    certificate: Issued,
    status: str,
    reason: str | None = None,
    *,
    date: str = NO_DATE,
) -> JSONReply:
    """One message, as the publisher builds it; the reason is null for cACompromise, for which EJBCA has no word."""
    body: dict[str, object] = {"status": status, "revocationDate": date, "pem": pem(certificate)}
    if status == "revoked":
        body["revocationReason"] = reason
    return await registry.ask("POST", PATH, who=None, certificate=ejbca, body=body)


async def test_the_life_of_a_certificate(registry: Registry, ejbca: Issued) -> None:
    """Issued, suspended, released, revoked; each message comes twice, and the second time changes nothing."""
    alice = issue("alice", registry.a)
    known: dict[str, object] = {}
    for status, reason, result, on_record in (
        ("active", None, "issued", "good"),
        ("revoked", "certificateHold", "held", "held"),
        ("active", None, "released", "good"),
        ("hold", None, "held", "held"),
        ("revoked", "removeFromCrl", "released", "good"),
        ("revoked", "keyCompromise", "revoked", "revoked"),
    ):
        for expected in (result, "unchanged"):
            reply = await send(registry, ejbca, alice, status, reason, date="2026-01-02 03:04:05 ICT")
            assert (reply.http_status, reply.json["result"]) == (200, expected), status
        known = (await registry.get(f"/v1/certificates/{serial(alice)}")).json
        assert known["cert_status"] == on_record
    assert known["revocation_reason"] == "keyCompromise"
    assert known["revocation_time"] == "2026-01-01T20:04:05Z"
    history = (await registry.get(f"/v1/certificates/{serial(alice)}/history")).json["events"]
    assert len(history) == 6
    assert {(each["actor"], each["through"]) for each in history} == {("ejbca", "api certificate")}


@pytest.mark.parametrize(
    ("reason", "recorded"),
    [
        ("unspecified", "unspecified"),
        ("aaComprimise", "aACompromise"),
        ("cessationOfOperation", "cessationOfOperation"),
        ("privilegeWithdrawn", "privilegeWithdrawn"),
        ("REV_UNUSED", None),
        (None, None),
    ],
)
async def test_spellings_of_reasons(
    registry: Registry, ejbca: Issued, reason: str | None, recorded: str | None
) -> None:
    """EJBCA's spellings are understood, its misspelling too; without a word a certificate is revoked all the same."""
    alice = issue("alice", registry.a)
    assert (await send(registry, ejbca, alice, "revoked", reason)).json["result"] == "revoked"
    known = (await registry.get(f"/v1/certificates/{serial(alice)}")).json
    assert (known["cert_status"], known["revocation_reason"]) == ("revoked", recorded)
    assert known["not_after"] is not None


async def test_a_suspension_of_an_unknown_certificate(registry: Registry, ejbca: Issued) -> None:
    """When the message about the issuance was lost, the suspension announces the certificate as well."""
    alice = issue("alice", registry.a)
    assert (await send(registry, ejbca, alice, "revoked", "certificateHold")).json["result"] == "held"
    events = (await registry.get(f"/v1/certificates/{serial(alice)}/history")).json["events"]
    assert [each["change"] for each in events] == ["issue", "hold"]
    assert (await registry.get(f"/v1/certificates/{serial(alice)}")).json["cert_status"] == "held"


async def test_a_revocation_is_final(registry: Registry, ejbca: Issued) -> None:
    """`active` for a revoked certificate is refused and on record; EJBCA finds the reason in `error`."""
    alice = issue("alice" + "ກ" * 18, registry.a)
    await send(registry, ejbca, alice, "revoked", "keyCompromise")
    before = await registry.state()
    for status, reason in (("active", None), ("hold", None), ("revoked", "certificateHold")):
        reply = await send(registry, ejbca, alice, status, reason)
        assert (reply.http_status, reply.problem) == (409, "conflict")
        assert "a revocation is final" in reply.json["error"]
        assert len(reply.body) < 1024
    assert await registry.state() == before
    assert len(await registry.refusals(registry.a_id)) == 3


async def test_an_archived_certificate(registry: Registry, ejbca: Issued) -> None:
    """`expired` says nothing new about a status."""
    alice = issue("alice", registry.a)
    await send(registry, ejbca, alice, "active")
    before = await registry.state()
    assert (await send(registry, ejbca, alice, "expired")).json["result"] == "unchanged"
    assert await registry.state() == before


async def test_refusals_are_short(registry: Registry, ejbca: Issued) -> None:
    """Another CA's certificate, an unknown reason, noise: `error` says why, in what EJBCA reads."""
    foreign, alice = issue("bob" + "ຂ" * 18, registry.b), issue("alice", registry.a)
    replies = [
        await send(registry, ejbca, foreign, "active"),
        await send(registry, ejbca, alice, "revoked", "lost" * 200),
        await registry.ask("POST", PATH, who=None, certificate=ejbca, body={"status": "active", "pem": "x" * 3000}),
        await registry.ask("POST", PATH, who=None, body={}),
    ]
    assert [reply.problem for reply in replies] == ["wrong-authority", "invalid", "invalid", "unauthenticated"]
    for reply in replies:
        assert len(reply.body) < 1024
        assert reply.json["error"]


async def test_the_test_of_the_connection(registry: Registry, ejbca: Issued) -> None:
    """EJBCA's button "Save and Test Connection" sends a GET and wants 200."""
    assert (await registry.ask("GET", PATH, who=None, certificate=ejbca)).http_status == 200
    assert (await registry.ask("GET", PATH, who=None)).http_status == 401


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2018-11-05 17:13:19 UTC", "2018-11-05T17:13:19"),
        ("2018-11-05 17:13:19 ICT", "2018-11-05T10:13:19"),
        ("2018-11-05 17:13:19 GMT-03:30", "2018-11-05T20:43:19"),
        ("2018-11-05 17:13:19 CET", None),
        ("2018-13-05 17:13:19 UTC", None),
        ("0001-01-01 00:00:00 GMT+14:00", None),
        (NO_DATE, None),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_revocation_dates(text: str | None, instant: str | None) -> None:
    """A date with a zone that is clear is taken; any other is left to the moment of the message."""
    expected = None if instant is None else datetime.fromisoformat(f"{instant}+00:00")
    assert revocation_time(text, datetime(2026, 1, 1, tzinfo=UTC)) == expected


def test_a_date_ahead_of_our_clock() -> None:
    """EJBCA's clock may be ahead: what it says is never later than now."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert revocation_time(f"{now + timedelta(seconds=9):%Y-%m-%d %H:%M:%S} UTC", now) == now
