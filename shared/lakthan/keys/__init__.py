"""Signing keys: one small protocol, and one URI that names where a key lives.

    file:/run/secrets/ocsp.pem                       a PEM private key, PKCS#8 or traditional
    file:ocsp.pem?pin-source=/run/secrets/phrase     the same, encrypted; the pass phrase is read from that file
    pkcs11:token=prod;object=ocsp?module-path=/usr/lib/hsm.so&pin-source=/run/secrets/pin
                                                     a key in an HSM (RFC 7512; `pkcs11_uri`)
    vault:transit/ocsp?address=https://vault.example:8200&token-file=/run/secrets/vault-token
                                                     a key in HashiCorp Vault or OpenBao (`vault`)
    awskms:alias/ocsp?region=ap-southeast-1&credentials-file=/run/secrets/aws
                                                     a key in AWS KMS (`awskms`)

With `x-signature=pss` after the `?` an RSA key signs with RSASSA-PSS, wherever it is.

Nothing outside this package knows where a key lives.
"""

from __future__ import annotations

from lakthan.keys.late import LateSigner
from lakthan.keys.signer import Signer, open_signer, prove, sign_at_once, sign_later

__all__ = ["LateSigner", "Signer", "open_signer", "prove", "sign_at_once", "sign_later"]
