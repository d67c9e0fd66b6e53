"""What a CRL says about itself, read from good and from broken octets; pyca/cryptography is the judge."""

from __future__ import annotations

import base64
import contextlib
import mmap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan_registry.crl_syntax import CRLSyntaxError, UnknownCriticalExtension, read_crl
from support.crl import Listed, entry, extension, new_crl, pyca_crl, utc_time
from support.pki import new_ca

CA = new_ca("ອົງການ CRL")
_POINT = der.sequence(
    der.encode(0xA0, der.encode(0xA0, der.encode(0x86, b"http://crl.example/1.crl"))),
    der.encode(0x81, b"\xff"),
    der.encode(0x83, b"\x01\x06"),
    der.encode(0x84, b"\xff"),
)


def test_everything_that_a_crl_says_about_itself() -> None:
    """Issuer, numbers, instants, scope and key identifier come out as they went in, and pyca reads the same."""
    data = new_crl(
        CA,
        Listed(
            [entry(b"\x01", 1), entry(b"\x02")],
            number=300,
            base=200,
            scope=_POINT,
            this_update=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            next_update=datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
            more=[
                extension("2.5.29.35", der.sequence(der.encode(0x80, b"\x01\x02\x03"))),
                extension("2.5.29.60", der.generalized_time(datetime(2020, 1, 1, tzinfo=UTC))),
                extension("1.2.3", b"\x05\x00"),
            ],
        ),
    )
    crl = read_crl(data)
    judge = x509.load_der_x509_crl(data)
    assert crl.issuer == CertificateView.of(CA.certificate).subject
    assert (crl.this_update, crl.next_update) == (judge.last_update_utc, judge.next_update_utc)
    assert crl.crl_number == 300 == judge.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert (crl.base_crl_number, crl.delta) == (200, True)
    assert crl.issuing_distribution_point is not None
    assert crl.issuing_distribution_point.uris == ("http://crl.example/1.crl",)
    assert crl.issuing_distribution_point.only_contains_user_certs
    assert not crl.issuing_distribution_point.only_contains_ca_certs
    assert crl.issuing_distribution_point.only_some_reasons == b"\x01\x06"
    assert crl.indirect
    assert crl.scope == _POINT
    assert crl.authority_key_identifier == b"\x01\x02\x03"
    assert crl.expired_certs_on_crl == datetime(2020, 1, 1, tzinfo=UTC)
    assert crl.unknown_critical == ()
    assert data[slice(*crl.tbs_span)] == judge.tbs_certlist_bytes
    assert crl.signature == judge.signature
    assert [each.serial_number for each in crl.entries()] == [b"\x01", b"\x02"]


def test_a_crl_without_entries_and_without_extensions() -> None:
    """Both are optional (RFC 5280 §5.1): an empty CRL says that nothing is revoked."""
    crl = read_crl(new_crl(CA, Listed(number=None)))
    assert list(crl.entries()) == []
    assert (crl.crl_number, crl.delta, crl.indirect, crl.scope) == (None, False, False, b"")


def test_pem_and_a_mapped_file_read_the_same(tmp_path: Path) -> None:
    """A CRL may come as PEM, with text around it, and as a file that is mapped into memory."""
    data = pyca_crl(CA, digest=hashes.SHA256())
    pem = b"some text\n-----BEGIN X509 CRL-----\n" + base64.encodebytes(data) + b"-----END X509 CRL-----\n"
    assert read_crl(pem).data == data
    path = tmp_path / "crl.der"
    path.write_bytes(data)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        crl = read_crl(mapped)
        assert crl.sha256() == read_crl(data).sha256()
        assert [each.serial_number for each in crl.entries()] == [der.integer_content(4711)]


def test_several_crls_in_one_pem_file_are_refused() -> None:
    """Which one is meant cannot be known."""
    pem = b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"
    with pytest.raises(CRLSyntaxError, match="several"):
        read_crl(pem * 2)


def test_needless_octets_of_a_serial_number_do_not_count() -> None:
    """CAs in the field write serial numbers so; the value is what identifies a certificate."""
    crl = read_crl(new_crl(CA, Listed([entry(b"\x00\x00\x7f"), entry(b"\xff\xff\x80")])))
    assert [each.serial_number for each in crl.entries()] == [b"\x7f", b"\x80"]


def test_critical_extensions_that_nobody_knows_are_named() -> None:
    """Of the CRL itself: the check refuses them by name."""
    crl = read_crl(new_crl(CA, Listed(more=[extension("1.2.3.4", b"\x05\x00", critical=True)])))
    assert crl.unknown_critical == ("1.2.3.4",)


_GOOD = new_crl(CA, Listed([entry(b"\x01", 1)]))
_BROKEN = {
    "": "neither DER nor PEM",
    "text": "neither DER nor PEM",
    "-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----": "not base64",
}


@pytest.mark.parametrize(("text", "said"), _BROKEN.items())
def test_what_is_no_crl_at_all(text: str, said: str) -> None:
    """Any other file is refused with a word on what was expected."""
    with pytest.raises(CRLSyntaxError, match=said):
        read_crl(text.encode())


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (Listed(more=[extension("2.5.29.20", der.integer(2))]), "occurs twice"),
        (Listed(number=-1), "CRL number"),
        (Listed(number=1 << 168), "CRL number"),
        (Listed(scope=der.sequence(der.encode(0x85, b"\x01"))), "not one"),
        (Listed(scope=der.sequence(der.encode(0x84, b"\xff"), der.encode(0x81, b"\xff"))), "not in order"),
        (Listed([der.sequence(b"\x02\x00", utc_time(datetime(2026, 1, 1, tzinfo=UTC)))]), "offset"),
        (Listed([der.sequence(b"\x02\x01\x01", der.encode(0x17, b"260230000000Z"))]), "offset"),
        (Listed([der.sequence(b"\x02\x01\x01", der.encode(0x17, b"2601010000Z"))]), "YYMMDDHHMMSSZ"),
        (
            Listed([der.sequence(b"\x02\x01\x01", der.encode(0x17, b"260101000000Z"), der.sequence(), b"\x05\x00")]),
            "many",
        ),
        (Listed([entry(b"\x01", 7)]), "no reason code"),
        (Listed([entry(b"\x01", extensions=[extension("2.5.29.29", der.sequence())])]), "without a directory name"),
    ],
)
def test_what_a_crl_may_not_say(listed: Listed, said: str) -> None:
    """Whatever is not as RFC 5280 writes it is refused, and the message says what."""
    with pytest.raises(CRLSyntaxError, match=said):
        list(read_crl(new_crl(CA, listed)).entries())


@given(st.integers(0, len(_GOOD) - 1), st.integers(0, 255))
def test_any_other_octet_gives_a_crl_or_a_refusal(place: int, value: int) -> None:
    """No broken CRL leads to any other error than these two, which each caller turns into a refusal."""
    broken = bytearray(_GOOD)
    broken[place] = value
    with contextlib.suppress(CRLSyntaxError, UnknownCriticalExtension):
        list(read_crl(bytes(broken)).entries())


@given(st.binary(max_size=80))
def test_any_octets_are_refused_as_such(octets: bytes) -> None:
    """Nothing but a CRL is read as one."""
    with pytest.raises(CRLSyntaxError):
        read_crl(b"\x30" + octets)
