"""Software keys: what opens, what signs, and what is refused with a sentence that helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from lakthan.config import KeyURI
from lakthan.errors import ConfigError, SignerUnusable
from lakthan.identity import Identity
from lakthan.keys import open_signer, prove
from lakthan.keys.signer import verify
from support.pki import KEY_KINDS, issue, new_ca, new_key


@pytest.mark.parametrize("kind", KEY_KINDS)
async def test_every_kind_signs(kind: str, tmp_path: Path) -> None:
    """A key file of every supported kind opens, signs, and its certificate verifies what it signed. OCSP-66."""
    issued = issue("x", kind=kind)
    _, key = issued.write(tmp_path, "x")
    signer = open_signer(KeyURI(f"file:{key}", tmp_path))
    signature = await signer.sign(b"message")
    verify(issued.certificate.public_key(), signer.algorithm.hash, signature, b"message")
    await prove(signer, issued.certificate.public_key())
    await signer.aclose()


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
async def test_an_encrypted_key(form: PrivateFormat, tmp_path: Path) -> None:
    """The pass phrase is the first line of the pin-source file, whose path starts at the configuration's folder."""
    key = new_key("P-256")
    (tmp_path / "a key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, form, BestAvailableEncryption("ລະຫັດ".encode()))
    )
    (tmp_path / "pin").write_text("ລະຫັດ\nsecond line\n")
    signer = open_signer(KeyURI("file:a%20key.pem?pin-source=pin", tmp_path))
    await prove(signer, key.public_key())


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("file:missing.pem", "cannot be read"),
        ("file:plain.pem?pin-source=pin", "has a pin-source but is not encrypted"),
        ("file:locked.pem", "add \\?pin-source"),
        ("file:locked.pem?pin-source=wrong", "not a PEM private key that this pass phrase opens"),
        ("file:locked.pem?pin-source=missing", "missing cannot be read"),
        ("file:garbage.pem", "not a PEM private key"),
        ("file:plain.pem?pin=1234", "unknown attribute 'pin'"),
        ("file:p521.pem", "use P-256 or P-384"),
        ("file:rsa1024.pem", "use 2048 to 4096"),
        ("file:dsa.pem", "use P-256, P-384, RSA, Ed25519 or ML-DSA-65"),
        ("tpm:token=x", "no known scheme"),
        ("plain.pem", "no known scheme"),
        ("file://host/plain.pem", "no known scheme"),
    ],
)
def test_refused_with_a_reason(uri: str, says: str, tmp_path: Path) -> None:
    """Whatever cannot be opened says why. OCSP-33."""

    def write(name: str, key: object, phrase: bytes | None = None) -> None:
        encryption = BestAvailableEncryption(phrase) if phrase else NoEncryption()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined]
        (tmp_path / name).write_bytes(pem)

    write("plain.pem", new_key("P-256"))
    write("locked.pem", new_key("P-256"), b"right")
    write("p521.pem", ec.generate_private_key(ec.SECP521R1()))
    write("rsa1024.pem", rsa.generate_private_key(65537, 1024))  # noqa: S505 - to be refused
    write("dsa.pem", dsa.generate_private_key(1024))  # noqa: S505 - as above
    (tmp_path / "pin").write_text("x")
    (tmp_path / "wrong").write_text("wrong")
    (tmp_path / "garbage.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match=says):
        open_signer(KeyURI(uri, tmp_path))


async def test_a_key_of_another_certificate_never_serves(tmp_path: Path) -> None:
    """A key that does not belong to its certificate is found out at start. TSA-K8."""
    mine, other = issue("mine"), issue("other")
    certificate, _ = mine.write(tmp_path, "mine")
    _, key = other.write(tmp_path, "other")
    with pytest.raises(SignerUnusable):
        await prove(open_signer(KeyURI(f"file:{key}", tmp_path)), mine.certificate.public_key())
    with pytest.raises(ConfigError, match=r"mine\.pem and .*does not belong to the certificate"):
        await Identity.open(certificate, KeyURI(f"file:{key}", tmp_path))


async def test_the_chain_must_lead_upwards(tmp_path: Path) -> None:
    """Each issuer of the chain has issued the one before it; the self-signed root does not travel along. TSA-K8."""
    root = new_ca("root")
    middle = new_ca("middle", root)
    leaf = issue("leaf", middle)
    certificate, key = leaf.write(tmp_path, "leaf")
    pem = [each.certificate.public_bytes(Encoding.PEM) for each in (middle, root)]
    (tmp_path / "chain.pem").write_bytes(b"".join(pem))
    (tmp_path / "upside-down.pem").write_bytes(b"".join(reversed(pem)))
    uri = KeyURI(f"file:{key}", tmp_path)

    identity = await Identity.open(certificate, uri, chain=tmp_path / "chain.pem")
    assert [view.encoded for view in identity.intermediates] == [middle.der]
    with pytest.raises(ConfigError, match="put the nearest issuer first"):
        await Identity.open(certificate, uri, chain=tmp_path / "upside-down.pem")
