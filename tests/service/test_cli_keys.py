"""`lakthan keys`: keys in files and in a token, certification requests that openssl accepts, and clear refusals."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.keys.generate import KINDS
from lakthan_cli.__main__ import main
from support.pki import issue, new_ca
from support.programs import need
from support.softhsm import MODULE, PIN, Token, new_token, tokens_folder


def lakthan(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process has its tokens."""
    need("softhsm2-util")
    return tokens_folder(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def token(tokens: Path, tmp_path: Path) -> Token:
    """A token of its own for one test."""
    return new_token(tokens, tmp_path)


def judge(folder: Path, request: str) -> x509.CertificateSigningRequest:
    """Let openssl verify the request's signature, and another library read it."""
    (folder / "request.pem").write_text(request)
    judged = subprocess.run(
        [need("openssl"), "req", "-in", "request.pem", "-verify", "-noout"],
        check=True,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert "verify OK" in judged.stderr + judged.stdout
    return x509.load_pem_x509_csr(request.encode())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ML-DSA-65"])
def test_a_key_in_a_file(kind: str, tmp_path: Path) -> None:
    """A key is made for its owner alone, tried, and its certification request is what a CA expects."""
    uri = f"file:{tmp_path}/ocsp.pem"
    assert lakthan("keys", "generate", uri, "--kind", kind).exit_code == 0
    assert (tmp_path / "ocsp.pem").stat().st_mode & 0o777 == 0o600
    tried = lakthan("keys", "selftest", uri, "--count", 2)
    assert tried.output.startswith("ok: ")
    asked = lakthan("keys", "csr", uri, "--for", "ocsp", "--subject", "CN=ຜູ້ຕອບ OCSP,O=Public CA,C=LA")
    request = judge(tmp_path, asked.output)
    assert request.subject.rfc4514_string() == "CN=ຜູ້ຕອບ OCSP,O=Public CA,C=LA"
    assert list(request.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.OCSP_SIGNING
    ]
    assert not request.extensions.get_extension_for_class(x509.OCSPNoCheck).critical
    assert request.extensions.get_extension_for_class(x509.KeyUsage).critical


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519"])
def test_a_key_in_a_token(kind: str, token: Token, tmp_path: Path) -> None:
    """The same in an HSM, for time stamps; the token does not let the private half out."""
    uri = token.uri("tsa").uri.replace("pin-source=pin", f"pin-source={tmp_path}/pin")
    made = lakthan("keys", "generate", uri, "--kind", kind)
    assert made.exit_code == 0, made.output
    assert lakthan("keys", "selftest", uri, "--count", 2).output.startswith("ok: ")
    request = judge(tmp_path, lakthan("keys", "csr", uri, "--for", "tsa", "--subject", "CN=TSU 1").output)
    usage = request.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert usage.critical
    assert list(usage.value) == [ExtendedKeyUsageOID.TIME_STAMPING]
    again = lakthan("keys", "generate", uri, "--kind", kind)
    assert again.exit_code == 1
    assert "is there already" in again.output
    command = [str(need("pkcs11-tool")), "--module", str(MODULE), "--token-label", token.label, "--login", "--pin", PIN]
    command += ["--list-objects", "--type", "privkey"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "never extractable" in shown
    assert "sensitive" in shown


def test_an_encrypted_key_file(tmp_path: Path) -> None:
    """With a pin-source the file is encrypted; without it, it does not open."""
    (tmp_path / "phrase").write_text("a long phrase\n")
    uri = f"file:{tmp_path}/k.pem"
    assert lakthan("keys", "generate", f"{uri}?pin-source={tmp_path}/phrase").exit_code == 0
    assert "ENCRYPTED" in (tmp_path / "k.pem").read_text()
    assert lakthan("keys", "selftest", f"{uri}?pin-source={tmp_path}/phrase").exit_code == 0
    refused = lakthan("keys", "selftest", uri)
    assert refused.exit_code == 1
    assert "add ?pin-source=FILE" in refused.output


def test_refusals(tmp_path: Path) -> None:
    """An existing key is never overwritten; a key of somebody else's certificate is found out; a name must be one."""
    uri = f"file:{tmp_path}/k.pem"
    lakthan("keys", "generate", uri)
    before = (tmp_path / "k.pem").read_bytes()
    assert "never overwritten" in lakthan("keys", "generate", uri).output
    assert (tmp_path / "k.pem").read_bytes() == before
    certificate, _ = issue("somebody else", new_ca("CA")).write(tmp_path, "else")
    assert "does not belong" in lakthan("keys", "selftest", uri, "--certificate", certificate).output
    assert lakthan("keys", "csr", uri, "--for", "ocsp", "--subject", "not a name").exit_code == 2
    assert "made at the backend" in lakthan("keys", "generate", "vault:transit/x?address=https://v").output
    assert "cannot be written" in lakthan("keys", "generate", f"file:{tmp_path}/no/such/folder/k.pem").output


def test_list(tmp_path: Path) -> None:
    """Every key of a configuration with its certificate's end; a key of another certificate is named, exit code 1."""
    ca = new_ca("CA")
    one, other = issue("responder one", ca), issue("responder two", ca)
    certificate, key = one.write(tmp_path, "one")
    _, wrong = other.write(tmp_path, "two")
    responder = '[[ocsp.responders]]\nauthority = "a"\ncertificate = "{}"\nkey = "file:{}"\n'
    (tmp_path / "good.toml").write_text(responder.format(certificate, key))
    (tmp_path / "bad.toml").write_text(responder.format(certificate, wrong))
    good, bad = lakthan("keys", "list", tmp_path / "good.toml"), lakthan("keys", "list", tmp_path / "bad.toml")
    assert good.exit_code == 0, good.output
    assert "responder one" in good.output
    assert bad.exit_code == 1
    assert "1 of 1 keys cannot be used" in bad.output
