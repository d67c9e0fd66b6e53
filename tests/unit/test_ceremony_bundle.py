"""What a ceremony leaves: signed by the right key, readable by others, whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from asn1crypto import ocsp as asn1_ocsp
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from lakthan import der
from lakthan_cli.ceremony.protocol import aloud, groups
from support.ceremony import DAY, Room, key_usage, new_room, new_root
from support.pki import Issued, issue, new_responder

ALL_KINDS = ("P-256", "P-384", "RSA-2048", "RSA-4096", "Ed25519", "ML-DSA-65")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A folder with a root and its sub-CAs."""
    return new_room(tmp_path)


@pytest.fixture
def bundle(room: Room) -> Path:
    """A ceremony that has been held."""
    return room.sign(room.plan())


def answers(folder: Path) -> list[Path]:
    """The files of the answers."""
    return sorted((folder / "answers").iterdir())


def manifest(folder: Path) -> None:
    """Write the manifest anew, as somebody would who changes a bundle on its way."""
    listed = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("MANIFEST", "proto"))]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in listed]
    (folder / "MANIFEST").write_text("".join(sorted(lines)))


@pytest.mark.parametrize("delegated", [False, True], ids=["root", "responder"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_of_key(tmp_path: Path, kind: str, *, delegated: bool) -> None:
    """Roots of every kind that signs here hold a ceremony, themselves or with a responder, and it verifies."""
    room = new_room(tmp_path, kind=kind, delegated=delegated)
    out = room.sign(room.plan())
    result = room.run("verify", out, "--root", tmp_path / "root.pem")
    assert result.exit_code == 0, result.output
    assert "every signature" in result.output
    response = asn1_ocsp.OCSPResponse.load(answers(out)[0].read_bytes(), strict=True)
    certs = response.basic_ocsp_response["certs"]
    # A root is known to whoever asks; a responder's certificate travels along (RFC 9919 §3.2.2).
    assert [each.dump() for each in certs] == ([room.responder.der] if room.responder else [])


def test_what_the_answers_say(room: Room, bundle: Path) -> None:
    """A foreign reader finds the status, the time and the reason of the plan, under both hash algorithms."""
    found: dict[tuple[int, str], ocsp.OCSPResponse] = {}
    for path in answers(bundle):
        response = ocsp.load_der_ocsp_response(path.read_bytes())
        found[response.serial_number, response.hash_algorithm.name] = response
        root_key = room.root.key.public_key()
        assert isinstance(root_key, ec.EllipticCurvePublicKey)
        root_key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashes.SHA384()))
        assert response.next_update_utc is not None
        assert response.next_update_utc - response.this_update_utc == timedelta(days=90)
        assert response.this_update_utc <= response.produced_at_utc <= datetime.now(UTC)
    assert len(found) == 4
    for algorithm in ("sha1", "sha256"):
        good = found[room.good.certificate.serial_number, algorithm]
        assert good.certificate_status is ocsp.OCSPCertStatus.GOOD
        revoked = found[room.revoked.certificate.serial_number, algorithm]
        assert revoked.certificate_status is ocsp.OCSPCertStatus.REVOKED
        assert revoked.revocation_reason is x509.ReasonFlags.cessation_of_operation
        assert revoked.revocation_time_utc == good.this_update_utc - timedelta(hours=1)


def test_the_cert_ids_are_as_clients_write_them(room: Room, bundle: Path) -> None:
    """A client that compares a CertID octet by octet with its own finds it (RFC 6960 §4.1.1)."""
    for algorithm in (hashes.SHA1(), hashes.SHA256()):
        request = ocsp.OCSPRequestBuilder().add_certificate(room.good.certificate, room.root.certificate, algorithm)
        asked = asn1_ocsp.OCSPRequest.load(request.build().public_bytes(Encoding.DER))
        cert_id = asked["tbs_request"]["request_list"][0]["req_cert"].dump()
        assert any(cert_id in path.read_bytes() for path in answers(bundle))


def test_the_arl(room: Room, bundle: Path) -> None:
    """The ARL is a CRL of the root with the plan's number, which pyca verifies and which lists the revoked sub-CA."""
    crl = x509.load_der_x509_crl((bundle / "arl.crl").read_bytes())
    assert crl.is_signature_valid(room.root.certificate.public_key())  # type: ignore[arg-type]
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 1
    key_identifier = room.root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == key_identifier
    [entry] = list(crl)
    assert entry.serial_number == room.revoked.certificate.serial_number
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.cessation_of_operation


