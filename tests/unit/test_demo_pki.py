"""The demo PKI: what is in the folder, what the certificates say, and that it is made whole or not at all."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from lakthan.errors import ConfigError
from lakthan_cli.demo import pki
from lakthan_cli.demo.certificates import Urls
from lakthan_cli.demo.inventory import LEAVES, Fate, Profile

URLS = Urls(ocsp="http://127.0.0.1:6960", publication="http://127.0.0.1:6962")
NOW = datetime.now(UTC)
LEAF_FILES = ["good", "revoked", "held", "expired", "unissued", *(f"spare-{n}" for n in range(1, 5)), "pdf", "mail"]
AUTHORITY_FILES = {
    "root": "pki/root.pem",
    "public-ca": "pki/ca.pem",
    "gov-ca": "pki/gov/ca.pem",
    "tsa-ca": "pki/tsa-chain.pem",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pki.DemoPKI:
    """A demo PKI; tests that change it make their own."""
    return pki.make(tmp_path_factory.mktemp("demo"), URLS, NOW)


def read(made: pki.DemoPKI, name: str) -> x509.Certificate:
    """The first certificate of a file."""
    return x509.load_pem_x509_certificates((made.directory / name).read_bytes())[0]


def everything(made: pki.DemoPKI) -> list[x509.Certificate]:
    """Every certificate of the demo, once."""
    return [read(made, name) for name in [*AUTHORITY_FILES.values(), *(leaf.certificate for leaf in LEAVES)]]


@pytest.mark.parametrize("folder", ["pki", "pki/gov"])
def test_both_subscriber_cas_have_every_promised_file(made: pki.DemoPKI, folder: str) -> None:
    """Whoever follows the README finds the files it names, for the Public CA and for the Government CA."""
    there = {path.name for path in (made.directory / folder).iterdir()}
    keys = {f"{name}.key" for name in ("good", "revoked", "pdf", "mail")}
    assert there >= {"ca.pem", "chain.pem", *(f"{name}.pem" for name in LEAF_FILES), *keys}
    for name in ("good", "revoked", "pdf", "mail"):
        key = load_pem_private_key((made.directory / folder / f"{name}.key").read_bytes(), password=None)
        assert key.public_key() == read(made, f"{folder}/{name}.pem").public_key()


def test_every_certificate_is_signed_by_the_issuer_it_names(made: pki.DemoPKI) -> None:
    """Each leaf leads over its CA to the one root, and lies inside the validity of its issuer."""
    for name, path in AUTHORITY_FILES.items():
        certificate = read(made, path)
        certificate.verify_directly_issued_by(read(made, AUTHORITY_FILES["root"]))
        assert made.authorities[name].certificate == certificate
    for leaf in LEAVES:
        certificate, issuer = read(made, leaf.certificate), read(made, AUTHORITY_FILES[leaf.authority])
        certificate.verify_directly_issued_by(issuer)
        assert issuer.not_valid_before_utc <= certificate.not_valid_before_utc
        assert certificate.not_valid_after_utc <= issuer.not_valid_after_utc


@pytest.mark.parametrize("folder", ["pki", "pki/gov"])
def test_a_tls_client_accepts_the_good_certificate(made: pki.DemoPKI, folder: str) -> None:
    """The strict path validation of the web finds nothing wrong with good.pem for localhost."""
    store = Store([read(made, "pki/root.pem")])
    verifier = PolicyBuilder().store(store).time(NOW).build_server_verifier(x509.DNSName("localhost"))
    chain = verifier.verify(read(made, f"{folder}/good.pem"), [read(made, f"{folder}/ca.pem")])
    assert [len(chain), chain[-1]] == [3, read(made, "pki/root.pem")]


def test_chain_files_start_with_the_nearest_issuer_and_end_with_the_root(made: pki.DemoPKI) -> None:
    """`chain.pem` holds what is above `ca.pem`; `tsa-chain.pem` is what is above the time-stamping unit."""
    root = read(made, "pki/root.pem")
    for name in ("pki/chain.pem", "pki/gov/chain.pem", "pki/tsa-root.pem"):
        assert x509.load_pem_x509_certificates((made.directory / name).read_bytes()) == [root]
    chain = x509.load_pem_x509_certificates((made.directory / "pki/tsa-chain.pem").read_bytes())
    assert chain == [made.authorities["tsa-ca"].certificate, root]


def test_names_are_in_lao_and_english_and_no_reader_finds_them_too_long(made: pki.DemoPKI) -> None:
    """Every party but a host is named in both languages, within 64 octets of UTF-8 for readers that count those."""
    for certificate in everything(made):
        for attribute in certificate.subject:
            assert len(str(attribute.value).encode()) <= 64
        organization = str(certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
        assert "ຫຼັກຖານ" in organization
        assert "Lakthan" in organization
        [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        host = str(common_name.value) == "localhost" or str(common_name.value).endswith(".test")
        assert host or any("\u0e80" <= letter <= "\u0eff" for letter in str(common_name.value))


def test_serial_numbers_are_positive_different_and_fit_into_127_bits(made: pki.DemoPKI) -> None:
    """No serial number is negative, guessable, or given twice."""
    serials = [certificate.serial_number for certificate in everything(made)]
    assert len(set(serials)) == len(serials)
    assert all(0 < serial < 2**127 for serial in serials)
    assert max(serial.bit_length() for serial in serials) > 100


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf.profile is Profile.RESPONDER], ids=str)
def test_responders_are_delegated_as_the_standards_want_it(made: pki.DemoPKI, leaf: object) -> None:
    """A responder's certificate says OCSPSigning and nothing else, has nocheck, and names no place to ask about it.

    OCSP-16, OCSP-65, OCSP-74, OCSP-88.
    """
    certificate = read(made, getattr(leaf, "certificate"))  # noqa: B009 - parametrized as object for its id
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    assert extensions.get_extension_for_class(x509.KeyUsage).critical
    assert not extensions.get_extension_for_class(x509.OCSPNoCheck).critical
    assert certificate.not_valid_after_utc - NOW <= timedelta(days=45)
    for absent in (x509.AuthorityInformationAccess, x509.CRLDistributionPoints, x509.SubjectAlternativeName):
        with pytest.raises(x509.ExtensionNotFound):
            extensions.get_extension_for_class(absent)


def test_the_time_stamping_unit_may_stamp_and_nothing_else(made: pki.DemoPKI) -> None:
    """One critical purpose, a key that stops long before the certificate does, no nocheck, and a place to ask.

    TSA-K1, TSA-K4.
    """
    certificate = read(made, "pki/tsu.pem")
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    assert (usage.critical, list(usage.value)) == (True, [ExtendedKeyUsageOID.TIME_STAMPING])
    period = certificate.extensions.get_extension_for_class(x509.PrivateKeyUsagePeriod).value
    assert period.not_after is not None
    assert period.not_after.replace(tzinfo=UTC) < certificate.not_valid_after_utc - timedelta(days=365)
    assert len(certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value) == 1
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.OCSPNoCheck)


def test_certificates_point_to_the_running_demo(made: pki.DemoPKI) -> None:
    """A validator that follows the URLs in a certificate arrives at the demo's services."""
    for name, issuer in (("pki/good.pem", "public-ca"), ("pki/gov/pdf.pem", "gov-ca"), ("pki/gov/ca.pem", "root")):
        extensions = read(made, name).extensions
        access = {
            each.access_method: each.access_location.value
            for each in extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        }
        assert access == {
            AuthorityInformationAccessOID.OCSP: URLS.ocsp,
            AuthorityInformationAccessOID.CA_ISSUERS: f"{URLS.publication}/ca/{issuer}.cer",
        }
        [point] = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        assert point.full_name is not None
        assert [name.value for name in point.full_name] == [f"{URLS.publication}/crl/{issuer}.crl"]


