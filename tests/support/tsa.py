"""A time-stamping unit for the tests: its certificates, requests and responses as asn1crypto sees them, a second and
slower encoder of tokens, and the real service on real ports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp
from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.certificates import CertificateView
from lakthan.config import ClockConfig, Config, DatabaseConfig, KeyURI, TSAConfig, TSAProfileConfig, UnitConfig
from lakthan.identity import Identity
from lakthan.keys.software import SoftwareSigner
from lakthan_tsa.__main__ import serve
from support.pki import Issued, issue, new_ca
from support.running import Reply, running, samples

POLICY = "0.4.0.2023.1.1"
# What requests carry to take this way: the wire does not know the field, and leaves the request to aiohttp.
WAYS = {"wire": {}, "aiohttp": {"X-Long-Way": "1"}}
HASH_NAMES = ("sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512")
HASH_SIZES = {"sha256": 32, "sha384": 48, "sha512": 64, "sha3_256": 32, "sha3_384": 48, "sha3_512": 64}
Extensions = tuple[tuple[x509.ExtensionType, bool], ...]


class TimeStampResp(core.Sequence):  # type: ignore[misc]  # asn1crypto has no types
    """RFC 3161 §2.4.2. asn1crypto's own class cannot say that a refusal has no token."""

    _fields = [  # noqa: RUF012 - asn1crypto completes the list in place
        ("status", tsp.PKIStatusInfo),
        ("time_stamp_token", cms.ContentInfo, {"optional": True}),
    ]


class _AlgorithmIdentifier(core.Sequence):  # type: ignore[misc]  # as above
    """RFC 5280 §4.1.1.2. asn1crypto's own class writes NULL for absent parameters of a hash."""

    _fields = [  # noqa: RUF012 - as above
        ("algorithm", algos.DigestAlgorithmId),
        ("parameters", core.Null, {"optional": True}),
    ]


def digest_algorithm(hash_name: str, *, null: bool = False) -> algos.DigestAlgorithm:
    """The AlgorithmIdentifier of a hash; `null` writes the parameters as NULL instead of leaving them out."""
    fields = {"algorithm": hash_name, "parameters": core.Null()} if null else {"algorithm": hash_name}
    return algos.DigestAlgorithm.load(_AlgorithmIdentifier(fields).dump())


def key_usage(**bits: bool) -> x509.KeyUsage:
    """A keyUsage with these bits alone."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: bits.get(name, False) for name in names})


UNIT_EXTENSIONS: Extensions = (
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True),
    (key_usage(digital_signature=True), True),
)


@dataclass(frozen=True)
class Unit:
    """A unit's certificate and key, and the certificates above it."""

    leaf: Issued
    intermediate: Issued
    root: Issued

    def identity(self) -> Identity:
        """The unit as the service holds it."""
        view, above = CertificateView.from_der(self.leaf.der), CertificateView.from_der(self.intermediate.der)
        return Identity(view, SoftwareSigner(self.leaf.key), (above,))

    def write(self, folder: Path) -> UnitConfig:
        """Write what the service reads, and root.pem and chain.pem for verifiers."""
        folder.mkdir(exist_ok=True)
        certificate, key = self.leaf.write(folder, "tsu")
        chain, _ = self.intermediate.write(folder, "chain")
        self.root.write(folder, "root")
        return UnitConfig(certificate, KeyURI(f"file:{key.name}", folder), chain)


def new_unit(
    kind: str = "P-256",
    *,
    extensions: Extensions = UNIT_EXTENSIONS,
    valid: tuple[timedelta, timedelta] = (timedelta(hours=-1), timedelta(days=30)),
) -> Unit:
    """A unit under an intermediate CA under a root."""
    root = new_ca("Root ຮາກ")
    intermediate = new_ca("Time-Stamping CA", root)
    return Unit(issue("TSU ເວລາ", intermediate, kind=kind, extensions=extensions, valid=valid), intermediate, root)