def test_an_arl_without_entries(room: Room) -> None:
    """While no sub-CA is revoked the list of entries is absent, not empty (RFC 5280 §5.1.2.6)."""
    out = room.sign(room.plan(revoked=False))
    crl = (out / "arl.crl").read_bytes()
    assert len(x509.load_der_x509_crl(crl)) == 0
    tbs = der.Reader(crl).enter(der.SEQUENCE).enter(der.SEQUENCE)
    tags = []
    while tbs.more():
        tags.append(tbs.peek())
        tbs.head()
    assert tags == [der.INTEGER, der.SEQUENCE, der.SEQUENCE, 0x17, 0x17, 0xA0]


def test_the_manifest_is_for_sha256sum(bundle: Path) -> None:
    """Anybody can check the files with a tool that every system has."""
    done = subprocess.run(["sha256sum", "--check", "--strict", "MANIFEST"], cwd=bundle, check=True, capture_output=True)
    assert done.stdout.decode().count(": OK\n") == 4 + 3  # the answers; the ARL, the plan, the root's certificate


class Cells(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, _attrs: object) -> None:
        """Remember the tag."""
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        """Remember the text."""
        self.text += data


def test_the_protocol(room: Room, bundle: Path) -> None:
    """The paper says who was there, what was used, done and made, and shows the fingerprint that the screen shows."""
    digest = hashlib.sha256((bundle / "MANIFEST").read_bytes()).hexdigest()
    page = Cells()
    page.feed((bundle / "protocol.html").read_text(encoding="utf-8"))
    markdown = (bundle / "protocol.md").read_text(encoding="utf-8")
    plan = hashlib.sha256((room.folder / "plan.toml").read_bytes()).hexdigest()
    root = hashlib.sha256(room.root.der).hexdigest()
    serial = f"{room.good.certificate.serial_number:x}"
    for said in ("ຮາກ", "Vientiane", "Khamla", "ceremony administrator", "At least 1 of the 1 witnesses", serial,
                 groups(digest), *aloud(digest), groups(plan), groups(root), "ARL number 1", "arl.crl",
                 "cessationOfOperation", "signed and verified"):  # fmt: skip
        assert said in page.text, said
        assert said in markdown, said
    # A name from the plan is text and nothing else, on paper as on the screen.
    assert "Bounmy | <b>" in page.text
    assert "b" not in page.tags
    assert "Bounmy \\| \\<b>" in markdown
    shown = room.run("verify", bundle, "--root", room.folder / "root.pem").output
    assert groups(digest) in shown
    assert aloud(digest)[0] in shown


def test_groups_are_read_aloud_letter_by_letter() -> None:
    """Hexadecimal letters have words, so that b and d are not mixed up; the first 128 bits are enough."""
    assert aloud("0a1b2c3d4e5f" * 6)[:3] == (
        "0a1b   0 Alfa 1 Bravo",
        "2c3d   2 Charlie 3 Delta",
        "4e5f   4 Echo 5 Foxtrot",
    )
    assert len(aloud("00" * 32)) == 8


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda out: (out / "arl.crl").unlink(), "arl.crl is listed and not there"),
        (lambda out: (out / "MANIFEST").unlink(), "MANIFEST cannot be read"),
        (lambda out: (out / "notes.txt").write_text("x"), "notes.txt, which its MANIFEST does not list"),
        (lambda out: (out / "plan.toml").write_text("x"), "plan.toml is not the file that MANIFEST lists"),
        (lambda out: (out / "MANIFEST").write_text("0" * 64 + "  ../x\n"), "line 1 of MANIFEST"),
        (lambda out: (out / "more").symlink_to("/etc"), "which its MANIFEST does not list"),
    ],
)
def test_a_folder_that_is_not_what_it_was(room: Room, bundle: Path, damage: object, why: str) -> None:
    """A file that is missing, changed or put in is found, and named."""
    damage(bundle)  # type: ignore[operator]
    result = room.run("verify", bundle, "--root", room.folder / "root.pem")
    assert result.exit_code == 1
    assert why in result.output


def test_a_changed_octet_never_verifies(room: Room, bundle: Path) -> None:
    """Whoever changes an answer or the ARL and writes the manifest anew is found by the signatures."""
    for path in (answers(bundle)[0], bundle / "arl.crl"):
        octets = path.read_bytes()
        for at in range(0, len(octets), 23):
            path.write_bytes(octets[:at] + bytes((octets[at] ^ 1,)) + octets[at + 1 :])
            manifest(bundle)
            result = room.run("verify", bundle, "--root", room.folder / "root.pem")
            assert result.exit_code == 1, f"octet {at} of {path.name}"
            assert path.name in result.output or "differ" in result.output or "ARL" in result.output
        path.write_bytes(octets)
    manifest(bundle)
    assert room.run("verify", bundle, "--root", room.folder / "root.pem").exit_code == 0


