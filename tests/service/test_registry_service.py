"""The registry at its daily work: a CA tells what became of its certificates, the overseers add and look."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan_ocsp.__main__ import serve
from support.pki import Issued, issue, new_ca, new_responder
from support.registry import JSONReply, Registry, crl_of, new_client, pem, running_registry, serial
from support.responder import OCSPReply, request_for
from support.running import running


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry with nothing on record."""
    async with running_registry(database_url, tmp_path) as running_one:
        yield running_one


async def status_of(registry: Registry, certificate: Issued) -> str:
    """What is on record now."""
    return str((await registry.get(f"/v1/certificates/{serial(certificate)}")).json["cert_status"])


async def test_the_life_of_a_certificate(registry: Registry) -> None:
    """Issued, held, released, revoked by single calls; the history says who, when, why and through what."""
    alice = issue("alice", registry.a)
    versions = []
    for operation, body, expected in (
        ("issue", {"certificate": pem(alice)}, "good"),
        ("hold", {}, "held"),
        ("unhold", {}, "good"),
        ("revoke", {"revocation_reason": "keyCompromise", "invalidity_date": "2026-01-01T00:00:00+07:00"}, "revoked"),
    ):
        reply = await registry.post(f"/v1/certificates/{serial(alice)}/{operation}", body)
        assert reply.http_status == 200
        assert reply.json["versions"] == [reply.json["version"]]
        versions.append(reply.json["version"])
        assert await status_of(registry, alice) == expected
    assert versions == sorted(set(versions))
    history = (await registry.get(f"/v1/certificates/{serial(alice)}/history")).json
    assert [each["version"] for each in history["events"]] == versions
    assert [each["change"] for each in history["events"]] == ["issue", "hold", "unhold", "revoke"]
    assert [each["previous_version"] for each in history["events"]] == [None, *versions[:-1]]
    assert {(each["actor"], each["through"]) for each in history["events"]} == {("a", "api token")}
    last = history["events"][-1]
    assert (last["revocation_reason"], last["invalidity_date"]) == ("keyCompromise", "2025-12-31T17:00:00Z")


async def test_a_certificate_speaks_for_itself(registry: Registry) -> None:
    """Serial number, end and hash come from the certificate, PEM or DER in base64; a serial number alone will do."""
    alice, bob = issue("alice", registry.a), issue("bob", registry.a)
    changes = [
        {"change": "issue", "certificate": pem(alice)},
        {"change": "issue", "certificate": base64.b64encode(bob.der).decode()},
        {"change": "revoke", "serial_number": "0aBc", "not_after": "2030-01-01T00:00:00Z"},
    ]
    reply = await registry.post("/v1/changes", {"changes": changes})
    assert len(reply.json["versions"]) == 3
    assert reply.json["version"] == max(reply.json["versions"])
    for certificate in (alice, bob):
        known = (await registry.get(f"/v1/certificates/{serial(certificate)}")).json
        assert known["not_after"] == f"{certificate.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
        assert known["certificate_sha256"] == certificate.certificate.fingerprint(hashes.SHA256()).hex()
    assert (await registry.get("/v1/certificates/ABC")).json["serial_number"] == "0ABC"


async def test_ten_thousand_at_once(registry: Registry) -> None:
    """10,000 changes are one request, one answer and one record of the audit."""
    changes = [{"change": "issue", "serial_number": f"{number:X}"} for number in range(1, 10_001)]
    reply = await registry.post("/v1/changes", {"changes": changes}, key="all-of-them")
    assert reply.http_status == 200
    assert len(set(reply.json["versions"])) == 10_000
    records = [each for each in await registry.audit(registry.a_id) if each["event"] == "changes"]
    assert [each["change_count"] for each in records] == [10_000]
    assert (await registry.post("/v1/changes", {"changes": changes}, key="all-of-them")).json == reply.json


async def test_announced_twice_in_the_same_words(registry: Registry) -> None:
    """To announce a certificate again changes nothing and gives the version that it has."""
    body = {"changes": [{"change": "issue", "certificate": pem(issue("alice", registry.a))}]}
    first = await registry.post("/v1/changes", body)
    state = await registry.state()
    assert (await registry.post("/v1/changes", body)).json == first.json
    assert await registry.state() == state


