"""What is found wrong in certificates before an authority is accepted, and that what is right passes in silence."""

from __future__ import annotations

import inspect
import ipaddress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan_ocsp.directory import check_responder
from lakthan_ocsp.profiles import PROFILES
from lakthan_registry.authority_check import (
    Finding,
    Level,
    check_authority,
    check_responder_certificate,
    check_sample,
)
from support.pki import Issued, issue, new_ca, new_responder

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
LONG = (-DAY, 3650 * DAY)


def usage(*names: str) -> tuple[x509.ExtensionType, bool]:
    """A critical keyUsage with these bits."""
    bits = inspect.signature(x509.KeyUsage).parameters
    return x509.KeyUsage(**{bit: bit in names for bit in bits}), True


def purposes(*oids: x509.ObjectIdentifier) -> tuple[x509.ExtensionType, bool]:
    """An extendedKeyUsage."""
    return x509.ExtendedKeyUsage(oids), False


def ocsp_url(url: str) -> tuple[x509.ExtensionType, bool]:
    """An authorityInfoAccess with id-ad-ocsp."""
    place = x509.UniformResourceIdentifier(url)
    return x509.AuthorityInformationAccess([x509.AccessDescription(AuthorityInformationAccessOID.OCSP, place)]), False


def crl_url(url: str) -> tuple[x509.ExtensionType, bool]:
    """A cRLDistributionPoints."""
    name = x509.UniformResourceIdentifier(url)
    return x509.CRLDistributionPoints([x509.DistributionPoint([name], None, None, None)]), False


CA_USAGE = usage("key_cert_sign", "crl_sign")
GOOD_RESPONDER = (usage("digital_signature"), purposes(ExtendedKeyUsageOID.OCSP_SIGNING), (x509.OCSPNoCheck(), False))


@pytest.fixture(scope="module")
def ca() -> Issued:
    """A CA in whose certificate nothing is wrong."""
    return issue("Good CA ອອກໃບຢັ້ງຢືນ", ca=True, valid=LONG, extensions=(CA_USAGE,))


def view_of(issued: Issued) -> CertificateView:
    """As the checks take it."""
    return CertificateView.of(issued.certificate)


def said(findings: list[Finding], level: Level) -> str:
    """What was found of this level, in one text."""
    return "; ".join(finding.what for finding in findings if finding.level is level)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048", "Ed25519", "ML-DSA-65"])
def test_a_good_authority_gives_no_finding(kind: str) -> None:
    """A proper CA, responder and subscriber pass in silence, with keys of every kind."""
    good = issue("Good CA", kind=kind, ca=True, valid=LONG, extensions=(CA_USAGE,))
    responder = issue("OCSP", good, extensions=GOOD_RESPONDER)
    sample = issue("someone", good, extensions=(ocsp_url("http://ocsp.gov.la/"), crl_url("http://ca.gov.la/a.crl")))
    views = [view_of(good)]
    assert check_authority(views, NOW) == []
    assert check_responder_certificate(view_of(responder), views, NOW, "required") == []
    assert check_sample(view_of(sample), views, ["http://ca.gov.la/a.crl"]) == []


def test_every_finding_says_what_to_do(ca: Issued) -> None:
    """Nobody is left with a complaint alone."""
    odd = issue("odd", ca, valid=(-2 * DAY, -DAY))
    findings = [
        *check_authority([view_of(odd)], NOW),
        *check_responder_certificate(view_of(odd), [view_of(ca)], NOW),
        *check_sample(view_of(odd), [view_of(odd)]),
    ]
    assert len(findings) > 5
    assert all(finding.todo and finding.certificate == view_of(odd).name for finding in findings)


@pytest.mark.parametrize(
    ("extensions", "level", "words"),
    [
        ((usage("crl_sign"),), Level.ERROR, "keyCertSign"),
        ((usage("key_cert_sign"),), Level.WARNING, "cRLSign"),
        (((CA_USAGE[0], False),), Level.WARNING, "keyUsage is not critical"),
        ((), Level.WARNING, "no keyUsage"),
        ((CA_USAGE, purposes(ExtendedKeyUsageOID.OCSP_SIGNING)), Level.WARNING, "OCSPSigning"),
    ],
)
def test_the_usage_of_a_ca_is_looked_at(
    extensions: tuple[tuple[x509.ExtensionType, bool], ...], level: Level, words: str
) -> None:
    """What a CA's key may do, and what it had better not say."""
    odd = issue("odd CA", ca=True, valid=LONG, extensions=extensions)
    assert words in said(check_authority([view_of(odd)], NOW), level)


