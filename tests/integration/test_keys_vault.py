"""Keys in Vault: every kind, every failure, against a server that signs with real keys; openssl is the judge."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan.config import KeyURI
from lakthan.errors import ConfigError, SignerBusy, SignerUnusable
from lakthan.identity import Identity
from lakthan.keys import bounds, open_signer, prove
from lakthan.keys.remote import RemoteSigner
from support.fake_kms import VAULT_KINDS, openssl_agrees, refuses
from support.fake_vault import TOKEN, FakeVault, TransitKey
from support.pki import issue, new_ca, new_key, shared_key

MESSAGE = b"ResponseData"


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[FakeVault]:
    """A Vault with one key, `ocsp`, P-256."""
    vault = FakeVault(tmp_path)
    vault.put("ocsp", "P-256", shared_key("P-256"))
    with vault.running():
        yield vault


def opened(vault: FakeVault, more: str = "") -> RemoteSigner:
    """A signer of `ocsp`, and the count of requests at nought again."""
    signer = open_signer(vault.uri(more=more))
    assert isinstance(signer, RemoteSigner)
    vault.asked = 0
    return signer


@pytest.mark.parametrize("kind", VAULT_KINDS)
async def test_every_kind_signs_and_openssl_agrees(kind: str, vault: FakeVault, tmp_path: Path) -> None:
    """A key of every kind signs in Vault, under the algorithm that a software key of that kind has; openssl verifies
    the signature with the public half.
    """
    key = shared_key(kind)
    vault.put("tsa", kind, key)
    signer = open_signer(vault.uri("tsa"))
    await prove(signer, key.public_key())
    signature = await signer.sign(MESSAGE)
    await signer.aclose()
    assert await openssl_agrees(key.public_key(), kind, MESSAGE, signature, tmp_path)


async def test_vault_gets_digests(vault: FakeVault) -> None:
    """What is signed does not leave the house, only its digest; Ed25519 alone needs the whole message."""
    vault.put("edwards", "Ed25519", shared_key("Ed25519"))
    for name in ("ocsp", "edwards"):
        signer = open_signer(vault.uri(name))
        await signer.sign(MESSAGE)
        await signer.aclose()
    inputs = [base64.b64decode(call["input"]) for call in vault.calls]
    assert len(inputs[0]) == 32
    assert inputs[1] == MESSAGE


async def test_many_at_once_over_few_connections(vault: FakeVault) -> None:
    """Hundreds of signatures at once are right, over no more connections than the URI says, which are kept."""
    signer = opened(vault, "&x-sessions=4&x-waiting=1000")
    vault.connections.clear()
    await asyncio.gather(*(prove(signer, signer.public_key) for _ in range(300)))
    await signer.aclose()
    assert vault.most_at_once <= 4
    assert len(vault.connections) <= 4
    assert vault.asked == 300


async def test_a_rotation_does_not_change_the_key(vault: FakeVault) -> None:
    """Vault makes a new version of the key: a signer that is open signs on with the one that its certificate names;
    whoever opens the key later chooses by `version`, and gets the newest without it.
    """
    signer = opened(vault)
    newer = new_key("P-256")
    vault.put("ocsp", "P-256", newer)
    await prove(signer, shared_key("P-256").public_key())
    first, latest = opened(vault, "&version=1"), opened(vault)
    await prove(first, shared_key("P-256").public_key())
    await prove(latest, newer.public_key())
    vault.keys["ocsp"].min_encryption_version = 2
    with pytest.raises(SignerUnusable, match=r"HTTP 400: requested version for signing"):
        await signer.sign(MESSAGE)
    refuses(vault.uri(more="&version=1"), "signs with version 2 and later ones only")
    for each in (signer, first, latest):
        await each.aclose()


async def test_a_key_made_anew_under_the_same_name_is_found_out(vault: FakeVault) -> None:
    """Somebody deletes the key and makes another one with its name: its signatures never leave the house."""
    signer = opened(vault)
    vault.keys["ocsp"].versions = [new_key("P-256")]
    with pytest.raises(SignerUnusable, match="does not verify"):
        await signer.sign(MESSAGE)
    assert vault.asked == 1
    await signer.aclose()


@pytest.mark.parametrize("trouble", [(503,), ("drop", 500), (429, 502), ("drop", "drop"), (429,)])
async def test_what_passes_is_tried_again(trouble: tuple[str | int, ...], vault: FakeVault) -> None:
    """Lost connections, 429 and 5xx pass: the signature comes all the same, and no caller hears of it."""
    signer = opened(vault)
    vault.next.extend(trouble)
    await prove(signer, signer.public_key)
    assert vault.asked == len(trouble) + 1
    await signer.aclose()


@pytest.mark.parametrize(
    ("trouble", "error", "says", "asked"),
    [
        (400, SignerUnusable, "HTTP 400", 1),
        (403, SignerUnusable, "HTTP 403: its token is refused, or may not do this", 1),
        (404, SignerUnusable, "HTTP 404: there is no such key", 1),
        ("elsewhere", SignerUnusable, "HTTP 307", 1),
        (b"<html>", SignerUnusable, "holds no signature", 1),
        (b"", SignerUnusable, "holds no signature", 1),
        (b'{"data": {}}', SignerUnusable, "holds no signature", 1),
        (b'{"data": {"signature": "vault:v2:AAAA"}}', SignerUnusable, "does not begin with vault:v1:", 1),
        (b'{"data": {"signature": "vault:v1:A*A="}}', SignerUnusable, "holds no signature", 1),
        (b'{"data": {"signature": "vault:v1:AAAA"}}', SignerUnusable, "does not verify", 1),
        (b"[" * 100_000, SignerUnusable, "holds no signature", 1),
        (503, SignerUnusable, "HTTP 503: Vault is sealed", 3),
        ("drop", SignerUnusable, "ocsp: ", 3),
        (429, SignerBusy, "HTTP 429", 3),
    ],
)
async def test_what_does_not_pass(
    trouble: str | int | bytes, error: type[Exception], says: str, asked: int, vault: FakeVault
) -> None:
    """What Vault refuses is not tried again, what it cannot do is tried three times; the caller hears which it was.
    An order to go elsewhere is not followed: the token stays here.
    """
    signer = opened(vault)
    vault.next.extend([trouble] * 3)
    with pytest.raises(error, match=says):
        await signer.sign(MESSAGE)
    assert vault.asked == asked
    vault.next.clear()
    await prove(signer, signer.public_key)
    await signer.aclose()


async def test_no_answer_in_time(vault: FakeVault) -> None:
    """A Vault that does not answer: the caller is told so when his time is over. Meanwhile the event loop turns."""
    signer = opened(vault, "&x-deadline=1")
    vault.next.extend(["hang"] * 3)
    signing = asyncio.create_task(signer.sign(MESSAGE))
    turns = 0
    while not signing.done():
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(SignerUnusable, match="no answer in time"):
        await signing
    assert turns > 100
    await signer.aclose()


async def test_one_that_hangs_leaves_time_for_another(vault: FakeVault) -> None:
    """One attempt that gets no answer takes half of the time: the next one brings the signature."""
    signer = opened(vault, "&x-deadline=2")
    vault.next.append("hang")
    await prove(signer, signer.public_key)
    assert vault.asked == 2
    await signer.aclose()


async def test_too_many_waiting(vault: FakeVault) -> None:
    """Beyond the sessions and the waiting places the next caller is told so at once; afterwards there is room again."""
    signer = opened(vault, "&x-sessions=1&x-waiting=2")
    vault.next.append("hang")
    asked = [asyncio.create_task(signer.sign(MESSAGE)) for _ in range(5)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    assert all(isinstance(task.exception(), SignerBusy) for task in done)
    vault.let_go()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, SignerBusy) for answer in answers] == [False] * 3 + [True] * 2
    assert vault.most_at_once == 1
    await prove(signer, signer.public_key)
    await signer.aclose()


async def test_who_waits_too_long_is_told(vault: FakeVault) -> None:
    """Whose turn does not come in time hears that the key is busy, and not that it is broken."""
    signer = opened(vault, "&x-sessions=1&x-deadline=1")
    await signer._places.acquire()
    with pytest.raises(SignerBusy, match="not his turn within 1 s"):
        await signer.sign(MESSAGE)
    assert vault.asked == 0
    signer._places.release()
    await prove(signer, signer.public_key)
    await signer.aclose()


async def test_who_leaves_gives_his_place_back(vault: FakeVault) -> None:
    """Callers that give up, under way and waiting: their places are free again."""
    signer = opened(vault, "&x-sessions=1&x-waiting=1")
    vault.next.append("hang")
    leaving = [asyncio.create_task(signer.sign(MESSAGE)) for _ in range(2)]
    async with asyncio.timeout(30):
        await asyncio.to_thread(vault.hanging.wait)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    await prove(signer, signer.public_key)
    await signer.aclose()


async def test_a_broken_backend_is_left_alone(vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five failures in a row every caller is told at once and Vault is not asked, but once a second by one of
    them. As soon as that one has his signature, all are served again.
    """
    monkeypatch.setattr(bounds, "_SECONDS_BETWEEN_PROBES", 3600.0)
    signer = opened(vault)
    vault.refusal = (403, b'{"errors": ["permission denied"]}')
    for _ in range(5):
        with pytest.raises(SignerUnusable, match="HTTP 403"):
            await signer.sign(MESSAGE)
    for _ in range(20):
        with pytest.raises(SignerUnusable, match=r"away and asked once a second: .*permission denied"):
            await signer.sign(MESSAGE)
    assert vault.asked == 5

    signer._bounds._next_probe = 0  # the second is over
    vault.next.append(503)
    asked = await asyncio.gather(*(signer.sign(MESSAGE) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(answer, SignerUnusable) for answer in asked)
    assert vault.asked == 6  # once, and not again

    signer._bounds._next_probe = 0
    vault.refusal = None
    await prove(signer, signer.public_key)
    await asyncio.gather(*(prove(signer, signer.public_key) for _ in range(10)))
    await signer.aclose()


async def test_nobody_waits_behind_the_one_who_tries_again(vault: FakeVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one caller tries a broken backend again and hangs, on the only connection, all others are told at once."""
    monkeypatch.setattr(bounds, "_SECONDS_BETWEEN_PROBES", 3600.0)
    signer = opened(vault, "&x-sessions=1")
    vault.next.extend([400] * 5)
    for _ in range(5):
        with pytest.raises(SignerUnusable):
            await signer.sign(MESSAGE)
    signer._bounds._next_probe = 0
    vault.next.append("hang")
    trying = asyncio.create_task(signer.sign(MESSAGE))
    await asyncio.to_thread(vault.hanging.wait)
    with pytest.raises(SignerUnusable, match="asked once a second"):
        await signer.sign(MESSAGE)
    assert not trying.done()
    vault.let_go()
    await trying
    await prove(signer, signer.public_key)
    await signer.aclose()


async def test_being_told_to_slow_down_is_no_failure(vault: FakeVault) -> None:
    """However often Vault says 429, the key is busy and not broken."""
    signer = opened(vault)
    vault.next.extend([429] * 3 * 6)
    for _ in range(6):
        with pytest.raises(SignerBusy, match="HTTP 429"):
            await signer.sign(MESSAGE)
    await prove(signer, signer.public_key)
    await signer.aclose()


async def test_a_broken_key_hurts_no_other(vault: FakeVault) -> None:
    """One key cannot sign any more; another one of the same Vault signs on."""
    vault.put("tsa", "RSA-2048", shared_key("RSA-2048"))
    broken, whole = opened(vault), open_signer(vault.uri("tsa"))
    del vault.keys["ocsp"]
    for _ in range(6):
        with pytest.raises(SignerUnusable):
            await broken.sign(MESSAGE)
    await prove(whole, shared_key("RSA-2048").public_key())
    await broken.aclose()
    await whole.aclose()


async def test_a_new_token_counts_at_once(vault: FakeVault, tmp_path: Path) -> None:
    """An agent writes the token anew before the old one ends: the next signature comes with it, without a restart."""
    signer = opened(vault)
    vault.tokens = {"hvs.new"}
    with pytest.raises(SignerUnusable, match="its token is refused"):
        await signer.sign(MESSAGE)
    (tmp_path / "token.tmp").write_text("hvs.new")
    (tmp_path / "token.tmp").rename(tmp_path / "token")
    await prove(signer, signer.public_key)
    (tmp_path / "token").unlink()
    with pytest.raises(SignerUnusable, match="token cannot be read"):
        await signer.sign(MESSAGE)
    await signer.aclose()


async def test_the_token_is_in_no_message(vault: FakeVault) -> None:
    """Not even when the backend repeats it."""
    signer = opened(vault)
    vault.refusal = (400, b'{"errors": ["bad token ' + TOKEN.encode() + b'\\n"]}')
    with pytest.raises(SignerUnusable, match="bad token …") as raised:
        await signer.sign(MESSAGE)
    assert TOKEN not in str(raised.value)
    vault.next.extend(["babble"] * 3)
    with pytest.raises(SignerUnusable) as raised:
        await signer.sign(MESSAGE)
    assert TOKEN not in str(raised.value)
    vault.next.extend(["babble"] * 3)
    with pytest.raises(ConfigError) as refused:
        open_signer(vault.uri())
    assert TOKEN not in str(refused.value)
    await signer.aclose()


async def test_a_namespace(vault: FakeVault) -> None:
    """The namespace of Vault Enterprise and OpenBao travels along."""
    vault.namespace = "pki/ocsp"
    signer = open_signer(vault.uri(more="&namespace=pki/ocsp"))
    await prove(signer, signer.public_key)
    await signer.aclose()
    refuses(vault.uri(), "HTTP 404: there is no such key, or no such engine; no handler for route")


async def test_the_key_of_a_certificate(vault: FakeVault, tmp_path: Path) -> None:
    """A certificate is opened with its key in Vault; with another key of that Vault it is refused."""
    mine = issue("mine")
    certificate, _ = mine.write(tmp_path, "mine")
    vault.put("mine", "P-256", mine.key)
    identity = await Identity.open(certificate, vault.uri("mine"))
    await identity.signer.aclose()
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        await Identity.open(certificate, vault.uri("ocsp"))


async def test_vault_comes_back_while_a_key_is_opened(vault: FakeVault) -> None:
    """A Vault that is about to start, or elects a new leader: opening a key waits a moment for it."""
    vault.next.extend([503, "drop"])
    signer = open_signer(vault.uri())
    assert not vault.next
    assert vault.asked == 3
    assert signer.public_key == shared_key("P-256").public_key()
    await prove(signer, signer.public_key)
    await signer.aclose()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("vault:ocsp?address={}&token-file=token", "write vault:MOUNT/KEY"),
        ("vault:transit/?address={}&token-file=token", "write vault:MOUNT/KEY"),
        ("vault:transit/ocsp?token-file=token", "add address=https://HOST:8200"),
        ("vault:transit/ocsp?address={}", "add token-file=FILE"),
        ("vault:transit/ocsp?address={}&token=hvs.secret", "must not hold the secret itself"),
        ("vault:transit/ocsp?address={}&token-file=token&colour=red", "unknown attribute 'colour'"),
        ("vault:transit/ocsp?address={}&address={}", "says address twice"),
        ("vault:transit/ocsp?address=http://vault.example&token-file=token", "for this very machine only"),
        ("vault:transit/ocsp?address=http://127.0.0.1.example&token-file=token", "for this very machine only"),
        ("vault:transit/ocsp?address=vault.example:8200&token-file=token", "an address is https://HOST"),
        ("vault:transit/ocsp?address=https://me:pw@vault.example&token-file=token", "without user"),
        ("vault:transit/ocsp?address=https://vault.example:port&token-file=token", "cannot be read"),
        ("vault:transit/ocsp?address=http://127.0.0.1:1&token-file=token", "Connection refused"),
        ("vault:transit/ocsp?address={}&token-file=missing", "missing cannot be read: No such file"),
        ("vault:transit/ocsp?address={}&token-file=empty", "does not hold a token alone"),
        ("vault:transit/ocsp?address={}&token-file=two-lines", "does not hold a token alone"),
        ("vault:transit/ocsp?address={}&token-file=wrong", "HTTP 403: its token is refused.*; permission denied"),
        ("vault:transit/ocsp?address={}&token-file=token&version=x", "version is a number from 1"),
        ("vault:transit/ocsp?address={}&token-file=token&version=2", "no version 2: the latest is 1"),
        ("vault:transit/ocsp?address={}&token-file=token&x-sessions=0", "x-sessions is a number from 1 to 256"),
        ("vault:transit/ocsp?address={}&token-file=token&x-deadline=61", "x-deadline is a number from 1 to 60"),
        ("vault:transit/ocsp?address={}&token-file=token&ca-file=missing", "missing cannot be read"),
        ("vault:transit/ocsp?address={}&token-file=token&ca-file=wrong", "the CAs of .* cannot be read"),
        ("vault:transit/other?address={}&token-file=token", "HTTP 404: there is no such key"),
        ("vault:transit/cipher?address={}&token-file=token", "has it as aes256-gcm96, which cannot sign here"),
        ("vault:transit/derived?address={}&token-file=token", "has it as derived ed25519"),
    ],
)
def test_refused_with_a_reason(uri: str, says: str, vault: FakeVault, tmp_path: Path) -> None:
    """Every key that cannot be opened says why, and what to write instead; what stands after the ? is not repeated."""
    vault.keys["cipher"] = TransitKey("aes256-gcm96", [shared_key("P-256")])
    vault.keys["derived"] = TransitKey("ed25519", [shared_key("Ed25519")], derived=True)
    for name, text in {"empty": "\n", "two-lines": "a\nb\n", "wrong": "hvs.wrong\n"}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says) as raised:
        open_signer(KeyURI(uri.format(vault.address, vault.address), tmp_path))
    assert "hvs." not in str(raised.value)


@pytest.mark.parametrize(
    "body", [b"<html>", b"{}", b'{"data": {"type": "ecdsa-p256", "latest_version": 1, "keys": {"1": 7}}}']
)
def test_garbage_instead_of_a_key(body: bytes, vault: FakeVault) -> None:
    """Something else answers at Vault's address: it is not taken for a key."""
    vault.next.append(body)
    refuses(vault.uri(), "holds no public key")


async def test_tls_is_verified(tmp_path: Path) -> None:
    """Vault's certificate must lead to a CA of `ca-file`; without that file the system's CAs count: it is refused."""
    ca = new_ca("vault's CA")
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    server = issue("127.0.0.1", ca, extensions=((address, False),))
    certificate, key = server.write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    vault = FakeVault(tmp_path)
    vault.put("ocsp", "P-256", shared_key("P-256"))
    with vault.running(tls):
        signer = open_signer(vault.uri(more="&ca-file=ca.pem"))
        await prove(signer, signer.public_key)
        await signer.aclose()
        refuses(vault.uri(), "certificate verify failed")
