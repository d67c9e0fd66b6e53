"""Programs that people stamp with: Java's jarsigner, osslsigncode, Bouncy Castle, rfc3161-client, and nothing but curl.

Each of them asks the running demo, and each then verifies what it got, down from the demo's root.
"""

from __future__ import annotations

import json
import struct
import subprocess
import urllib.request
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID
from rfc3161_client import (
    HashAlgorithm,
    TimeStampRequest,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    Verifier,
    VerifierBuilder,
    decode_timestamp_response,
)

from support.demo import Demo, lakthan
from support.pki import Issued, issue, new_ca
from support.programs import need, need_bouncy_castle
from support.tsa import key_usage

POLICY = "0.4.0.2023.1.1"
PASSWORD = "for-this-test"
SOURCE = Path(__file__).parent / "clients/Stamp.java"
Java = Callable[..., str]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """All that a program prints; it must succeed."""
    done = subprocess.run(
        command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def ask(demo: Demo, request: TimeStampRequest) -> TimeStampResponse:
    """Send a request of rfc3161-client's with urllib, as its documentation does."""
    http_request = urllib.request.Request(  # noqa: S310 - the URL of the demo
        demo.urls["tsa"], data=request.as_bytes(), headers={"Content-Type": "application/timestamp-query"}
    )
    with urllib.request.urlopen(http_request, timeout=10) as reply:  # noqa: S310
        return decode_timestamp_response(reply.read())


def verifier(demo: Demo, request: TimeStampRequest, *, root: str = "root.pem") -> Verifier:
    """A verifier that knows the request and one root, and takes the certificates in between from the token."""
    certificate = x509.load_pem_x509_certificate((demo.pki / root).read_bytes())
    return VerifierBuilder.from_request(request).add_root_certificate(certificate).build()


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA256, HashAlgorithm.SHA512])
@pytest.mark.parametrize("nonce", [True, False], ids=["nonce", "no nonce"])
def test_rfc3161_client_verifies_the_token(demo: Demo, algorithm: HashAlgorithm, nonce: bool) -> None:  # noqa: FBT001
    """The client of the Python world reads the token and verifies it from the root alone. TSA-Q12, TSA-Q17."""
    builder = TimestampRequestBuilder().data(b"contract").hash_algorithm(algorithm)
    request = builder.nonce(nonce=nonce).cert_request(cert_request=True).build()
    response = ask(demo, request)
    assert verifier(demo, request).verify_message(response, b"contract")
    info = response.tst_info
    assert info.policy.dotted_string == POLICY
    assert (info.nonce == request.nonce) is True
    assert info.accuracy.seconds == 1
    assert abs(info.gen_time - datetime.now(UTC)) < timedelta(minutes=1)


def test_rfc3161_client_does_not_take_another_root_or_other_data(demo: Demo) -> None:
    """The check above can fail."""
    request = TimestampRequestBuilder().data(b"contract").cert_request(cert_request=True).build()
    response = ask(demo, request)
    with pytest.raises(VerificationError):
        verifier(demo, request, root="tsu.pem").verify_message(response, b"contract")
    with pytest.raises(VerificationError):
        verifier(demo, request).verify_message(response, b"another contract")


@pytest.fixture(scope="module")
def signer() -> tuple[Issued, Issued]:
    """A certificate for signing programs, and the CA above it, which the demo has nothing to do with."""
    ca = new_ca("Code Signing CA")
    extensions = (
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
        (key_usage(digital_signature=True), True),
    )
    return issue(
        "Programmer", ca, kind="RSA-2048", extensions=extensions, valid=(timedelta(0), timedelta(days=400))
    ), ca


@pytest.fixture
def keystore(demo: Demo, signer: tuple[Issued, Issued], tmp_path: Path) -> Path:
    """A PKCS #12 keystore with the signer's key, and both roots as trusted certificates."""
    leaf, ca = signer
    root = x509.load_pem_x509_certificate((demo.pki / "root.pem").read_bytes())
    path = tmp_path / "keys.p12"
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"programmer",
            leaf.key,  # type: ignore[arg-type]
            leaf.certificate,
            [ca.certificate],
            BestAvailableEncryption(PASSWORD.encode()),
        )
    )
    for name, certificate in (("code-root", ca.certificate), ("national-root", root)):
        pem = tmp_path / f"{name}.pem"
        pem.write_bytes(certificate.public_bytes(Encoding.PEM))
        store = ("-keystore", path, "-storepass", PASSWORD, "-noprompt")
        run(need("java").with_name("keytool"), "-importcert", "-alias", name, "-file", pem, *store)
    return path


