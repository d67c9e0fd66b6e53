"""Keys of a token that two programs share: ours, and python-pkcs11, which nothing of ours is made with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan import der
from lakthan.config import KeyURI
from lakthan.errors import SignerUnusable
from lakthan.keys import open_signer, prove
from lakthan.keys.verification import verify
from lakthan_cli.__main__ import main
from support.pkcs11_peer import Peer, peer
from support.programs import need
from support.softhsm import Token, new_token, tokens_folder

# Kind of key, what is asked for in our URI, and what the peer calls the mechanism.
KINDS = [
    ("P-256", "", "P-256"),
    ("P-384", "", "P-384"),
    ("RSA-2048", "", "PKCS#1"),
    ("RSA-3072", "&x-signature=pss", "PSS"),
    ("Ed25519", "", "Ed25519"),
]
MESSAGE = b"ResponseData"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has its tokens."""
    need("softhsm2-util")
    return tokens_folder(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture(scope="module")
def foreign(tokens: Path) -> Iterator[Peer]:
    """python-pkcs11, at work on the same tokens."""
    with peer() as started:
        yield started


@pytest.fixture
def token(tokens: Path, tmp_path: Path) -> Token:
    """A token of its own for one test."""
    return new_token(tokens, tmp_path)


def octets_of(public_key: PublicKeyTypes) -> bytes:
    """A public key as PKCS #11 keeps it: the point in an OCTET STRING, or RSA's two numbers (RFC 8017 §A.1.1)."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return der.encode(der.OCTET_STRING, public_key.public_bytes_raw())
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    return der.encode(der.OCTET_STRING, public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


@pytest.mark.parametrize(("kind", "more", "mechanism"), KINDS)
async def test_what_we_made_serves_the_peer(
    kind: str, more: str, mechanism: str, *, token: Token, foreign: Peer, tmp_path: Path
) -> None:
    """`lakthan keys generate` makes a key that python-pkcs11 finds by label and by id, with the public half that we
    read, and that the token keeps to itself. What we sign it verifies with the token's object, and says no to another
    message; what it signs we verify.
    """
    home = KeyURI(token.uri("ocsp", more=more).uri.replace("object=ocsp", "object=ocsp;id=%0a%ff"), tmp_path)
    uri = home.uri.replace("pin-source=pin", f"pin-source={tmp_path}/pin")
    made = CliRunner().invoke(main, ["keys", "generate", uri, "--kind", kind])
    assert made.exit_code == 0, made.output
    signer = open_signer(home)
    seen = foreign.ask("find", token, "ocsp")
    assert seen["private"]["id"] == seen["public"]["id"] == "0aff"
    assert (seen["private"]["sensitive"], seen["private"]["extractable"]) == (True, False)
    assert seen["public"]["key"] == octets_of(signer.public_key).hex()

    ours = await signer.sign(MESSAGE)
    await signer.aclose()
    asked = ("ocsp", mechanism)
    assert foreign.ask("verify", token, *asked, MESSAGE.hex(), ours.hex()) == {"verifies": True}
    assert foreign.ask("verify", token, *asked, b"another".hex(), ours.hex()) == {"verifies": False}
    theirs = bytes.fromhex(foreign.ask("sign", token, *asked, MESSAGE.hex())["signature"])
    verify(signer.public_key, signer.algorithm.hash, theirs, MESSAGE, pss=mechanism == "PSS")


@pytest.mark.parametrize(("kind", "more", "mechanism"), KINDS)
async def test_what_the_peer_made_serves_us(kind: str, more: str, mechanism: str, token: Token, foreign: Peer) -> None:
    """A key that python-pkcs11 made is opened by our adapter with its public half, and what it signs here verifies."""
    foreign.ask("generate", token, "theirs", kind)
    signer = open_signer(token.uri("theirs", more=more))
    assert octets_of(signer.public_key).hex() == foreign.ask("find", token, "theirs")["public"]["key"]
    await prove(signer, signer.public_key)
    signature = await signer.sign(MESSAGE)
    assert foreign.ask("verify", token, "theirs", mechanism, MESSAGE.hex(), signature.hex()) == {"verifies": True}
    foreign.ask("generate", token, "another", kind)
    another = open_signer(token.uri("another", more=more))
    with pytest.raises(SignerUnusable, match="does not belong"):
        await prove(signer, another.public_key)
    await another.aclose()
    await signer.aclose()
