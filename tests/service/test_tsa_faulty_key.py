"""A key that goes wrong while the service runs: nothing that it makes leaves the house."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakthan.keys.software import SoftwareSigner
from support.database import OpenPool
from support.pki import new_key
from support.tsa import failure, new_unit, request_for, running_tsa, tst_info_of

HONEST = SoftwareSigner.sign


async def flips_a_bit(signer: SoftwareSigner, message: bytes) -> bytes:
    """A device with a fault: one bit of the signature is wrong."""
    signature = await HONEST(signer, message)
    return signature[:-1] + bytes((signature[-1] ^ 1,))


async def uses_another_key(signer: SoftwareSigner, message: bytes) -> bytes:
    """A device that has mixed up its keys: the signature is a good one, by somebody else."""
    return await HONEST(SoftwareSigner(new_key("P-256")), message)


async def signs_something_else(signer: SoftwareSigner, message: bytes) -> bytes:
    """A device that answers another request's question."""
    return await HONEST(signer, message[:-1])


async def gives_nothing(signer: SoftwareSigner, message: bytes) -> bytes:
    """A device that says it is done, and is not."""
    return b""


@pytest.mark.parametrize("fault", [flips_a_bit, uses_another_key, signs_something_else, gives_nothing])
async def test_no_bad_token_leaves(
    database_url: str, tmp_path: Path, open_as: OpenPool, monkeypatch: pytest.MonkeyPatch, fault: object
) -> None:
    """The client is told that the key cannot be used, nothing is on record as granted, and operators see the count.
    When the device has come to its senses, tokens leave again.

    TSA-R9.
    """
    async with running_tsa(database_url, tmp_path, new_unit()) as authority:
        assert tst_info_of((await authority.post(request_for())).body)["version"].native == "v1"
        with monkeypatch.context() as broken:
            broken.setattr(SoftwareSigner, "sign", fault)
            for _ in range(3):
                bits, text = failure((await authority.post(request_for(cert_req=True))).body)
                assert bits == {"system_failure"}
                assert "key" in text
        assert tst_info_of((await authority.post(request_for())).body)["version"].native == "v1"
        metrics = await authority.metrics()
    assert metrics["lakthan_tsa_self_check_failures_total"] == 3
    assert metrics['lakthan_tsa_tokens_total{unit="main"}'] == 2
    assert await (await open_as(None)).fetchval("SELECT count(*) FROM timestamp_token") == 2