def test_the_document_signer_commits_and_runs_out_soon(made: pki.DemoPKI) -> None:
    """pdf.pem is for signatures that bind, and "after its expiry" is two days away."""
    for folder in ("pki", "pki/gov"):
        certificate = read(made, f"{folder}/pdf.pem")
        assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.content_commitment
        assert timedelta(days=1, hours=23) < certificate.not_valid_after_utc - NOW <= timedelta(days=2)
        assert read(made, f"{folder}/expired.pem").not_valid_after_utc < NOW


def test_only_the_unissued_certificates_are_kept_from_the_database(made: pki.DemoPKI) -> None:
    """Everything is registered, sub-CAs, responders and the unit too; one file in each CA's folder never is."""
    registered = {certificate.serial_number for _, certificate, _ in made.to_register()}
    unregistered = {certificate.serial_number for certificate in everything(made)} - registered
    assert unregistered == {
        read(made, name).serial_number for name in ("pki/root.pem", "pki/unissued.pem", "pki/gov/unissued.pem")
    }
    fates = [fate for _, _, fate in made.to_register()]
    assert (fates.count(Fate.REVOKED), fates.count(Fate.HELD)) == (2, 2)


def test_keys_are_for_their_owner_only(made: pki.DemoPKI) -> None:
    """Nobody else can read a private key; the keys of authorities and services are in a closed folder besides."""
    keys = list(made.directory.rglob("*.key"))
    assert len(keys) == 4 + 4 + 4 + 1 + 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    secrets = made.directory / "secrets"
    assert {stat.S_IMODE(path.stat().st_mode) for path in [secrets, *secrets.rglob("*")] if path.is_dir()} == {0o700}
    assert (secrets / "offline/root.key").is_file()


