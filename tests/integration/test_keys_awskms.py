"""Keys in AWS KMS: the published vectors of its request signatures, botocore, moto, and a server that signs with real
keys as AWS does.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from lakthan.config import KeyURI
from lakthan.errors import ConfigError, SignerBusy, SignerUnusable
from lakthan.keys import open_signer, prove
from lakthan.keys.aws_sigv4 import Credentials, signed_headers
from lakthan.keys.awskms import AWSKey
from lakthan.keys.remote import Ask, RemoteSigner
from lakthan.keys.verification import verify
from support.fake_awskms import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, FakeAWSKMS, write_credentials
from support.fake_kms import AWS_KINDS, openssl_agrees, refuses
from support.pki import new_key, shared_key
from support.programs import absent, need

MESSAGE = b"ResponseData"
SESSION_TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7"
    "mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+"
    "xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def kms(tmp_path: Path) -> Iterator[FakeAWSKMS]:
    """A KMS with one key, `alias/ocsp`, P-256."""
    kms = FakeAWSKMS(tmp_path)
    kms.put("ocsp", shared_key("P-256"))
    with kms.running():
        yield kms


def opened(kms: FakeAWSKMS) -> RemoteSigner:
    """A signer of `alias/ocsp`, and the count of requests at nought again."""
    signer = open_signer(kms.uri())
    assert isinstance(signer, RemoteSigner)
    kms.asked = 0
    return signer


@pytest.mark.parametrize(
    ("method", "headers", "body", "names", "signature"),
    [
        ("GET", {}, b"", "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", {}, b"", "host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "POST",
            {"My-Header1": "value1"},
            b"",
            "host;my-header1;x-amz-date",
            "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
        ),
        (
            "POST",
            {"My-Header1": "VALUE1"},
            b"",
            "host;my-header1;x-amz-date",
            "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
        ),
        (
            "GET",
            {"My-Header1": " value1", "My-Header2": '"a   b   c"'},
            b"",
            "host;my-header1;my-header2;x-amz-date",
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        (
            "POST",
            FORM,
            b"Param1=value1",
            "content-type;host;x-amz-date",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
        (
            "POST",
            {},
            b"",
            "host;x-amz-date;x-amz-security-token",
            "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
        ),
    ],
)
def test_the_published_vectors(method: str, headers: dict[str, str], body: bytes, names: str, signature: str) -> None:
    """Requests of AWS's Signature Version 4 test suite (get-vanilla, post-vanilla, post-header-key-sort,
    post-header-value-case, get-header-value-trim, post-x-www-form-urlencoded, post-sts-header-before) are signed octet
    for octet as published.
    """
    signed = signed_headers(
        method,
        {"Host": "example.amazonaws.com", **headers},
        body,
        credentials=Credentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN if "token" in names else None),
        region="us-east-1",
        service="service",
        now=datetime(2015, 8, 30, 12, 36, tzinfo=UTC),
    )
    assert signed["Authorization"] == (
        f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    assert signed["X-Amz-Date"] == "20150830T123600Z"


@pytest.mark.parametrize("token", [None, SESSION_TOKEN])
def test_botocore_signs_alike(token: str | None, tmp_path: Path) -> None:
    """The very requests that go to KMS: AWS's own library gives them the same signature."""
    botocore = {name: _imported(f"botocore.{name}") for name in ("auth", "awsrequest", "credentials")}
    write_credentials(tmp_path / "aws", session_token=token)
    key = AWSKey(KeyURI(f"awskms:alias/ocsp?region={REGION}&credentials-file=aws", tmp_path))
    ask = key.opening()
    theirs = {name: value for name, value in ask.headers.items() if name in {"Host", "Content-Type", "X-Amz-Target"}}
    request = botocore["awsrequest"].AWSRequest("POST", f"{key.address}/", theirs, ask.body)
    request.context["timestamp"] = ask.headers["X-Amz-Date"]
    credentials = botocore["credentials"].Credentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY, token)
    auth = botocore["auth"].SigV4Auth(credentials, "kms", REGION)
    request.headers["X-Amz-Date"] = ask.headers["X-Amz-Date"]
    if token:
        request.headers["X-Amz-Security-Token"] = token
    canonical = auth.canonical_request(request)
    signature = auth.signature(auth.string_to_sign(request, canonical), request)
    assert ask.headers["Authorization"].endswith(f"Signature={signature}")


@pytest.mark.parametrize("kind", AWS_KINDS)
async def test_every_kind_signs_and_openssl_agrees(kind: str, kms: FakeAWSKMS, tmp_path: Path) -> None:
    """A key of every kind that KMS has signs a digest there, under the algorithm that a software key of that kind has;
    openssl verifies the signature with the public half.
    """
    key = shared_key(kind)
    kms.put("tsa", key)
    signer = open_signer(kms.uri("alias/tsa"))
    await prove(signer, key.public_key())
    signature = await signer.sign(MESSAGE)
    await signer.aclose()
    assert kms.calls[-1]["MessageType"] == "DIGEST"
    assert await openssl_agrees(key.public_key(), kind, MESSAGE, signature, tmp_path)


