"""A CA that is run by `openssl ca`, with its index.txt and its CRLs, end to end: OpenSSL issues, Lakthan answers, and
OpenSSL judges.

OpenSSL's own responder, reading the same index.txt, is the second judge: both have to say the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from support.foreign_ca import ForeignCA, answered_for, judgement, run

CONFIG = """
[ca]
default_ca = here
[here]
dir = .
database = index.txt
new_certs_dir = issued
certificate = ca.pem
private_key = ca.key
rand_serial = yes
crlnumber = crlnumber
default_md = sha256
default_days = 30
default_crl_days = 1
unique_subject = no
policy = any
x509_extensions = leaf
crl_extensions = crl
[any]
commonName = supplied
[req]
distinguished_name = nobody
prompt = no
[nobody]
CN = nobody
[ca_itself]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[responder]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = OCSPSigning
noCheck = ignored
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[crl]
authorityKeyIdentifier = keyid
"""


class OpenSSLCA:
    """The folder of an `openssl ca`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "openssl.cnf").write_text(CONFIG)
        (folder / "issued").mkdir()
        (folder / "index.txt").touch()
        (folder / "crlnumber").write_text("01\n")
        self.openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "60"),
            *("-subj", "/C=LA/CN=OpenSSL CA", "-extensions", "ca_itself", "-keyout", "ca.key", "-out", "ca.pem"),
        )

    def openssl(self, command: str, *arguments: str | Path) -> str:
        """Run an OpenSSL command in the folder."""
        config = ["-config", "openssl.cnf"] if command in ("req", "ca") else []
        return run("openssl", command, *config, *arguments, cwd=self.folder)

    def request(self, name: str) -> None:
        """Make a key and a request for a certificate."""
        self.openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )

    def issue(self, name: str, *, extensions: str = "leaf") -> Path:
        """Issue a certificate, in the index."""
        self.request(name)
        self.openssl("ca", "-batch", "-notext", "-extensions", extensions, "-in", f"{name}.csr", "-out", f"{name}.pem")
        return self.folder / f"{name}.pem"

    def issue_secretly(self, name: str) -> Path:
        """Issue a certificate that the index knows nothing of."""
        self.request(name)
        self.openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "0x1234567890"),
            *("-days", "30", "-out", f"{name}.pem"),
        )
        return self.folder / f"{name}.pem"

    def revoke(self, name: str, *reason: str) -> None:
        """Revoke in the index."""
        self.openssl("ca", "-revoke", f"{name}.pem", *reason)

    def release(self, name: str) -> None:
        """OpenSSL has no command for it: operators edit index.txt."""
        index = self.folder / "index.txt"
        lines = index.read_text().splitlines(keepends=True)
        fields = [line.split("\t") for line in lines]
        for line in fields:
            if line[5].strip() == f"/CN={name}":
                line[0], line[2] = "V", ""
        index.write_text("".join("\t".join(line) for line in fields))

    def publish(self) -> Path:
        """A new CRL."""
        self.openssl("ca", "-gencrl", "-out", "ca.crl")
        return self.folder / "ca.crl"

    def own_answer(self, certificate: Path) -> str:
        """What OpenSSL's own responder says, from the index."""
        built = ocsp.OCSPRequestBuilder().add_certificate(
            x509.load_pem_x509_certificate(certificate.read_bytes()),
            x509.load_pem_x509_certificate((self.folder / "ca.pem").read_bytes()),
            hashes.SHA1(),
        )
        (self.folder / "request.der").write_bytes(built.build().public_bytes(Encoding.DER))
        self.openssl(
            *("ocsp", "-index", "index.txt", "-CA", "ca.pem", "-rsigner", "responder.pem", "-rkey", "responder.key"),
            *("-reqin", "request.der", "-respout", "response.der", "-ndays", "1"),
        )
        return self.openssl(
            *("ocsp", "-respin", "response.der", "-issuer", "ca.pem", "-cert", certificate, "-CAfile", "ca.pem"),
            "-no_nonce",
        )


@pytest.fixture
def ca(tmp_path: Path) -> OpenSSLCA:
    """A fresh CA."""
    return OpenSSLCA(tmp_path)


