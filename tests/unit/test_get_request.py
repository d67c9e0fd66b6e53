"""The spellings of an OCSP GET: all of them give the same octets."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from lakthan_ocsp import get_request

# Octets whose base64 has every character that gets mangled on the way: '+', '//', and padding.
OCTETS = bytes.fromhex("300800fbefbeffffffff")
TEXT = base64.b64encode(OCTETS).decode()
assert "+" in TEXT
assert "//" in TEXT
assert TEXT.endswith("=")


@pytest.mark.parametrize(
    ("target", "who"),
    [
        ("/" + quote(TEXT, safe=""), "the standard's way"),
        ("/" + TEXT, "nothing escaped"),
        ("/" + TEXT.replace("+", "%2b").replace("/", "%2f").replace("=", "%3d"), "escapes in lower case"),
        ("/" + quote(quote(TEXT, safe=""), safe=""), "escaped twice"),
        ("//" + TEXT, "an AIA URL that ends in a slash"),
        ("///" + quote(TEXT, safe=""), "two of them"),
        ("/" + TEXT.replace("+", " "), "a form decoder on the way turned + into a space"),
        ("/" + TEXT.replace("+", "%20"), "the same, escaped again"),
        ("/" + TEXT.replace("+", "-").replace("/", "_"), "the URL alphabet"),
        ("/" + TEXT.rstrip("="), "no padding"),
        ("/" + TEXT[:8] + "%0A" + TEXT[8:], "wrapped lines"),
        ("/" + TEXT[:8] + "%0D%0A" + TEXT[8:], "wrapped lines, the other way"),
        ("/?" + quote(TEXT, safe=""), "in the query"),
    ],
)
def test_every_spelling(target: str, who: str) -> None:
    """A request survives every encoding that clients and proxies are known to produce.

    OCSP-46, OCSP-Q1, OCSP-Q2, OCSP-Q3, OCSP-Q4, OCSP-Q5, OCSP-Q6, OCSP-Q7.
    """
    assert get_request.decode(target) == OCTETS, who


@pytest.mark.parametrize("target", ["/", "//", "", "/?"])
def test_nothing(target: str) -> None:
    """A target that carries nothing is no request."""
    assert get_request.decode(target) is None


@pytest.mark.parametrize("target", ["/M", "/index.html", "/MEU=MEU=", "/MFEw%", "/MFEw%zz", "/ໂອ"])
def test_not_base64(target: str) -> None:
    """What is not base64 in any spelling is an error, never a guess."""
    with pytest.raises(ValueError, match=r".*"):
        get_request.decode(target)