def test_an_arl_with_an_extension_twice(room: Room, bundle: Path) -> None:
    """What no CRL may have is refused in words, like anything else that nobody could have signed so."""
    key = issue("anybody")
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(key.certificate.subject)
        .last_update(datetime.now(UTC))
        .next_update(datetime.now(UTC) + DAY)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x02\x01\x01"), critical=False)
    )
    octets = builder.sign(key.key, hashes.SHA256()).public_bytes(Encoding.DER)
    (bundle / "arl.crl").write_bytes(octets.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x14"))
    manifest(bundle)
    result = room.run("verify", bundle, "--root", room.folder / "root.pem")
    assert result.exit_code == 1
    assert "arl.crl: it is no CRL" in result.output


def test_a_pipe_in_a_bundle_is_not_waited_for(room: Room, bundle: Path) -> None:
    """Whoever puts one in the place of a file stops nobody."""
    (bundle / "plan.toml").unlink()
    os.mkfifo(bundle / "plan.toml")
    result = room.run("verify", bundle, "--root", room.folder / "root.pem")
    assert result.exit_code == 1
    assert "no plain file" in result.output


def test_the_names_of_files_prove_nothing(room: Room, bundle: Path) -> None:
    """Answers with their names swapped are the same answers: what is signed counts."""
    first, second = answers(bundle)[:2]
    first.rename(bundle / "answers" / "x.ors")
    second.rename(first)
    (bundle / "answers" / "x.ors").rename(second)
    manifest(bundle)
    assert room.run("verify", bundle, "--root", room.folder / "root.pem").exit_code == 0


def test_another_root_made_it(room: Room, bundle: Path) -> None:
    """The bundle of another root of the same name is refused."""
    new_root(kind="P-384").write(room.folder, "other")
    result = room.run("verify", bundle, "--root", room.folder / "other.pem")
    assert result.exit_code == 1
    assert "another CA" in result.output


def test_answers_of_two_roots_do_not_mix(room: Room, bundle: Path, tmp_path: Path) -> None:
    """An answer of another CA among those of this one spoils the bundle."""
    other = tmp_path / "other"
    other.mkdir()
    foreign = new_room(other)
    shutil.copy(answers(foreign.sign(foreign.plan()))[0], bundle / "answers")
    manifest(bundle)
    result = room.run("verify", bundle, "--root", room.folder / "root.pem")
    assert result.exit_code == 1
    assert "another CA" in result.output


def made_by(signer: Issued, room: Room, about: Issued, **settings: object) -> bytes:
    """An answer that pyca builds: what somebody else could put into a bundle."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=about.certificate,
        issuer=room.root.certificate,
        algorithm=hashes.SHA256(),
        cert_status=settings.get("status", ocsp.OCSPCertStatus.GOOD),  # type: ignore[arg-type]
        this_update=settings.get("this_update", now - 2 * DAY),  # type: ignore[arg-type]
        next_update=settings.get("next_update", now + 7 * DAY),  # type: ignore[arg-type]
        revocation_time=None,
        revocation_reason=None,
    )
    if "extension" in settings:
        builder = builder.add_extension(x509.OCSPNonce(b"x" * 32), critical=False)
    builder = builder.certificates([signer.certificate])
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
    return builder.sign(signer.key, settings.get("digest", hashes.SHA256())).public_bytes(Encoding.DER)  # type: ignore[arg-type]


NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"status": ocsp.OCSPCertStatus.UNKNOWN}, "it says unknown"),
        ({"extension": True}, "it has extensions"),
        ({"next_update": NOW + 400 * DAY}, "valid for more than 366 days"),
        ({"next_update": None}, "no nextUpdate"),
        ({"this_update": NOW + 2 * DAY}, "thisUpdate is later than its producedAt"),
        ({"this_update": NOW - 60 * DAY}, "is valid only from"),
    ],
)
def test_answers_that_are_signed_and_yet_not_taken(
    room: Room, bundle: Path, settings: dict[str, object], why: str
) -> None:
    """A valid signature is not all: an answer for one client, without an end, or for too long is refused."""
    (bundle / "answers" / "more.ors").write_bytes(made_by(room.root, room, room.good, **settings))
    manifest(bundle)
    result = room.run("verify", bundle, "--root", room.folder / "root.pem")
    assert result.exit_code == 1
    assert "answers/more.ors" in result.output
    assert why in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("whose", "why"),
    [
        ("a sub-CA", "not a responder's"),
        ("a responder of a sub-CA", "was not issued by"),
        ("itself", "was not issued by"),
        ("a responder that has ended", "ends before its nextUpdate"),
        ("a leaf", "not a responder's"),
    ],
)
def test_who_may_not_speak_for_the_root(room: Room, bundle: Path, whose: str, why: str) -> None:
    """Only the root, or a responder that the root itself certified and that is in force, counts (RFC 6960 §4.2.2.2)."""
    signer = {
        "a sub-CA": lambda: issue("sub", room.root, ca=True, extensions=(key_usage(digital_signature=True),)),
        "a responder of a sub-CA": lambda: new_responder(room.good),
        "itself": lambda: issue("somebody"),
        "a responder that has ended": lambda: new_responder(room.root, valid=(-30 * DAY, -DAY)),
        "a leaf": lambda: issue("leaf", room.root, valid=(-5 * DAY, 30 * DAY)),
    }[whose]()
    (bundle / "answers" / "more.ors").write_bytes(made_by(signer, room, room.good))
    manifest(bundle)
    result = room.run("verify", bundle, "--root", room.folder / "root.pem")
    assert result.exit_code == 1
    assert why in result.output.replace("\n", " ")


def test_answers_and_arl_must_agree(room: Room, bundle: Path) -> None:
    """An answer that says good of a certificate that the ARL lists spoils the bundle, and the other way round."""
    without = room.sign(room.plan(revoked=False, number=2, name="second.toml"), "second")
    for one, other, why in ((bundle, without, "does not list it"), (without, bundle, "lists it as revoked")):
        mixed = room.folder / f"mixed-{one.name}"
        shutil.copytree(one, mixed)
        shutil.copy(other / "arl.crl", mixed / "arl.crl")
        manifest(mixed)
        result = room.run("verify", mixed, "--root", room.folder / "root.pem")
        assert result.exit_code == 1
        assert why in result.output.replace("\n", " ")


def test_a_revoked_responder(tmp_path: Path) -> None:
    """Answers of a responder whose certificate the ARL lists as revoked are refused before they are written."""
    room = new_room(tmp_path, delegated=True)
    when = (NOW - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    extra = f"""
[[sub_ca]]
certificate = "responder.pem"
status = "revoked"
reason = "superseded"
revocation_time = {when}
"""
    result = room.run("sign", room.plan(extra=extra), "--out", tmp_path / "out", "--yes")
    assert result.exit_code == 1
    assert "who signed answers, as revoked" in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("key of another", "does not belong to the certificate"),
        ("no key", "cannot be read"),
        ("folder there", "already"),
    ],
)
def test_nothing_is_left_when_it_fails(room: Room, wrong: str, why: str) -> None:
    """A ceremony that cannot be finished leaves no folder, and none half written."""
    out = room.folder / "out"
    if wrong == "key of another":
        issue("other", kind="P-384").write(room.folder, "other")
        (room.folder / "other.key").rename(room.folder / "root.key")
    elif wrong == "no key":
        (room.folder / "root.key").unlink()
    else:
        out.mkdir()
    before = [*room.folder.iterdir(), room.folder / "plan.toml"]
    result = room.run("sign", room.plan(), "--out", out, "--yes")
    assert result.exit_code == 1
    assert why in result.output.replace("\n", " ")
    assert sorted(room.folder.iterdir()) == sorted(before)


def test_nobody_signs_without_having_said_so(room: Room) -> None:
    """The key is opened only after somebody has answered yes; anything else ends with nothing made."""
    (room.folder / "root.key").unlink()  # opening it would fail with another message
    result = room.run("sign", room.plan(), "--out", room.folder / "out")
    assert result.exit_code == 1
    assert "Open the key and sign" in result.output
    assert "Aborted" in result.output
    assert not (room.folder / "out").exists()


WATCHED = """
import sys

def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__",):
        raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(watch)
from lakthan_cli.__main__ import main
main()
"""


def test_a_ceremony_reaches_for_no_network(room: Room) -> None:
    """Signing and verifying open no connection, listen nowhere and look up no name, on a machine that is offline."""
    plan = room.plan()
    for arguments in (
        ["sign", plan, "--out", room.folder / "out", "--yes"],
        ["verify", room.folder / "out", "--root", room.folder / "root.pem"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, "ceremony", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