async def test_a_moved_alias_does_not_change_the_key(kms: FakeAWSKMS) -> None:
    """The alias is moved to a new key, as AWS advises for rotations: a signer that is open signs on with the key that
    its certificate names; one opened later takes the new one.
    """
    signer = opened(kms)
    newer = new_key("P-256")
    kms.put("ocsp", newer)
    later = opened(kms)
    await prove(signer, shared_key("P-256").public_key())
    await prove(later, newer.public_key())
    await signer.aclose()
    await later.aclose()


async def test_new_credentials_count_at_once(kms: FakeAWSKMS, tmp_path: Path) -> None:
    """Temporary credentials are renewed in their file: the next signature comes with them, without a restart."""
    signer = opened(kms)
    kms.access_key_id, kms.session_token = "ASIATEMPORARY", SESSION_TOKEN
    with pytest.raises(SignerUnusable, match="HTTP 400: UnrecognizedClientException"):
        await signer.sign(MESSAGE)
    write_credentials(tmp_path / "aws", "ASIATEMPORARY", "expired")
    with pytest.raises(SignerUnusable, match="HTTP 400: ExpiredTokenException"):
        await signer.sign(MESSAGE)
    write_credentials(tmp_path / "aws", "ASIATEMPORARY", SESSION_TOKEN)
    await prove(signer, signer.public_key)
    await signer.aclose()


@pytest.mark.parametrize("name", ["ThrottlingException", "com.amazonaws.kms#ThrottlingException"])
async def test_throttling_is_no_failure(name: str, kms: FakeAWSKMS) -> None:
    """KMS says "slow down" with status 400, which is otherwise never tried again: the caller hears that the key is
    busy, and the circuit stays closed.
    """
    signer = opened(kms)
    kms.refusal = (400, json.dumps({"__type": name, "message": "Rate exceeded"}).encode())
    for _ in range(6):
        with pytest.raises(SignerBusy, match="HTTP 400: ThrottlingException: Rate exceeded"):
            await signer.sign(MESSAGE)
    assert kms.asked == 18
    kms.refusal = None
    await prove(signer, signer.public_key)
    await signer.aclose()


@pytest.mark.parametrize(
    ("status", "body", "says", "asked"),
    [
        (400, b'{"__type": "KMSInvalidStateException", "message": "is disabled"}', "KMSInvalidState.*is disabled", 1),
        (400, b'{"__type": "AccessDeniedException", "Message": "not authorized"}', "AccessDenied.*not authorized", 1),
        (400, b"<html>", "HTTP 400$", 1),
        (500, b'{"__type": "KMSInternalException"}', "HTTP 500: KMSInternalException", 3),
        (503, b"", "HTTP 503", 3),
        (200, b"{}", "holds no signature", 1),
        (200, b'{"Signature": "MEU="}', "does not verify", 1),
        (200, b'{"Signature": "%"}', "holds no signature", 1),
    ],
)
async def test_what_does_not_pass(status: int, body: bytes, says: str, asked: int, kms: FakeAWSKMS) -> None:
    """What KMS refuses is not tried again, what it cannot do is tried three times; the caller hears KMS's own words."""
    signer = opened(kms)
    kms.refusal = (status, body)
    with pytest.raises(SignerUnusable, match=says):
        await signer.sign(MESSAGE)
    assert kms.asked == asked
    await signer.aclose()


