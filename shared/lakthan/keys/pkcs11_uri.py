"""`pkcs11:` URIs (RFC 7512): which key of which token, and how it is reached.

    pkcs11:token=prod;object=ocsp?module-path=/usr/lib/vendor/libhsm.so&pin-source=/run/secrets/pin

Of the path attributes `token`, `serial`, `model`, `manufacturer` and `slot-id` choose the token, `object` and `id` the
key. `module-path` is demanded, because which library runs inside the process is the operator's explicit choice. A PIN
in the URI itself (`pin-value`) is refused: configurations are copied about, secrets must not be. Our own attributes, as
RFC 7512 §2.3 allows: how the device is used (`x-sessions`, `x-waiting`, `x-deadline`), which signature an RSA key makes
(`x-signature`), and for devices and algorithms that this program does not know yet the number of the mechanism
(`x-mechanism`), what it wants to be given (`x-input`) and a file with the public key (`x-public-key`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote_to_bytes

from lakthan.config import KeyURI
from lakthan.errors import ConfigError
from lakthan.keys.pss import wants_pss

_TOKEN = ("token", "serial", "model", "manufacturer", "slot-id")
_PATH = (*_TOKEN, "object", "id", "type")
_QUERY = (
    *("module-path", "pin-source", "x-sessions", "x-waiting", "x-deadline", "x-signature"),
    *("x-mechanism", "x-input", "x-public-key"),
)
_SESSIONS = 4
# OCSP clients commonly give up after 10 or 15 seconds.
_DEADLINE_SECONDS = 10
# A device of 200 signatures a second works this off in a third of a second; who comes later is told so at once.
_WAITING = 64

# The message itself, its digest, or its DigestInfo (RFC 8017 §9.2).
Given = Literal["message", "digest", "digest-info"]
GIVEN: tuple[Given, ...] = get_args(Given)


@dataclass(frozen=True, slots=True)
class PKCS11URI:
    """A parsed URI. `name`: all before the `?`; `token`: what the token must say of itself, by RFC 7512's attribute
    names; `pss`: an RSA key signs with RSASSA-PSS; `given`: what the mechanism wants, where the kind of key does not
    say it.
    """

    name: str
    module_path: Path
    token: dict[str, str]
    label: str | None
    identifier: bytes | None
    pin_source: Path | None
    sessions: int
    waiting: int
    deadline_seconds: int
    pss: bool
    mechanism: int  # -1: the usual one
    given: Given | None
    public_key: Path | None

    def __str__(self) -> str:
        which = self.label if self.label is not None else (self.identifier or b"").hex()
        return f"PKCS#11 key {which!r} of token {self.token.get('token', '?')!r}"


def parse(key: KeyURI) -> PKCS11URI:
    """Read the URI of a key. Raises `ConfigError` that says what to write instead."""
    path, _, query = key.uri.removeprefix("pkcs11:").partition("?")
    here = _attributes(key, path, ";", _PATH)
    there = _attributes(key, query, "&", _QUERY)
    if "module-path" not in there:
        raise ConfigError(f"the key {key.uri!r} names no library: add ?module-path=/path/of/the/vendor's.so")
    if "object" not in here and "id" not in here:
        raise ConfigError(f"the key {key.uri!r} names no key of the token: add object=LABEL or id=%01")
    if _text(here.get("type", b"private")) != "private":
        raise ConfigError(f"the key {key.uri!r} has a type other than private: leave it out")
    pin_source = there.get("pin-source")
    return PKCS11URI(
        name=key.uri.partition("?")[0],
        module_path=_file(key, there["module-path"]),
        token={name: _text(here[name]) for name in _TOKEN if name in here},
        label=_text(here["object"]) if "object" in here else None,
        identifier=here.get("id"),
        pin_source=None if pin_source is None else _file(key, pin_source.removeprefix(b"file:")),
        sessions=_number(key, there, "x-sessions", range(1, 65), _SESSIONS),
        waiting=_number(key, there, "x-waiting", range(65537), _WAITING),
        deadline_seconds=_number(key, there, "x-deadline", range(1, 61), _DEADLINE_SECONDS),
        pss=wants_pss(key),
        mechanism=_number(key, there, "x-mechanism", range(2**32), -1),
        given=_given(key, there),
        public_key=_file(key, there["x-public-key"]) if "x-public-key" in there else None,
    )


def _given(key: KeyURI, attributes: dict[str, bytes]) -> Given | None:
    if "x-input" not in attributes:
        return None
    word = _text(attributes["x-input"])
    for known in GIVEN:
        if word == known:
            return known
    raise ConfigError(f"the key {key.uri!r}: x-input is one of {', '.join(GIVEN)}")


def _attributes(key: KeyURI, text: str, separator: str, known: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise ConfigError("a key URI must not hold the PIN itself: put it into a file and write pin-source=FILE")
        if name not in known or not equals:
            raise ConfigError(f"the key {key.uri!r} has an unknown attribute {name!r}: known are {', '.join(known)}")
        if name in found:
            raise ConfigError(f"the key {key.uri!r} says {name} twice")
        found[name] = unquote_to_bytes(value)
    return found


def _file(key: KeyURI, value: bytes) -> Path:
    if b"\0" in value:
        raise ConfigError(f"the key {key.uri!r} has a NUL in the name of a file: no file is called so")
    return key.folder / _text(value)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _number(key: KeyURI, attributes: dict[str, bytes], name: str, allowed: range, default: int) -> int:
    if name not in attributes:
        return default
    try:
        value = int(attributes[name], 0)
    except ValueError:
        value = -1
    if value not in allowed:
        raise ConfigError(f"the key {key.uri!r}: {name} is a number from {allowed.start} to {allowed.stop - 1}")
    return value
