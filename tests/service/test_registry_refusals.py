"""The registry's "no": each refusal is clear, changes nothing, and is found in the audit of the authority concerned."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lakthan.store.records import CredentialRole
from support.pki import Issued, issue, new_ca, with_unknown_signature
from support.registry import ALL_SCOPES, JSONReply, Registry, pem, running_registry, serial

TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()
UNKNOWN = "lak_" + "A" * 43


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry with a good certificate of each CA."""
    async with running_registry(database_url, tmp_path) as running:
        yield running


@dataclass(frozen=True)
class World:
    """The registry and what is on record before the refusal."""

    registry: Registry
    alice: Issued
    bob: Issued

    async def changes(self, *changes: dict[str, object], who: str = "a", key: str | None = None) -> JSONReply:
        """POST /v1/changes."""
        return await self.registry.post("/v1/changes", {"changes": list(changes)}, who=who, key=key)


@pytest.fixture
async def world(registry: Registry) -> World:
    """Alice is CA A's, Bob is CA B's; both are good."""
    alice, bob = issue("alice", registry.a), issue("bob", registry.b)
    for who, certificate in (("a", alice), ("b", bob)):
        reply = await registry.post(
            "/v1/changes", {"changes": [{"change": "issue", "certificate": pem(certificate)}]}, who=who
        )
        assert reply.http_status == 200
    return World(registry, alice, bob)


Ask = Callable[[World], Awaitable[JSONReply]]


@dataclass(frozen=True)
class Case:
    """A request and its refusal. `says`: in the detail. `chain`: where it is on record; None for nowhere."""

    name: str
    ask: Ask
    status: int
    problem: str
    says: str = ""
    chain: str | None = "a"


def revoke(certificate: Issued, **more: object) -> dict[str, object]:
    """A change."""
    return {"change": "revoke", "certificate": pem(certificate)} | more


def by_serial(certificate: Issued, **more: object) -> dict[str, object]:
    """A change that names the serial number only."""
    return {"change": "revoke", "serial_number": serial(certificate)} | more


def many(number: int) -> list[dict[str, object]]:
    """So many certificates that nobody knows, announced."""
    return [{"change": "issue", "serial_number": f"{0x100 + n:X}"} for n in range(number)]


ISOLATION = [
    Case(
        "B's certificate", lambda w: w.changes(revoke(w.bob)), 403, "wrong-authority", "not by a key of the authority"
    ),
    Case(
        "B's certificate among A's",
        lambda w: w.changes(revoke(w.alice), revoke(w.bob)),
        403,
        "wrong-authority",
        "/changes/1/certificate",
    ),
    Case("B by name", lambda w: w.changes(by_serial(w.bob, authority="ca-b")), 403, "wrong-authority", "ca-b is not"),
    Case(
        "single call for B by name",
        lambda w: w.registry.post(f"/v1/certificates/{serial(w.bob)}/revoke", {"authority": "ca-b"}),
        403,
        "wrong-authority",
    ),
    Case(
        "reading B's status",
        lambda w: w.registry.get(f"/v1/certificates/{serial(w.bob)}?authority=ca-b"),
        403,
        "wrong-authority",
    ),
    Case(
        "reading B's history",
        lambda w: w.registry.get(f"/v1/certificates/{serial(w.bob)}/history?authority=ca-b"),
        403,
        "wrong-authority",
    ),
    Case(
        "holding B's serial number, which A never issued",
        lambda w: w.changes({"change": "hold", "serial_number": serial(w.bob)}),
        409,
        "conflict",
        "not on record",
    ),
    Case(
        "B by EJBCA",
        lambda w: w.registry.post("/ejbca/cert-safe", {"status": "revoked", "pem": pem(w.bob)}),
        403,
        "wrong-authority",
    ),
]