async def test_the_same_serial_number_of_two_cas(registry: Registry) -> None:
    """Each CA has its own serial numbers: what one does to 77 says nothing about the other's 77."""
    for who in ("a", "b"):
        assert (await registry.post("/v1/certificates/77/issue", {}, who=who)).http_status == 200
    assert (await registry.post("/v1/certificates/77/revoke", {})).http_status == 200
    for name, expected in (("ca-a", "revoked"), ("ca-b", "good")):
        assert (await registry.get(f"/v1/certificates/77?authority={name}", who="auditor")).json[
            "cert_status"
        ] == expected


async def test_served(registry: Registry, database_url: str) -> None:
    """After `?wait=served` the very next answer of a responder that had the old one in its cache is the new one."""
    alice, identity = issue("alice", registry.a), new_responder(registry.a)
    assert (
        await registry.post(f"/v1/certificates/{serial(alice)}/issue", {"certificate": pem(alice)})
    ).http_status == 200
    certificate, key = identity.write(registry.folder, "responder")
    responder = ResponderConfig("ca-a", certificate, KeyURI(f"file:{key.name}", registry.folder))
    config = OCSPConfig([responder], DatabaseConfig(database_url), port=0, admin_port=0)
    request = request_for(alice, registry.a)

    async with running(serve, Config(ocsp=config)) as (port, _):

        async def ask() -> str:
            async with registry.session.post(f"http://127.0.0.1:{port}", data=request) as reply:
                return OCSPReply(reply.status, reply.headers, await reply.read()).cert_statuses[0]

        for _ in range(3):
            assert await ask() == "good"
        for operation, expected in (("hold", "revoked"), ("unhold", "good"), ("revoke", "revoked")):
            reply = await registry.post(f"/v1/certificates/{serial(alice)}/{operation}?wait=served", {})
            assert reply.json["served"] in {"acknowledged", "expired trust"}
            assert await ask() == expected
        counted = await registry.metrics()
    assert (
        sum(
            counted.get(f'lakthan_registry_served_seconds_count{{how="{how}"}}', 0)
            for how in ("acknowledged", "expired trust")
        )
        >= 3
    )
    assert counted['lakthan_registry_changes_total{change="hold"}'] == 1


async def post_crl(registry: Registry, crl: bytes, query: str = "", who: str = "a") -> JSONReply:
    """POST /v1/crls."""
    headers = {"Content-Type": "application/pkix-crl"}
    return await registry.ask("POST", f"/v1/crls{query}", who=who, raw=crl, headers=headers)


async def test_a_crl(registry: Registry) -> None:
    """A CA that only makes CRLs sends one: what stands in it is revoked; the same again is nothing new."""
    alice, bob = issue("alice", registry.a), issue("bob", registry.a)
    crl = crl_of(registry.a, 1, alice, bob)
    reply = await post_crl(registry, crl, "?wait=served")
    assert (reply.http_status, reply.json["outcome"], reply.json["revoked"]) == (200, "imported", 2)
    assert reply.json["served"]
    assert await status_of(registry, alice) == "revoked"
    events = (await registry.get(f"/v1/certificates/{serial(alice)}/history")).json["events"]
    assert [(each["actor"], each["through"]) for each in events] == [("a", "api token")]
    again = (await post_crl(registry, crl)).json
    assert (again["outcome"], again["revoked"], again["version"]) == ("nothing new", 0, None)


async def test_refused_crls(registry: Registry) -> None:
    """B's CRL with A's credential, a wrong signature, an older number, noise, a drop: refused, nothing changed."""
    alice, bob = issue("alice", registry.a), issue("bob", registry.b)
    others = [issue(f"other {number}", registry.a) for number in range(11)]
    assert (await post_crl(registry, crl_of(registry.a, 5, alice, *others))).http_status == 200
    before = await registry.state()
    impostor = Issued(registry.a.certificate, registry.b.key)
    for crl, query, status, word in (
        (crl_of(registry.b, 6, bob), "", 422, "unknown_issuer"),
        (crl_of(registry.a, 6, bob, signer=impostor), "?force=true", 422, "signature"),
        (crl_of(registry.a, 4, alice), "", 422, "older_number"),
        (crl_of(registry.a, 6), "", 422, "dropped_entries"),
        (b"noise", "", 422, "malformed"),
        (b"", "", 400, ""),
    ):
        reply = await post_crl(registry, crl, query)
        assert reply.http_status == status
        assert [each["field"] for each in reply.json.get("errors", [])] == ([word] if word else [])
        assert await registry.state() == before, word
    assert len(await registry.refusals(registry.a_id)) == 6
    forced = await post_crl(registry, crl_of(registry.a, 6), "?force=true")
    assert (forced.http_status, forced.json["vanished"]) == (200, 12)
    assert await status_of(registry, alice) == "revoked"


