"""Keys in an HSM: SoftHSM, a real PKCS#11 library, with openssl as the judge of what it signed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan.config import KeyURI
from lakthan.errors import ConfigError, SignerBusy, SignerUnusable
from lakthan.identity import Identity
from lakthan.keys import open_signer, prove
from lakthan.keys.pkcs11 import PKCS11Signer
from lakthan.keys.pkcs11_token import Library
from support.fake_kms import openssl_agrees
from support.pki import KEY_KINDS, issue, new_ca, new_key, shared_key
from support.programs import need
from support.softhsm import MODULE, PIN, Token, new_token, tokens_folder

SIGNATURES = (*KEY_KINDS, *(f"{kind} PSS" for kind in KEY_KINDS if kind.startswith("RSA")))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has its tokens."""
    need("softhsm2-util")
    return tokens_folder(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def token(tokens: Path, tmp_path: Path) -> Token:
    """A token of its own for one test."""
    return new_token(tokens, tmp_path)


@pytest.mark.parametrize("kind", SIGNATURES)
async def test_every_kind_signs_and_openssl_agrees(kind: str, token: Token, tmp_path: Path) -> None:
    """A key of every kind signs in the token, under the algorithm that a software key of that kind has; openssl
    verifies the signature with the public half.
    """
    pss = kind.endswith("PSS")
    key = shared_key(kind.removesuffix(" PSS"))
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more="&x-signature=pss" if pss else ""))
    await prove(signer, key.public_key())
    message = b"ResponseData"
    signature = await signer.sign(message)
    await signer.aclose()
    assert await openssl_agrees(key.public_key(), kind, message, signature, tmp_path, pss=pss)


# Mechanisms of SoftHSM by their numbers: PKCS #11 2.40, table of mechanisms.
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("RSA-2048", "x-mechanism=0x40&x-input=message"),  # CKM_SHA256_RSA_PKCS
        ("RSA-2048", "x-mechanism=1&x-input=digest-info"),  # CKM_RSA_PKCS
        ("RSA-2048", "x-mechanism=0x43&x-input=message&x-signature=pss"),  # CKM_SHA256_RSA_PKCS_PSS
        ("P-384", "x-mechanism=0x1041&x-input=digest"),  # CKM_ECDSA
        ("Ed25519", "x-mechanism=0x1057&x-input=message"),  # CKM_EDDSA
    ],
)
async def test_a_mechanism_by_its_number(kind: str, says: str, token: Token, tmp_path: Path) -> None:
    """The configuration names the mechanism by its number and says what it is given: that is how a device's own, or
    one that is newer than this program, is used. openssl verifies what it signs.
    """
    key = new_key(kind)
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more=f"&{says}"))
    signature = await signer.sign(b"ResponseData")
    await signer.aclose()
    assert await openssl_agrees(key.public_key(), kind, b"ResponseData", signature, tmp_path, pss="pss" in says)


async def test_a_mechanism_that_signs_otherwise_never_serves(token: Token) -> None:
    """A number that is right for the device and wrong for what is given: the proof finds it out."""
    key = new_key("RSA-2048")
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more="&x-mechanism=0x40&x-input=digest"))
    with pytest.raises(SignerUnusable, match="does not verify"):
        await prove(signer, key.public_key())
    await signer.aclose()


@pytest.mark.parametrize("form", ["public key", "certificate"])
async def test_the_public_key_from_a_file(form: str, token: Token, tmp_path: Path) -> None:
    """A token that keeps no public half of an EC key: a file gives it, as a public key or as its certificate. Without
    the file the key is refused; and with another key's file it never serves.
    """
    issued, other = issue("mine"), issue("other")
    identifier = token.put("ocsp", issued.key)
    token.tool("--login", "--pin", PIN, "--delete-object", "--type", "pubkey", "--id", identifier)
    with pytest.raises(ConfigError, match=r"no public key object .* add x-public-key=FILE"):
        open_signer(token.uri("ocsp"))
    for name, each in {"mine": issued, "other": other}.items():
        public = each.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pem").write_bytes(
            public if form == "public key" else each.certificate.public_bytes(Encoding.PEM)
        )
    signer = open_signer(token.uri("ocsp", more="&x-public-key=mine.pem"))
    await prove(signer, issued.key.public_key())
    await signer.aclose()
    wrong = open_signer(token.uri("ocsp", more="&x-public-key=other.pem"))
    with pytest.raises(SignerUnusable, match="does not verify"):
        await prove(wrong, other.key.public_key())
    await wrong.aclose()
    (tmp_path / "empty.pem").write_bytes(b"")
    for file, says in (("missing.pem", "cannot be read: No such file"), ("empty.pem", "holds no PEM public key")):
        with pytest.raises(ConfigError, match=says):
            open_signer(token.uri("ocsp", more=f"&x-public-key={file}"))


