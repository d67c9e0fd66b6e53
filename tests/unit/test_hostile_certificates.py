"""Certificates that cryptography reads late, or with errors of its own: found by the fuzzer, refused in our words."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.config import KeyURI
from lakthan.errors import ConfigError
from lakthan.keys import key_list, pkcs11_uri
from lakthan.keys.remote_uri import RemoteURI
from lakthan.keys.software import key_file
from lakthan_registry.reading import Issuer, NotTheIssuer, check_issuer
from support.pki import issue, new_ca

CN = der.object_identifier("2.5.4.3")


def damaged(before: bytes, after: bytes) -> bytes:
    """A certificate with these octets exchanged, once."""
    encoded = issue("leaf").der
    assert before in encoded
    return encoded.replace(before, after)


def test_a_version_that_there_is_not() -> None:
    """It is no certificate, and a ValueError says so."""
    with pytest.raises(ValueError, match="version"):
        CertificateView.from_der(damaged(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x3b"))


def test_a_name_that_breaks_the_rules_of_names() -> None:
    """A stranger's certificate is named as far as that goes, and turned away like any other."""
    view = CertificateView.from_der(damaged(CN + b"\x0c\x04leaf", CN + b"\x03\x04\x00eaf"))
    assert (view.name, view.issuer_name) == ("a name that cannot be read", "a name that cannot be read")
    ca = Issuer(1, "ca", (CertificateView.from_der(new_ca("CA").der),))
    with pytest.raises(NotTheIssuer, match="cannot be read"):
        check_issuer(view, ca)


def test_a_key_list_that_is_nested_without_end(tmp_path: Path) -> None:
    """It is as wrong as any other, and the keys that work stay."""
    path = tmp_path / "keys.toml"
    path.write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match="not as it must be"):
        key_list.read(path)


@pytest.mark.parametrize(
    "uri",
    [
        "file:a%00b",
        "file:a?pin-source=b%00",
        "pkcs11:object=a?module-path=/a%00b",
        "pkcs11:object=a?module-path=a&pin-source=%00",
        "pkcs11:object=a?module-path=a&x-public-key=%00",
    ],
)
def test_a_nul_in_the_name_of_a_file(uri: str) -> None:
    """No file is called so, and whoever wrote it is told."""
    read = key_file if uri.startswith("file:") else pkcs11_uri.parse
    with pytest.raises(ConfigError, match="NUL"):
        read(KeyURI(uri, Path("/nowhere")))


def test_the_same_for_keys_behind_an_api() -> None:
    """A NUL in a file's name, and a number of thousands of digits."""
    with pytest.raises(ConfigError, match="NUL"):
        RemoteURI(KeyURI("vault:a?token-source=%00", Path("/nowhere")), ("token-source",)).file("token-source")
    with pytest.raises(ConfigError, match="number"):
        RemoteURI(KeyURI("vault:a?x-sessions=" + "9" * 5000, Path("/nowhere")), ())