@pytest.fixture
async def lakthan_for(ca: OpenSSLCA, database_url: str) -> AsyncIterator[ForeignCA]:
    """Lakthan answers for it."""
    responder = ca.issue("responder", extensions="responder")
    folder = ca.folder
    async with answered_for("openssl-ca", folder / "ca.pem", responder, folder / "responder.key", database_url) as made:
        yield made


async def same_as_openssl(ca: OpenSSLCA, answering: ForeignCA, names: list[str]) -> None:
    """Both responders say the same of every certificate: status, reason and time."""
    for name in names:
        certificate = ca.folder / f"{name}.pem"
        theirs = judgement(await asyncio.to_thread(ca.own_answer, certificate))
        assert await answering.judge(certificate) == theirs, name


async def test_index_and_crls_end_to_end(ca: OpenSSLCA, lakthan_for: ForeignCA) -> None:
    """OpenSSL's index makes its certificates good, its CRLs revoke, suspend and release them; after every step OpenSSL
    as a client verifies our answer and reads from it what OpenSSL's own responder says, and the monitor finds CRL and
    OCSP in order. A CRL that comes a second time changes nothing; an older one is refused.
    """
    names = ["good", "stolen", "replaced", "held", "plain"]
    for name in names:
        ca.issue(name)
    secret = ca.issue_secretly("secret")
    await lakthan_for.lakthan("import", "index", ca.folder / "index.txt", "--authority", "openssl-ca")
    await same_as_openssl(ca, lakthan_for, names)
    assert (await lakthan_for.judge(ca.folder / "good.pem")).status == "good"
    assert (await lakthan_for.judge(secret)).status == "unknown"

    first = ca.publish().read_bytes()
    ca.revoke("stolen", "-crl_compromise", "20261101000000Z")
    ca.revoke("replaced", "-crl_reason", "superseded")
    ca.revoke("plain")
    ca.revoke("held", "-crl_hold", "holdInstructionReject")
    crl = ca.publish()
    await lakthan_for.import_crl(crl)
    await same_as_openssl(ca, lakthan_for, ["good", "replaced", "plain", "stolen"])
    stolen, held = [await lakthan_for.judge(ca.folder / f"{name}.pem") for name in ("stolen", "held")]
    assert (stolen.status, stolen.reason) == ("revoked", "keyCompromise")
    assert (held.status, held.reason) == ("revoked", "certificateHold")
    await lakthan_for.compare(crl)

    again = await lakthan_for.import_crl(crl)
    assert "nothing new" in again.lower()
    older = ca.folder / "older.crl"
    older.write_bytes(first)
    await lakthan_for.import_crl(older, fails=True)
    await same_as_openssl(ca, lakthan_for, ["good", "replaced", "plain", "stolen"])

    while (await lakthan_for.judge(ca.folder / "held.pem")).status != "good":
        ca.release("held")
        crl = ca.publish()  # a release counts when the CRL is of a later second than the hold
        await lakthan_for.import_crl(crl)
    await same_as_openssl(ca, lakthan_for, ["good", "replaced", "plain", "stolen", "held"])
    await lakthan_for.compare(crl)


async def test_an_index_with_revocations(ca: OpenSSLCA, lakthan_for: ForeignCA) -> None:
    """A CA that has been at work before: its index alone brings valid, revoked and held certificates with their times
    and reasons, and importing it again changes nothing.
    """
    names = ["good", "stolen", "held", "left"]
    for name in names:
        ca.issue(name)
    ca.revoke("stolen", "-crl_reason", "keyCompromise")
    ca.revoke("held", "-crl_reason", "certificateHold")
    ca.revoke("left", "-crl_reason", "affiliationChanged")
    for _ in range(2):
        await lakthan_for.lakthan("import", "index", ca.folder / "index.txt", "--authority", "openssl-ca")
        await same_as_openssl(ca, lakthan_for, names)
    assert (await lakthan_for.judge(ca.folder / "held.pem")).reason == "certificateHold"
    await lakthan_for.compare(ca.publish())
