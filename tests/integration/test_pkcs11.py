"""Keys in an HSM: SoftHSM, a real PKCS#11 library, with openssl as the judge of what it signed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan.config import KeyURI
from lakthan.errors import ConfigError, SignerBusy, SignerUnusable
from lakthan.identity import Identity
from lakthan.keys import open_signer, prove
from support.pki import issue, new_ca, new_key
from support.programs import need
from support.softhsm import MODULE, PIN, Token, new_token, tokens_folder

KINDS = ("P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has its tokens."""
    need("softhsm2-util")
    return tokens_folder(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def token(tokens: Path, tmp_path: Path) -> Token:
    """A token of its own for one test."""
    return new_token(tokens, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_signs_and_openssl_agrees(kind: str, token: Token, tmp_path: Path) -> None:
    """A key of every kind signs in the token, under the algorithm that a software key of that kind has; openssl
    verifies the signature with the public half.
    """
    key = new_key(kind)
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp"))
    await prove(signer, key.public_key())
    message = b"ResponseData"
    signature = await signer.sign(message)
    await signer.aclose()

    (tmp_path / "message").write_bytes(message)
    (tmp_path / "signature").write_bytes(signature)
    (tmp_path / "public.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    command: list[str] = [str(need("openssl")), "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem"]
    command += ["-rawin", "-in", "message", "-sigfile", "signature"]
    if kind != "Ed25519":
        command += ["-digest", "sha384" if kind == "P-384" else "sha256"]
    judge = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, stdout=subprocess.PIPE)
    said, _ = await judge.communicate()
    assert b"Signature Verified Successfully" in said


async def test_many_at_once(token: Token) -> None:
    """Hundreds of signatures by eight sessions at once: each is right."""
    key = new_key("P-256")
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more="&x-sessions=8&x-waiting=1000"))
    await asyncio.gather(*(prove(signer, key.public_key()) for _ in range(400)))
    await signer.aclose()


async def test_two_keys_of_one_token_share_the_login(token: Token) -> None:
    """A responder's and a unit's key in the same token: one login does for both, and each signs as itself."""
    first, second = new_key("P-256"), new_key("RSA-2048")
    token.put("ocsp", first)
    token.put("tsa", second)
    signers = [open_signer(token.uri("ocsp")), open_signer(token.uri("tsa"))]
    await prove(signers[0], first.public_key())
    await prove(signers[1], second.public_key())
    with pytest.raises(SignerUnusable, match="does not belong"):
        await prove(signers[0], second.public_key())


async def test_an_identity_in_the_token(token: Token, tmp_path: Path) -> None:
    """A responder's certificate with its key in a token opens like one with a key file."""
    issued = issue("responder", new_ca("CA"))
    token.put("ocsp", issued.key)
    certificate, _ = issued.write(tmp_path, "responder")
    identity = await Identity.open(certificate, token.uri("ocsp"))
    assert identity.view.encoded == issued.der
    await identity.signer.aclose()


def failed_logins(token: Token) -> str:
    """What the token itself says about wrong PINs."""
    shown = subprocess.run(
        [need("pkcs11-tool"), "--module", str(MODULE), "--list-slots"], check=True, capture_output=True, text=True
    ).stdout
    return shown[shown.index(token.label) :].split("Slot", 1)[0]


async def test_a_wrong_pin_is_tried_once(token: Token, tmp_path: Path) -> None:
    """A wrong PIN is refused with a sentence, and the token is not asked again: not by another key, not by a second
    start of the same one. With the right PIN in the file it opens.
    """
    key = new_key("P-256")
    token.put("ocsp", key)
    (tmp_path / "wrong").write_text("999999\n")
    with pytest.raises(ConfigError, match=r"refuses the PIN .* not tried again"):
        open_signer(token.uri("ocsp", pin_source="wrong"))
    for _ in range(3):
        with pytest.raises(ConfigError, match="refused this PIN, and it is not tried again"):
            open_signer(token.uri("ocsp", pin_source="wrong"))
    (tmp_path / "wrong").write_text(f"{PIN}\n")
    signer = open_signer(token.uri("ocsp", pin_source="wrong"))
    await prove(signer, key.public_key())
    await signer.aclose()