async def test_secrets_are_in_no_message(kms: FakeAWSKMS, tmp_path: Path) -> None:
    """When a signature does not fit, AWS repeats the request as it understood it, and in it the session token."""
    kms.session_token = SESSION_TOKEN
    write_credentials(tmp_path / "aws", session_token=SESSION_TOKEN)
    signer = opened(kms)
    words = f"The canonical request is x-amz-security-token:{SESSION_TOKEN} {SECRET_ACCESS_KEY}"
    kms.refusal = (403, json.dumps({"__type": "InvalidSignatureException", "message": words}).encode())
    with pytest.raises(SignerUnusable, match=r"x-amz-security-token:… …$") as raised:
        await signer.sign(MESSAGE)
    assert "AQoDYXdz" not in str(raised.value)
    assert "AQoDYXdz" not in repr(Credentials(ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN))
    await signer.aclose()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("awskms:?region=r&credentials-file=aws", "write awskms:KEY-ID"),
        ("awskms:alias/ocsp?credentials-file=aws", "add region=ap-southeast-1"),
        ("awskms:alias/ocsp?region=r", "add credentials-file=FILE"),
        ("awskms:alias/ocsp?region=r&secret-key=x", "must not hold the secret itself"),
        ("awskms:alias/ocsp?region=r&credentials-file=aws&endpoint=http://kms.example", "this very machine only"),
        ("awskms:alias/ocsp?region=r&credentials-file=aws&endpoint={}/path", "an endpoint has no path"),
        ("awskms:alias/ocsp?region=r&credentials-file=aws&endpoint=http://127.0.0.1:1", "Connection refused"),
        ("awskms:alias/ocsp?region=r&credentials-file=missing&endpoint={}", "missing cannot be read"),
        ("awskms:alias/ocsp?region=r&credentials-file=prose&endpoint={}", "prose holds no credentials"),
        ("awskms:alias/ocsp?region=r&credentials-file=other&endpoint={}", "other holds no credentials"),
        ("awskms:alias/ocsp?region=r&credentials-file=half&endpoint={}", "half holds no credentials"),
        ("awskms:alias/ocsp?region=r&credentials-file=binary&endpoint={}", "binary is not text"),
        ("awskms:alias/ocsp?region=r&credentials-file=strange&endpoint={}", "UnrecognizedClientException"),
        ("awskms:alias/other?region=r&credentials-file=aws&endpoint={}", "NotFoundException: alias/other is not found"),
        ("awskms:alias/edwards?region=r&credentials-file=aws&endpoint={}", "Ed25519 is not signed with through KMS"),
        ("awskms:alias/p521?region=r&credentials-file=aws&endpoint={}", "use P-256 or P-384"),
    ],
)
def test_refused_with_a_reason(uri: str, says: str, kms: FakeAWSKMS, tmp_path: Path) -> None:
    """Every key that cannot be opened says why, and what to write instead, and never what is in the file."""
    kms.put("edwards", shared_key("Ed25519"))
    kms.put("p521", ec.generate_private_key(ec.SECP521R1()))
    (tmp_path / "prose").write_text("the secret is hunter2\n")
    (tmp_path / "other").write_text("[lakthan]\naws_access_key_id = a\naws_secret_access_key = hunter2\n")
    (tmp_path / "half").write_text("[default]\naws_secret_access_key = hunter2\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe hunter2")
    write_credentials(tmp_path / "strange", "AKIDSTRANGE")
    with pytest.raises(ConfigError, match=says) as raised:
        open_signer(KeyURI(uri.format(kms.address), tmp_path))
    assert "hunter2" not in f"{raised.value} {raised.value.__cause__}"


def test_a_key_for_something_else(kms: FakeAWSKMS) -> None:
    """A key that KMS has for encryption is refused at start."""
    kms.usage = "ENCRYPT_DECRYPT"
    refuses(kms.uri(), "has it for ENCRYPT_DECRYPT: use a key for SIGN_VERIFY")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of a moto server."""
    process = subprocess.Popen(
        [need("moto_server"), "-H", "127.0.0.1", "-p", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr is not None
        yield next(line.split()[-1] for line in process.stderr if "Running on" in line)
    finally:
        process.terminate()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.parametrize(
    ("kind", "spec"),
    [("P-256", "ECC_NIST_P256"), ("P-384", "ECC_NIST_P384"), ("RSA-2048", "RSA_2048"), ("RSA-4096", "RSA_4096")],
)
async def test_moto_understands(kind: str, spec: str, moto: str, tmp_path: Path) -> None:
    """Moto opens keys by ID, ARN and alias, and signs what it is asked to. It takes the digest for a message (its own
    sources say so), so the signature is one over the digest: it verifies as that, and the signer does not let it out.
    """
    write_credentials(tmp_path / "aws")
    made = _ask_moto(moto, "CreateKey", {"KeySpec": spec, "KeyUsage": "SIGN_VERIFY"})["KeyMetadata"]
    alias = f"alias/{spec.lower().replace('_', '-')}"
    _ask_moto(moto, "CreateAlias", {"AliasName": alias, "TargetKeyId": made["KeyId"]})
    for name in (made["KeyId"], made["Arn"], alias):
        uri = KeyURI(f"awskms:{name}?region={REGION}&endpoint={moto}&credentials-file=aws", tmp_path)
        signer = await asyncio.to_thread(open_signer, uri)
        with pytest.raises(SignerUnusable, match="does not verify"):
            await signer.sign(MESSAGE)
        await signer.aclose()

        key = AWSKey(uri)
        public_key = key.opened(_sent(moto, key.opening()))
        signature = key.signature(_sent(moto, key.signing(MESSAGE, signer.algorithm)))
        verify(public_key, signer.algorithm.hash, signature, signer.algorithm.hash.digest(MESSAGE))


def _ask_moto(address: str, action: str, fields: dict[str, str]) -> Any:  # noqa: ANN401 - JSON
    headers = {
        "X-Amz-Target": f"TrentService.{action}",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/20260101/{REGION}/kms/aws4_request",
        "Content-Type": "application/x-amz-json-1.1",
    }
    return json.loads(_sent(address, Ask("POST", "/", headers, json.dumps(fields).encode())))


def _sent(address: str, ask: Ask) -> bytes:
    connection = HTTPConnection(address.removeprefix("http://"))
    connection.request(ask.method, ask.path, ask.body, ask.headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert response.status == 200, body
    return body


def _imported(name: str) -> Any:  # noqa: ANN401 - published without types
    try:
        return importlib.import_module(name)
    except ImportError:
        absent("moto_server", f"{name} is not installed; it comes with moto")
