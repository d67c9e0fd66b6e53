"""A CA that is run by Easy-RSA 3, as many small ones are: its index and its CRL, with OpenSSL as the judge."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.foreign_ca import ForeignCA, answered_for
from support.programs import need

RESPONDER = """
basicConstraints = CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
keyUsage = critical,digitalSignature
extendedKeyUsage = OCSPSigning
noCheck = ignored
"""


class EasyRSA:
    """A folder of Easy-RSA."""

    def __init__(self, folder: Path) -> None:
        self._program = need("easyrsa")
        self._folder = folder
        self.pki = folder / "pki"
        self("init-pki")
        self("build-ca", "nopass")
        # Easy-RSA knows no responders; operators put a type of certificate of their own beside its own ones.
        types = self.pki / "x509-types"
        types.mkdir(exist_ok=True)
        for path in Path("/usr/share/easy-rsa/x509-types").iterdir():
            (types / path.name).write_bytes(path.read_bytes())
        (types / "ocsp").write_text(RESPONDER)
        self("gen-req", "responder", "nopass")
        self("sign-req", "ocsp", "responder")

    def __call__(self, *arguments: str) -> None:
        """Run one of its commands."""
        variables = {
            **os.environ,
            "EASYRSA": str(self._folder),
            "EASYRSA_PKI": str(self.pki),
            "EASYRSA_BATCH": "1",
            "EASYRSA_ALGO": "ec",
            "EASYRSA_CURVE": "prime256v1",
        }
        if arguments[0] in ("build-ca", "gen-req"):
            variables["EASYRSA_REQ_CN"] = "Easy-RSA CA" if arguments[0] == "build-ca" else arguments[1]
        done = subprocess.run(
            [self._program, *arguments],
            cwd=self._folder,
            env=variables,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout

    def issue(self, name: str) -> Path:
        """A client's certificate."""
        self("build-client-full", name, "nopass")
        return self.pki / "issued" / f"{name}.crt"

    def publish(self) -> Path:
        """A new CRL."""
        self("gen-crl")
        return self.pki / "crl.pem"


@pytest.fixture
def ca(tmp_path: Path) -> EasyRSA:
    """A fresh CA."""
    return EasyRSA(tmp_path)


@pytest.fixture
async def lakthan_for(ca: EasyRSA, database_url: str) -> AsyncIterator[ForeignCA]:
    """Lakthan answers for it."""
    responder, key = ca.pki / "issued" / "responder.crt", ca.pki / "private" / "responder.key"
    async with answered_for("easy-rsa", ca.pki / "ca.crt", responder, key, database_url) as made:
        yield made


async def test_index_and_crl_end_to_end(ca: EasyRSA, lakthan_for: ForeignCA) -> None:
    """Certificates of the index are good; what Easy-RSA revokes is revoked with its reason once its CRL is imported,
    and importing the index afterwards changes nothing. The monitor finds both in order.
    """
    good, stolen, left = ca.issue("good"), ca.issue("stolen"), ca.issue("left")
    # Revoking moves the certificate away.
    copies = [path.with_suffix(".copy") for path in (good, stolen, left)]
    for path, copy in zip((good, stolen, left), copies, strict=True):
        copy.write_bytes(path.read_bytes())
    await lakthan_for.lakthan("import", "index", ca.pki / "index.txt", "--authority", "easy-rsa")
    assert [(await lakthan_for.judge(each)).status for each in copies] == ["good"] * 3

    ca("revoke", "stolen", "keyCompromise")
    ca("revoke", "left", "affiliationChanged")
    crl = ca.publish()
    await lakthan_for.import_crl(crl)
    await lakthan_for.lakthan("import", "index", ca.pki / "index.txt", "--authority", "easy-rsa")
    said = [await lakthan_for.judge(each) for each in copies]
    assert [(each.status, each.reason) for each in said] == [
        ("good", None),
        ("revoked", "keyCompromise"),
        ("revoked", "affiliationChanged"),
    ]
    await lakthan_for.compare(crl)