ROLES = [
    Case("A makes a credential", lambda w: w.registry.post("/v1/credentials", {}), 403, "wrong-role"),
    Case("A adds an authority", lambda w: w.registry.post("/v1/authorities", {}), 403, "wrong-role"),
    Case("A reads the audit", lambda w: w.registry.get("/v1/audit"), 403, "wrong-role"),
    Case(
        "the registrar revokes a certificate",
        lambda w: w.changes(revoke(w.alice), who="registrar"),
        403,
        "wrong-role",
        chain="none",
    ),
    Case(
        "the auditor revokes a certificate",
        lambda w: w.changes(revoke(w.alice), who="auditor"),
        403,
        "wrong-role",
        chain="none",
    ),
    Case(
        "the auditor makes a credential",
        lambda w: w.registry.post("/v1/credentials", {}, who="auditor"),
        403,
        "wrong-role",
        chain="none",
    ),
    Case(
        "the registrar reads the audit",
        lambda w: w.registry.get("/v1/audit", who="registrar"),
        403,
        "wrong-role",
        chain="none",
    ),
]


async def _with_scopes(world: World, *scopes: str) -> str:
    await world.registry.token("narrow", CredentialRole.PUBLISHER, authority_id=world.registry.a_id, scopes=scopes)
    return "narrow"


async def _only_read(world: World) -> JSONReply:
    return await world.changes(revoke(world.alice), who=await _with_scopes(world, "read"))


async def _only_issue(world: World) -> JSONReply:
    new = issue("carol", world.registry.a)
    who = await _with_scopes(world, "issue")
    return await world.changes({"change": "issue", "certificate": pem(new)}, revoke(world.alice), who=who)


async def _no_read(world: World) -> JSONReply:
    who = await _with_scopes(world, "issue")
    return await world.registry.get(f"/v1/certificates/{serial(world.alice)}", who=who)


async def _no_crl(world: World) -> JSONReply:
    who = await _with_scopes(world, "revoke")
    return await world.registry.ask(
        "POST", "/v1/crls", who=who, raw=b"x", headers={"Content-Type": "application/pkix-crl"}
    )


async def _expired(world: World) -> JSONReply:
    soon = datetime.now(UTC) + timedelta(milliseconds=300)
    await world.registry.token(
        "short", CredentialRole.PUBLISHER, authority_id=world.registry.a_id, scopes=ALL_SCOPES, expires_at=soon
    )
    while datetime.now(UTC) < soon:
        await world.registry.get("/v1/identity", who="auditor")
    return await world.changes(revoke(world.alice), who="short")


async def _revoked(world: World) -> JSONReply:
    await world.registry.token("lost", CredentialRole.PUBLISHER, authority_id=world.registry.a_id, scopes=ALL_SCOPES)
    assert (await world.registry.ask("DELETE", "/v1/credentials/lost", who="registrar")).http_status == 204
    return await world.changes(revoke(world.alice), who="lost")


CREDENTIALS = [
    Case("a token that may only read", _only_read, 403, "wrong-scope", "may read, and this needs revoke"),
    Case("one change beyond the scope", _only_issue, 403, "wrong-scope", "needs revoke"),
    Case("reading without the scope", _no_read, 403, "wrong-scope", "needs read"),
    Case("a CRL without the scope", _no_crl, 403, "wrong-scope", "needs crl"),
    Case("an expired token", _expired, 403, "credential-expired", "short expired at"),
    Case("a revoked token", _revoked, 403, "credential-revoked", "lost was revoked"),
    Case("no token", lambda w: w.changes(revoke(w.alice), who=""), 401, "unauthenticated", chain="none"),
    Case("an unknown token", lambda w: w.changes(revoke(w.alice), who=UNKNOWN), 401, "unauthenticated", chain="none"),
    Case(
        "no token at all", lambda w: w.registry.post("/v1/changes", {}, who=None), 401, "unauthenticated", chain="none"
    ),
]

_BROKEN = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def _two(world: World) -> str:
    return pem(world.alice) + pem(world.alice)


