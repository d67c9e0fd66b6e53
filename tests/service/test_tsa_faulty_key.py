"""A key that goes wrong while the service runs: nothing that it makes leaves the house."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lakthan.algorithms import SignatureAlgorithm
from lakthan.keys import software
from support.database import OpenPool
from support.pki import new_key
from support.tsa import WAYS, failure, new_unit, request_for, running_tsa, tst_info_of

Sign = Callable[[bytes], bytes]
Fault = Callable[[Sign, bytes], bytes]
HONEST = software._raw_sign


def flips_a_bit(honest: Sign, message: bytes) -> bytes:
    """A device with a fault: one bit of the signature is wrong."""
    signature = honest(message)
    return signature[:-1] + bytes((signature[-1] ^ 1,))


def uses_another_key(_honest: Sign, message: bytes) -> bytes:
    """A device that has mixed up its keys: the signature is a good one, by somebody else."""
    key = new_key("P-256")
    assert isinstance(key, software.SoftwareKey)
    return HONEST(key, software.SoftwareSigner(key).algorithm)(message)


def signs_something_else(honest: Sign, message: bytes) -> bytes:
    """A device that answers another request's question."""
    return honest(message[:-1])


def gives_nothing(_honest: Sign, _message: bytes) -> bytes:
    """A device that says it is done, and is not."""
    return b""


class Device:
    """Makes keys that go wrong when `fault` says how."""

    def __init__(self) -> None:
        self.fault: Fault | None = None

    def key(self, key: software.SoftwareKey, algorithm: SignatureAlgorithm) -> Sign:
        """In place of the signature with this key."""
        honest = HONEST(key, algorithm)
        return lambda message: honest(message) if self.fault is None else self.fault(honest, message)


@pytest.mark.parametrize("fault", [flips_a_bit, uses_another_key, signs_something_else, gives_nothing])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["P-256", "RSA-3072"])
async def test_no_bad_token_leaves(  # noqa: PLR0917 - fixtures
    database_url: str,
    tmp_path: Path,
    open_as: OpenPool,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    way: str,
    kind: str,
) -> None:
    """The client is told that the key cannot be used, nothing is on record as granted, and operators see the count.
    When the device has come to its senses, tokens leave again. So it is on both ways that a request can take, and with
    keys that sign in the event loop and in threads.

    TSA-R9.
    """
    device = Device()
    monkeypatch.setattr(software, "_raw_sign", device.key)
    async with running_tsa(database_url, tmp_path, new_unit(kind), way=way) as authority:
        assert tst_info_of((await authority.post(request_for())).body)["version"].native == "v1"
        device.fault = fault
        for _ in range(3):
            bits, text = failure((await authority.post(request_for(cert_req=True))).body)
            assert bits == {"system_failure"}
            assert "key" in text
        device.fault = None
        assert tst_info_of((await authority.post(request_for())).body)["version"].native == "v1"
        metrics = await authority.metrics()
    assert metrics["lakthan_tsa_self_check_failures_total"] == 3
    assert metrics['lakthan_tsa_tokens_total{unit="main"}'] == 2
    assert await (await open_as(None)).fetchval("SELECT count(*) FROM timestamp_token") == 2