def write_configuration(
    folder: Path, database_url: str, *, unit: Unit | None = None, settings: str = 'clock.mode = "warn"'
) -> Path:
    """Write what a TSA process reads into `folder`: a unit (a new one unless given), and the configuration that names
    it, whose path this gives. `settings`: further lines of `[tsa]`; the machine of a test need not have NTP.
    """
    (unit or new_unit()).write(folder)
    path = folder / "lakthan.toml"
    path.write_text(
        f"""[tsa]
port = 0
admin_port = 0
database.url = "{database_url}"
{settings}
[tsa.units.main]
certificate = "tsu.pem"
key = "file:tsu.key"
chain = "chain.pem"
[tsa.profiles.default]
units = ["main"]
"""
    )
    return path


def request_for(
    hashed_message: bytes = bytes(32),
    *,
    hash_name: str = "sha256",
    null: bool = False,
    req_policy: str | None = None,
    nonce: int | None = None,
    cert_req: bool = False,
) -> bytes:
    """A TimeStampReq."""
    fields: dict[str, object] = {
        "version": 1,
        "message_imprint": {"hash_algorithm": digest_algorithm(hash_name, null=null), "hashed_message": hashed_message},
    }
    if req_policy is not None:
        fields["req_policy"] = req_policy
    if nonce is not None:
        fields["nonce"] = nonce
    if cert_req:
        fields["cert_req"] = True
    encoded: bytes = tsp.TimeStampReq(fields).dump()
    return encoded


def failure(response: bytes) -> tuple[set[str], str]:
    """The failInfo bits and the text of a refusal. Asserts that it is one, and carries no token."""
    parsed = TimeStampResp.load(response, strict=True)
    status = parsed["status"]
    assert status["status"].native == "rejection"
    assert parsed["time_stamp_token"].native is None
    return set(status["fail_info"].native), "".join(status["status_string"].native)


def token_of(response: bytes) -> cms.ContentInfo:
    """The token of a granted response. Asserts that status says nothing but granted."""
    parsed = TimeStampResp.load(response, strict=True)
    assert parsed["status"].dump() == bytes.fromhex("3003020100")
    return parsed["time_stamp_token"]


def tst_info_of(response: bytes) -> tsp.TSTInfo:
    """The TSTInfo of a granted response."""
    return token_of(response)["content"]["encap_content_info"]["content"].parsed


