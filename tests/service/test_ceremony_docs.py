"""The ceremony of a responder's or unit's key, as docs/ceremony.md prints it: every command, on a SoftHSM."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan.keys import key_list
from support.pki import Issued, issue, new_ca
from support.programs import need, our_program
from support.softhsm import MODULE, new_token, tokens_folder
from support.tsa import UNIT_EXTENSIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ceremony.md"
HEADING = "## A key of a responder, or of a time-stamping unit\n"
CONFIG = """
[tsa.units.main]
keys = "tsa-keys.toml"
[tsa.profiles.default]
units = ["main"]
"""


def commands() -> list[str]:
    """Each block of shell of the section, without the list's indentation."""
    section = PAGE.read_text(encoding="utf-8").split(HEADING, 1)[1]
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    return [re.sub(f"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def certified(request: x509.CertificateSigningRequest, ca: Issued) -> x509.Certificate:
    """What a CA makes of the request: a unit's certificate for its key."""
    made = issue("TSU 2027", ca, extensions=UNIT_EXTENSIONS).certificate
    builder = x509.CertificateBuilder(
        issuer_name=made.issuer,
        subject_name=request.subject,
        public_key=request.public_key(),
        serial_number=made.serial_number,
        not_valid_before=made.not_valid_before_utc,
        not_valid_after=made.not_valid_after_utc,
        extensions=[each for each in made.extensions if not isinstance(each.value, x509.SubjectKeyIdentifier)],
    )
    return builder.sign(ca.key, made.signature_hash_algorithm)  # type: ignore[arg-type]


def test_a_key_is_born_approved_and_ended(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Born in a token, certified, approved by two of three, in the list with a protocol; retired in the same way."""
    for program in ("bash", "openssl", "softhsm2-util"):
        need(program)
    token = new_token(tokens_folder(tmp_path_factory.mktemp("softhsm")), tmp_path)
    people = b""
    for name in ("anong", "bounmy", "chanthone"):
        person = issue(name)
        person.write(tmp_path, name)
        people += person.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "approvers.pem").write_bytes(people)
    (tmp_path / "memory").mkdir()
    (approval,) = re.findall(r"^```toml\n(\[approval\]\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    approval = approval.replace("/var/lib/lakthan/retired", "memory")
    (tmp_path / "lakthan.toml").write_text(CONFIG + approval)
    ca = new_ca("Time-stamp CA")

    def type_in(*texts: str) -> str:
        script = "\n".join(["set -euo pipefail", *texts]).replace("token=prod", f"token={token.label}")
        script = script.replace("/usr/lib/hsm.so", str(MODULE)).replace("/run/secrets/pin", f"{tmp_path}/pin")
        path = f"{our_program(tmp_path / 'bin').parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    born, asked, proposed, signed, installed, ended = commands()
    key = born.splitlines()[0]
    said = type_in(born, asked)
    assert "made a P-256 key" in said
    assert "verify OK" in said
    request = x509.load_pem_x509_csr((tmp_path / "tsu-2027.csr").read_bytes())
    (tmp_path / "tsu-2027.pem").write_bytes(certified(request, ca).public_bytes(Encoding.PEM))
    said = type_in(key, proposed, signed, installed)
    assert "act: install" in said
    (entry,) = key_list.read(tmp_path / "tsa-keys.toml")
    assert len(entry.approvals) == 2
    assert "TSU 2027" in (tmp_path / "tsu-2027.html").read_text()
    type_in(key, ended)
    (entry,) = key_list.read(tmp_path / "tsa-keys.toml")
    assert entry.retired == datetime(2030, 1, 1, tzinfo=UTC)
    assert (tmp_path / "tsu-2027-end.html").exists()
