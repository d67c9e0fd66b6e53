"""A responder whose key lies in Vault, while Vault is away, and another one in the same process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from cryptography.x509 import ocsp

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan.keys import bounds
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan_ocsp.__main__ import serve
from support.database import OpenPool
from support.fake_vault import FakeVault
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import ACTOR, request_for
from support.running import running


async def test_a_vault_that_is_away_hurts_its_own_authority_alone(
    database_url: str, open_as: OpenPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Vault does not sign, its authority's responder says internalError; the other authority is answered as ever.
    When Vault is back, so is the responder, without a restart.
    """
    monkeypatch.setattr(bounds, "_SECONDS_BETWEEN_PROBES", 0.05)
    pool = await open_as("lakthan_registry")
    authorities, writer = AuthorityAdmin(pool), ChangeWriter(pool)
    vault = FakeVault(tmp_path)
    with vault.running():
        cas: list[Issued] = []
        configured: list[ResponderConfig] = []
        for name in ("in-vault", "in-file"):
            ca = new_ca(name)
            identity = new_responder(ca)
            certificate, key = identity.write(tmp_path, name)
            vault.put(name, "P-256", identity.key)
            uri = vault.uri(name) if name == "in-vault" else KeyURI(f"file:{key.name}", tmp_path)
            authority = await authorities.add_authority(name, [ca.der])
            configured.append(ResponderConfig(name, certificate, uri))
            cas.append(ca)
            for serial_number in range(1, 10):
                leaf = issue("leaf", ca, serial_number=serial_number)
                ends = leaf.certificate.not_valid_after_utc
                await writer.issue(authority, leaf.serial_number, not_after=ends, actor=ACTOR)
        config = Config(ocsp=OCSPConfig(configured, DatabaseConfig(database_url), port=0, admin_port=0))
        async with running(serve, config) as (port, _), aiohttp.ClientSession() as session:

            async def statuses(serial_number: int) -> list[str]:
                found = []
                for ca in cas:
                    leaf = issue("leaf", ca, serial_number=serial_number)
                    async with session.post(f"http://127.0.0.1:{port}", data=request_for(leaf, ca)) as reply:
                        found.append(ocsp.load_der_ocsp_response(await reply.read()).response_status.name)
                return found

            assert await statuses(1) == ["SUCCESSFUL", "SUCCESSFUL"]
            vault.refusal = (403, b'{"errors": ["permission denied"]}')
            for serial_number in range(2, 9):  # answers that nobody has had yet
                assert await statuses(serial_number) == ["INTERNAL_ERROR", "SUCCESSFUL"]
            vault.refusal = None
            async with asyncio.timeout(30):
                while await statuses(9) != ["SUCCESSFUL", "SUCCESSFUL"]:  # noqa: ASYNC110 - the responder says when
                    await asyncio.sleep(0.1)