def small_jar(folder: Path) -> Path:
    """An unsigned jar with one file, without the permissions that Python's zipfile adds and jarsigner warns of."""
    jar = folder / "program.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        entry = zipfile.ZipInfo("hello.txt")
        entry.create_system = 0  # where files have no permissions
        archive.writestr(entry, "ສະບາຍດີ")
    return jar


@pytest.mark.parametrize("options", [[], ["-tsadigestalg", "SHA-384"], ["-tsapolicyid", POLICY]], ids=str)
def test_jarsigner(demo: Demo, keystore: Path, tmp_path: Path, options: list[str]) -> None:
    """A jar is signed with `-tsa`; under -strict, `-verify` shows the time-stamp and has nothing to complain of.

    TSA-Q1, TSA-Q2.
    """
    jar = small_jar(tmp_path)
    store = ("-keystore", keystore, "-storepass", PASSWORD)
    run(need("jarsigner"), *store, "-tsa", demo.urls["tsa"], *options, jar, "programmer")
    said = run(need("jarsigner"), "-verify", "-verbose:all", "-certs", "-strict", *store, jar)
    print(said)
    assert "jar verified." in said
    assert 'Timestamped by "CN=ຢັ້ງຢືນເວລາ 1 · Time-Stamping 1' in said
    assert "Warning" not in said