@pytest.mark.parametrize("kind", SIGNATURES)
async def test_many_at_once(kind: str, token: Token) -> None:
    """A hundred signatures by eight sessions at once, with every kind of key: each is right."""
    key = shared_key(kind.removesuffix(" PSS"))
    token.put("ocsp", key)
    pss = "&x-signature=pss" if kind.endswith("PSS") else ""
    signer = open_signer(token.uri("ocsp", more=f"&x-sessions=8&x-waiting=1000{pss}"))
    await asyncio.gather(*(prove(signer, key.public_key()) for _ in range(100)))
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


async def test_a_key_that_was_let_go_of(token: Token) -> None:
    """After `aclose` what was asked before is still signed, and nothing else."""
    key = new_key("P-256")
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more="&x-sessions=1"))
    asked = [asyncio.create_task(prove(signer, key.public_key())) for _ in range(5)]
    await asyncio.sleep(0)
    await signer.aclose()
    await asyncio.gather(*asked)
    with pytest.raises(SignerUnusable, match="let go of"):
        await signer.sign(b"x")


async def test_an_identity_in_the_token(token: Token, tmp_path: Path) -> None:
    """A responder's certificate with its key in a token opens like one with a key file."""
    issued = issue("responder", new_ca("CA"))
    token.put("ocsp", issued.key)
    certificate, _ = issued.write(tmp_path, "responder")
    identity = await Identity.open(certificate, token.uri("ocsp"))
    assert identity.view.encoded == issued.der
    await identity.signer.aclose()


@pytest.fixture
def tried_pins(monkeypatch: pytest.MonkeyPatch, token: Token) -> list[bytes]:
    """Every PIN that the library is given from now on, on its way into it."""
    del token  # the tokens are there
    functions, tried = Library.open(MODULE).cryptoki._functions, []
    real = functions["C_Login"]

    def log_in(session: int, user: int, pin: bytes, length: int) -> int:
        tried.append(pin)
        value: int = real(session, user, pin, length)
        return value

    monkeypatch.setitem(functions, "C_Login", log_in)
    return tried


async def test_a_wrong_pin_is_tried_once(token: Token, tmp_path: Path, tried_pins: list[bytes]) -> None:
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
    assert tried_pins == [b"999999"]
    (tmp_path / "wrong").write_text(f"{PIN}\n")
    signer = open_signer(token.uri("ocsp", pin_source="wrong"))
    await prove(signer, key.public_key())
    await signer.aclose()


async def test_eight_sessions_try_a_wrong_pin_once(token: Token, tmp_path: Path, tried_pins: list[bytes]) -> None:
    """The PIN in the file becomes wrong and the library has to be started again under load: of eight threads that log
    in at that moment one tries it, and the token counts one failure. The right PIN then serves all of them.
    """
    key = new_key("P-256")
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more="&x-sessions=8&x-waiting=1000"))
    await asyncio.gather(*(prove(signer, key.public_key()) for _ in range(20)))
    (tmp_path / "pin").write_text("999999\n")
    _forget_sessions(signer)
    tried_pins.clear()
    answers = await asyncio.gather(*(signer.sign(b"x") for _ in range(40)), return_exceptions=True)
    assert all(isinstance(answer, SignerUnusable) for answer in answers)
    assert tried_pins.count(b"999999") == 1
    (tmp_path / "pin").write_text(f"{PIN}\n")
    async with asyncio.timeout(30):
        while True:
            try:
                await prove(signer, key.public_key())
                break
            except SignerUnusable:
                await asyncio.sleep(0.2)
    await signer.aclose()
    assert tried_pins.count(b"999999") == 1


class Gate:
    """Every signature of the library waits until `opened`; `reached`: one does."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A device that does not come back until it is told to."""
    made = Gate()
    library = Library.open(MODULE).cryptoki
    sign = library.sign

    def wait(*arguments: Any) -> bytes:  # noqa: ANN401 - handed on
        made.reached.set()
        made.opened.wait()
        return sign(*arguments)

    monkeypatch.setattr(library, "sign", wait)
    yield made
    made.opened.set()


