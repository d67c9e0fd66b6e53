"""The DER reader and encoders, value by value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from lakthan import der


@pytest.mark.parametrize(
    ("encoded", "because"),
    [
        ("", "there is nothing"),
        ("02", "the length is missing"),
        ("0201", "the content is missing"),
        ("020200", "the content is shorter than the length"),
        ("028101ff", "a short length in the long form"),
        ("02820001ff", "a length with a leading zero"),
        ("0280ff0000", "an indefinite length"),
        ("0285000000000100", "a length of five octets"),
        ("1f0100", "a tag of more than one octet"),
    ],
)
def test_what_is_not_der_is_refused(encoded: str, because: str) -> None:
    """Every way to encode an element other than the distinguished one is an error."""
    with pytest.raises(der.DERError):
        der.Reader(bytes.fromhex(encoded)).head()
    assert because


@pytest.mark.parametrize("encoded", ["0200", "02020001", "0202ffff", "020300ff", "0203ff80ff"])
def test_integers_must_be_minimal(encoded: str) -> None:
    """An INTEGER without content, or with needless leading octets, or cut off, is refused (X.690 §8.3.2)."""
    with pytest.raises(der.DERError):
        der.Reader(bytes.fromhex(encoded)).integer()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255, 256, -1, -128, -129, 2**159 - 1, -(2**70)])
def test_integers_round_trip(value: int) -> None:
    """What `integer` writes, the reader reads, and it is minimal."""
    encoded = der.integer(value)
    assert der.Reader(encoded).integer() == value
    assert der.minimal_integer(der.integer_content(value)) == der.integer_content(value)


@pytest.mark.parametrize(
    ("content", "minimal"),
    [
        ("00", "00"),
        ("0000", "00"),
        ("000080", "0080"),
        ("ff", "ff"),
        ("ffff", "ff"),
        ("ffff7f", "ff7f"),
        ("00ff", "00ff"),
    ],
)
def test_minimal_integer(content: str, minimal: str) -> None:
    """Needless octets go, the value stays."""
    assert der.minimal_integer(bytes.fromhex(content)).hex() == minimal


def test_booleans() -> None:
    """TRUE has all bits set (X.690 §11.1)."""
    assert der.Reader(b"\x01\x01\xff").boolean() is True
    assert der.Reader(b"\x01\x01\x00").boolean() is False
    with pytest.raises(der.DERError):
        der.Reader(b"\x01\x01\x01").boolean()


def test_a_wrong_tag_is_named() -> None:
    """The message says which tag was found, which is due, and where."""
    with pytest.raises(der.DERError, match="tag 0x02 where 0x30 is due, at offset 0"):
        der.Reader(b"\x02\x01\x00").enter(der.SEQUENCE)


def test_nothing_may_be_left_over() -> None:
    """`finish` refuses trailing octets."""
    reader = der.Reader(b"\x05\x00\x00")
    reader.element(der.NULL)
    with pytest.raises(der.DERError, match="1 octets too many"):
        reader.finish()


@pytest.mark.parametrize("length", [0, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 2**24])
def test_lengths(length: int) -> None:
    """Lengths of every size are written in their shortest form and read again."""
    encoded = der.head(der.OCTET_STRING, length)
    tag, start, stop = der.Reader(encoded + bytes(length)).head()
    assert (tag, start, stop - start) == (der.OCTET_STRING, len(encoded), length)


@pytest.mark.parametrize(
    "dotted", ["1.2.840.113549.1.9.16.1.4", "2.999.418.1", "0.4.0.2023.1.1", "2.16.840.1.101", "1.39"]
)
def test_object_identifiers(dotted: str) -> None:
    """Dotted to DER and back."""
    assert der.dotted_oid(der.Reader(der.object_identifier(dotted)).content(der.OBJECT_IDENTIFIER)) == dotted


@pytest.mark.parametrize("dotted", ["", "1", "3.1", "1.40", "1.x", "1.-2"])
def test_no_object_identifier(dotted: str) -> None:
    """What is none is refused."""
    with pytest.raises(ValueError, match=r".*"):
        der.object_identifier(dotted)


@pytest.mark.parametrize("content", ["", "80", "2a80", "2a8001", "2a86"])
def test_broken_object_identifiers(content: str) -> None:
    """Empty, cut off, or with needless octets: refused (X.690 §8.19.2)."""
    with pytest.raises(der.DERError):
        der.dotted_oid(bytes.fromhex(content))


@pytest.mark.parametrize(
    ("bit", "encoded"),
    [(0, "03020780"), (2, "03020520"), (5, "03020204"), (14, "0303010002"), (15, "0303000001"), (25, "03050600000040")],
)
def test_named_bits(bit: int, encoded: str) -> None:
    """The failInfo values, without trailing zero bits (X.690 §11.2.2)."""
    assert der.named_bit(bit).hex() == encoded


def test_generalized_time() -> None:
    """Zulu, whole seconds, whatever zone the instant is given in (RFC 5280 §4.1.2.5.2)."""
    instant = datetime(2026, 1, 2, 3, 4, 5, 999_999, tzinfo=timezone(timedelta(hours=7)))
    assert der.generalized_time(instant) == b"\x18\x0f20260101200405Z"
    assert der.generalized_time(instant.astimezone(UTC)) == b"\x18\x0f20260101200405Z"
