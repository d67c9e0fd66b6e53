"""`lakthan ocsp verify` on answers that are made here, honest ones and forged ones: what it believes, and why not."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import core
from asn1crypto import ocsp as asn1_ocsp
from asn1crypto import x509 as asn1_x509
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan import der
from lakthan_cli.__main__ import main
from lakthan_cli.ocsp.certificate import Certificate
from lakthan_cli.ocsp.checks import Outcome, Question, verify
from lakthan_cli.ocsp.message import read_response
from lakthan_cli.ocsp.request import cert_id, every_cert_id
from support.pki import Issued, issue, new_ca, new_key, new_responder
from support.programs import need

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
NONCE = "1.3.6.1.5.5.7.48.1.2"
Extensions = Sequence[tuple[str, bool, bytes]]

CA = new_ca("CA ຂອງການທົດສອບ")
OTHER_CA = new_ca("Another CA")
RESPONDER = new_responder(CA)
SUBJECT = issue("subject", CA)
OCSP_SIGNING = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)


def usage(*, digital_signature: bool) -> tuple[x509.KeyUsage, bool]:
    """A keyUsage that is digitalSignature, or keyEncipherment."""
    rest = dict.fromkeys(
        (
            "content_commitment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return (
        x509.KeyUsage(digital_signature=digital_signature, key_encipherment=not digital_signature, **rest),
        True,
    )


@dataclass
class Forge:
    """Makes an answer; the defaults make one in which nothing is wrong. `digest`: of the signature."""

    signer: Issued = RESPONDER
    subject: Issued = SUBJECT
    issuer: Issued = CA
    status: str = "good"
    produced_at: datetime = NOW
    this_update: datetime = NOW
    next_update: datetime | None = NOW + HOUR
    extensions: Extensions = ()
    single_extensions: Extensions = ()
    certs: Sequence[Issued] = (RESPONDER,)
    by_name: bool = False
    cert_hash: str = "sha256"
    digest: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)
    also: Sequence[dict[str, Any]] = ()

    def single(self) -> dict[str, Any]:
        """The SingleResponse about the subject."""
        subject = asn1_x509.Certificate.load(self.subject.der)
        issuer = asn1_x509.Certificate.load(self.issuer.der)
        statuses: dict[str, Any] = {
            "good": asn1_ocsp.StatusGood(),
            "unknown": asn1_ocsp.StatusUnknown(),
            "revoked": {"revocation_time": NOW - HOUR, "revocation_reason": "ca_compromise"},
        }
        single = {
            "cert_id": {
                "hash_algorithm": {"algorithm": self.cert_hash},
                "issuer_name_hash": hashlib.new(self.cert_hash, subject.issuer.dump()).digest(),
                "issuer_key_hash": hashlib.new(self.cert_hash, bytes(issuer.public_key["public_key"])).digest(),
                "serial_number": self.subject.certificate.serial_number,
            },
            "cert_status": asn1_ocsp.CertStatus(self.status, statuses[self.status]),
            "this_update": self.this_update,
        }
        if self.next_update is not None:
            single["next_update"] = self.next_update
        if self.single_extensions:
            single["single_extensions"] = _extensions(self.single_extensions, asn1_ocsp.SingleResponseExtension)
        return single

    def make(self) -> bytes:
        """The OCSPResponse."""
        signer = asn1_x509.Certificate.load(self.signer.der)
        data: dict[str, Any] = {
            "responder_id": asn1_ocsp.ResponderId("by_name", signer.subject)
            if self.by_name
            else asn1_ocsp.ResponderId("by_key", key_identifier(self.signer)),
            "produced_at": self.produced_at,
            "responses": [self.single(), *self.also],
        }
        if self.extensions:
            data["response_extensions"] = _extensions(self.extensions, asn1_ocsp.ResponseDataExtension)
        tbs = asn1_ocsp.ResponseData(data)
        algorithm, signature = _sign(self.signer, tbs.dump(), self.digest)
        basic: dict[str, Any] = {
            "tbs_response_data": tbs,
            "signature_algorithm": {"algorithm": algorithm},
            "signature": signature,
        }
        if self.certs:
            basic["certs"] = [asn1_x509.Certificate.load(each.der) for each in self.certs]
        encoded: bytes = asn1_ocsp.OCSPResponse(
            {
                "response_status": "successful",
                "response_bytes": {
                    "response_type": "basic_ocsp_response",
                    "response": asn1_ocsp.BasicOCSPResponse(basic),
                },
            }
        ).dump()
        return encoded


def key_identifier(issued: Issued) -> bytes:
    """SHA-1 of the public key, by pyca/cryptography."""
    return x509.SubjectKeyIdentifier.from_public_key(issued.certificate.public_key()).digest


def _extensions(found: Extensions, kind: type[core.Sequence]) -> list[core.Sequence]:
    """Encoded by hand, as asn1crypto would insist on values that fit their identifiers."""
    return [
        kind.load(
            der.sequence(
                der.object_identifier(oid),
                der.encode(der.BOOLEAN, b"\xff") if critical else b"",
                der.octet_string(value),
            )
        )
        for oid, critical, value in found
    ]


def _sign(signer: Issued, data: bytes, digest: hashes.HashAlgorithm) -> tuple[str, bytes]:
    key = signer.key
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519", key.sign(data)
    if isinstance(key, mldsa.MLDSA65PrivateKey):
        return "2.16.840.1.101.3.4.3.18", key.sign(data)
    if isinstance(key, rsa.RSAPrivateKey):
        return f"{digest.name}_rsa", key.sign(data, padding.PKCS1v15(), digest)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return f"{digest.name}_ecdsa", key.sign(data, ec.ECDSA(digest))


def delegate(*extensions: tuple[x509.ExtensionType, bool], issuer: Issued = CA, **options: Any) -> Issued:  # noqa: ANN401
    """A would-be responder with just these extensions."""
    return issue("delegate", issuer, extensions=extensions, **options)


def by(signer: Issued, **fields: Any) -> Forge:  # noqa: ANN401
    """An answer that this signer signed and whose certificate it carries."""
    return Forge(signer=signer, certs=(signer,), **fields)


def judge(answer: bytes, **known: Any) -> dict[str, tuple[Outcome, str]]:  # noqa: ANN401
    """The checks of an answer by name. `known`: fields of the `Question`."""
    subject, issuer = Certificate.from_der(SUBJECT.der), Certificate.from_der(CA.der)
    defaults: dict[str, Any] = {"cert_ids": every_cert_id(subject, issuer), "at": NOW, "anchors": [issuer]}
    verification = verify(read_response(answer), Question(subject, issuer, **{**defaults, **known}))
    return {check.name: (check.outcome, check.why) for check in verification.checks}


def failed(answer: bytes, **known: Any) -> set[str]:  # noqa: ANN401
    """The names of the checks that fail."""
    return {name for name, (outcome, _) in judge(answer, **known).items() if outcome is Outcome.FAILED}


@pytest.mark.parametrize("status", ["good", "revoked", "unknown"])
@pytest.mark.parametrize("cert_hash", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("by_name", [False, True])
def test_an_honest_answer_passes_every_check(status: str, cert_hash: str, *, by_name: bool) -> None:
    """Whatever the status, the hash of the CertID and the form of the ResponderID, nothing is found wrong."""
    checks = judge(Forge(status=status, cert_hash=cert_hash, by_name=by_name).make())
    assert {outcome for outcome, _ in checks.values()} == {Outcome.OK}


@pytest.mark.parametrize("kind", ["P-384", "RSA-2048", "Ed25519", "ML-DSA-65"])
def test_every_kind_of_key(kind: str) -> None:
    """Signatures of RSA, other curves, Ed25519 and ML-DSA are verified as well."""
    assert not failed(by(new_responder(CA, kind=kind)).make())


def test_the_issuer_may_answer_itself() -> None:
    """A CA whose keyUsage allows digitalSignature signs its own answers, with no certificate in them."""
    ca = issue("a CA that answers", ca=True)
    subject = issue("its subject", ca)
    answer = Forge(signer=ca, issuer=ca, subject=subject, certs=()).make()
    certificate, issuer = Certificate.from_der(subject.der), Certificate.from_der(ca.der)
    verification = verify(
        read_response(answer), Question(certificate, issuer, every_cert_id(certificate, issuer), NOW, [issuer])
    )
    assert verification.verified
    assert any("itself" in check.why for check in verification.checks if check.name == "delegation")


EXPIRED = new_responder(CA, valid=(-timedelta(minutes=59), -timedelta(minutes=1)))
TAMPERED = {
    "issued by another CA": (by(new_responder(OTHER_CA)), {"delegation"}),
    "no id-kp-OCSPSigning": (by(delegate((x509.OCSPNoCheck(), False))), {"extended_key_usage"}),
    "a purpose that is not it": (
        by(delegate((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False))),
        {"extended_key_usage"},
    ),
    "a keyUsage without digitalSignature": (
        by(delegate(OCSP_SIGNING, usage(digital_signature=False))),
        {"key_usage"},
    ),
    "an expired responder": (by(EXPIRED), {"responder_validity"}),
    "a responder of tomorrow": (
        by(new_responder(CA, valid=(timedelta(hours=5), timedelta(days=9)))),
        {"responder_validity"},
    ),
    "an unknown critical extension in the responder's certificate": (
        by(delegate(OCSP_SIGNING, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True))),
        {"responder_extensions"},
    ),
    "a CA that may not sign answers": (Forge(signer=CA, certs=()), {"key_usage"}),
    "no certificate of its responder": (Forge(certs=()), {"responder_id"}),
    "the certificate of somebody else": (Forge(certs=(new_responder(CA),)), {"responder_id"}),
    "SHA-1": (Forge(digest=hashes.SHA1()), {"algorithm"}),
    "another serial number": (Forge(subject=issue("somebody else", CA)), {"cert_id"}),
    "another CA's key": (Forge(issuer=OTHER_CA), {"cert_id"}),
    "stale": (Forge(produced_at=NOW - HOUR, this_update=NOW - HOUR, next_update=NOW - HOUR / 10), {"next_update"}),
    "nextUpdate before thisUpdate": (Forge(next_update=NOW - timedelta(minutes=1)), {"next_update"}),
    "no nextUpdate, an hour ago": (
        Forge(produced_at=NOW - HOUR, this_update=NOW - HOUR, next_update=None),
        {"next_update"},
    ),
    "thisUpdate in the future": (
        Forge(this_update=NOW + HOUR, next_update=NOW + 2 * HOUR),
        {"this_update"},
    ),
    "producedAt in the future": (Forge(produced_at=NOW + HOUR), {"produced_at"}),
    "thisUpdate after producedAt": (Forge(produced_at=NOW - HOUR), {"this_update"}),
    "an unknown critical extension": (Forge(extensions=[("1.2.3.4", True, b"\5\0")]), {"extensions"}),
    "an unknown critical singleExtension": (Forge(single_extensions=[("1.2.3.4", True, b"\5\0")]), {"extensions"}),
    "a nonce twice": (Forge(extensions=[(NONCE, False, b"\4\1a"), (NONCE, False, b"\4\1b")]), {"extensions"}),
    "the certHash of another certificate": (
        Forge(
            single_extensions=[
                (
                    "1.3.36.8.3.13",
                    False,
                    bytes.fromhex("302f300b0609608648016503040201") + b"\4\x20" + bytes(32),
                )
            ]
        ),
        {"cert_hash"},
    ),
    "good and revoked at once": (Forge(also=[Forge(status="revoked").single()]), {"cert_id"}),
}


@pytest.mark.parametrize(("forge", "expected"), TAMPERED.values(), ids=TAMPERED)
def test_what_is_wrong_fails_its_own_check_and_no_other(forge: Forge, expected: set[str]) -> None:
    """Every deceit is found by the check that is about it, and by it alone."""
    assert failed(forge.make()) == expected


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("part", ["signature", "tbs"])
def test_a_flipped_bit_breaks_the_signature(part: str, bit: int) -> None:
    """One bit of the signature, or of what is signed (here the time of the answer), and it does not hold."""
    answer = Forge().make()
    at = answer.index(RESPONDER.der) - 20 if part == "signature" else answer.index(b"\x18\x0f") + 15
    answer = answer[:at] + bytes([answer[at] ^ 1 << bit]) + answer[at + 1 :]
    if part == "tbs" and not 0x30 <= answer[at] <= 0x39:
        answer = Forge().make().replace(b"\x18\x0f20", b"\x18\x0f19", 1)  # a bit that would leave no digit
    assert "signature" in failed(answer)


def test_clocks_may_differ_by_five_minutes() -> None:
    """An answer of four minutes in the future, or one that ran out four minutes ago, still counts; six are too many."""
    four, six = timedelta(minutes=4), timedelta(minutes=6)
    answer = Forge().make()
    assert not failed(answer, at=NOW - four)
    assert failed(answer, at=NOW - six) == {"produced_at", "this_update"}
    assert not failed(answer, at=NOW + HOUR + four)
    assert failed(answer, at=NOW + HOUR + six) == {"next_update"}
    assert not failed(Forge(next_update=None).make(), at=NOW + four)


def test_the_nonce() -> None:
    """The one that was sent is fine, in either encoding; another fails; none is a note, unless one is demanded."""
    sent = bytes(range(32))
    wrapped, bare = (Forge(extensions=[(NONCE, False, each)]).make() for each in (b"\4\x20" + sent, sent))
    for answer in (wrapped, bare):
        assert judge(answer, nonce=sent)["nonce"] == (Outcome.OK, "32 octets, as sent")
    assert failed(wrapped, nonce=bytes(32)) == {"nonce"}
    assert judge(Forge().make(), nonce=sent)["nonce"][0] is Outcome.NOTE
    assert failed(Forge().make(), nonce=sent, require_nonce=True) == {"nonce"}


def test_the_cert_id_must_be_the_one_that_was_asked() -> None:
    """Who asked with SHA-256 is not content with an answer about a SHA-1 CertID, though it is the same certificate."""
    subject, issuer = Certificate.from_der(SUBJECT.der), Certificate.from_der(CA.der)
    asked = [cert_id(subject, issuer, "sha256")]
    assert not failed(Forge().make(), cert_ids=asked)
    checks = judge(Forge(cert_hash="sha1").make(), cert_ids=asked)
    assert checks["cert_id"] == (
        Outcome.FAILED,
        "the answer is about something else: its CertID has another hash algorithm than the request",
    )
    both = Forge(cert_hash="sha1", also=[Forge().single()]).make()
    assert not failed(both, cert_ids=asked)


def test_a_responder_without_nocheck_is_believed_and_mentioned() -> None:
    """Whether it is revoked is not checked here, and the table says so."""
    outcome, why = judge(by(delegate(OCSP_SIGNING)).make())["responder_status"]
    assert outcome is Outcome.NOTE
    assert "not checked" in why


def test_an_expired_certificate_and_the_archive_cutoff() -> None:
    """An answer about an expired certificate means something only when the responder keeps such statuses."""
    later = SUBJECT.certificate.not_valid_after_utc + timedelta(hours=1)
    responder = issue("a long-lived responder", CA, extensions=(OCSP_SIGNING,), valid=(-HOUR, timedelta(days=60)))
    cutoff = core.GeneralizedTime(NOW - timedelta(days=365)).dump()
    for extensions, words in (
        ((), "does not say"),
        ([("1.3.6.1.5.5.7.48.1.6", False, cutoff)], "still keeps its status"),
    ):
        answer = by(responder, single_extensions=extensions).make()
        assert words in judge(answer, at=later)["expired"][1]


def test_trust_goes_through_intermediates_and_ends_at_an_anchor() -> None:
    """The issuer counts when CA certificates link it to an anchor, and not when one of them is no CA or is missing."""
    root = new_ca("root")
    middle, impostor = new_ca("middle", root), issue("middle", root)
    for link, fine in ((middle, True), (impostor, False), (None, False)):
        ca = new_ca("issuing", link or middle)
        subject, responder = issue("subject", ca), new_responder(ca)
        certificate, issuer = Certificate.from_der(subject.der), Certificate.from_der(ca.der)
        question = Question(
            certificate,
            issuer,
            every_cert_id(certificate, issuer),
            NOW,
            [Certificate.from_der(root.der)],
            [Certificate.from_der(link.der)] if link else [],
        )
        answer = Forge(signer=responder, certs=(responder,), subject=subject, issuer=ca).make()
        checks = {check.name: check for check in verify(read_response(answer), question).checks}
        assert (checks["trust"].outcome is Outcome.OK) is fine, checks["trust"].why


def test_path_length_is_heeded() -> None:
    """A CA that may have no CA below it cannot vouch for one (RFC 5280 §4.2.1.9)."""
    root = new_ca("root")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "no CAs below")])
    key = new_key("P-256")
    middle = Issued(
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root.key, hashes.SHA256()),
        key,
    )
    ca = new_ca("issuing", middle)
    subject, responder = issue("subject", ca), new_responder(ca)
    certificate, issuer = Certificate.from_der(subject.der), Certificate.from_der(ca.der)
    answer = Forge(signer=responder, certs=(responder,), subject=subject, issuer=ca).make()
    question = Question(
        certificate,
        issuer,
        every_cert_id(certificate, issuer),
        NOW,
        [Certificate.from_der(root.der)],
        [Certificate.from_der(middle.der)],
    )
    checks = {check.name: check for check in verify(read_response(answer), question).checks}
    # new_ca makes the issuing CA's certificate, and it stands below "no CAs below".
    assert checks["trust"].outcome is Outcome.FAILED
    assert "allows 0 CAs below it" in checks["trust"].why


def test_an_answer_that_is_not_der_does_not_verify() -> None:
    """The same answer with one length written in a longer form than it needs is read, and refused."""
    answer = Forge().make()
    # Around everything stand OCSPResponse and responseBytes, both longer than 255 octets.
    assert answer[:2] == b"\x30\x82"
    longer = b"\x30\x83\x00" + answer[2:]
    assert failed(longer) == {"encoding"}


@dataclass(frozen=True)
class Folder:
    """The subject, its CA and an answer in files."""

    path: Path

    def verify(self, answer: bytes, *arguments: str) -> Result:
        """`lakthan ocsp verify` with the CA beside as issuer and as anchor."""
        (self.path / "answer.ocsp").write_bytes(answer)
        return self("verify", "answer.ocsp", "--cert", "subject.pem", "--trust", "ca.pem", *arguments)

    def __call__(self, *arguments: str) -> Result:
        """`lakthan ocsp`; arguments that name files of the folder stand for their paths."""
        found = [str(self.path / each) if (self.path / each).exists() else each for each in arguments]
        return CliRunner().invoke(main, ["ocsp", *found])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """The files of the subject and its CA."""
    SUBJECT.write(tmp_path, "subject")
    CA.write(tmp_path, "ca")
    OTHER_CA.write(tmp_path, "other")
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("answer", "exit_code", "word"),
    [
        (lambda: Forge().make(), 0, "good"),
        (lambda: Forge(status="revoked").make(), 1, "revoked, since"),
        (lambda: Forge(status="unknown").make(), 2, "unknown"),
        (TAMPERED["stale"][0].make, 4, "not verified, stale"),
        (lambda: bytes.fromhex("30030a0103"), 4, "no answer, the responder says tryLater"),
    ],
)
def test_exit_codes_of_verify(folder: Folder, answer: Callable[[], bytes], exit_code: int, word: str) -> None:
    """The exit code is the verdict."""
    result = folder.verify(answer())
    assert result.exit_code == exit_code, result.output
    assert word in result.output


def test_verify_at_another_time(folder: Folder) -> None:
    """A stale answer was fresh in its time."""
    stale = TAMPERED["stale"][0].make()
    assert folder.verify(stale, "--at", (NOW - HOUR / 2).isoformat()).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("verify", "nothing.ocsp", "--cert", "subject.pem", "--trust", "ca.pem"), "No such file"),
        (("verify", "subject.pem", "--cert", "subject.pem", "--trust", "ca.pem"), "cannot be read as an OCSP"),
        (("verify", "answer.ocsp", "--cert", "subject.pem"), "--trust"),
        (("verify", "answer.ocsp", "--cert", "subject.key", "--trust", "ca.pem"), "without a certificate"),
        (
            ("verify", "answer.ocsp", "--cert", "subject.pem", "--trust", "ca.pem", "--issuer", "other.pem"),
            "no certificate of --issuer signed",
        ),
        (("verify", "answer.ocsp", "--cert", "subject.pem", "--trust", "ca.pem", "--at", "soon"), "is no time"),
        (("verify", "answer.ocsp", "--cert", "ca.pem", "--trust", "missing.pem"), "cannot be read"),
        (("query", "subject.pem", "--no-nonce", "--require-nonce"), "needs a nonce"),
        (("query", "subject.pem", "--hash", "md5"), "md5"),
        (("query", "missing.pem"), "missing.pem cannot be read"),
        (("query", "subject.pem"), "names no OCSP responder"),
        (("query", "other.pem", "--issuer", "ca.pem"), "no certificate of --issuer signed"),
        (("show", "missing.ocsp"), "No such file"),
        (("--nonsense",), "No such option"),
        ((), "Usage"),
    ],
)
def test_usage_errors_are_3(folder: Folder, arguments: tuple[str, ...], words: str) -> None:
    """Whatever was typed wrongly, and whatever file is not what it should be, is never taken for a verdict."""
    (folder.path / "answer.ocsp").write_bytes(Forge().make())
    result = folder(*arguments)
    assert result.exit_code == 3, result.output
    assert words in result.output


def test_the_keys_of_the_json(folder: Folder) -> None:
    """Machines find the same keys in every result, and what an unverified answer claims never stands as the verdict."""
    documents = [
        json.loads(folder.verify(answer, "--json").stdout)
        for answer in (Forge(status="revoked").make(), TAMPERED["stale"][0].make(), bytes.fromhex("30030a0106"))
    ]
    assert [document["exit_code"] for document in documents] == [1, 4, 4]
    revoked, stale, refused = (document["results"][0] for document in documents)
    keys = (
        "certificate subject serial_number issuer issuer_from verdict exit_code problem url method milliseconds "
        "response checks attempts"
    )
    assert {tuple(each) for each in (revoked, stale, refused)} == {tuple(keys.split())}
    assert [each["verdict"] for each in (revoked, stale, refused)] == ["revoked", "not verified", "no answer"]
    assert revoked["response"]["single"]["revocation_reason"] == "cACompromise"
    response_keys = (
        "octets response_status produced_at signature_algorithm responder responder_not_after never_issued single"
    )
    assert {tuple(each["response"]) for each in (revoked, stale, refused)} == {tuple(response_keys.split())}
    single_keys = "cert_status revocation_time revocation_reason invalidity_date this_update next_update archive_cutoff"
    assert list(stale["response"]["single"]) == single_keys.split()
    assert refused["response"]["response_status"] == "unauthorized"
    assert {"name", "outcome", "why"} == set(stale["checks"][0])


def test_names_cannot_play_with_the_terminal(folder: Folder) -> None:
    """A subject with an escape sequence or a writing-direction mark is shown with them spelled out."""
    wicked = issue("good\x1b[2J\u202edoog", CA)
    wicked.write(folder.path, "subject")
    result = folder.verify(Forge(subject=wicked).make())
    assert result.exit_code == 0, result.output
    assert "\\x1b[2J\\u202e" in result.output
    assert "\x1b[2J" not in result.output
    assert "\u202e" not in result.output


def test_a_defect_is_not_mistaken_for_revoked(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python leaves with 1 after a traceback, which is the word for revoked here; so the traceback comes with 4."""

    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("lakthan_cli.commands.ocsp.verify_file", broken)
    result = folder.verify(Forge().make())
    assert result.exit_code == 4
    assert "RuntimeError: a defect" in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "issued by another CA",
        "no id-kp-OCSPSigning",
        "an expired responder",
        "another serial number",
        "another CA's key",
        "stale",
        "thisUpdate in the future",
    ],
)
def test_openssl_agrees_about_what_is_wrong(folder: Folder, name: str) -> None:
    """OpenSSL refuses the same files."""
    assert not openssl_believes(folder, TAMPERED[name][0].make())
    assert folder.verify(TAMPERED[name][0].make()).exit_code == 4