async def test_a_device_that_hangs(token: Token, gate: Gate) -> None:
    """A call that does not come back: its caller hears so when his time is over, and who waited for a turn hears that
    the key is busy. With a lost call in every place nobody waits any more. When the calls come back, the key signs.
    """
    key = new_key("P-256")
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more="&x-sessions=2&x-waiting=1&x-deadline=1"))
    assert isinstance(signer, PKCS11Signer)
    answers = await asyncio.gather(*(signer.sign(b"x") for _ in range(4)), return_exceptions=True)
    says = [f"{type(answer).__name__}: {str(answer).rpartition(': ')[2]}" for answer in answers]
    assert sorted(says[:2]) == ["SignerUnusable: no signature within 1 s"] * 2
    assert says[2] == "SignerBusy: not his turn within 1 s"
    assert says[3].startswith("SignerBusy: 3 signatures wait")
    bounds = signer._bounds
    assert (bounds.circuit_open, bounds.under_way) == (True, 2)
    with pytest.raises(SignerUnusable, match="no signature within 1 s"):
        await signer.sign(b"x")
    gate.opened.set()
    async with asyncio.timeout(30):
        while bounds.under_way:  # noqa: ASYNC110 - the device says when
            await asyncio.sleep(0.01)
    assert not bounds.circuit_open
    await prove(signer, key.public_key())
    assert bounds.counts == {"signed": 1, "failed": 0, "timed out": 2, "busy": 2, "left alone": 1}
    await signer.aclose()


async def test_who_leaves_gives_his_place_back(token: Token, gate: Gate) -> None:
    """Callers that give up: a place that waited is free at once, one under way as soon as the device is done."""
    key = new_key("P-256")
    token.put("ocsp", key)
    signer = open_signer(token.uri("ocsp", more="&x-sessions=1&x-waiting=1"))
    assert isinstance(signer, PKCS11Signer)
    leaving = [asyncio.create_task(signer.sign(b"x")) for _ in range(2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await asyncio.to_thread(gate.reached.wait)
    assert (signer._bounds.under_way, signer._bounds.waiting) == (1, 1)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert (signer._bounds.under_way, signer._bounds.waiting) == (1, 0)
    gate.opened.set()
    await prove(signer, key.public_key())
    assert (signer._bounds.under_way, signer._bounds.waiting) == (0, 0)
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
        ("pkcs11:token=x;object=y?module-path=/x.so&x-deadline=0", "from 1 to 60"),
        ("pkcs11:token=x;object=y?module-path=/x.so&x-signature=oaep", "pkcs1v15 or pss"),
        ("pkcs11:token=x;object=y?module-path=/x.so&x-input=hash", "message, digest, digest-info"),
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


def run_program(token: Token, program: str, more: str = "") -> str:
    """Run a program in a process of its own, with the URI of the key and its folder; gives what it prints."""
    uri = token.uri("ocsp", more=more)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), uri.uri, str(uri.folder)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout


def test_the_event_loop_does_not_wait(token: Token) -> None:
    """A device that sleeps two seconds over a signature: meanwhile the event loop turns hundreds of times."""
    token.put("ocsp", new_key("P-256"))
    turned = run_program(
        token,
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
        """,
    )
    assert int(turned) > 200


def test_a_device_that_hangs_does_not_keep_the_process(token: Token) -> None:
    """A call into the vendor's library that never comes back: the process ends all the same when it is done."""
    token.put("ocsp", new_key("P-256"))
    said = run_program(
        token,
        """
        import asyncio, sys, threading
        from pathlib import Path
        from lakthan.config import KeyURI
        from lakthan.errors import SignerUnusable
        from lakthan.keys import cryptoki, open_signer

        async def main():
            signer = open_signer(KeyURI(sys.argv[1], Path(sys.argv[2])))
            cryptoki.Cryptoki.sign = lambda self, *arguments: threading.Event().wait()
            try:
                await signer.sign(b"x")
            except SignerUnusable as error:
                print(error)
            await signer.aclose()

        asyncio.run(main())
        """,
        "&x-deadline=1",
    )
    assert "no signature within 1 s" in said