def test_jarsigner_shows_why_it_was_refused(demo: Demo, keystore: Path, tmp_path: Path) -> None:
    """A policy that is not offered: jarsigner puts the failInfo into words."""
    jar = small_jar(tmp_path)
    options = ["-keystore", keystore, "-storepass", PASSWORD, "-tsa", demo.urls["tsa"], "-tsapolicyid", "1.2.3"]
    done = subprocess.run(
        [need("jarsigner"), *map(str, options), jar, "programmer"],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    print(done.stdout)
    assert done.returncode != 0
    assert "The requested TSA policy is not supported by the TSA." in done.stdout


def small_program() -> bytes:
    """A PE32 file with one section that does nothing but return (Microsoft's PE format)."""
    dos_header = b"MZ" + bytes(58) + struct.pack("<I", 64)
    file_header = struct.pack("<HHIIIHH", 0x014C, 1, 0, 0, 0, 96 + 16 * 8, 0x0102)
    optional_header = struct.pack(
        "<HBBIIIIIIIIIHHHHHHIIIIHHIIIIII",
        *(0x010B, 0, 0, 512, 0, 0, 0x1000, 0x1000, 0x2000),  # magic, sizes, entry point, bases
        *(0x400000, 0x1000, 512, 4, 0, 0, 0, 4, 0, 0, 0x2000, 512, 0, 3, 0),  # image base … subsystem
        *(0x100000, 0x1000, 0x100000, 0x1000, 0, 16),  # stack, heap, number of directories
    ) + bytes(16 * 8)
    section = struct.pack("<8sIIIIIIHHI", b".text", 1, 0x1000, 512, 512, 0, 0, 0, 0, 0x60000020)
    headers = dos_header + b"PE\x00\x00" + file_header + optional_header + section
    return headers.ljust(512, b"\x00") + b"\xc3".ljust(512, b"\x00")


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_osslsigncode(demo: Demo, signer: tuple[Issued, Issued], tmp_path: Path, digest: str) -> None:
    """A Windows program is signed with `-ts`, and `verify` takes signature and time-stamp, CRLs included. TSA-Q9."""
    leaf, ca = signer
    leaf.write(tmp_path, "leaf")
    ca.write(tmp_path, "ca")
    (tmp_path / "plain.exe").write_bytes(small_program())
    files = ("-in", "plain.exe", "-out", "signed.exe")
    keys = ("-certs", "leaf.pem", "-key", "leaf.key")
    run(need("osslsigncode"), "sign", *keys, "-h", digest, "-ts", demo.urls["tsa"], *files, cwd=tmp_path)
    trust = ("-CAfile", "ca.pem", "-TSA-CAfile", demo.pki / "root.pem")
    said = run(need("osslsigncode"), "verify", *trust, "-in", "signed.exe", cwd=tmp_path)
    print(said)
    assert "Signature verification: ok" in said
    assert "Timestamp Server Signature verification: ok" in said
    assert "Time-Stamping 1" in said or "\\E0" in said


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Java:
    """Runs our small client of Bouncy Castle."""
    jars = ":".join(map(str, need_bouncy_castle()))
    classes = tmp_path_factory.mktemp("classes")
    # -path: Debian's jars name others, for mail, which nobody needs here.
    run(need("javac"), "-Xlint:all,-path", "-Werror", "-encoding", "UTF-8", "-cp", jars, "-d", classes, SOURCE)

    def client(*arguments: str | Path) -> str:
        return run(need("java"), "-XX:TieredStopAtLevel=1", "-cp", f"{jars}:{classes}", "Stamp", *arguments).strip()

    return client


@pytest.mark.parametrize("algorithm", ["SHA-256", "SHA-384", "SHA-512", "SHA3-256"])
@pytest.mark.parametrize("policy", ["-", POLICY])
def test_bouncy_castle_validates_response_and_token(demo: Demo, java: Java, algorithm: str, policy: str) -> None:
    """`TimeStampResponse.validate` compares it with the request, `TimeStampToken.validate` checks certificate and
    signature: the library inside most signing programs of the Java and .NET worlds.

    TSA-Q11.
    """
    assert java("ask", demo.urls["tsa"], algorithm, policy) == f"granted {POLICY} 1 2"


@pytest.mark.parametrize(
    ("algorithm", "policy", "refusal"),
    [
        # The number is the bit of PKIFailureInfo as Bouncy Castle counts: badAlg, unacceptedPolicy.
        ("SHA-1", "-", "refused 128 the hash algorithm 1.3.14.3.2.26"),
        ("SHA-256", "1.2.3", "refused 256 the policy 1.2.3 is not offered here"),
    ],
)
def test_bouncy_castle_reads_refusals(demo: Demo, java: Java, algorithm: str, policy: str, refusal: str) -> None:
    """A refusal validates as a response too, and its failInfo and text come through."""
    assert java("ask", demo.urls["tsa"], algorithm, policy).startswith(refusal)


def test_bouncy_castle_reads_what_embed_makes(demo: Demo, java: Java, tmp_path: Path) -> None:
    """The document with its token in one file (`lakthan tsa request --embed`) is RFC 5544 to others too. TSA-O8."""
    document = tmp_path / "ສັນຍາ.txt"
    document.write_bytes(b"contract" * 1000)
    done = lakthan("tsa", "request", document, "--embed", "--url", demo.urls["tsa"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert java("data", tmp_path / "ສັນຍາ.txt.tsd") == "ສັນຍາ.txt 8000 1"


def test_our_own_client_with_revocation(demo: Demo, tmp_path: Path) -> None:
    """`lakthan tsa request` and `verify`, the unit and its CA asked after at the demo's OCSP responders."""
    document = tmp_path / "ສັນຍາ.txt"
    document.write_text("contract")
    root = demo.pki / "root.pem"
    done = lakthan("tsa", "request", document, "--url", demo.urls["tsa"], "--trust", root)
    assert done.returncode == 0, done.stdout + done.stderr
    done = lakthan("tsa", "verify", tmp_path / "ສັນຍາ.txt.tsr", "--trust", root, "--revocation", "--json")
    [result] = json.loads(done.stdout)["results"]
    assert result["verdict"] == "valid"
    asked = [check for check in result["checks"] if check["name"] == "revocation"]
    assert [check["outcome"] for check in asked] == ["ok", "ok"]
    assert all(demo.urls["ocsp"] in check["why"] for check in asked)


# TimeStampReq, version 1, SHA-256 of nothing, certReq TRUE: written by hand, as a person with only curl would keep it.
QUERY = bytes.fromhex(
    "3039020101"
    "3031300d060960864801650304020105000420e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    "0101ff"
)


def test_curl_alone(demo: Demo, tmp_path: Path) -> None:
    """A query of 59 octets out of a file, and a reply with exactly the headers that the pickiest clients take.

    TSA-R12, TSA-H3, TSA-H4, TSA-V1, TSA-V5, TSA-V9.
    """
    assert len(QUERY) == 59
    (tmp_path / "empty.tsq").write_bytes(QUERY)
    options = ("-sS", "-H", "Content-Type: application/timestamp-query", "--data-binary", "@empty.tsq")
    run(need("curl"), *options, "-D", "headers", "-o", "empty.tsr", demo.urls["tsa"], cwd=tmp_path)
    status, *lines = (tmp_path / "headers").read_text(encoding="ascii").strip().splitlines()
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    reply = (tmp_path / "empty.tsr").read_bytes()
    assert status == "HTTP/1.1 200 OK"
    assert headers["content-type"] == "application/timestamp-reply"
    assert headers["content-length"] == str(len(reply))
    assert headers["cache-control"] == "no-store"
    assert "transfer-encoding" not in headers
    assert reply[4:9] == bytes.fromhex("3003020100")  # granted, and nothing else
    (tmp_path / "empty").touch()
    said = run(
        *(need("openssl"), "ts", "-verify", "-data", "empty", "-in", "empty.tsr", "-CAfile", demo.pki / "root.pem"),
        cwd=tmp_path,
    )
    assert "Verification: OK" in said
