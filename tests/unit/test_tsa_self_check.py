"""The last look at a token: nothing wrong passes, whoever made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lakthan.errors import SignerUnusable
from lakthan.keys.software import SoftwareSigner
from lakthan_tsa.authority import Draft, TokenTemplate, draft
from lakthan_tsa.self_check import SelfCheck
from lakthan_tsa.syntax import TimeStampReq, parse_request
from support.pki import KEY_KINDS, new_key
from support.tsa import POLICY, Unit, new_unit, request_for

NOON = datetime(2026, 4, 14, 12, 0, 0, 250_000, tzinfo=UTC)
SERIAL_NUMBER = b"\x41\x02" + bytes(16)


@pytest.fixture(scope="module")
def unit() -> Unit:
    """One unit for all tests here."""
    return new_unit()


def parsed(nonce: int | None = 77, *, hashed: bytes = bytes(32), cert_req: bool = True) -> TimeStampReq:
    """A request as the service reads it."""
    template = TokenTemplate(new_unit().identity(), policy=POLICY, accuracy=timedelta(seconds=1))
    body = request_for(hashed, nonce=nonce, cert_req=cert_req)
    return parse_request(body, offered_policies=frozenset({template.policy}))


async def token_for(
    unit: Unit, request: TimeStampReq, *, sign: Callable[[bytes], bytes] | None = None
) -> tuple[bytes, TokenTemplate]:
    """The finished token, signed by `sign` in place of the unit's key, and its template."""
    identity = unit.identity()
    template = TokenTemplate(identity, policy=POLICY, accuracy=timedelta(seconds=1))
    made = draft(request, template, serial_number=SERIAL_NUMBER, gen_time=NOON)
    signature = sign(made.tbs) if sign else await identity.signer.sign(made.tbs)
    return made.seal(signature), template


def check(unit: Unit, token: bytes, request: TimeStampReq, policy: bytes, **others: object) -> None:
    """The last look, with what was meant unless `others` says otherwise."""
    meant: dict[str, object] = {"policy": policy, "serial_number": SERIAL_NUMBER, "gen_time": NOON, **others}
    SelfCheck(unit.identity())(token, request, **meant)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*KEY_KINDS, "ML-DSA-65"])
@pytest.mark.parametrize("nonce", [None, 5])
@pytest.mark.parametrize("cert_req", [False, True])
async def test_good_tokens_pass(kind: str, nonce: int | None, *, cert_req: bool) -> None:
    """Tokens of every kind of key, with and without nonce and certificates, pass."""
    one = new_unit(kind)
    request = parsed(nonce, cert_req=cert_req)
    token, template = await token_for(one, request)
    check(one, token, request, template.policy)


@pytest.mark.parametrize("microsecond", [0, 1000, 10_000, 120_000, 500_000, 999_000])
async def test_every_way_to_write_gen_time(unit: Unit, microsecond: int) -> None:
    """Fractions of a second, with their zeros left out, are read as they were meant."""
    request = parsed()
    template = TokenTemplate(unit.identity(), policy=POLICY, accuracy=timedelta(seconds=1))
    instant = NOON.replace(microsecond=microsecond)
    made = draft(request, template, serial_number=SERIAL_NUMBER, gen_time=instant)
    token = made.seal(await unit.identity().signer.sign(made.tbs))
    check(unit, token, request, template.policy, gen_time=instant)


async def test_a_wrong_key(unit: Unit) -> None:
    """A real signature by another key of the same kind does not pass. TSA-R9."""
    other = SoftwareSigner(new_key("P-256"))
    request = parsed()
    identity = unit.identity()
    template = TokenTemplate(identity, policy=POLICY, accuracy=timedelta(seconds=1))
    made = draft(request, template, serial_number=SERIAL_NUMBER, gen_time=NOON)
    token = made.seal(await other.sign(made.tbs))
    with pytest.raises(SignerUnusable, match="does not verify"):
        check(unit, token, request, template.policy)


@pytest.mark.parametrize(
    "others",
    [
        {"policy": b"\x06\x01\x2a"},
        {"serial_number": b"\x41\x02" + bytes(15) + b"\x01"},
        {"gen_time": NOON + timedelta(milliseconds=1)},
    ],
)
async def test_a_token_that_says_something_else(unit: Unit, others: dict[str, object]) -> None:
    """A policy, serial number or genTime other than what was meant does not pass, though the signature is good."""
    request = parsed()
    token, template = await token_for(unit, request)
    policy = others.pop("policy", template.policy)
    assert isinstance(policy, bytes)
    with pytest.raises(SignerUnusable, match="does not say what was asked for"):
        check(unit, token, request, policy, **others)


@pytest.mark.parametrize("other", [parsed(78), parsed(None), parsed(hashed=b"\x01" * 32)])
async def test_a_token_for_another_request(unit: Unit, other: TimeStampReq) -> None:
    """The imprint and the nonce are those of the request, or the token stays here."""
    token, template = await token_for(unit, parsed())
    with pytest.raises(SignerUnusable, match="does not say what was asked for"):
        check(unit, token, other, template.policy)


