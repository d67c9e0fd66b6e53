"""Every party of the demo PKI, as two tables: the authorities, and the certificates that they issue.

Promises: what is in the tables is what `lakthan_cli.demo.pki` makes, in this order, an issuer before what it issues.

Refuses to know: how certificates are built, and where the folder is. Paths are relative to the demo's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

_DAY = timedelta(days=1)
_YEAR = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certification authority, and the delegated OCSP responder that answers for it."""

    name: str
    common_name: str
    kind_of_key: str
    certificate: str  # a PEM file; this authority's is the first in it
    key: str
    lifetime: timedelta
    parent: str | None

    @property
    def responder_certificate(self) -> str:
        """Where its responder's certificate is."""
        return f"pki/ocsp/{self.name}.pem"

    @property
    def responder_key(self) -> str:
        """Where its responder's key is."""
        return f"secrets/ocsp/{self.name}.key"


class Fate(Enum):
    """What the database is told about a certificate, once, when it is first registered."""

    ISSUED = "issued"
    REVOKED = "revoked"  # keyCompromise
    HELD = "held"
    NEVER_REGISTERED = "never registered"


class Profile(Enum):
    """What a certificate is for; the builders are in `lakthan_cli.demo.certificates`."""

    RESPONDER = "OCSP responder"
    TIME_STAMPING = "time-stamping unit"
    TLS = "TLS"
    DOCUMENT = "document signer"
    MAIL = "S/MIME"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate that is no authority's. Without `key` its private key is thrown away."""

    certificate: str
    authority: str
    profile: Profile
    common_name: str
    kind_of_key: str
    lifetime: timedelta
    key: str | None = None
    fate: Fate = Fate.ISSUED
    email: str | None = None
    age: timedelta = timedelta(minutes=10)  # notBefore lies this far back: clocks differ
    renew_before: timedelta | None = timedelta(0)  # made anew when no more than this is left; None: never
    key_lifetime: timedelta | None = None  # of the key's use; None: as long as the certificate's


AUTHORITIES = (
    Authority(
        name="root",
        common_name="CA ຮາກແຫ່ງຊາດ · National Root CA",
        kind_of_key="P-384",
        certificate="pki/root.pem",
        key="secrets/offline/root.key",
        lifetime=20 * _YEAR,
        parent=None,
    ),
    Authority(
        name="public-ca",
        common_name="CA ສາທາລະນະ · Public CA",
        kind_of_key="P-256",
        certificate="pki/ca.pem",
        key="secrets/ca/public-ca.key",
        lifetime=15 * _YEAR,
        parent="root",
    ),
    Authority(
        name="gov-ca",
        common_name="CA ລັດຖະບານ · Government CA",
        kind_of_key="RSA-3072",
        certificate="pki/gov/ca.pem",
        key="secrets/ca/gov-ca.key",
        lifetime=15 * _YEAR,
        parent="root",
    ),
    Authority(
        name="tsa-ca",
        common_name="CA ຢັ້ງຢືນເວລາ · Time-Stamping CA",
        kind_of_key="P-256",
        certificate="pki/tsa-chain.pem",
        key="secrets/ca/tsa-ca.key",
        lifetime=15 * _YEAR,
        parent="root",
    ),
)
# Authorities are older than anything they issue, so that even `expired.pem` lies inside their validity.
AGE_OF_AUTHORITIES = 3 * _DAY


def _tsu(number: int, name: str, kind_of_key: str) -> Leaf:
    return Leaf(
        certificate=f"pki/{name}.pem",
        authority="tsa-ca",
        profile=Profile.TIME_STAMPING,
        common_name=f"ຢັ້ງຢືນເວລາ {number} · Time-Stamping {number}",
        kind_of_key=kind_of_key,
        lifetime=10 * _YEAR,
        key=f"secrets/{name}.key",
        renew_before=30 * _DAY,
        key_lifetime=_YEAR,
    )


