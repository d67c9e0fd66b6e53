"""Who may do what, as one table over every operation of the registry; and what a scanner says about its TLS.

The table is written by hand, on purpose not from `lakthan_registry.api`: it says what is meant. An operation that is
published without a row here fails.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lakthan.store.records import CredentialRole
from support.pki import issue
from support.programs import need
from support.registry import Registry, pem, running_registry

YES, NO = True, False
# Everybody who could knock: with no credential, a publisher's with all scopes, one whose only scope is another than the
# operation's (`read`, or `crl` where that is it), a registrar's, an auditor's.
CALLERS = ("nobody", "publisher", "scopeless", "registrar", "auditor")
#                                                     nobody publisher scopeless registrar auditor
MAY = {
    ("post", "/v1/changes"): (NO, YES, NO, NO, NO),
    ("post", "/v1/certificates/{serial_number}/issue"): (NO, YES, NO, NO, NO),
    ("post", "/v1/certificates/{serial_number}/revoke"): (NO, YES, NO, NO, NO),
    ("post", "/v1/certificates/{serial_number}/hold"): (NO, YES, NO, NO, NO),
    ("post", "/v1/certificates/{serial_number}/unhold"): (NO, YES, NO, NO, NO),
    ("post", "/v1/crls"): (NO, YES, NO, NO, NO),
    ("get", "/v1/certificates/{serial_number}"): (NO, YES, NO, YES, YES),
    ("get", "/v1/certificates/{serial_number}/history"): (NO, YES, NO, YES, YES),
    ("get", "/v1/identity"): (NO, YES, YES, YES, YES),
    ("get", "/v1/authorities"): (NO, NO, NO, YES, YES),
    ("post", "/v1/authorities"): (NO, NO, NO, YES, NO),
    ("get", "/v1/authorities/{authority}/policy"): (NO, NO, NO, YES, YES),
    ("put", "/v1/authorities/{authority}/policy"): (NO, NO, NO, YES, NO),
    ("get", "/v1/credentials"): (NO, NO, NO, YES, YES),
    ("post", "/v1/credentials"): (NO, NO, NO, YES, NO),
    ("delete", "/v1/credentials/{name}"): (NO, NO, NO, YES, NO),
    ("get", "/v1/audit"): (NO, NO, NO, NO, YES),
    ("get", "/v1/audit/head"): (NO, NO, NO, NO, YES),
    ("post", "/ejbca/cert-safe"): (NO, YES, NO, NO, NO),
    ("get", "/ejbca/cert-safe"): (NO, YES, YES, NO, NO),
    ("get", "/openapi.json"): (YES, YES, YES, YES, YES),
}


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry, and a publisher for each side of the scopes."""
    async with running_registry(database_url, tmp_path) as running:
        running.tokens["publisher"] = running.tokens["a"]
        for name, scope in (("reader", "read"), ("lister", "crl")):
            await running.token(name, CredentialRole.PUBLISHER, authority_id=running.a_id, scopes=(scope,))
        yield running


def body_for(registry: Registry, path: str) -> object:
    """A body: where the scope depends on what is asked for, the revocation of a certificate that nobody knows yet."""
    if path == "/v1/changes":
        return {"changes": [{"change": "revoke", "serial_number": "05"}]}
    if path == "/ejbca/cert-safe":
        return {"pem": pem(issue("of A", registry.a)), "status": "revoked"}
    return {}


async def test_every_caller_at_every_door(registry: Registry) -> None:
    """Each operation of the OpenAPI document × each caller: let in or refused as the table says, and a refusal changes
    nothing.
    """
    published = (await registry.get("/openapi.json", who=None)).json["paths"]
    verbs = ("get", "post", "put", "delete")
    operations = {(verb, path) for path, methods in published.items() for verb in verbs if verb in methods}
    assert operations == set(MAY), "an operation without a row in the table, or the other way round"
    wrong = []
    for (method, path), row in MAY.items():
        for caller, may in zip(CALLERS, row, strict=True):
            who = {"nobody": None, "scopeless": "lister" if method == "get" else "reader"}.get(caller, caller)
            before = await registry.state()
            reply = await registry.ask(
                method.upper(),
                path.format(serial_number="05", authority="ca-a", name="nobody-of-that-name"),
                who=who,
                body=None if method == "get" else body_for(registry, path),
            )
            let_in = reply.http_status not in (401, 403)
            if let_in != may:
                wrong.append(f"{method} {path} by {caller}: {reply.http_status}")
            if not let_in:
                assert await registry.state() == before
                assert (reply.http_status == 401) == (caller == "nobody"), f"{method} {path} by {caller}"
    assert not wrong


async def test_another_cas_publisher(registry: Registry) -> None:
    """What is on record of one CA is neither shown to nor changed by the publisher of another."""
    await registry.owner.execute(
        "INSERT INTO status_change (authority_id, serial_number, change, actor) VALUES ($1, '\\x05', 'issue', 'test')",
        registry.a_id,
    )
    assert (await registry.get("/v1/certificates/05", who="a")).http_status == 200
    for path in ("/v1/certificates/05", "/v1/certificates/05/history"):
        assert (await registry.get(path, who="b")).http_status == 404
        assert (await registry.get(f"{path}?authority=ca-a", who="b")).http_status == 403
    before = (await registry.get("/v1/certificates/05", who="a")).json
    await registry.post("/v1/certificates/05/hold", {}, who="b")
    assert (await registry.get("/v1/certificates/05", who="a")).json == before


async def test_the_admin_ports_know_only_their_own(registry: Registry) -> None:
    """The admin port has liveness, readiness and metrics, and nothing that changes or shows a record."""
    for path, status in (("/livez", 200), ("/metrics", 200), ("/v1/credentials", 404), ("/openapi.json", 404)):
        assert (await registry.session.get(registry.admin_url + path)).status == status
    assert (await registry.session.post(f"{registry.admin_url}/livez")).status in (404, 405)


@pytest.mark.timeout(110)
async def test_a_scanner_finds_no_weak_tls(registry: Registry) -> None:
    """Nmap's ssl-enum-ciphers: only TLS 1.2 and 1.3, only grade A, only forward secrecy, the server's order."""
    nmap = need("nmap")
    port = registry.url.rpartition(":")[2]
    scan = await asyncio.create_subprocess_exec(
        nmap, "-Pn", "-p", port, "--script", "+ssl-enum-ciphers", "127.0.0.1",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said = (await scan.communicate())[0].decode()
    versions = set(re.findall(r"(SSLv\d|TLSv1\.\d):", said))
    assert versions == {"TLSv1.2", "TLSv1.3"}, said
    suites = re.findall(r"(TLS_\w+)(?: \(([^)]*)\))? - (\w)", said)
    assert suites, said
    assert {grade for _, _, grade in suites} == {"A"}, said
    # TLS 1.3's suites name no key exchange: it is always ephemeral. nmap writes them TLS_AKE_WITH_…
    assert all("ECDHE" in name or "DHE" in name or "AKE" in name or name.count("_") == 4 for name, _, _ in suites), said
    assert "warnings" not in said, said