@pytest.mark.parametrize("status", ["good", "revoked", "unknown"])
@pytest.mark.parametrize("by_name", [False, True])
def test_openssl_agrees_about_what_is_right(folder: Folder, status: str, *, by_name: bool) -> None:
    """OpenSSL believes the same files, so that what is refused above is refused for its fault."""
    answer = Forge(status=status, by_name=by_name, cert_hash="sha1").make()
    assert openssl_believes(folder, answer)
    assert folder.verify(answer).exit_code == {"good": 0, "revoked": 1, "unknown": 2}[status]


def openssl_believes(folder: Folder, answer: bytes) -> bool:
    """Whether `openssl ocsp -respin` verifies it, finds the certificate in it, and finds it fresh."""
    (folder.path / "answer.ocsp").write_bytes(answer)
    hash_name = "-sha1" if b"\x2b\x0e\x03\x02\x1a" in answer else "-sha256"
    done = subprocess.run(
        [
            *(need("openssl"), "ocsp", hash_name, "-issuer", "ca.pem", "-cert", "subject.pem"),
            *("-respin", "answer.ocsp", "-CAfile", "ca.pem", "-no_nonce"),
        ],
        cwd=folder.path,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    wrong = ("No Status found", "Status times invalid", "WARNING")
    return "Response verify OK" in done.stdout and not any(words in done.stdout for words in wrong)


def test_pss() -> None:
    """RSASSA-PSS is verified with the parameters that the answer names."""
    responder = new_responder(CA, kind="RSA-2048")
    assert isinstance(responder.key, rsa.RSAPrivateKey)
    answer = asn1_ocsp.OCSPResponse.load(by(responder).make())
    basic = answer.basic_ocsp_response
    for digest, name, salt in ((hashes.SHA256(), "sha256", 32), (hashes.SHA384(), "sha384", 20)):
        signature = responder.key.sign(answer.response_data.dump(), padding.PSS(padding.MGF1(digest), salt), digest)
        hashed = {"algorithm": name}
        parameters = {
            "hash_algorithm": hashed,
            "mask_gen_algorithm": {"algorithm": "mgf1", "parameters": hashed},
            "salt_length": salt,
        }
        basic["signature_algorithm"] = {"algorithm": "rsassa_pss", "parameters": parameters}
        basic["signature"] = signature
        answer["response_bytes"]["response"] = basic
        checks = judge(answer.dump(force=True))
        assert {outcome for outcome, _ in checks.values()} == {Outcome.OK}, checks
        assert checks["signature"][1] == f"id-RSASSA-PSS with {name.upper()} and {salt} octets of salt"


def test_every_check_is_documented() -> None:
    """The names that programs find in the JSON are listed in docs/commands.md, and no others."""
    root = Path(__file__).resolve().parents[2]
    code = "".join((root / f"services/lakthan_cli/ocsp/{each}.py").read_text("utf-8") for each in ("checks", "query"))
    page = (root / "docs/commands.md").read_text("utf-8").split("## Ask any responder\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == set(re.findall(r"(?:Check|_judge)\(\s*\"(\w+)\"", code))


def test_no_single_flipped_bit_is_believed() -> None:
    """Wherever in an answer a bit is turned, the answer cannot be read any more or does not verify."""
    answer = Forge().make()
    believed = []
    for at in range(len(answer)):
        turned = answer[:at] + bytes([answer[at] ^ 1 << at % 8]) + answer[at + 1 :]
        try:
            if not failed(turned):
                believed.append(at)
        except ValueError:  # unreadable, or it says that it is a refusal now
            continue
    assert believed == []