async def test_the_registrar(registry: Registry) -> None:
    """A registrar adds a CA, sets its policy, and gives out a token, which works until it is revoked."""
    ca = new_ca("CA C")
    added = await registry.post("/v1/authorities", {"name": "ca-c", "certificates": [pem(ca)]}, who="registrar")
    assert added.http_status == 200
    names = [each["name"] for each in (await registry.get("/v1/authorities", who="auditor")).json["authorities"]]
    assert names == ["ca-a", "ca-b", "ca-c"]
    policy = {"crl_urls": ["http://ca-c.example/c.crl"], "declared_delay_seconds": 60, "crl_drop_limit_percent": 5}
    path = "/v1/authorities/ca-c/policy"
    assert (await registry.ask("PUT", path, who="registrar", body=policy)).json == policy
    assert (await registry.get(path, who="auditor")).json == policy
    wanted = {"name": "c-robot", "role": "publisher", "authority": "ca-c", "scopes": ["issue", "read"], "days": 30}
    made = await registry.post("/v1/credentials", wanted, who="registrar")
    assert made.http_status == 201
    token = made.json["token"]
    assert (await registry.get("/v1/identity", who=token)).json["authority"] == "ca-c"
    body = {"changes": [{"change": "issue", "certificate": pem(issue("carol", ca))}]}
    assert (await registry.post("/v1/changes", body, who=token)).http_status == 200
    assert token not in (await registry.get("/v1/credentials", who="registrar")).body.decode()
    assert (await registry.ask("DELETE", "/v1/credentials/c-robot", who="registrar")).http_status == 204
    assert (await registry.post("/v1/changes", body, who=token)).problem == "credential-revoked"
    assert (await registry.ask("DELETE", "/v1/credentials/c-robot", who="registrar")).problem == "conflict"
    assert (await registry.ask("DELETE", "/v1/credentials/nobody", who="registrar")).problem == "not-found"


async def test_what_the_registrar_cannot_do(registry: Registry) -> None:
    """Bad certificates, names that are taken, publishers of nothing: refused with the reason, and nothing is made."""
    leaf, robot = issue("leaf", registry.a), new_client(registry.clients)
    await registry.bind("robot", robot)
    before = await registry.state()
    for path, body, problem in (
        ("/v1/authorities", {"name": "leaf", "certificates": [pem(leaf)]}, "invalid"),
        ("/v1/authorities", {"name": "noise", "certificates": ["noise"]}, "invalid"),
        ("/v1/authorities", {"name": "ca-d", "certificates": [pem(registry.a)]}, "conflict"),
        ("/v1/credentials", {"name": "x", "role": "publisher"}, "invalid"),
        ("/v1/credentials", {"name": "x", "role": "publisher", "authority": "ca-a"}, "invalid"),
        ("/v1/credentials", {"name": "x", "role": "auditor", "authority": "ca-a"}, "invalid"),
        ("/v1/credentials", {"name": "x", "role": "auditor", "scopes": ["read"]}, "invalid"),
        ("/v1/credentials", {"name": "x", "role": "publisher", "authority": "nobody", "scopes": ["read"]}, "not-found"),
        ("/v1/credentials", {"name": "a", "role": "auditor"}, "conflict"),
        ("/v1/credentials", {"name": "robot-2", "role": "auditor", "certificate": pem(robot)}, "conflict"),
    ):
        reply = await registry.post(path, body, who="registrar")
        assert reply.problem == problem, body
    reply = await registry.ask("PUT", "/v1/authorities/ca-a/policy", who="registrar", body={"crl_urls": ["http://"]})
    assert reply.problem == "invalid"
    assert await registry.state() == before


