"""`lakthan keys reenroll`: new certificates by EST over TLS, into the list; and whatever a server can do wrong."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.errors import ConfigError
from lakthan.keys import key_list
from lakthan_cli.__main__ import main
from lakthan_cli.keys import est
from support.est import ESTServer
from support.pki import Issued, issue, new_ca, new_responder
from support.programs import need

DAY = timedelta(days=1)
CONFIG = '[ocsp]\n[[ocsp.responders]]\nauthority = "public-ca"\nkeys = "ocsp.toml"\n'
NAMES = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("urn:lakthan:ocsp")])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ESTServer]:
    """A running EST server, and a list beside it whose one certificate has a day of ten left."""
    monkeypatch.chdir(tmp_path)
    ca = new_ca("Public CA")
    ca.write(tmp_path, "ca")
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "users").write_text("timer:correct horse\n")
    server = ESTServer(tmp_path / "est", ca)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    extensions = ((usage, False), (x509.OCSPNoCheck(), False), (NAMES, False))
    issue("OCSP", ca, extensions=extensions, valid=(-9 * DAY, DAY)).write(tmp_path, "ocsp")
    with server.running():
        install = ["install", "ocsp.toml", "--config", "c.toml", "--ca", "ca.pem", "--certificate", "ocsp.pem"]
        assert "installed" in keys(*install, "--key", "file:ocsp.key")
        yield server


def keys(*arguments: object, code: int = 0) -> str:
    """Run `lakthan keys …`; gives what it says, on one line, and demands that exit code."""
    done = CliRunner().invoke(main, ["keys", *(str(each) for each in arguments)])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def reenroll(server: ESTServer, *more: object, code: int = 0, client: bool = True) -> str:
    """Run `lakthan keys reenroll` against the server, as a client with a certificate."""
    who = ["--client-certificate", "est/client.pem", "--client-key", "est/client.key"] if client else []
    asked = ["reenroll", "ocsp.toml", "--config", "c.toml", "--ca", "ca.pem", "--est", server.url]
    return keys(*asked, "--est-ca", "est/est-ca.pem", *who, *more, code=code)


def listed() -> list[key_list.ListedKey]:
    """The list."""
    return list(key_list.read(Path("ocsp.toml")))


def test_the_same_key_again(server: ESTServer) -> None:
    """Subject, subjectAltName, extensions and key stay; the certificate is new, checked, and in the list beside the
    other one, which is still good. Then there is nothing to do for a while.
    """
    assert "installed ocsp-" in reenroll(server)
    old, new = listed()
    found = key_list.find(new, Path("ocsp.toml")).view.certificate
    before = key_list.find(old, Path("ocsp.toml")).view.certificate
    assert new.key == old.key
    assert found.public_key() == before.public_key()
    assert found.subject == before.subject
    assert found.not_valid_after_utc > before.not_valid_after_utc
    [request] = server.requests
    assert request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == NAMES
    assert server.paths == ["/.well-known/est/simplereenroll"]
    assert "nothing to do before 30%" in reenroll(server)
    assert len(server.requests) == 1


def test_a_new_key(server: ESTServer) -> None:
    """A key of the same kind is made where the pattern says; the label goes into the path; the chain does no harm."""
    server.chain = True
    assert "made a key: file:ocsp-2" in reenroll(server, "--new-key", "file:ocsp-{now}.key", "--label", "public_ca-2")
    old, new = listed()
    assert new.key != old.key
    assert server.paths == ["/.well-known/est/public_ca-2/simplereenroll"]
    tried = keys("selftest", new.key, "--certificate", new.certificate, "--count", 1)
    assert "belongs to CN=OCSP" in tried


def test_a_server_that_has_to_think(server: ESTServer) -> None:
    """202 is waited out as the server says, and not longer than the operator's patience."""
    server.pending = 2
    assert reenroll(server).count("come again in 0:00:01") == 2
    assert len(server.requests) == 3


def test_patience(server: ESTServer) -> None:
    """When it would take too long, nothing is changed, and it is said when to come again; so when there is no key."""
    server.pending = 5
    before = Path("ocsp.toml").read_bytes()
    assert "come again in 0:00:01: do so" in reenroll(server, "--patience", "PT1S", code=1)
    assert len(server.requests) == 2
    assert Path("ocsp.toml").read_bytes() == before
    Path("ocsp.toml").write_text("")
    assert "no key to renew" in reenroll(server, code=1)
    assert len(server.requests) == 2


def test_by_password(server: ESTServer) -> None:
    """HTTP Basic from a file, where there is no client certificate."""
    protected = ESTServer(Path("basic"), server.ca, people={"timer": "correct horse"})
    Path("est/est-ca.pem").write_bytes(Path("basic/est-ca.pem").read_bytes())
    with protected.running():
        assert "status 401: who are you?" in reenroll(protected, client=False, code=1)
        assert "installed" in reenroll(protected, "--user-file", "users", client=False)