async def test_too_many_waiting(token: Token) -> None:
    """Beyond the sessions and the waiting places the next caller is told so at once; afterwards there is room again."""
    key = new_key("RSA-4096")
    token.put("slow", key)
    signer = open_signer(token.uri("slow", more="&x-sessions=1&x-waiting=2"))
    asked = [asyncio.create_task(signer.sign(b"x")) for _ in range(5)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, SignerBusy) for answer in answers] == [False] * 3 + [True] * 2
    await prove(signer, key.public_key())
    await signer.aclose()


async def test_the_token_goes_and_comes_back(token: Token, tokens: Path, tmp_path: Path) -> None:
    """The token's folder is taken away under a running signer: it says that it cannot sign. When the token is back, it
    signs again, without a restart of the process.
    """
    key = new_key("P-256")
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp"))
    await prove(signer, key.public_key())
    with taken_away(tokens, tmp_path / "safe"):
        _forget_sessions(signer)
        for _ in range(3):  # the library is started again for the first of them at most, then once a second
            with pytest.raises(SignerUnusable, match=r"0 tokens are there|looked for again every second"):
                await signer.sign(b"x")
    async with asyncio.timeout(30):
        while True:
            try:
                await prove(signer, key.public_key())
                break
            except SignerUnusable:
                await asyncio.sleep(0.2)
    await signer.aclose()


@contextmanager
def taken_away(tokens: Path, safe: Path) -> Iterator[None]:
    """While this lasts there are no tokens."""
    shutil.move(tokens, safe)
    tokens.mkdir()
    yield
    tokens.rmdir()
    shutil.move(safe, tokens)


def _forget_sessions(signer: object) -> None:
    """SoftHSM keeps a token's objects in memory: close what is open, as the removal of a card would."""
    library = signer._library.cryptoki  # type: ignore[attr-defined]
    library.finalize()
    library.initialize()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("pkcs11:token=x;object=y", "names no library"),
        ("pkcs11:token=x?module-path=/x.so", "names no key"),
        ("pkcs11:token=x;object=y?module-path=/x.so&pin-value=1", "must not hold the PIN"),
        ("pkcs11:token=x;colour=y?module-path=/x.so", "unknown attribute 'colour'"),
        ("pkcs11:token=x;token=y;object=z?module-path=/x.so", "says token twice"),
        ("pkcs11:token=x;object=y?module-path=/x.so&x-sessions=0", "from 1 to 64"),
        ("pkcs11:token=x;object=y;type=cert?module-path=/x.so", "other than private"),
        ("pkcs11:token=x;object=y?module-path=/no/such.so", "cannot be used as a PKCS#11 library"),
        (f"pkcs11:token=no-such-token;object=y?module-path={MODULE}", "0 tokens are there"),
    ],
)
def test_refused_with_a_reason(uri: str, says: str, tokens: Path, tmp_path: Path) -> None:
    """Every URI that cannot be opened says why, and what to write instead."""
    with pytest.raises(ConfigError, match=says):
        open_signer(KeyURI(uri, tmp_path))


def test_no_such_key(token: Token) -> None:
    """A label that no key of the token has; and without its PIN no private key is seen."""
    token.put("ocsp", new_key("P-256"))
    with pytest.raises(ConfigError, match="0 private keys"):
        open_signer(token.uri("other"))


def test_the_event_loop_does_not_wait(token: Token, tmp_path: Path) -> None:
    """A device that sleeps two seconds over a signature: meanwhile the event loop turns hundreds of times."""
    token.put("ocsp", new_key("P-256"))
    program = textwrap.dedent(
        """
        import asyncio, sys, time
        from pathlib import Path
        from lakthan.config import KeyURI
        from lakthan.keys import cryptoki, open_signer

        async def main():
            signer = open_signer(KeyURI(sys.argv[1], Path(sys.argv[2])))
            fast = cryptoki.Cryptoki.sign
            def slow(self, *arguments):
                time.sleep(2)
                return fast(self, *arguments)
            cryptoki.Cryptoki.sign = slow
            signing = asyncio.create_task(signer.sign(b"x"))
            turns = 0
            while not signing.done():
                await asyncio.sleep(0.001)
                turns += 1
            await signer.aclose()
            print(turns)

        asyncio.run(main())
        """
    )
    uri = token.uri("ocsp")
    turned = subprocess.run(
        [sys.executable, "-c", program, uri.uri, str(uri.folder)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(turned.stdout) > 200