def oracle_tst_info(
    request: bytes,
    *,
    policy: str,
    serial_number: bytes,
    gen_time: datetime,
    accuracy: timedelta,
    qualified: bool = False,
) -> tsp.TSTInfo:
    """TSTInfo (RFC 3161 §2.4.2) built object by object."""
    asked = tsp.TimeStampReq.load(request)
    total = accuracy // timedelta(microseconds=1)
    seconds, millis, micros = total // 1_000_000, total // 1000 % 1000, total % 1000
    parts = {"seconds": seconds, "millis": millis, "micros": micros}
    fields: dict[str, object] = {
        "version": "v1",
        "policy": policy,
        "message_imprint": asked["message_imprint"],
        "serial_number": int.from_bytes(serial_number, "big", signed=True),
        "gen_time": gen_time.replace(microsecond=gen_time.microsecond // 1000 * 1000),
        "accuracy": {name: value for name, value in parts.items() if value},
    }
    if asked["nonce"].native is not None:
        fields["nonce"] = asked["nonce"].native
    if qualified:
        # EN 319 422 §9.1: QCStatements, a SEQUENCE OF one SEQUENCE that holds esi4-qtstStatement-1.
        oid = core.ObjectIdentifier("0.4.0.19422.1.1").dump()
        inner = bytes((0x30, len(oid))) + oid
        value = bytes((0x30, len(inner))) + inner
        fields["extensions"] = [{"extn_id": "1.3.6.1.5.5.7.1.3", "extn_value": value}]
    return tsp.TSTInfo(fields)


def oracle_signed_attributes(identity: Identity, tst_info: bytes) -> cms.CMSAttributes:
    """The signed attributes as a SET OF (RFC 5652 §11, RFC 5816 §2.2.1)."""
    certificate = asn1_x509.Certificate.load(identity.view.encoded)
    cert_id = {
        "cert_hash": certificate.sha256,
        "issuer_serial": {
            "issuer": [asn1_x509.GeneralName("directory_name", certificate.issuer)],
            "serial_number": certificate.serial_number,
        },
    }
    return cms.CMSAttributes(
        [
            {"type": "content_type", "values": ["tst_info"]},
            {"type": "message_digest", "values": [identity.signer.algorithm.hash.digest(tst_info)]},
            {"type": "signing_certificate_v2", "values": [{"certs": [cert_id]}]},
        ]
    )


def oracle_token(identity: Identity, tst_info: bytes, signature: bytes, *, cert_req: bool) -> bytes:
    """The TimeStampToken built object by object."""
    certificate = asn1_x509.Certificate.load(identity.view.encoded)
    algorithm = identity.signer.algorithm
    digest = digest_algorithm(algorithm.hash.new().name)
    fields: dict[str, object] = {
        "version": "v3",
        "digest_algorithms": [digest],
        "encap_content_info": {"content_type": "tst_info", "content": core.ParsableOctetString(tst_info)},
        "signer_infos": [
            {
                "version": "v1",
                "sid": cms.SignerIdentifier(
                    "issuer_and_serial_number",
                    {"issuer": certificate.issuer, "serial_number": certificate.serial_number},
                ),
                "digest_algorithm": digest,
                "signed_attrs": oracle_signed_attributes(identity, tst_info),
                "signature_algorithm": algos.SignedDigestAlgorithm.load(algorithm.cms_algorithm_identifier),
                "signature": signature,
            }
        ],
    }
    if cert_req:
        chain = [identity.view, *identity.intermediates]
        fields["certificates"] = [asn1_x509.Certificate.load(view.encoded) for view in chain]
    encoded: bytes = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(fields)}).dump()
    return encoded


@dataclass(frozen=True)
class Authority:
    """The running service."""

    port: int
    admin_url: str
    unit: Unit
    session: aiohttp.ClientSession
    folder: Path

    @property
    def url(self) -> str:
        """Where it stamps."""
        return f"http://127.0.0.1:{self.port}/"

    async def post(
        self,
        body: bytes,
        *,
        path: str = "",
        content_type: str | None = "application/timestamp-query",
        **headers: str,
    ) -> Reply:
        """POST these octets to a path below `url`; without a Content-Type when that is None."""
        sent = headers if content_type is None else {"Content-Type": content_type, **headers}
        skip = ["Content-Type"] if content_type is None else None
        async with self.session.post(self.url + path, data=body, headers=sent, skip_auto_headers=skip) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        return await samples(self.session, self.admin_url)


@asynccontextmanager
async def running_tsa(
    database_url: str, folder: Path, unit: Unit, *, way: str = "wire", **settings: object
) -> AsyncIterator[Authority]:
    """Serve `unit`, alone under the profile `default` unless `units` and `profiles` say otherwise; `settings` are
    fields of TSAConfig or of that profile. The machine of a test need not have NTP, hence `warn`. `way`: of `WAYS`,
    which of the two ways its requests take.
    """
    of_profile = {name: settings.pop(name) for name in TSAProfileConfig.__struct_fields__[1:] if name in settings}
    config = TSAConfig(
        settings.pop("units", None) or {"main": unit.write(folder)},  # type: ignore[arg-type]
        settings.pop("profiles", None) or {"default": TSAProfileConfig(["main"], **of_profile)},  # type: ignore[arg-type]
        DatabaseConfig(database_url),
        port=0,
        admin_port=0,
        **{"clock": ClockConfig(mode="warn"), **settings},  # type: ignore[arg-type]
    )
    async with (
        running(serve, Config(tsa=config)) as (port, admin_port),
        aiohttp.ClientSession(headers=WAYS[way]) as session,
    ):
        yield Authority(port, f"http://127.0.0.1:{admin_port}", unit, session, folder)
