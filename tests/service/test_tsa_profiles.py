"""Several kinds of tokens from one authority: profiles by path, units side by side, successors, freezes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from asn1crypto import core
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, padding, rsa

from lakthan.config import TSAProfileConfig
from lakthan.store.token_admin import TokenAdmin
from support.database import OpenPool
from support.tsa import (
    POLICY,
    UNIT_EXTENSIONS,
    Authority,
    Unit,
    failure,
    new_unit,
    request_for,
    running_tsa,
    token_of,
    tst_info_of,
)

KINDS = ("P-256", "P-384", "RSA-3072", "RSA-4096", "ML-DSA-65")
HOUR = timedelta(hours=1)


@asynccontextmanager
async def serving(
    database_url: str, folder: Path, units: dict[str, Unit], profiles: dict[str, TSAProfileConfig], **settings: object
) -> AsyncIterator[Authority]:
    """An authority with these units and profiles; `Authority.unit` is the first one."""
    written = {name: unit.write(folder / name) for name, unit in units.items()}
    first = next(iter(units.values()))
    settings |= {"units": written, "profiles": profiles}
    async with running_tsa(database_url, folder, first, **settings) as authority:  # type: ignore[arg-type]
        yield authority


def signer_of(response: bytes) -> int:
    """The serial number of the certificate that a token names as its signer's."""
    number: int = token_of(response)["content"]["signer_infos"][0]["sid"].native["serial_number"]
    return number


def by(unit: Unit) -> int:
    """The same of a unit."""
    return unit.leaf.certificate.serial_number


def verified(response: bytes, unit: Unit) -> None:
    """pyca/cryptography verifies the signature over the signed attributes (RFC 5652 §5.4)."""
    [signer] = token_of(response)["content"]["signer_infos"]
    signed, signature = signer["signed_attrs"].untag().dump(), signer["signature"].native
    key = unit.leaf.certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        wide = isinstance(key.curve, ec.SECP384R1)
        key.verify(signature, signed, ec.ECDSA(hashes.SHA384() if wide else hashes.SHA256()))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
    else:
        assert isinstance(key, mldsa.MLDSA65PublicKey)
        key.verify(signature, signed)


async def test_units_of_all_kinds_side_by_side(database_url: str, tmp_path: Path) -> None:
    """One process stamps with P-256, P-384, RSA and ML-DSA-65, each at its own path; every signature verifies; tokens
    are never longer than the gauge says, and their sizes differ by a few octets only.

    TSA-O8, TSA-Q11, TSA-V14.
    """
    units = {kind: new_unit(kind) for kind in KINDS}
    profiles = {kind: TSAProfileConfig([kind]) for kind in KINDS}
    async with serving(database_url, tmp_path, units, profiles) as authority:
        for kind, unit in units.items():
            sizes = set()
            for n in range(8):
                body = request_for(bytes([n]) * 64, hash_name="sha512", nonce=2**159 + n, cert_req=True)
                reply = await authority.post(body, path=f"tsa/{kind}")
                assert signer_of(reply.body) == by(unit)
                verified(reply.body, unit)
                sizes.add(len(token_of(reply.body).dump()))
            longest = (await authority.metrics())[f'lakthan_tsa_token_octets{{profile="{kind}"}}']
            # Fractions of genTime that end in zeros, and the INTEGERs of ECDSA; the length octets around them.
            assert longest - 16 <= min(sizes) <= max(sizes) <= longest
        assert (await authority.post(request_for())).http_status == 404  # there is no profile called default


async def test_a_profile_has_its_own_rules(database_url: str, tmp_path: Path) -> None:
    """Policy, hashes, nonce, accuracy and chain are the profile's: another path of the same unit has others.

    TSA-R5, TSA-R10, TSA-T11.
    """
    strict = TSAProfileConfig(
        ["main"],
        policy="1.2.3.4",
        accuracy=timedelta(milliseconds=500),
        hashes=["SHA-384"],
        chain=False,
        require_nonce=True,
    )
    profiles = {"default": TSAProfileConfig(["main"]), "strict": strict}
    async with serving(database_url, tmp_path, {"main": new_unit()}, profiles) as authority:
        usual = await authority.post(request_for(cert_req=True))
        assert tst_info_of(usual.body)["policy"].native == POLICY
        assert len(token_of(usual.body)["content"]["certificates"]) == 2

        body = request_for(bytes(48), hash_name="sha384", nonce=1, cert_req=True, req_policy="1.2.3.4")
        reply = await authority.post(body, path="tsa/strict")
        tst_info = tst_info_of(reply.body)
        assert tst_info["policy"].native == "1.2.3.4"
        assert tst_info["accuracy"].native["millis"] == 500
        assert [each.chosen.dump() for each in token_of(reply.body)["content"]["certificates"]] == [
            authority.unit.leaf.der
        ]

        for refused, fail_info in (
            (request_for(bytes(32), nonce=1), "bad_alg"),
            (request_for(bytes(48), hash_name="sha384"), "bad_request"),
            (request_for(bytes(48), hash_name="sha384", nonce=1, req_policy=POLICY), "unaccepted_policy"),
        ):
            reply = await authority.post(refused, path="tsa/strict")
            bits, text = failure(reply.body)
            assert bits == {fail_info}
            assert text


