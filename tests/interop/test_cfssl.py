"""A CA that is run by cfssl, end to end: cfssl issues and publishes, Lakthan answers, and OpenSSL judges.

What is special about it: it keeps no list that could be imported, so its certificates are announced themselves, and its
CRLs have no CRLNumber, no reasons, and date every entry anew whenever one is made.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from support.foreign_ca import ForeignCA, answered_for, run
from support.programs import need

CONFIG = {
    "signing": {
        "default": {"expiry": "720h", "usages": ["digital signature", "client auth"]},
        "profiles": {
            "ocsp": {"expiry": "720h", "usages": ["digital signature", "ocsp signing"], "ocsp_no_check": True}
        },
    }
}


class CFSSL:
    """A folder with a CA's key, and cfssl to use it."""

    def __init__(self, folder: Path, name: str = "cfssl CA") -> None:
        self.folder = folder
        self.issued = folder / "issued"
        self.issued.mkdir(parents=True)
        need("cfssljson")
        (folder / "config.json").write_text(json.dumps(CONFIG))
        self._write("ca", "-initca", self._request(name))

    def issue(self, name: str, *, profile: str = "", announced: bool = True) -> Path:
        """Issue a certificate; `announced`: into the folder that is imported."""
        signer = ("-ca", "ca.pem", "-ca-key", "ca-key.pem", "-config", "config.json")
        certificate = self._write(name, *signer, "-profile", profile, self._request(name))
        if announced:
            shutil.copy(certificate, self.issued)
        return certificate

    def publish(self, *revoked: Path) -> Path:
        """A CRL with these certificates."""
        serials = self.folder / "serials.txt"
        serials.write_text(
            "".join(f"{x509.load_pem_x509_certificate(each.read_bytes()).serial_number}\n" for each in revoked)
        )
        said = run("cfssl", "gencrl", "-loglevel", "5", "serials.txt", "ca.pem", "ca-key.pem", cwd=self.folder)
        crl = self.folder / "ca.crl"
        crl.write_bytes(base64.b64decode(said))
        return crl

    def _request(self, name: str) -> str:
        request = self.folder / "request.json"
        request.write_text(json.dumps({"CN": name, "key": {"algo": "ecdsa", "size": 256}, "names": [{"C": "LA"}]}))
        return request.name

    def _write(self, name: str, *arguments: str) -> Path:
        made = run("cfssl", "gencert", "-loglevel", "5", *arguments, cwd=self.folder)
        run("cfssljson", "-bare", name, cwd=self.folder, stdin=made)
        return self.folder / f"{name}.pem"


@pytest.fixture
def ca(tmp_path: Path) -> CFSSL:
    """A fresh CA."""
    return CFSSL(tmp_path / "ca")


@pytest.fixture
async def lakthan_for(ca: CFSSL, database_url: str) -> AsyncIterator[ForeignCA]:
    """Lakthan answers for it."""
    responder = ca.issue("responder", profile="ocsp", announced=False)
    key = ca.folder / "responder-key.pem"
    async with answered_for("cfssl-ca", ca.folder / "ca.pem", responder, key, database_url) as made:
        yield made


async def test_announced_certificates_and_crls_end_to_end(ca: CFSSL, lakthan_for: ForeignCA, tmp_path: Path) -> None:
    """Announced certificates are good, others unknown, those on the CRL revoked, announced or not, since when the first
    CRL says. Its CRLs without a number go by their thisUpdate; one of another cfssl is refused.
    """
    good, stolen, later = ca.issue("good"), ca.issue("stolen"), ca.issue("later")
    unannounced = ca.issue("unannounced", announced=False)
    await lakthan_for.lakthan("import", "certs", ca.issued, "--authority", "cfssl-ca")
    assert [(await lakthan_for.judge(each)).status for each in (good, stolen, later, unannounced)] == [
        "good",
        "good",
        "good",
        "unknown",
    ]

    crl = ca.publish(stolen, unannounced)
    published = x509.load_der_x509_crl(crl.read_bytes())
    await lakthan_for.import_crl(crl)
    for certificate in (stolen, unannounced):
        said = await lakthan_for.judge(certificate)
        assert (said.status, said.revocation_time) == ("revoked", published.last_update_utc)
    assert (await lakthan_for.judge(good)).status == "good"
    await lakthan_for.compare(crl)

    stranger = CFSSL(tmp_path / "stranger").publish(good)
    await lakthan_for.import_crl(stranger, fails=True)
    assert (await lakthan_for.judge(good)).status == "good"

    # The next CRL counts when it is of a later second.
    while x509.load_der_x509_crl(ca.publish(stolen, unannounced, later).read_bytes()).last_update_utc < (
        published.last_update_utc + timedelta(seconds=1)
    ):
        pass
    newest = x509.load_der_x509_crl(crl.read_bytes())
    (ca.folder / "ca.pem.crl").write_bytes(newest.public_bytes(Encoding.PEM))
    await lakthan_for.import_crl(ca.folder / "ca.pem.crl")
    assert (await lakthan_for.judge(later)).revocation_time == newest.last_update_utc
    assert (await lakthan_for.judge(stolen)).revocation_time == published.last_update_utc
    # What cfssl does to the dates of older entries is a difference, which the monitor tells.
    told = await lakthan_for.lakthan("monitor", "cfssl-ca", "--once", "--crl", crl, "--responder", lakthan_for.url)
    assert told.count("other revocation time") == 4
