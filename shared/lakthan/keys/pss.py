"""Which of RSA's two signatures a key makes: its URI says so, after the `?`, whatever its scheme.

    file:ocsp.pem?x-signature=pss

PKCS#1 v1.5, which every client reads, unless told otherwise; or RSASSA-PSS (RFC 8017 §8.1) with SHA-256.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from lakthan.config import KeyURI

_CHOICES = {"pkcs1v15": False, "pss": True}


def wants_pss(key: KeyURI) -> bool:
    """True when the key is to sign with RSASSA-PSS. Raises `ConfigError` for a word that it does not know."""
    for part in key.uri.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if name == "x-signature":
            if value not in _CHOICES:
                raise ConfigError(f"the key {key.uri.partition('?')[0]!r}: x-signature is {' or '.join(_CHOICES)}")
            return _CHOICES[value]
    return False