async def test_another_signer(unit: Unit) -> None:
    """A token that names another certificate as its signer does not pass."""
    request = parsed()
    token, template = await token_for(new_unit(), request)
    with pytest.raises(SignerUnusable, match="another certificate"):
        check(unit, token, request, template.policy)


async def test_every_flipped_bit_of_what_counts(unit: Unit) -> None:
    """Whatever bit of a token without certificates flips, the token does not pass, but for those that nothing depends
    on: OIDs and versions that stand outside the signed part.
    """
    request = parsed(cert_req=False)
    token, template = await token_for(unit, request)
    check(unit, token, request, template.policy)
    passed = set()
    for at in range(len(token)):
        for bit in range(8):
            flipped = token[:at] + bytes((token[at] ^ 1 << bit,)) + token[at + 1 :]
            try:
                check(unit, flipped, request, template.policy)
            except SignerUnusable:
                continue
            passed.add(at)
    # contentType and version of ContentInfo and SignedData, digestAlgorithms, eContentType; version and two
    # AlgorithmIdentifiers of the signer: less than a hundred octets, none of which the signature covers.
    assert len(passed) < 100
    tst_info = token.index(bytes.fromhex("0201010606"))
    assert not passed & set(range(tst_info, tst_info + 60))
    assert not passed & set(range(len(token) - 70, len(token)))


def serial_numbers(*, sampled: bool) -> Iterator[bytes]:
    """Some that the mode `content` samples, or some that it does not."""
    return (SERIAL_NUMBER[:-1] + bytes((octet,)) for octet in range(1, 256) if (octet % 32 == 0) is sampled)


async def test_content_mode_of_a_key_in_this_process(unit: Unit) -> None:
    """With `content`, the first token of a layout and samples are verified, the others are not; what a token says is
    compared in every one.
    """
    identity, request = unit.identity(), parsed()
    template = TokenTemplate(identity, policy=POLICY, accuracy=timedelta(seconds=1))
    last_look = SelfCheck(identity, "content")
    assert not last_look.always_verifies

    def bad(serial_number: bytes) -> bytes:
        made = draft(request, template, serial_number=serial_number, gen_time=NOON)
        return made.seal(b"\x30\x45" + bytes(69))

    def look(token: bytes, serial_number: bytes, gen_time: datetime = NOON) -> None:
        last_look(token, request, policy=template.policy, serial_number=serial_number, gen_time=gen_time)

    plain = next(serial_numbers(sampled=False))
    with pytest.raises(SignerUnusable, match="does not verify"):
        look(bad(plain), plain)
    while len(signature := await identity.signer.sign((made := signed_draft(request, template, plain)).tbs)) != 71:
        pass  # a layout is one size of everything
    look(made.seal(signature), plain)
    for serial_number in serial_numbers(sampled=False):
        look(bad(serial_number), serial_number)
        with pytest.raises(SignerUnusable, match="does not say"):
            look(bad(serial_number), plain[:-2] + b"\x01\x01")
        with pytest.raises(SignerUnusable, match="does not say"):
            look(bad(serial_number), serial_number, NOON + timedelta(milliseconds=1))
    for serial_number in serial_numbers(sampled=True):
        with pytest.raises(SignerUnusable, match="does not verify"):
            look(bad(serial_number), serial_number)


def signed_draft(request: TimeStampReq, template: TokenTemplate, serial_number: bytes) -> Draft:
    """What is to be signed."""
    return draft(request, template, serial_number=serial_number, gen_time=NOON)


class Elsewhere:
    """A key in a device, as far as anybody can tell from outside."""

    def __init__(self, signer: SoftwareSigner) -> None:
        self._signer = signer
        self.algorithm, self.public_key = signer.algorithm, signer.public_key

    async def sign(self, message: bytes) -> bytes:
        """See `Signer.sign`."""
        return await self._signer.sign(message)

    async def aclose(self) -> None:
        """See `Signer.aclose`."""


@pytest.mark.parametrize("kind", ["RSA-2048", "RSA-3072", "ML-DSA-65"])
def test_cheap_verification_is_never_left_out(kind: str) -> None:
    """Where verifying costs a fraction of signing, `content` verifies every token as `full` does."""
    assert SelfCheck(new_unit(kind).identity(), "content").always_verifies


def test_a_key_elsewhere_is_never_trusted(unit: Unit) -> None:
    """Every signature of a device is verified, whatever the mode: its faults are not ours to see."""
    identity = unit.identity()
    assert isinstance(identity.signer, SoftwareSigner)
    outside = replace(identity, signer=Elsewhere(identity.signer))
    assert SelfCheck(outside, "content").always_verifies
    assert SelfCheck(identity, "full").always_verifies


def test_the_request_is_a_value() -> None:
    """What is compared is the request as it was read; a changed copy is another request."""
    assert parsed()._replace(nonce=None) == parsed(None)
