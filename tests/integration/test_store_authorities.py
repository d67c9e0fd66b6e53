"""Authorities: the names and keys that CertIDs are matched with."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeRefused
from lakthan.store.pool import connect
from lakthan.store.status import AuthorityReader
from support.database import OpenPool

NAME = "ອົງການ ຢັ້ງຢືນ (Public CA)"


def subject(common_name: str) -> x509.Name:
    """A name of one attribute."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def ca_certificate(common_name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    """A self-signed certificate, DER."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject(common_name))
        .issuer_name(subject(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


@pytest.fixture
async def admin(open_as: OpenPool) -> AuthorityAdmin:
    """An admin with the registry's rights."""
    return AuthorityAdmin(await open_as("lakthan_registry"))


@pytest.fixture
async def reader(open_as: OpenPool) -> AuthorityReader:
    """A reader with the responder's rights."""
    return AuthorityReader(await open_as("lakthan_responder"))


async def test_names_and_keys_are_those_of_the_certificates(admin: AuthorityAdmin, reader: AuthorityReader) -> None:
    """Subject and key are taken out as another library sees them: the octets that a CertID hashes.

    OCSP-64, OCSP-Q26, OCSP-Q27.
    """
    curve_key, rsa_key = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
    certificates = [ca_certificate(NAME, curve_key), ca_certificate(NAME, rsa_key)]
    made = await admin.add_authority(NAME, certificates, extra_names=[b"0\x00"])
    (authority,) = await reader.load()
    assert (authority.id, authority.name) == (made, NAME)
    assert set(authority.names) == {subject(NAME).public_bytes(), b"0\x00"}
    point = curve_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    numbers = rsa_key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    assert set(authority.public_keys) == {point, numbers}
    assert set(authority.certificates) == set(certificates)
    assert await admin.find_authority(NAME) == authority
    assert await admin.find_authority("nobody") is None
    assert await admin.find_issuers(b"0\x00") == [authority]
    assert await admin.find_issuers(b"") == []


async def test_the_same_again_changes_nothing_and_more_is_added(admin: AuthorityAdmin, reader: AuthorityReader) -> None:
    """A second call with the same content is a no-op; a new key and a new certificate join the old ones."""
    key = ec.generate_private_key(ec.SECP256R1())
    first = ca_certificate(NAME, key)
    made = await admin.add_authority(NAME, [first])
    before = await reader.load()
    assert await admin.add_authority(NAME, [first, first]) == made
    assert await reader.load() == before
    assert await admin.add_authority(NAME, [ca_certificate(NAME, key)]) == made
    assert await admin.add_authority(NAME, [ca_certificate(NAME)]) == made
    (after,) = await reader.load()
    assert (len(after.names), len(after.public_keys), len(after.certificates)) == (1, 2, 3)


async def test_two_authorities_cannot_share_name_and_key(admin: AuthorityAdmin, reader: AuthorityReader) -> None:
    """A CertID names one authority: a second one with the same name and key is refused and leaves nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    await admin.add_authority("one", [ca_certificate(NAME, key)])
    with pytest.raises(ChangeRefused, match="one"):
        await admin.add_authority("two", [ca_certificate(NAME, key)])
    await admin.add_authority("three", [ca_certificate(NAME)])
    assert [authority.name for authority in await reader.load()] == ["one", "three"]


async def test_two_at_once_make_one_authority(admin: AuthorityAdmin, reader: AuthorityReader) -> None:
    """Two registries that add the same authority in the same moment end with one."""
    certificate = ca_certificate(NAME)
    first, second = await asyncio.gather(*(admin.add_authority(NAME, [certificate]) for _ in range(2)))
    assert first == second
    assert len(await reader.load()) == 1


@pytest.mark.parametrize(
    ("name", "certificates", "says"),
    [
        ("x", [], "at least one certificate"),
        ("x", [b"not DER"], "cannot be read"),
        ("x", [ca_certificate(NAME)[:-1]], "cannot be read"),
        ("", [ca_certificate(NAME)], "needs a name"),
        (" x", [ca_certificate(NAME)], "needs a name"),
    ],
)
async def test_what_cannot_be_an_authority_is_refused(
    admin: AuthorityAdmin, name: str, certificates: list[bytes], says: str
) -> None:
    """A missing or broken certificate and an empty name are refused in words."""
    with pytest.raises(ChangeRefused, match=says):
        await admin.add_authority(name, certificates)


async def test_responders_hear_of_a_new_authority(admin: AuthorityAdmin, database_url: str) -> None:
    """A change of the authorities is notified once, after it is committed, however many rows it has."""
    connection: asyncpg.Connection = await connect(
        database_url, role="lakthan_responder", application_name="lakthan-test"
    )
    heard: list[object] = []
    await connection.add_listener("lakthan_authority", lambda *parts: heard.append(parts))
    await admin.add_authority(NAME, [ca_certificate(NAME), ca_certificate(NAME)])
    await connection.fetchval("SELECT 1")
    assert len(heard) == 1
    await connection.close()
