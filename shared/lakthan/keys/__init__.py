"""Signing keys: one small protocol, and one URI that names where a key lives.

    file:/run/secrets/ocsp.pem                       a PEM private key, PKCS#8 or traditional
    file:ocsp.pem?pin-source=/run/secrets/phrase     the same, encrypted; the pass phrase is read from that file
    pkcs11:token=prod;object=ocsp?module-path=/usr/lib/hsm.so&pin-source=/run/secrets/pin
                                                     a key in an HSM (RFC 7512; `pkcs11_uri`)

Cloud keys will be further schemes behind the same protocol; nothing outside this package knows where a key lives.
"""

from __future__ import annotations

from lakthan.keys.signer import Signer, open_signer, prove

__all__ = ["Signer", "open_signer", "prove"]