MALFORMED = [
    Case(
        "a malformed PEM",
        lambda w: w.changes(revoke(w.alice), {"change": "revoke", "certificate": _BROKEN}),
        422,
        "invalid",
        "/changes/1/certificate: this is no certificate that can be read",
    ),
    Case(
        "neither PEM nor base64",
        lambda w: w.changes({"change": "revoke", "certificate": "~"}),
        422,
        "invalid",
        "neither PEM nor base64",
    ),
    Case(
        "two certificates in one field",
        lambda w: w.changes({"change": "revoke", "certificate": _two(w)}),
        422,
        "invalid",
        "2 certificates in one field",
    ),
    Case(
        "a certificate with a signature of an unknown kind",
        lambda w: w.changes(
            {"change": "revoke", "certificate": base64.b64encode(with_unknown_signature(w.alice)).decode()}
        ),
        403,
        "wrong-authority",
        "not by a key of the authority",
    ),
    Case(
        "a line break behind the serial number",
        lambda w: w.changes({"change": "revoke", "serial_number": f"{serial(w.alice)}\n"}),
        422,
        "invalid",
        "/changes/0/serial_number",
    ),
    Case(
        "an authority whose name turns the direction of the text",
        lambda w: w.changes(revoke(w.alice, authority="ca-\u202ea")),
        422,
        "invalid",
        "/changes/0/authority",
    ),
    Case(
        "a line break behind the authority",
        lambda w: w.changes(revoke(w.alice, authority="ca-a\n")),
        422,
        "invalid",
        "/changes/0/authority",
    ),
    Case("no certificate", lambda w: w.changes({"change": "revoke"}), 422, "invalid", "say which certificate"),
    Case(
        "a serial number that is none",
        lambda w: w.changes({"change": "revoke", "serial_number": "12 34"}),
        422,
        "invalid",
        "/changes/0/serial_number",
    ),
    Case(
        "a serial number in the path that is none",
        lambda w: w.registry.post("/v1/certificates/hello/revoke", {}),
        422,
        "invalid",
        "is no serial number",
    ),
    Case(
        "an unknown field",
        lambda w: w.changes(revoke(w.alice), by_serial(w.alice, reason="keyCompromise")),
        422,
        "invalid",
        "/changes/1/reason",
    ),
    Case(
        "an unknown reason",
        lambda w: w.changes(revoke(w.alice, revocation_reason="lost")),
        422,
        "invalid",
        "/changes/0/revocation_reason",
    ),
    Case(
        "a reason with a hold",
        lambda w: w.changes({"change": "hold", "certificate": pem(w.alice), "revocation_reason": "superseded"}),
        422,
        "invalid",
        "a hold is always certificateHold",
    ),
    Case(
        "a revocation in the future",
        lambda w: w.changes(revoke(w.alice, revocation_time=TOMORROW)),
        422,
        "invalid",
        "lies in the future",
    ),
    Case(
        "a time without an offset",
        lambda w: w.changes(revoke(w.alice, revocation_time="2026-01-01T00:00:00")),
        422,
        "invalid",
        "/changes/0/revocation_time",
    ),
    Case(
        "a certificate and another serial number",
        lambda w: w.changes(revoke(w.alice, serial_number="01")),
        422,
        "invalid",
        "/changes/0/serial_number: the certificate says otherwise",
    ),
    Case("an unknown change", lambda w: w.changes({"change": "delete"}), 422, "invalid", "/changes/0/change"),
    Case("no changes", lambda w: w.changes(), 422, "invalid", "/changes"),
    Case(
        "10,001 changes",
        lambda w: w.changes(*many(10_001)),
        422,
        "invalid",
        "10001 changes, and one request may hold 10000",
    ),
    Case(
        "the same certificate twice",
        lambda w: w.changes(revoke(w.alice), {"change": "revoke", "serial_number": "77"}, by_serial(w.alice)),
        422,
        "duplicate-serials",
    ),
    Case(
        "not JSON",
        lambda w: w.registry.ask("POST", "/v1/changes", raw=b"{"),
        400,
        "malformed-request",
        "not JSON",
    ),
    Case(
        "a form",
        lambda w: w.registry.ask(
            "POST", "/v1/changes", raw=b"a=b", headers={"Content-Type": "application/x-www-form-urlencoded"}
        ),
        415,
        "unsupported-media-type",
    ),
    Case(
        "an unknown query parameter",
        lambda w: w.registry.post("/v1/changes?wiat=served", {"changes": [revoke(w.alice)]}),
        422,
        "invalid",
        "wiat",
    ),
    Case(
        "an Idempotency-Key that is too long",
        lambda w: w.changes(revoke(w.alice), key="x" * 256),
        400,
        "malformed-request",
        "Idempotency-Key",
    ),
]

