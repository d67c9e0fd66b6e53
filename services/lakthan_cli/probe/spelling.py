"""How clients spell one and the same OCSPRequest in a URL, and which request shows whether a spelling comes through.

RFC 6960 §A.1 says base64, then percent-encoding. Clients do all of these; a router, a proxy or a CDN in front of a
responder that tidies up paths (`//` to `/`, `%2F` to `/`, `+` to a space) breaks some of them and not others.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping
from urllib.parse import quote

from lakthan_cli.ocsp.message import CertID
from lakthan_cli.ocsp.request import NONCE_OCTETS, encode

# Three octets that are `////` in base64, and three that are `++++`, when they begin at a multiple of three.
_SLASHES, _PLUSES = b"\xff\xff\xff", b"\xfb\xef\xbe"


def _escaped(text: str) -> str:
    return quote(text, safe="")


def _lower(text: str) -> str:
    return text.replace("+", "%2b").replace("/", "%2f").replace("=", "%3d")


def _below(url: str, path: str) -> str:
    return f"{url.rstrip('/')}/{path}"


# Name → the URL to GET, made of the responder's URL and the request in base64.
SPELLINGS: Mapping[str, Callable[[str, str], str]] = {
    "escaped": lambda url, text: _below(url, _escaped(text)),
    "slashes as they are": _below,
    "lower-case escapes": lambda url, text: _below(url, _lower(text)),
    "double slash after the host": lambda url, text: _below(url, "/" + _escaped(text)),
    "without padding": lambda url, text: _below(url, _escaped(text.rstrip("="))),
    "URL alphabet": lambda url, text: _below(url, text.replace("+", "-").replace("/", "_").rstrip("=")),
    "escaped twice": lambda url, text: _below(url, _escaped(_escaped(text))),
}


def telling_request(asked: CertID) -> tuple[bytes, bytes]:
    """A request in whose base64 there are `+`, `//` and `=`, and its nonce, by which it got them.

    Six of the nonce's octets are always the same; the other 26, or 25, are random.
    """
    octets = NONCE_OCTETS
    if len(encode(asked, bytes(octets))) % 3 == 0:
        octets -= 1  # then there is padding; RFC 9654 §2.1 has responders accept 16 to 32
    begins = len(encode(asked, bytes(octets))) - octets  # the nonce is the last thing in a request
    at = -begins % 3
    random = secrets.token_bytes(octets)
    nonce = random[:at] + _SLASHES + _PLUSES + random[at + len(_SLASHES) + len(_PLUSES) :]
    return encode(asked, nonce), nonce


def in_base64(request: bytes) -> str:
    """As RFC 4648 §4 has it."""
    return base64.b64encode(request).decode()
