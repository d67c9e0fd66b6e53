"""From where CRLs are fetched: the rule for a URL, the same when it is configured and when a server redirects to it."""

from __future__ import annotations

import urllib.parse

from lakthan.errors import ConfigError


def check_crl_url(url: str) -> str:
    """The URL of a CRL that can be fetched, as it stands. Raises `ConfigError` that says what to write instead."""
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  # raises as well
    except ValueError as error:
        raise ConfigError(f"{url!r} is no URL of a CRL ({error}): write http://HOST/FILE.crl") from error
    if parts.scheme in ("ldap", "ldaps"):
        raise ConfigError(
            f"{url}: CRLs are not fetched by LDAP. Give the http URL where the CA publishes the same list, or put the "
            "list into the spool folder"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is no URL of a CRL: write http://HOST/FILE.crl or https://HOST/FILE.crl")
    if parts.username is not None or parts.fragment:
        raise ConfigError(f"{parts.hostname}: a CRL's URL has no user name, password or fragment")
    return url