async def test_qualified_tokens_say_so(database_url: str, tmp_path: Path) -> None:
    """A qualified token carries the one statement of EN 319 422 §9.1, not critical; others carry no extension.

    TSA-T10, TSA-T12.
    """
    units = {"plain": new_unit(), "qualified": new_unit()}
    profiles = {"default": TSAProfileConfig(["plain"]), "qualified": TSAProfileConfig(["qualified"], qualified=True)}
    async with serving(database_url, tmp_path, units, profiles) as authority:
        plain = tst_info_of((await authority.post(request_for(nonce=5))).body)
        assert plain["extensions"].native is None
        reply = await authority.post(request_for(nonce=5, cert_req=True), path="tsa/qualified")
        qualified = tst_info_of(reply.body)
        assert qualified["nonce"].native == 5
        [extension] = qualified["extensions"]
        assert extension["extn_id"].dotted == "1.3.6.1.5.5.7.1.3"
        assert extension["critical"].native is False
        statements = core.SequenceOf.load(extension["extn_value"].native, spec=core.Sequence, strict=True)
        [[statement]] = [list(each.native.values()) for each in statements]
        assert statement == "0.4.0.19422.1.1"
        verified(reply.body, units["qualified"])


@pytest.mark.parametrize("new_first", [False, True])
async def test_a_successor_takes_over(database_url: str, tmp_path: Path, *, new_first: bool) -> None:
    """Behind its predecessor, a successor stamps when that one's key has ended; before it, as soon as it begins: one
    that begins tomorrow stamps nothing today.

    TSA-K5, TSA-K6.
    """
    ended = datetime.now(UTC).replace(microsecond=0, tzinfo=None) - timedelta(minutes=5)
    past = new_unit(extensions=(*UNIT_EXTENSIONS, (x509.PrivateKeyUsagePeriod(None, ended), False)))
    future = new_unit(valid=(24 * HOUR, 48 * HOUR))
    units = {"past": past, "present": new_unit(), "future": future}
    order = ["future", "present", "past"] if new_first else ["past", "present", "future"]
    async with serving(database_url, tmp_path, units, {"default": TSAProfileConfig(order)}) as authority:
        assert signer_of((await authority.post(request_for())).body) == by(units["present"])


@pytest.mark.parametrize("kind", ["P-256", "RSA-3072"])
async def test_a_freeze_under_load(database_url: str, tmp_path: Path, open_as: OpenPool, kind: str) -> None:
    """A unit that is frozen while clients ask for tokens stamps nothing that is granted afterwards; nobody notices
    anything but the successor's name, and both units are in the records. So it is with keys that sign in the event loop
    and in threads.

    TSA-R9, TSA-K12.
    """
    units = {"first": new_unit(kind), "second": new_unit(kind)}
    profiles = {"default": TSAProfileConfig(["first", "second"])}
    async with serving(database_url, tmp_path, units, profiles) as authority:
        signers: list[int] = []
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                signers.append(signer_of((await authority.post(request_for())).body))

        clients = [asyncio.create_task(ask()) for _ in range(8)]
        while len(signers) < 50:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        admin = TokenAdmin(await open_as("lakthan_registry"))
        tsu = hashlib.sha256(units["first"].leaf.der).hexdigest()
        await admin.freeze(tsu, "the key was seen elsewhere", "test")
        frozen_at = len([each async for each in tokens_of(admin, tsu)])
        await asyncio.sleep(0.3)
        stop.set()
        await asyncio.gather(*clients)
        assert set(signers) == {by(units["first"]), by(units["second"])}
        assert len([each async for each in tokens_of(admin, tsu)]) == frozen_at
        assert signers.count(by(units["first"])) == frozen_at
        metrics = await authority.metrics()
        assert metrics['lakthan_tsa_unit_frozen{unit="first"}'] == 1
        assert metrics['lakthan_tsa_unit_frozen{unit="second"}'] == 0
        assert metrics['lakthan_tsa_tokens_total{unit="first"}'] == frozen_at


async def test_a_freeze_is_seen_without_requests(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """An idle process learns of a freeze by itself: it is not ready any more, and a request is refused by the
    protocol's word. After a restart the unit is frozen still.

    TSA-R9.
    """
    unit = new_unit()
    admin = TokenAdmin(await open_as("lakthan_registry"))
    async with running_tsa(database_url, tmp_path, unit) as authority:
        await admin.freeze(hashlib.sha256(unit.leaf.der).hexdigest(), "found on a stick", "test")
        while (await authority.session.get(f"{authority.admin_url}/readyz")).status == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert failure((await authority.post(request_for())).body)[0] == {"system_failure"}
    async with running_tsa(database_url, tmp_path, unit) as authority:
        assert failure((await authority.post(request_for())).body)[0] == {"system_failure"}
        reply = await authority.session.get(f"{authority.admin_url}/readyz")
        assert "profile default: no key of its units may stamp now" in await reply.text()


def tokens_of(admin: TokenAdmin, tsu: str) -> AsyncIterator[object]:
    """The tokens of a unit that are on record."""
    now = datetime.now(UTC)
    return admin.tokens(now - HOUR, now + HOUR, tsu=tsu)