def test_what_a_server_must_not_do(server: ESTServer) -> None:
    """Refusals, redirects, other formats, certificates of other keys or other things: said, and nothing is changed."""
    before, files = Path("ocsp.toml").read_bytes(), sorted(Path().iterdir())
    stranger = new_responder(new_ca("Another CA"))
    ours = x509.load_pem_x509_certificate(Path("ocsp.pem").read_bytes())
    for way, complaint in (
        (503, "status 503: not today, [31m really"),
        (307, "status 307"),
        (b"-----BEGIN PKCS7-----", "something else than a certs-only PKCS#7"),
        (base64.b64encode(b"\x30\x03\x02\x01\x00"), "something else than a certs-only PKCS#7"),
        (server.certs_only(stranger.certificate), "sends 0 certificates of the key"),
        (server.certs_only(ours, ours), "sends 2 certificates of the key"),
        (server.certs_only(ours), "no later than the one that there is"),
        (bytes(300_000), "more than 262144 octets"),
    ):
        server.next.append(way)
        assert complaint in reenroll(server, code=1)
    server.media_type = "text/html"
    assert "sends text/html" in reenroll(server, code=1)
    server.media_type = "application/pkcs7-mime"
    server.extensions = [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]
    assert "no id-kp-OCSPSigning" in reenroll(server, code=1)
    server.extensions, server.ca = None, new_ca("Another CA")
    assert "that CA did not issue its certificate" in reenroll(server, code=1)
    assert Path("ocsp.toml").read_bytes() == before
    assert sorted(Path().iterdir()) == files


def test_who_is_spoken_to(server: ESTServer) -> None:
    """Only a server under the CA that was named, by https; and one that wants a client certificate takes no other."""
    new_ca("Another").write(Path("est"), "est-ca")
    assert "CERTIFICATE_VERIFY_FAILED" in reenroll(server, code=1)
    server.tls_ca.write(Path("est"), "est-ca")
    assert "cannot be spoken to" in reenroll(server, client=False, code=1)
    assert server.requests == []
    for url in ("http://est.example", "https://est.example/path", "https://user@est.example", "est.example"):
        with pytest.raises(ConfigError, match="is no EST server"):
            _ = est.Server(url, Path("x")).address
    with pytest.raises(ConfigError, match="other characters"):
        _ = est.Server("https://est.example", Path("x"), "a/b").address


def test_where_approvers_must_agree(server: ESTServer) -> None:
    """The certificate is fetched and an act is written; nothing comes into the list before it is signed."""
    approver: Issued = issue("approver")
    approver.write(Path(), "approver")
    public = approver.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    Path("approvers.pem").write_bytes(public)
    Path("c.toml").write_text(CONFIG + '[approval]\napprovers = "approvers.pem"\nrequired = 1\n')
    assert "say --out FILE" in reenroll(server, code=1)
    assert server.requests == []
    assert "when it is approved, install it" in reenroll(server, "--out", "act")
    [only] = listed()
    assert only.certificate == "ocsp.pem"
    [certificate] = Path().glob("ocsp-2*.pem")
    keys("approve", "act", "--key", "file:approver.key", "--out", "a.sig", "--yes")
    install = ["install", "ocsp.toml", "--config", "c.toml", "--ca", "ca.pem", "--certificate", certificate]
    keys(*install, "--key", "file:ocsp.key", "--act", "act", "--approval", "a.sig")
    assert len(listed()) == 2


def test_openssl_reads_the_same(server: ESTServer, tmp_path: Path) -> None:
    """What openssl takes out of a certs-only message, and what it puts into one, is what we read."""
    certificates = [server.ca.certificate, new_responder(server.ca).certificate]
    pem = "".join(each.public_bytes(Encoding.PEM).decode() for each in certificates)
    Path("certs.pem").write_text(pem)
    made = [str(need("openssl")), "crl2pkcs7", "-nocrl", "-certfile", "certs.pem", "-outform", "DER", "-out", "p7"]
    subprocess.run(made, check=True)
    encoded = base64.encodebytes(Path("p7").read_bytes())
    assert {view.encoded for view in est.read_certs_only(encoded)} == {
        each.public_bytes(Encoding.DER) for each in certificates
    }
    Path("ours").write_bytes(base64.b64decode(server.certs_only(*certificates)))
    shown = [str(need("openssl")), "pkcs7", "-inform", "DER", "-in", "ours", "-print_certs", "-noout"]
    assert subprocess.run(shown, check=True, capture_output=True, text=True).stdout.count("subject=") == 2
    assert len(est.read_certs_only(server.certs_only(*certificates))) == 2
    octets = base64.b64decode(encoded)
    for length in range(len(octets)):
        with pytest.raises(est.ESTError):
            est.read_certs_only(base64.b64encode(octets[:length]))