# Each is the unit of the time-stamping profile of its name. P-256 is what every client reads; RSA is for old ones.
TSUS = {
    "default": _tsu(1, "tsu", "P-256"),
    "p384": _tsu(2, "tsu-p384", "P-384"),
    "rsa": _tsu(3, "tsu-rsa", "RSA-3072"),
    "ml-dsa": _tsu(4, "tsu-ml-dsa", "ML-DSA-65"),
}


def _responder(authority: Authority) -> Leaf:
    # Short-lived, as a certificate with `nocheck` must be (RFC 6960 §4.2.2.2.1). Ten days are kept in hand because no
    # answer may outlive it.
    return Leaf(
        certificate=authority.responder_certificate,
        authority=authority.name,
        profile=Profile.RESPONDER,
        common_name=f"OCSP {authority.common_name}",
        kind_of_key="RSA-2048" if authority.name == "gov-ca" else "P-256",
        lifetime=45 * _DAY,
        key=authority.responder_key,
        renew_before=10 * _DAY,
    )


def _subscribers(authority: str, folder: str, kind_of_key: str, document_signer: str, mail_user: str) -> list[Leaf]:
    def tls(name: str, *, key: bool = False, fate: Fate = Fate.ISSUED, common_name: str | None = None) -> Leaf:
        return Leaf(
            certificate=f"{folder}/{name}.pem",
            authority=authority,
            profile=Profile.TLS,
            common_name=common_name or f"{name}.test",
            kind_of_key=kind_of_key if key else "P-256",
            lifetime=_YEAR,
            key=f"{folder}/{name}.key" if key else None,
            fate=fate,
        )

    return [
        tls("good", key=True, common_name="localhost"),
        tls("revoked", key=True, fate=Fate.REVOKED, common_name="localhost"),
        tls("held", fate=Fate.HELD),
        Leaf(
            certificate=f"{folder}/expired.pem",
            authority=authority,
            profile=Profile.TLS,
            common_name="expired.test",
            kind_of_key="P-256",
            lifetime=_DAY,
            age=2 * _DAY,
            renew_before=None,
        ),
        tls("unissued", fate=Fate.NEVER_REGISTERED),
        *(tls(f"spare-{number}") for number in range(1, 5)),
        Leaf(
            certificate=f"{folder}/pdf.pem",
            authority=authority,
            profile=Profile.DOCUMENT,
            common_name=document_signer,
            kind_of_key=kind_of_key,
            lifetime=2 * _DAY,
            key=f"{folder}/pdf.key",
        ),
        Leaf(
            certificate=f"{folder}/mail.pem",
            authority=authority,
            profile=Profile.MAIL,
            common_name=mail_user,
            kind_of_key=kind_of_key,
            lifetime=_YEAR,
            key=f"{folder}/mail.key",
            email=f"mail@{authority}.test",
        ),
    ]


# The registry's TLS certificate. Its chain is put together at every start.
REGISTRY = Leaf(
    certificate="pki/registry.pem",
    authority="public-ca",
    profile=Profile.TLS,
    common_name="registry.test",
    kind_of_key="P-256",
    lifetime=_YEAR,
    key="secrets/registry.key",
    renew_before=30 * _DAY,
)
REGISTRY_CHAIN = "pki/registry-chain.pem"

LEAVES = (
    *(_responder(authority) for authority in AUTHORITIES),
    *TSUS.values(),
    REGISTRY,
    *_subscribers("public-ca", "pki", "P-256", "ສົມສັກ ວົງສາ · Somsak Vongsa", "ຄຳຫຼ້າ ສີວິໄລ · Khamla Sivilay"),
    *_subscribers("gov-ca", "pki/gov", "RSA-2048", "ບຸນມີ ພົມມະ · Bounmy Phomma", "ມະນີ ແກ້ວ · Manee Keo"),
)
# Besides the authorities' own certificates: file → the authorities in it, in this order.
CHAINS = {
    "pki/chain.pem": ("root",),
    "pki/gov/chain.pem": ("root",),
    "pki/tsa-chain.pem": ("tsa-ca", "root"),
    "pki/tsa-root.pem": ("root",),
}