async def test_the_auditor_turns_the_pages(registry: Registry) -> None:
    """The audit comes page by page, each record with the hash of the one before it, up to the head."""
    for number in range(1, 8):
        await registry.post(f"/v1/certificates/{number:02X}/issue", {})
    found: list[dict[str, object]] = []
    after: int | None = 0
    while after is not None:
        page = (await registry.get(f"/v1/audit?authority=ca-a&after={after}&limit=5", who="auditor")).json
        found += page["records"]
        after = page["next_after"]
    assert [each["number"] for each in found] == list(range(1, len(found) + 1))
    assert [each["previous_sha256"] for each in found[1:]] == [each["sha256"] for each in found[:-1]]
    assert [each["event"] for each in found[-7:]] == ["changes"] * 7
    heads = (await registry.get("/v1/audit/head", who="auditor")).json["heads"]
    assert {"chain": registry.a_id, "number": len(found), "sha256": found[-1]["sha256"]} in heads
    assert (await registry.get("/v1/audit?limit=1001", who="auditor")).problem == "invalid"
    assert (await registry.get("/v1/audit?authority=nobody", who="auditor")).problem == "not-found"


async def test_overseers_name_the_authority(registry: Registry) -> None:
    """An auditor sees everybody's certificates, and says whose."""
    await registry.post("/v1/certificates/77/issue", {})
    assert (await registry.get("/v1/certificates/77", who="auditor")).problem == "invalid"
    assert (await registry.get("/v1/certificates/77/history?authority=ca-a", who="registrar")).http_status == 200
    assert (await registry.get("/v1/certificates/77?authority=ca-b", who="auditor")).problem == "not-found"


async def test_too_much_is_not_read(registry: Registry) -> None:
    """A body that is announced as too large is refused before it is sent, and one that turns out so while it comes."""
    headers = {"Authorization": f"Bearer {registry.tokens['a']}", "Content-Type": "application/json"}
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(registry.url.rpartition(":")[2]), ssl=registry.context()
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(
        f"POST /v1/changes HTTP/1.1\r\nHost: x\r\n{head}Expect: 100-continue\r\n"
        "Content-Length: 99999999\r\n\r\n".encode()
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2000):
            yield b" " * 1024

    async with registry.session.post(
        f"{registry.url}/v1/certificates/77/issue", data=endless(), headers=headers, ssl=registry.context()
    ) as reply:
        assert reply.status == 413


async def test_a_go_ahead_only_for_known_callers(registry: Registry) -> None:
    """Who asks before sending a large body is told 401 at once, or to go ahead (RFC 9110 §10.1.1)."""
    port = int(registry.url.rpartition(":")[2])
    for token, expected in ((registry.tokens["a"], b"HTTP/1.1 100 "), ("lak_" + "A" * 43, b"HTTP/1.1 401 ")):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=registry.context())
        writer.write(
            f"POST /v1/certificates/77/issue HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode()
        )
        assert (await reader.readline()).startswith(expected)
        if expected.startswith(b"HTTP/1.1 100"):
            writer.write(b"{}")
            assert await reader.readline() == b"\r\n"
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_one_credential_cannot_crowd_out_others(registry: Registry) -> None:
    """More than eight requests of one credential at once are told to wait; another credential's is not."""
    await registry.owner.execute("SELECT 1")
    async with registry.owner.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE certificate_status IN ACCESS EXCLUSIVE MODE")
        crowd = [asyncio.create_task(registry.post(f"/v1/certificates/{n:02X}/issue", {})) for n in range(1, 13)]
        done, waiting = await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 4:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert {task.result().problem for task in done} == {"too-many-requests"}
        assert {task.result().headers["Retry-After"] for task in done} == {"1"}
        assert (await registry.get("/v1/identity", who="b")).http_status == 200
    assert {task.result().http_status for task in (await asyncio.wait(waiting))[0]} == {200}


async def test_a_port_without_tls(registry: Registry) -> None:
    """Plain HTTP gets no answer, and so no token is ever asked for in the clear."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(registry.url.rpartition(":")[2]))
    writer.write(b"GET /v1/identity HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not (await reader.read(100)).startswith(b"HTTP/1.1 2")
    writer.close()


async def test_nothing_is_kept_by_caches(registry: Registry) -> None:
    """No answer of the registry may be stored by anybody on the way."""
    for reply in (await registry.get("/v1/identity"), await registry.get("/v1/identity", who="x")):
        assert reply.headers["Cache-Control"] == "no-store"


async def test_unknown_paths_and_methods(registry: Registry) -> None:
    """Whatever is not there is a problem document too, and a wrong method is told the right ones."""
    assert (await registry.get("/v2")).problem == "not-found"
    wrong = await registry.ask("PATCH", "/v1/changes")
    assert (wrong.problem, wrong.headers["Allow"]) == ("method-not-allowed", "POST")
