"""Which URLs CRLs are fetched from, and what is said about the others."""

from __future__ import annotations

import pytest

from lakthan.errors import ConfigError
from lakthan_registry.crl_url import check_crl_url


@pytest.mark.parametrize("url", ["http://ca.gov.la/a.crl", "https://[::1]:8080/a.crl?delta=1"])
def test_http_and_https_urls_of_crls_are_taken(url: str) -> None:
    """As they are written."""
    assert check_crl_url(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ldap://ca.gov.la/cn=CA?certificateRevocationList", "not fetched by LDAP"),
        ("ldaps://ca.gov.la/cn=CA", "spool folder"),
        ("ftp://ca.gov.la/a.crl", "no URL of a CRL"),
        ("ca.gov.la/a.crl", "no URL of a CRL"),
        ("http://", "no URL of a CRL"),
        ("https://e@0q@^=[!", "no URL of a CRL"),
        ("http://ca.gov.la:99999/a.crl", "no URL of a CRL"),
        ("https://user:secret@ca.gov.la/a.crl", "no user name"),
    ],
)
def test_other_urls_are_refused_with_the_way_to_go(url: str, words: str) -> None:
    """A password in a URL does not come back in the message."""
    with pytest.raises(ConfigError, match=words) as caught:
        check_crl_url(url)
    assert "secret" not in str(caught.value)
