"""m-of-n approval: who must sign what, and that nothing else counts."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan.config import ApprovalConfig
from lakthan.errors import ConfigError
from lakthan.keys.approval import Act, Approvers, NotApproved, RetiredKeys
from support.pki import Issued, issue
from support.programs import need

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ACT = Act("install", "OCSP responder of ສາທາລະນະ", "ab" * 32, "file:k.pem", NOON)
PEOPLE = {kind: issue(f"approver {kind}", kind=kind) for kind in ("P-256", "P-384", "RSA-2048", "Ed25519")}


def approvers(folder: Path, people: list[Issued], required: int) -> Approvers:
    """Every other one by certificate and by bare public key."""
    pem = b""
    for number, person in enumerate(people):
        certificate = person.certificate.public_bytes(Encoding.PEM)
        key = person.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        pem += certificate if number % 2 else b"a word about who this is\n" + key
    (folder / "approvers.pem").write_bytes(pem)
    return Approvers(ApprovalConfig(folder / "approvers.pem", required))


def sign(person: Issued, act: Act, folder: Path) -> str:
    """As the approver does without Lakthan, by openssl."""
    (folder / "act").write_text(act.text)
    _, key = person.write(folder, "approver")
    command: list[str | Path] = [need("openssl"), "dgst", "-sha256", "-sign", key, "-out", "signature", "act"]
    if "Ed25519" in person.certificate.subject.rfc4514_string():
        command = [need("openssl"), "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", "act", "-out", "signature"]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return base64.b64encode((folder / "signature").read_bytes()).decode()


def test_the_canonical_text() -> None:
    """An act reads back from its own text and from no other one."""
    assert Act.read(ACT.text) == ACT
    assert ACT.text == (
        "Lakthan key act, version 1\nact: install\nfor: OCSP responder of ສາທາລະນະ\n"
        f"certificate: {'ab' * 32}\nkey: file:k.pem\nat: 2026-11-22T12:00:00Z\n"
    )
    for other in (ACT.text + "\n", ACT.text.replace("install", "remove"), ACT.text.replace("at: ", "at:"), ""):
        with pytest.raises(ConfigError, match="no act"):
            Act.read(other)


def test_openssl_signs(tmp_path: Path) -> None:
    """Every kind of approver's key, by openssl alone; two of four are enough, and they are named."""
    who = approvers(tmp_path, list(PEOPLE.values()), 2)
    signatures = {kind: sign(person, ACT, tmp_path) for kind, person in PEOPLE.items()}
    assert len(who.who(ACT, signatures.values())) == 4
    assert who.demand(ACT, [signatures["P-384"], signatures["Ed25519"]]) == [
        "CN=approver P-384,C=LA",
        "CN=approver Ed25519,C=LA",
    ]


def test_what_is_not_enough(tmp_path: Path) -> None:
    """One person twice, a stranger, another act, another instant, a broken signature: none of them counts."""
    one, two = PEOPLE["P-256"], PEOPLE["P-384"]
    who = approvers(tmp_path, [one, two], 2)
    good = sign(one, ACT, tmp_path)
    for second in (
        sign(one, ACT, tmp_path),
        sign(PEOPLE["Ed25519"], ACT, tmp_path),
        sign(two, Act("retire", ACT.target, ACT.sha256, ACT.key, ACT.at), tmp_path),
        sign(two, Act(ACT.what, "OCSP responder of another", ACT.sha256, ACT.key, ACT.at), tmp_path),
        sign(two, Act(ACT.what, ACT.target, ACT.sha256, "file:other.pem", ACT.at), tmp_path),
        sign(two, Act(ACT.what, ACT.target, ACT.sha256, ACT.key, ACT.at + timedelta(seconds=1)), tmp_path),
        "not base64!",
        "",
    ):
        with pytest.raises(NotApproved, match="2 of 2 must approve"):
            who.demand(ACT, [good, second])
    assert len(who.demand(ACT, [good, sign(two, ACT, tmp_path)])) == 2


def test_one_key_is_one_approver(tmp_path: Path) -> None:
    """Who is in the file twice does not count twice; and a file with too few is refused at once."""
    with pytest.raises(ConfigError, match="has 1 approvers, and 2 must agree"):
        approvers(tmp_path, [PEOPLE["P-256"], PEOPLE["P-256"]], 2)
    (tmp_path / "nobody.pem").write_text("nobody")
    with pytest.raises(ConfigError, match="no public keys"):
        Approvers(ApprovalConfig(tmp_path / "nobody.pem", 1))
    with pytest.raises(ConfigError, match="cannot be read"):
        Approvers(ApprovalConfig(tmp_path / "missing.pem", 1))


def test_retired_is_retired(tmp_path: Path) -> None:
    """The earliest instant that was ever known counts, for the next process too, whoever writes at the same time."""
    first, second = RetiredKeys(tmp_path, "a"), RetiredKeys(tmp_path, "a")
    first.remember("11" * 32, NOON)
    second.remember("22" * 32, NOON)
    first.remember("11" * 32, NOON + timedelta(days=1))
    again = RetiredKeys(tmp_path, "a")
    assert (again.when("11" * 32), again.when("22" * 32)) == (NOON, NOON)
    assert RetiredKeys(tmp_path, "b").when("11" * 32) is None
    with pytest.raises(ConfigError, match="is no folder: make it"):
        RetiredKeys(tmp_path / "no", "a")
    next(tmp_path.glob("*.retired")).write_text("rubbish\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        RetiredKeys(tmp_path, "a")