STATES = [
    Case(
        "holding an unknown serial number",
        lambda w: w.changes(revoke(w.alice), {"change": "hold", "serial_number": "4242"}),
        409,
        "conflict",
        "4242",
    ),
    Case(
        "releasing a good certificate",
        lambda w: w.changes({"change": "unhold", "certificate": pem(w.alice)}),
        409,
        "conflict",
        "only a held certificate",
    ),
    Case(
        "issuing with another end",
        lambda w: w.changes({"change": "issue", "serial_number": serial(w.alice), "not_after": "2030-01-01T00:00:00Z"}),
        409,
        "conflict",
        "with another notAfter",
    ),
]


@pytest.mark.parametrize(
    "case", [*ISOLATION, *ROLES, *CREDENTIALS, *MALFORMED, *STATES], ids=lambda case: case.name.replace(" ", "_")
)
async def test_refusal(world: World, case: Case) -> None:
    """Each is refused with its status, kind and reason; the store is as it was; and the refusal is on record."""
    before = await world.registry.state()
    reply = await case.ask(world)
    assert (reply.http_status, reply.problem) == (case.status, case.problem)
    assert case.says in reply.json["detail"]
    assert await world.registry.state() == before
    chain = world.registry.a_id if case.chain == "a" else 0
    found = await world.registry.refusals(chain)
    assert [each["problem"] for each in found] == [case.problem]
    assert found[0]["reason"] == reply.json["detail"][:1000]
    assert not await world.registry.refusals(world.registry.b_id)


async def test_every_finding_is_named(world: World) -> None:
    """Whoever sends a bad batch is told everything that is wrong with it at once, each with its place."""
    reply = await world.changes(
        {"change": "revoke", "certificate": _BROKEN},
        revoke(world.alice),
        {"change": "unhold", "serial_number": "0F", "revocation_reason": "superseded"},
        {"change": "revoke", "serial_number": "0E", "invalidity_date": TOMORROW},
    )
    assert [(each["index"], each["field"]) for each in reply.json["errors"]] == [
        (0, "certificate"),
        (2, "revocation_reason"),
        (3, "invalidity_date"),
    ]


async def test_the_refused_item_is_named(world: World) -> None:
    """When the database refuses one of many changes, the answer says which."""
    reply = await world.changes(*many(44), {"change": "unhold", "serial_number": serial(world.alice)})
    assert reply.problem == "conflict"
    assert [each["index"] for each in reply.json["errors"]] == [44]
    assert (await world.registry.get("/v1/certificates/0101")).http_status == 404


async def test_duplicates_are_named(world: World) -> None:
    """A batch that names a certificate twice is told which one, and where."""
    reply = await world.changes(revoke(world.alice), by_serial(world.alice))
    assert serial(world.alice) in reply.json["detail"]
    assert [each["index"] for each in reply.json["errors"]] == [0, 1]


