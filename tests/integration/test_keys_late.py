"""Keys that are not there when a service starts, and the series that say so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from lakthan.config import KeyURI
from lakthan.errors import ConfigError, KeyAway, SignerBusy, SignerUnusable
from lakthan.identity import Identity
from lakthan.keys import LateSigner, late
from lakthan.keys.bounds import OUTCOMES, Bounds
from lakthan.keys.metrics import KeyMetrics
from support.fake_vault import FakeVault
from support.pki import Issued, issue, new_key

SEALED = (503, b'{"errors": ["Vault is sealed"]}')


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVault]:
    """A Vault that is sealed."""
    monkeypatch.setattr(late, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(late, "_LONGEST_PAUSE_SECONDS", 0.1)
    made = FakeVault(tmp_path)
    made.refusal = SEALED
    with made.running():
        yield made


@pytest.fixture
def issued(vault: FakeVault, tmp_path: Path) -> Issued:
    """A certificate, whose key lies in Vault."""
    made = issue("late")
    made.write(tmp_path, "late")
    vault.put("ocsp", "P-256", made.key)
    return made


async def signed(identity: Identity) -> bytes:
    """Wait until the key can be had."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await identity.signer.sign(b"x")
            except SignerBusy:
                await asyncio.sleep(0.02)


async def test_it_is_opened_as_soon_as_it_can_be(vault: FakeVault, issued: Issued, tmp_path: Path) -> None:
    """An identity comes at once, with the certificate's public key and algorithm; its signer says busy, and why; when
    Vault is unsealed it signs.
    """
    identity = await Identity.open(tmp_path / "late.pem", vault.uri(), late=True)
    assert isinstance(identity.signer, LateSigner)
    assert identity.signer.public_key == issued.key.public_key()
    assert identity.signer.algorithm.label == "ecdsa-with-SHA256"
    with pytest.raises(SignerBusy, match=r"vault:transit/ocsp could not be opened yet: .*Vault is sealed"):
        await identity.signer.sign(b"x")
    vault.refusal = None
    assert await signed(identity)
    await identity.signer.aclose()
    with pytest.raises(SignerUnusable, match="let go of"):
        await identity.signer.sign(b"x")


async def test_another_key_never_serves(vault: FakeVault, issued: Issued, tmp_path: Path) -> None:
    """What comes back is another key than the certificate's: it is found out, nothing is signed with it, and the right
    one, when it is there, signs.
    """
    vault.keys["ocsp"].versions[:] = [new_key("P-256")]
    identity = await Identity.open(tmp_path / "late.pem", vault.uri(), late=True)
    vault.refusal = None
    async with asyncio.timeout(30):
        while True:
            with pytest.raises(SignerBusy) as raised:
                await identity.signer.sign(b"x")
            if "does not belong to the certificate" in str(raised.value):
                break
            await asyncio.sleep(0.02)
    vault.keys["ocsp"].versions[:] = [issued.key]
    assert await signed(identity)
    await identity.signer.aclose()


@pytest.mark.usefixtures("issued")
async def test_what_is_no_reason_to_start(vault: FakeVault, tmp_path: Path) -> None:
    """A mistake in the configuration is refused at once, late or not: a URI, a file that is not there, a key of
    another certificate. And whoever does not ask for a late key hears that it is away.
    """
    certificate = tmp_path / "late.pem"
    with pytest.raises(KeyAway, match="Vault is sealed"):
        await Identity.open(certificate, vault.uri())
    for uri, says in (
        ("vault:transit/ocsp", "add address="),
        ("file:missing.pem", "cannot be read"),
        ("pkcs11:token=x;object=y?module-path=/no/such.so", "cannot be used as a PKCS#11 library"),
    ):
        with pytest.raises(ConfigError, match=says) as raised:
            await Identity.open(certificate, KeyURI(uri, tmp_path), late=True)
        assert not isinstance(raised.value, KeyAway)
    issue("other").write(tmp_path, "other")
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        await Identity.open(certificate, KeyURI("file:other.key", tmp_path), late=True)


@pytest.mark.usefixtures("issued")
async def test_a_service_that_ends_first(vault: FakeVault, tmp_path: Path) -> None:
    """The service is stopped while the key is being asked for: it does not wait for the answer."""
    identity = await Identity.open(tmp_path / "late.pem", vault.uri(), late=True)
    vault.next.extend(["hang"] * 3)
    async with asyncio.timeout(30):
        await asyncio.to_thread(vault.hanging.wait)
    await identity.signer.aclose()
    assert vault.uri().uri.partition("?")[0] not in {each.key for each in Bounds.opened()}
    with pytest.raises(SignerUnusable, match="let go of"):
        await identity.signer.sign(b"x")
    vault.let_go()


def test_the_series_of_a_key() -> None:
    """Every key that is open has its series, one that is opened twice is one, and a closed one has none."""
    registry = CollectorRegistry()
    KeyMetrics("lakthan_ocsp", registry)

    def series(name: str, outcome: str | None = None) -> float | None:
        labels = {"key": "vault:transit/series"} | ({} if outcome is None else {"outcome": outcome})
        return registry.get_sample_value(f"lakthan_ocsp_key_{name}", labels)

    both = [Bounds("vault:transit/series", "the key", at_once=1, waiting=1) for _ in range(2)]
    for each in both:
        each.enter()
    both[0].enter()
    with pytest.raises(SignerBusy):
        both[0].enter()
    assert (series("signatures_under_way"), series("signatures_waiting"), series("circuit_open")) == (2, 1, 0)
    for _ in range(5):
        both[1].failed(SignerUnusable("broken"))
    both[0].succeeded()
    counts = {outcome: series("signatures_total", outcome) for outcome in OUTCOMES}
    assert counts == {"signed": 1, "failed": 5, "timed out": 0, "busy": 1, "left alone": 0}
    assert series("circuit_open") == 1
    both[1].close()
    assert (series("circuit_open"), series("signatures_under_way")) == (0, 1)
    both[0].close()
    assert series("circuit_open") is None