@pytest.mark.parametrize(
    ("valid", "words"),
    [((-2 * DAY, -DAY), "it ended at"), ((DAY, 300 * DAY), "it begins at"), ((-DAY, 30 * DAY), "it ends at")],
)
def test_a_ca_outside_of_its_validity_is_a_warning(valid: tuple[timedelta, timedelta], words: str) -> None:
    """An earlier key whose certificates are still asked for is welcome, so its end is no error."""
    old = issue("old CA", ca=True, valid=valid, extensions=(CA_USAGE,))
    findings = check_authority([view_of(old)], NOW)
    assert words in said(findings, Level.WARNING)
    assert not said(findings, Level.ERROR)


def test_a_leaf_is_no_authority(ca: Issued) -> None:
    """A subscriber's certificate in the place of a CA's is an error, and the only one."""
    findings = check_authority([view_of(issue("someone", ca))], NOW)
    assert [finding.level for finding in findings] == [Level.ERROR]
    assert "no CA's certificate" in findings[0].what


def test_a_chain_is_not_one_authority(ca: Issued) -> None:
    """Root and issuing CA in one file would make one authority of two; earlier keys of one CA are fine."""
    below = issue("issuing CA", ca, ca=True, valid=(-DAY, 1000 * DAY), extensions=(CA_USAGE,))
    assert "a chain" in said(check_authority([view_of(below), view_of(ca)], NOW), Level.ERROR)
    earlier = issue("Good CA ອອກໃບຢັ້ງຢືນ", ca=True, valid=LONG, extensions=(CA_USAGE,))
    assert check_authority([view_of(ca), view_of(earlier)], NOW) == []
    renamed = issue("Better CA", ca=True, valid=LONG, extensions=(CA_USAGE,))
    assert "name differs" in said(check_authority([view_of(ca), view_of(renamed)], NOW), Level.WARNING)


def test_a_self_signature_that_is_wrong_is_an_error(ca: Issued) -> None:
    """A certificate that was damaged on its way is not taken."""
    damaged = bytearray(ca.der)
    damaged[-1] ^= 1
    view = CertificateView.from_der(bytes(damaged))
    assert "its own signature is wrong" in said(check_authority([view], NOW), Level.ERROR)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: str(profile.name))
@pytest.mark.parametrize(
    "extensions",
    [
        GOOD_RESPONDER,
        GOOD_RESPONDER[:2],
        (usage("digital_signature"), (x509.OCSPNoCheck(), False)),
        (purposes(ExtendedKeyUsageOID.OCSP_SIGNING, ExtendedKeyUsageOID.CLIENT_AUTH), (x509.OCSPNoCheck(), False)),
        (*GOOD_RESPONDER, ocsp_url("http://ocsp.gov.la/")),
    ],
    ids=["good", "no nocheck", "no purpose", "two purposes", "OCSP URL"],
)
@pytest.mark.parametrize("authority", ["its own", "another"])
def test_whatever_the_responder_refuses_at_its_start_is_an_error_here(
    ca: Issued, profile: object, extensions: tuple[tuple[x509.ExtensionType, bool], ...], authority: str
) -> None:
    """These checks and those of the OCSP service say the same of every certificate."""
    assert isinstance(profile, type(PROFILES["pdf-ltv"]))
    responder = view_of(issue("OCSP", ca, extensions=extensions))
    issuers = [view_of(ca if authority == "its own" else new_ca("Other CA"))]
    errors = said(check_responder_certificate(responder, issuers, NOW, profile.nocheck.value), Level.ERROR)
    try:
        check_responder(responder, "a", issuers, profile)
    except ConfigError:
        assert errors
    else:
        assert not errors


@pytest.mark.parametrize(
    ("extensions", "level", "words"),
    [
        (GOOD_RESPONDER[1:], Level.WARNING, "no keyUsage"),
        ((usage("key_agreement"), *GOOD_RESPONDER[1:]), Level.ERROR, "does not allow digitalSignature"),
        ((usage("digital_signature", "crl_sign"), *GOOD_RESPONDER[1:]), Level.WARNING, "more than digitalSignature"),
        (((GOOD_RESPONDER[0][0], False), *GOOD_RESPONDER[1:]), Level.WARNING, "not critical"),
        (GOOD_RESPONDER[:2], Level.WARNING, "neither nocheck nor"),
        ((*GOOD_RESPONDER, crl_url("http://ca.gov.la/a.crl")), Level.WARNING, "at once"),
    ],
)
def test_a_responder_is_looked_at_closer_than_at_its_start(
    ca: Issued, extensions: tuple[tuple[x509.ExtensionType, bool], ...], level: Level, words: str
) -> None:
    """Usage, and the one way to learn whether it is revoked."""
    responder = issue("OCSP", ca, extensions=extensions)
    assert words in said(check_responder_certificate(view_of(responder), [view_of(ca)], NOW), level)


