"""The OCSPRequest inside the target of a GET, in every spelling that clients in the field use (RFC 6960 §A.1).

The standard says base64, then percent-encoding. What arrives is also unescaped `+` and `/`, `+` turned into a space,
double slashes, percent-encoding twice over, the URL alphabet, missing padding, line breaks, and requests in the query.
All of these decode to the same octets here, and nothing else in the house may touch the target before.
"""

from __future__ import annotations

import binascii
from urllib.parse import unquote_to_bytes

# Below the 8190 octets at which aiohttp refuses a request line by itself.
LONGEST_TARGET = 8000  # OCSP-Q9
_TO_STANDARD_ALPHABET = bytes.maketrans(b" -_", b"++/")
_LINE_BREAKS = b"\r\n\t"


def decode(target: str) -> bytes | None:
    """The octets that a raw request target carries: an OCSPRequest, if anything.

    None when it carries nothing (`/`). Raises `ValueError` when it is not base64 in any spelling.

    OCSP-46, OCSP-Q1, OCSP-Q2, OCSP-Q3, OCSP-Q4, OCSP-Q5, OCSP-Q6, OCSP-Q7.
    """
    path, _, query = target.partition("?")
    text = path.lstrip("/") or query
    if not text:
        return None
    encoded = unquote_to_bytes(text)
    if b"%" in encoded:  # escaped twice, once by the client and once by something on the way
        encoded = unquote_to_bytes(encoded)
    encoded = encoded.translate(_TO_STANDARD_ALPHABET, _LINE_BREAKS).rstrip(b"=")
    encoded += b"=" * (-len(encoded) % 4)
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"the path is not base64: {error}") from error