async def test_unknown_callers_get_one_answer(world: World) -> None:
    """No token, a wrong one, one of another scheme or shape, too long or twice: nobody learns which it was."""
    answers = set()
    for authorization in ("", "Bearer x", f"Bearer {UNKNOWN}", "Basic YTpi", "Bearer " + "A" * 5000, "Bearer ຫຼັກຖານ"):
        headers = {"Authorization": authorization.encode().decode("latin-1")} if authorization else {}
        reply = await world.registry.ask("GET", "/v1/identity", who=None, headers=headers)
        assert reply.http_status == 401
        assert reply.headers["WWW-Authenticate"].startswith("Bearer")
        answers.add(reply.body)
    assert len(answers) == 1


async def test_knocking_does_not_fill_the_record(world: World) -> None:
    """Of unknown callers the first in a minute is on record; the others are counted."""
    for _ in range(5):
        await world.registry.get("/v1/identity", who=UNKNOWN)
    assert len(await world.registry.refusals(0)) == 1
    counted = await world.registry.metrics()
    assert counted['lakthan_registry_refusals_total{problem="unauthenticated"}'] == 5


async def test_a_credential_that_is_no_more_does_not_fill_the_record(world: World) -> None:
    """A token that leaked and was revoked: sixty refusals in a minute are on record, the others are counted."""
    await world.registry.token("lost", CredentialRole.PUBLISHER, authority_id=world.registry.a_id, scopes=ALL_SCOPES)
    assert (await world.registry.ask("DELETE", "/v1/credentials/lost", who="registrar")).http_status == 204
    for _ in range(65):
        assert (await world.registry.get("/v1/identity", who="lost")).problem == "credential-revoked"
    assert len(await world.registry.refusals(world.registry.a_id)) == 60
    counted = await world.registry.metrics()
    assert counted['lakthan_registry_refusals_total{problem="credential-revoked"}'] == 65
    await world.changes(revoke(world.bob))
    assert len(await world.registry.refusals(world.registry.a_id)) == 61


async def test_secrets_stay_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A token stands in no log, no metric, no answer and no record, whatever becomes of the request."""
    token = world.registry.tokens["a"]
    replies = [
        await world.changes(revoke(world.bob)),
        await world.registry.get("/v1/identity"),
        await world.registry.get(f"/v1/certificates/{token}", who="a"),
    ]
    assert not any(token.encode() in reply.body for reply in replies[:2])
    assert token not in caplog.text
    assert not any(token in name for name in await world.registry.metrics())
    assert not any(token in str(dict(each)) for each in await world.registry.audit(world.registry.a_id))


async def test_a_replayed_key(world: World) -> None:
    """The same key with the same request gives the same versions and changes nothing again; with another, a refusal."""
    key = "4f1c"
    first = await world.changes(revoke(world.alice), key=key)
    state = await world.registry.state()
    again = await world.changes(revoke(world.alice), key=key)
    assert (first.http_status, first.json) == (again.http_status, again.json)
    other = await world.changes(revoke(issue("dave", world.registry.a)), key=key)
    assert (other.http_status, other.problem) == (422, "idempotency-conflict")
    single = await world.registry.post(f"/v1/certificates/{serial(world.alice)}/revoke", {}, key=key)
    assert single.problem == "idempotency-conflict"
    assert await world.registry.state() == state
    assert [each["problem"] for each in await world.registry.refusals(world.registry.a_id)] == [
        "idempotency-conflict",
        "idempotency-conflict",
    ]


async def test_a_key_is_the_callers_own(world: World) -> None:
    """Two CAs may happen to use the same key; neither hears of the other."""
    key = "1"
    assert (await world.changes(revoke(world.alice), key=key)).http_status == 200
    assert (await world.changes(revoke(world.bob), who="b", key=key)).http_status == 200


async def test_a_foreign_certificate_of_the_same_name(world: World) -> None:
    """A certificate from a CA that only calls itself CA A is not CA A's."""
    impostor = issue("alice", new_ca("CA A"))
    reply = await world.changes(revoke(impostor))
    assert (reply.http_status, reply.problem) == (403, "wrong-authority")