@pytest.mark.parametrize(
    ("valid", "level", "words"),
    [
        ((-2 * DAY, -DAY), Level.ERROR, "it ended at"),
        ((DAY, 2 * DAY), Level.ERROR, "it begins at"),
        ((-30 * DAY, 5 * DAY), Level.WARNING, "less than a third"),
        ((-DAY, 800 * DAY), Level.WARNING, "cannot be revoked"),
        ((-DAY, 4000 * DAY), Level.WARNING, "later than its issuer"),
    ],
)
def test_the_life_of_a_responder_is_looked_at(
    ca: Issued, valid: tuple[timedelta, timedelta], level: Level, words: str
) -> None:
    """Not in force is an error; soon over, or too long with nocheck, a warning."""
    responder = new_responder(ca, valid=valid)
    assert words in said(check_responder_certificate(view_of(responder), [view_of(ca)], NOW), level)


def test_a_responder_whose_key_cannot_sign_here_is_an_error(ca: Issued) -> None:
    """Better now than at the start of the service."""
    responder = issue("OCSP", ca, kind="RSA-1024", extensions=GOOD_RESPONDER)
    assert "1024 bits" in said(check_responder_certificate(view_of(responder), [view_of(ca)], NOW), Level.ERROR)


@pytest.mark.parametrize(
    ("extensions", "words"),
    [
        ((), "no OCSP URL"),
        ((), "no cRLDistributionPoints"),
        ((ocsp_url("https://ocsp.gov.la"),), "is not http"),
        ((ocsp_url("http://127.0.0.1:6960"),), "on this machine only"),
        ((crl_url("ldap://ca.gov.la/cn=a"),), "LDAP only"),
        ((crl_url("http://ca.gov.la/b.crl"),), "is not the one in the certificate"),
    ],
)
def test_a_sample_shows_whether_clients_will_find_the_answers(
    ca: Issued, extensions: tuple[tuple[x509.ExtensionType, bool], ...], words: str
) -> None:
    """All of these are warnings: the certificates that are out cannot be changed any more."""
    sample = issue("someone", ca, extensions=extensions)
    findings = check_sample(view_of(sample), [view_of(ca)], ["http://ca.gov.la/a.crl"])
    assert words in said(findings, Level.WARNING)
    assert not said(findings, Level.ERROR)


def test_a_sample_of_another_authority_is_an_error(ca: Issued) -> None:
    """Then one of the two certificates was mistaken."""
    stranger = issue("someone", new_ca("Other CA"))
    assert "did not sign it" in said(check_sample(view_of(stranger), [view_of(ca)]), Level.ERROR)


def test_a_wrong_authority_key_identifier_is_an_error(ca: Issued) -> None:
    """Clients that follow it would not find the issuer."""
    names_other = x509.AuthorityKeyIdentifier(b"\x01" * 20, None, None)
    good = issue("someone", ca)
    builder = (
        x509.CertificateBuilder()
        .subject_name(good.certificate.subject)
        .issuer_name(good.certificate.issuer)
        .public_key(good.certificate.public_key())
        .serial_number(good.certificate.serial_number)
        .not_valid_before(good.certificate.not_valid_before_utc)
        .not_valid_after(good.certificate.not_valid_after_utc)
        .add_extension(names_other, critical=False)
    )
    odd = Issued(builder.sign(ca.key, good.certificate.signature_hash_algorithm), good.key)  # type: ignore[arg-type]
    assert "names another key" in said(check_sample(view_of(odd), [view_of(ca)]), Level.ERROR)


def test_a_counted_serial_number_is_warned_of(ca: Issued) -> None:
    """Numbers in sequence can be guessed by strangers; random ones are fine."""
    sample = issue("someone", ca, serial_number=1000)
    assert "counted" in said(check_sample(view_of(sample), [view_of(ca)]), Level.WARNING)
    assert "serial number" not in said(check_sample(view_of(issue("someone", ca)), [view_of(ca)]), Level.WARNING)


def test_addresses_are_no_names_of_lists(ca: Issued) -> None:
    """A distribution point that names no URL is as good as none, and breaks nothing."""
    point = x509.DistributionPoint([x509.IPAddress(ipaddress.ip_address("10.0.0.1"))], None, None, None)
    sample = issue("someone", ca, extensions=((x509.CRLDistributionPoints([point]), False),))
    assert "no cRLDistributionPoints" in said(check_sample(view_of(sample), [view_of(ca)]), Level.WARNING)