def test_the_cas_use_different_kinds_of_keys(made: pki.DemoPKI) -> None:
    """The Government CA shows RSA, the others elliptic curves."""
    keys = {name: issuer.key for name, issuer in made.authorities.items()}
    sizes = {name: key.key_size for name, key in keys.items() if not isinstance(key, mldsa.MLDSA65PrivateKey)}
    assert sizes == {"root": 384, "public-ca": 256, "gov-ca": 3072, "tsa-ca": 256}
    assert isinstance(made.authorities["gov-ca"].key, rsa.RSAPrivateKey)
    assert isinstance(read(made, "pki/ocsp/public-ca.pem").public_key(), ec.EllipticCurvePublicKey)


def test_a_second_start_finds_the_same_pki(made: pki.DemoPKI) -> None:
    """Opening the folder again gives the same certificates, and nothing has to be renewed."""
    again = pki.load(made.directory)
    assert {name: issuer.certificate for name, issuer in again.authorities.items()} == {
        name: issuer.certificate for name, issuer in made.authorities.items()
    }
    assert pki.renew(again, URLS, NOW) == []


def test_what_has_run_out_is_made_anew_and_fits_its_key(tmp_path: Path) -> None:
    """After 36 days the responders, which are close to their end, and the document signers, which are past it, are
    new; the key beside each certificate is the one in it.
    """
    made = pki.make(tmp_path, URLS, NOW)
    old = read(made, "pki/pdf.pem")
    renewed = pki.renew(made, URLS, NOW + timedelta(days=36))
    responders = [f"pki/ocsp/{name}.pem" for name in AUTHORITY_FILES]
    assert sorted(renewed) == sorted([*responders, "pki/pdf.pem", "pki/gov/pdf.pem"])
    new = read(made, "pki/pdf.pem")
    assert new.serial_number != old.serial_number
    key = load_pem_private_key((tmp_path / "pki/pdf.key").read_bytes(), password=None)
    assert key.public_key() == new.public_key()
    assert pki.renew(made, URLS, NOW + timedelta(days=36)) == []


def test_a_renewal_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    """A key that does not fit its certificate, as a stop between the two leaves it, is replaced with a new pair."""
    made = pki.make(tmp_path, URLS, NOW)
    (tmp_path / "pki/good.key").write_bytes((tmp_path / "pki/mail.key").read_bytes())
    (tmp_path / "pki/gov/spare-1.pem").unlink()
    assert pki.renew(made, URLS, NOW) == ["pki/good.pem", "pki/gov/spare-1.pem"]
    assert pki.renew(made, URLS, NOW) == []


def test_an_authority_with_a_foreign_key_is_refused(tmp_path: Path) -> None:
    """A folder whose parts do not belong together is not used, and the message says how to go on."""
    pki.make(tmp_path, URLS, NOW)
    (tmp_path / "secrets/ca/public-ca.key").write_bytes((tmp_path / "secrets/ca/tsa-ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"public-ca\.key is not the key of .*ca\.pem.*remove"):
        pki.load(tmp_path)


def test_a_killed_first_start_leaves_nothing_half_made(tmp_path: Path) -> None:
    """Killed while it makes the PKI, the folder has no `pki/`; the next start makes it, and clears the rest away."""
    program = (
        "import sys; from pathlib import Path; from datetime import UTC, datetime\n"
        "from lakthan_cli.demo import pki; from lakthan_cli.demo.certificates import Urls\n"
        "pki.make(Path(sys.argv[1]), Urls('http://a.test', 'http://b.test'), datetime.now(UTC))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    while not list(tmp_path.glob(".making-*/secrets/ocsp/*.key")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not pki.exists(tmp_path)
    pki.make(tmp_path, URLS, NOW)
    assert {path.name for path in tmp_path.iterdir()} == {"pki", "secrets"}
