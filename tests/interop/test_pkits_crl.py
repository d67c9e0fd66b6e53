"""NIST PKITS against the importer of CRLs: every CRL of its sections on revocation, with the verdict it must get.

PKITS (Public Key Interoperability Test Suite, NIST, 2011) judges path validation; an importer meets its CRLs alone. So
each case says what the importer must do with the files, what is on record afterwards about the end entities of the
tests, and why. The certificates and CRLs come with `cryptography-vectors`; they are valid from 2010 to 2030.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import cryptography_vectors
import pytest
from cryptography import x509

from lakthan.certificates import CertificateView
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.status import AuthorityReader, StatusReader
from lakthan_registry.crl_check import CRLRefused
from lakthan_registry.crl_import import import_crl
from support.database import OpenPool
from support.pki import new_ca, serial_content

_PKITS = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data"
_NOW = datetime(2026, 11, 1, tzinfo=UTC)

IMPORTED = "imported"
# What is on record about a certificate.
UNKNOWN, GOOD, HELD = "no record", "good", "certificateHold"
REVOKED = "keyCompromise"  # the reason in nearly all of PKITS
# PKITS lists certificates of this CA and has no certificate of it.
_MISSING = "indirectCRL CA7"


@dataclass(frozen=True)
class Case:
    """`crls`: file and verdict, imported one after another. `cas`: authorities, each with the files of its certificates
    (without "Cert.crt"). `status`: end entity (without "EE.crt") or (authority, serial number) and what is on record.
    """

    tests: str
    because: str
    crls: tuple[tuple[str, str], ...]
    cas: dict[str, tuple[str, ...]]
    status: dict[str | tuple[str, int], str] = field(default_factory=dict)
    now: datetime = _NOW


def _one(name: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,)}


# fmt: off
CASES = [
    # 4.3: Names that are equal though they are encoded otherwise
    Case(
        "4.3.10", "the names are compared as RFC 5280 §7.1 says",
        (("RolloverfromPrintableStringtoUTF8StringCACRL", IMPORTED),),
        _one("RolloverfromPrintableStringtoUTF8StringCA"),
    ),
    Case(
        "4.3.11", "letters of either case are the same in a name",
        (("UTF8StringCaseInsensitiveMatchCACRL", IMPORTED),), _one("UTF8StringCaseInsensitiveMatchCA"),
    ),
    Case(
        "4.3.9", "UTF8String in the name",
        (("UTF8StringEncodedNamesCACRL", IMPORTED),), _one("UTF8StringEncodedNamesCA"),
    ),
    # 4.4: basic certificate revocation
    Case(
        "4.4.2", "the trust anchor revoked a subordinate CA",
        (("TrustAnchorRootCRL", IMPORTED),), {"root": ("TrustAnchorRootCertificate.crt",)}, {("root", 0x68): REVOKED},
    ),
    Case(
        "4.4.3", "a CRL that lists the end entity",
        (("GoodCACRL", IMPORTED),), _one("GoodCA"),
        {"InvalidRevokedEETest3": REVOKED, ("GoodCA", 0x0E): REVOKED, "ValidCertificatePathTest1": UNKNOWN},
    ),
    Case("4.4.4", "the signature is wrong", (("BadCRLSignatureCACRL", "signature"),), _one("BadCRLSignatureCA")),
    Case(
        "4.4.5", "the issuer is not the CA",
        (("BadCRLIssuerNameCACRL", "unknown_issuer"),), _one("BadCRLIssuerNameCA"),
    ),
    Case(
        "4.4.6", "the CA publishes the CRL of another one",
        (("WrongCRLCACRL", "unknown_issuer"),), _one("WrongCRLCA"),
    ),
    Case(
        "4.4.7", "of two CRLs one is of the CA, and the other changes nothing",
        (("TwoCRLsCABadCRL", "unknown_issuer"), ("TwoCRLsCAGoodCRL", IMPORTED)), _one("TwoCRLsCA"),
        {"ValidTwoCRLsTest7": UNKNOWN},
    ),
    Case(
        "4.4.8", "a critical extension of an entry is not known",
        (("UnknownCRLEntryExtensionCACRL", "critical_extension"),), _one("UnknownCRLEntryExtensionCA"),
        {"InvalidUnknownCRLEntryExtensionTest8": UNKNOWN},
    ),
    Case(
        "4.4.9, 4.4.10", "a critical extension of the CRL is not known",
        (("UnknownCRLExtensionCACRL", "critical_extension"),), _one("UnknownCRLExtensionCA"),
        {"InvalidUnknownCRLExtensionTest9": UNKNOWN, "InvalidUnknownCRLExtensionTest10": UNKNOWN},
    ),
    Case("4.4.11", "it has expired", (("OldCRLnextUpdateCACRL", "expired"),), _one("OldCRLnextUpdateCA")),
    Case(
        "4.4.11 before its end", "only the nextUpdate was wrong with it",
        (("OldCRLnextUpdateCACRL", IMPORTED),), _one("OldCRLnextUpdateCA"),
        now=datetime(2010, 1, 1, 12, tzinfo=UTC),
    ),
    Case(
        "4.4.11 before its beginning", "nobody believes a CRL of the future",
        (("OldCRLnextUpdateCACRL", "future"),), _one("OldCRLnextUpdateCA"), now=datetime(2009, 12, 31, tzinfo=UTC),
    ),
    Case(
        "4.4.12", "expired in 1999, said in two digits",
        (("pre2000CRLnextUpdateCACRL", "expired"),), _one("pre2000CRLnextUpdateCA"),
    ),
    Case(
        "4.4.13", "a nextUpdate of 2050 is a GeneralizedTime",
        (("GeneralizedTimeCRLnextUpdateCACRL", IMPORTED),), _one("GeneralizedTimeCRLnextUpdateCA"),
    ),
    Case(
        "4.4.14, 4.4.15", "-1 is revoked, and 255 is not: the octets of a serial number keep its sign",
        (("NegativeSerialNumberCACRL", IMPORTED),), _one("NegativeSerialNumberCA"),
        {"InvalidNegativeSerialNumberTest15": REVOKED, "ValidNegativeSerialNumberTest14": UNKNOWN},
    ),
    Case(
        "4.4.16 to 4.4.18", "serial numbers of 20 octets that begin alike",
        (("LongSerialNumberCACRL", IMPORTED),), _one("LongSerialNumberCA"),
        {"InvalidLongSerialNumberTest18": REVOKED, "ValidLongSerialNumberTest16": UNKNOWN,
         "ValidLongSerialNumberTest17": UNKNOWN},
    ),
    Case(
        "4.4.19, 4.4.20", "the CA signs CRLs with another key, whose certificate is on record too",
        (("SeparateCertificateandCRLKeysCRL", IMPORTED),),
        {"CA1": ("SeparateCertificateandCRLKeysCertificateSigningCA", "SeparateCertificateandCRLKeysCRLSigning")},
        {"ValidSeparateCertificateandCRLKeysTest19": UNKNOWN, "InvalidSeparateCertificateandCRLKeysTest20": REVOKED},
    ),
    Case(
        "4.4.19 without the CRL key", "a key that is not on record is nobody's",
        (("SeparateCertificateandCRLKeysCRL", "signature"),),
        {"CA1": ("SeparateCertificateandCRLKeysCertificateSigningCA",)},
    ),
    Case(
        "4.4.21", "the CRL key's certificate was issued by a key that may not: the operator does not add it",
        (("SeparateCertificateandCRLKeysCA2CRL", "signature"),),
        {"CA2": ("SeparateCertificateandCRLKeysCA2CertificateSigningCA",)},
    ),
    # 4.5: self-issued certificates, that is, a CA with several keys
    Case(
        "4.5.1, 4.5.2", "after a key rollover the new key signs the CRL about certificates of both",
        (("BasicSelfIssuedNewKeyCACRL", IMPORTED),),
        {"CA": ("BasicSelfIssuedNewKeyCA", "BasicSelfIssuedNewKeyOldWithNewCA")},
        {"ValidBasicSelfIssuedOldWithNewTest1": UNKNOWN, "InvalidBasicSelfIssuedOldWithNewTest2": REVOKED},
    ),
    Case(
        "4.5.3 to 4.5.5", "the old key still signs the CRL; the new key has a CRL of its own, with its own scope",
        (("BasicSelfIssuedOldKeyCACRL", IMPORTED), ("BasicSelfIssuedOldKeySelfIssuedCertCRL", IMPORTED)),
        {"CA": ("BasicSelfIssuedOldKeyCA", "BasicSelfIssuedOldKeyNewWithOldCA")},
        {"ValidBasicSelfIssuedNewWithOldTest3": UNKNOWN, "InvalidBasicSelfIssuedNewWithOldTest5": REVOKED},
    ),
    Case(
        "4.5.6 to 4.5.8", "a self-issued certificate for the key that signs CRLs",
        (("BasicSelfIssuedCRLSigningKeyCACRL", IMPORTED), ("BasicSelfIssuedCRLSigningKeyCRLCertCRL", IMPORTED)),
        {"CA": ("BasicSelfIssuedCRLSigningKeyCA", "BasicSelfIssuedCRLSigningKeyCRL")},
        {"ValidBasicSelfIssuedCRLSigningKeyTest6": UNKNOWN, "InvalidBasicSelfIssuedCRLSigningKeyTest7": REVOKED},
    ),
    # 4.7: key usage
    Case(
        "4.7.4", "a critical keyUsage without cRLSign",
        (("keyUsageCriticalcRLSignFalseCACRL", "crl_sign"),), _one("keyUsageCriticalcRLSignFalseCA"),
    ),
    Case(
        "4.7.5", "a keyUsage without cRLSign that is not critical says the same",
        (("keyUsageNotCriticalcRLSignFalseCACRL", "crl_sign"),), _one("keyUsageNotCriticalcRLSignFalseCA"),
    ),
    # 4.14: distribution points
    Case(
        "4.14.1 to 4.14.4", "a distribution point named in full",
        (("distributionPoint1CACRL", IMPORTED),), _one("distributionPoint1CA"),
        {"ValiddistributionPointTest1": UNKNOWN, "InvaliddistributionPointTest2": REVOKED,
         "ValiddistributionPointTest4": UNKNOWN},
    ),
    Case(
        "4.14.5 to 4.14.9", "a distribution point named relative to the issuer",
        (("distributionPoint2CACRL", IMPORTED),), _one("distributionPoint2CA"),
        {"ValiddistributionPointTest5": UNKNOWN, "InvaliddistributionPointTest6": REVOKED,
         "ValiddistributionPointTest7": UNKNOWN},
    ),
    Case(
        "4.14.10", "no issuingDistributionPoint: about everything",
        (("NoissuingDistributionPointCACRL", IMPORTED),), _one("NoissuingDistributionPointCA"),
        {"ValidNoissuingDistributionPointTest10": UNKNOWN},
    ),
    Case(
        "4.14.11", "about user certificates only",
        (("onlyContainsUserCertsCACRL", IMPORTED),), _one("onlyContainsUserCertsCA"),
    ),
    Case(
        "4.14.12, 4.14.13", "about CA certificates only",
        (("onlyContainsCACertsCACRL", IMPORTED),), _one("onlyContainsCACertsCA"),
    ),
    Case(
        "4.14.14", "about attribute certificates, and none are answered for",
        (("onlyContainsAttributeCertsCACRL", "attribute_certificates"),), _one("onlyContainsAttributeCertsCA"),
    ),
    Case(
        "4.14.15, 4.14.16", "two CRLs by reason: each adds what it lists, neither undoes the other's",
        (("onlySomeReasonsCA1compromiseCRL", IMPORTED), ("onlySomeReasonsCA1otherreasonsCRL", IMPORTED)),
        _one("onlySomeReasonsCA1"), {"InvalidonlySomeReasonsTest15": REVOKED, "InvalidonlySomeReasonsTest16": HELD},
    ),
    Case(
        "4.14.15 in the other order", "the order of the scopes does not count",
        (("onlySomeReasonsCA1otherreasonsCRL", IMPORTED), ("onlySomeReasonsCA1compromiseCRL", IMPORTED)),
        _one("onlySomeReasonsCA1"), {"InvalidonlySomeReasonsTest15": REVOKED, "InvalidonlySomeReasonsTest16": HELD},
    ),
    Case(
        "4.14.17", "two CRLs that together leave out reasons: what is not listed is not on record",
        (("onlySomeReasonsCA2CRL1", IMPORTED), ("onlySomeReasonsCA2CRL2", IMPORTED)), _one("onlySomeReasonsCA2"),
        {"InvalidonlySomeReasonsTest17": UNKNOWN},
    ),
    Case(
        "4.14.18", "by reason, from one distribution point",
        (("onlySomeReasonsCA3compromiseCRL", IMPORTED), ("onlySomeReasonsCA3otherreasonsCRL", IMPORTED)),
        _one("onlySomeReasonsCA3"), {"ValidonlySomeReasonsTest18": UNKNOWN},
    ),
    Case(
        "4.14.19 to 4.14.21", "by reason, from two distribution points",
        (("onlySomeReasonsCA4compromiseCRL", IMPORTED), ("onlySomeReasonsCA4otherreasonsCRL", IMPORTED)),
        _one("onlySomeReasonsCA4"),
        {"ValidonlySomeReasonsTest19": UNKNOWN, "InvalidonlySomeReasonsTest20": REVOKED,
         "InvalidonlySomeReasonsTest21": "affiliationChanged"},
    ),
    # 4.14.22 on: indirect CRLs
    Case(
        "4.14.22, 4.14.23", "an indirect CRL without a certificateIssuer lists the issuer's own",
        (("indirectCRLCA1CRL", IMPORTED),), {"CA1": ("indirectCRLCA1",)},
        {"ValidIDPwithindirectCRLTest22": UNKNOWN, "InvalidIDPwithindirectCRLTest23": REVOKED},
    ),
    Case(
        "4.14.24 to 4.14.26", "an indirect CRL says nothing of a CA that it does not list",
        (("indirectCRLCA1CRL", IMPORTED),), {"CA1": ("indirectCRLCA1",), "CA2": ("indirectCRLCA2",)},
        {"ValidIDPwithindirectCRLTest24": UNKNOWN, "ValidIDPwithindirectCRLTest25": UNKNOWN,
         "InvalidIDPwithindirectCRLTest26": UNKNOWN, ("CA2", 2): UNKNOWN},
    ),
    Case(
        "4.14.27", "CA2 has no CRL, and a CRL of a CA that is not on record is nobody's",
        (("indirectCRLCA1CRL", "unknown_issuer"),), {"CA2": ("indirectCRLCA2",)}, {"InvalidcRLIssuerTest27": UNKNOWN},
    ),
    Case(
        "4.14.28, 4.14.29", "a CA and its issuer of indirect CRLs",
        (("indirectCRLCA3CRL", IMPORTED), ("indirectCRLCA3cRLIssuerCRL", IMPORTED)),
        {"CA3": ("indirectCRLCA3",), "issuer": ("indirectCRLCA3cRLIssuer",)},
        {"ValidcRLIssuerTest28": UNKNOWN, "ValidcRLIssuerTest29": UNKNOWN},
    ),
    Case(
        "4.14.30", "a CRL issuer that is certified by the CA it works for",
        (("indirectCRLCA4cRLIssuerCRL", IMPORTED),),
        {"CA4": ("indirectCRLCA4",), "issuer": ("indirectCRLCA4cRLIssuer",)}, {"ValidcRLIssuerTest30": UNKNOWN},
    ),
    Case(
        "4.14.31 to 4.14.35", "the certificateIssuer holds for the entries after it, until the next one",
        (("indirectCRLCA5CRL", IMPORTED),),
        {"CA5": ("indirectCRLCA5",), "CA6": ("indirectCRLCA6",), _MISSING: ()},
        {
            **{("CA5", serial): REVOKED for serial in (1, 10, 11)}, ("CA5", 2): UNKNOWN,
            **{("CA6", serial): REVOKED for serial in (2, 3, 4, 8, 9)}, ("CA6", 1): UNKNOWN, ("CA6", 5): UNKNOWN,
            **{(_MISSING, serial): REVOKED for serial in (5, 6, 7)}, (_MISSING, 8): UNKNOWN,
            "InvalidcRLIssuerTest31": REVOKED, "InvalidcRLIssuerTest32": REVOKED, "ValidcRLIssuerTest33": UNKNOWN,
        },
    ),
    Case(
        "4.14.31 with a CA missing", "it lists certificates of CA7, which is not on record: nothing of it is imported",
        (("indirectCRLCA5CRL", "unknown_authority"),), {"CA5": ("indirectCRLCA5",), "CA6": ("indirectCRLCA6",)},
        {"InvalidcRLIssuerTest31": UNKNOWN, ("CA5", 1): UNKNOWN},
    ),
    # 4.15: delta CRLs
    Case(
        "4.15.1", "a delta CRL that stands alone",
        (("deltaCRLIndicatorNoBaseCACRL", "delta_without_base"),), _one("deltaCRLIndicatorNoBaseCA"),
        {"InvaliddeltaCRLIndicatorNoBaseTest1": UNKNOWN},
    ),
    Case(
        "4.15.2 to 4.15.7, complete CRL only", "what the complete CRL says",
        (("deltaCRLCA1CRL", IMPORTED),), _one("deltaCRLCA1"),
        {"InvaliddeltaCRLTest3": REVOKED, "InvaliddeltaCRLTest4": UNKNOWN, "ValiddeltaCRLTest5": HELD,
         "InvaliddeltaCRLTest6": HELD, "ValiddeltaCRLTest7": UNKNOWN, "ValiddeltaCRLTest2": UNKNOWN},
    ),
    Case(
        "4.15.2 to 4.15.7", "the delta CRL revokes, turns a hold into a revocation, and lifts a hold",
        (("deltaCRLCA1CRL", IMPORTED), ("deltaCRLCA1deltaCRL", IMPORTED)), _one("deltaCRLCA1"),
        {"ValiddeltaCRLTest2": UNKNOWN, "InvaliddeltaCRLTest3": REVOKED, "InvaliddeltaCRLTest4": REVOKED,
         "ValiddeltaCRLTest5": GOOD, "InvaliddeltaCRLTest6": REVOKED, "ValiddeltaCRLTest7": UNKNOWN},
    ),
    Case(
        "4.15.2 in the wrong order", "the complete CRL is older than the delta that was refused: it is imported",
        (("deltaCRLCA1deltaCRL", "delta_without_base"), ("deltaCRLCA1CRL", IMPORTED)), _one("deltaCRLCA1"),
        {"InvaliddeltaCRLTest3": REVOKED, "InvaliddeltaCRLTest4": UNKNOWN},
    ),
    Case(
        "4.15.2 again", "after the delta, the older complete CRL is not taken back, and the same delta is no error",
        (("deltaCRLCA1CRL", IMPORTED), ("deltaCRLCA1deltaCRL", IMPORTED), ("deltaCRLCA1CRL", "older_number"),
         ("deltaCRLCA1deltaCRL", IMPORTED)),
        _one("deltaCRLCA1"), {"ValiddeltaCRLTest5": GOOD},
    ),
    Case(
        "4.15.8, 4.15.9", "a delta CRL that starts before the complete one goes on from it",
        (("deltaCRLCA2CRL", IMPORTED), ("deltaCRLCA2deltaCRL", IMPORTED)), _one("deltaCRLCA2"),
        {"ValiddeltaCRLTest8": UNKNOWN, "InvaliddeltaCRLTest9": REVOKED},
    ),
    Case(
        "4.15.10 today", "the complete CRL has expired, and the delta CRL starts from a later one",
        (("deltaCRLCA3CRL", "expired"), ("deltaCRLCA3deltaCRL", "delta_without_base")), _one("deltaCRLCA3"),
        {"InvaliddeltaCRLTest10": UNKNOWN},
    ),
]
# fmt: on


# pyca says that a later release will not read the negative serial number of 4.4.14.
@pytest.mark.filterwarnings("ignore:Parsed a serial number:cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.tests)
async def test_each_crl_of_pkits_gets_its_verdict(case: Case, database_url: str, open_as: OpenPool) -> None:
    """A CRL that breaks a rule is refused by that rule's word and changes nothing; after the others, the end entities
    of the PKITS tests are on record as their tests expect.
    """
    pool = await open_as("lakthan_registry")
    ids = {name: await _add(pool, name, files) for name, files in case.cas.items()}
    for file, expected in case.crls:
        before = await _everything(database_url)
        try:
            await import_crl(_crl(file), pool=pool, now=case.now, actor="pkits", through="test")
            verdict = IMPORTED
        except CRLRefused as error:
            verdict = error.verdict.label
        assert verdict == expected, f"{file}: {case.because}"
        if verdict != IMPORTED:
            assert await _everything(database_url) == before
    authorities = await AuthorityReader(pool).load()
    for which, expected in case.status.items():
        if isinstance(which, tuple):
            authority_id, serial = ids[which[0]], which[1].to_bytes(which[1].bit_length() // 8 + 1, "big")
        else:
            certificate = _certificate(f"{which}EE.crt")
            issuer = CertificateView.of(certificate).issuer
            found = [each.id for each in authorities if issuer in each.names]
            if not found:  # issued by a CA that the case leaves out
                assert expected == UNKNOWN
                continue
            authority_id, serial = found[0], serial_content(certificate)
        record = await StatusReader(pool).find(authority_id, serial)
        if record is None:
            said = UNKNOWN
        else:
            said = GOOD if record.revocation_reason is None else record.revocation_reason.label
        assert said == expected, f"{which}: {case.because}"


async def test_a_delta_crl_must_not_start_after_the_complete_one(open_as: OpenPool) -> None:
    """PKITS 4.15.10 at an instant when the complete CRL was in force: the delta CRL starts from number 2, and only
    number 1 is on record, so what happened in between is missing.
    """
    pool = await open_as("lakthan_registry")
    await _add(pool, "deltaCRLCA3", ("deltaCRLCA3",))
    then = datetime(2010, 6, 1, 8, 0, tzinfo=UTC)
    outcome = await import_crl(_crl("deltaCRLCA3CRL"), pool=pool, now=then, actor="pkits", through="test")
    assert (outcome.entries, outcome.crl_number) == (0, 1)
    with pytest.raises(CRLRefused, match="starts from number 2, and 1 is on record") as caught:
        await import_crl(_crl("deltaCRLCA3deltaCRL"), pool=pool, now=_NOW, actor="pkits", through="test")
    assert caught.value.verdict.label == "delta_base_ahead"


async def _add(pool: asyncpg.Pool, name: str, files: tuple[str, ...]) -> int:
    if name == _MISSING:
        return await AuthorityAdmin(pool).add_authority(name, [new_ca(name).der], [_name_of_ca7()], actor="pkits")
    certificates = [(_PKITS / "certs" / _file(file)).read_bytes() for file in files]
    return await AuthorityAdmin(pool).add_authority(name, certificates, actor="pkits")


def _file(name: str) -> str:
    return name if name.endswith(".crt") else f"{name}Cert.crt"


def _certificate(file: str) -> x509.Certificate:
    return x509.load_der_x509_certificate((_PKITS / "certs" / file).read_bytes())


def _crl(name: str) -> bytes:
    return (_PKITS / "crls" / f"{name}.crl").read_bytes()


def _name_of_ca7() -> bytes:
    crl = x509.load_der_x509_crl(_crl("indirectCRLCA5CRL"))
    entry = next(each for each in crl if each.serial_number == 5)
    issuer = entry.extensions.get_extension_for_class(x509.CertificateIssuer).value
    return issuer.get_values_for_type(x509.DirectoryName)[0].public_bytes()


async def _everything(database_url: str) -> list[list[asyncpg.Record]]:
    connection = await asyncpg.connect(database_url)
    try:
        return [
            await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")
            for table in (
                "certificate_status",
                "status_change",
                "crl_scope",
                "crl_hold",
                "authority_crl",
                "audit_record",
            )
        ]
    finally:
        await connection.close()
