"""How time-stamps are kept: .tsr (the response), .tst (the token alone) and .tsd (the document and its token).

Promises: a file appears whole or not at all, and one that is there is not replaced unless somebody said so: a token
that is lost cannot be had again.

Lives by: RFC 3161 §3.1 (.tsr), ETSI EN 319 422 annex C (.tst), RFC 5544 §2 (.tsd).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from lakthan import der
from lakthan.errors import ConfigError
from lakthan_cli.tsa import schema
from lakthan_cli.tsa.imprint import BY_OID
from lakthan_cli.tsa.message import Message, TimeStampedData, TimeStampReq, TimeStampResp, TimeStampToken

RESPONSE, TOKEN, EMBEDDED = ".tsr", ".tst", ".tsd"
_GRANTED = der.sequence(der.integer(0))
_NOT_HASHED = b"\x01\x01\x00"
_VERSION_1 = der.integer(1)
_PIECE_OCTETS = 1024 * 1024


def token_in(message: Message) -> TimeStampToken | None:
    """The token in whatever it is, None when there is none."""
    if isinstance(message, TimeStampToken):
        return message
    return None if isinstance(message, TimeStampReq) else message.token


def converted(message: Message, suffix: str) -> bytes:
    """The message as a file with this suffix. Raises `ConfigError` when it cannot be one."""
    token = token_in(message)
    if token is None:
        words = f"a refusal ({message.words})" if isinstance(message, TimeStampResp) else "a request"
        raise ConfigError(f"there is no token in it to convert: it is {words}")
    if suffix == TOKEN:
        return token.encoded
    if suffix == RESPONSE:
        # A response that is one already keeps its own words.
        return message.encoded if isinstance(message, TimeStampResp) else der.sequence(_GRANTED, token.encoded)
    if suffix == EMBEDDED and isinstance(message, TimeStampedData):
        return message.encoded
    raise ConfigError(
        f"only {RESPONSE} (response) and {TOKEN} (token) can be made of it, not {suffix or 'a file without suffix'}"
    )


def write(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file, whole or not at all. Raises `ConfigError`, also when it is there and not to be replaced."""
    _write(path, lambda file: file.write(content), replace=replace)


def embed(path: Path, document: Path, token: TimeStampToken, *, replace: bool) -> None:
    """Write document and token as TimeStampedData (RFC 5544 §2). The document is copied piece by piece.

    The name goes in as metadata that the token does not protect (`hashProtected` FALSE), so that the token is one over
    the document's octets alone and stays good when it is taken out. Raises `ConfigError`, also when the document is
    not any more what was stamped.
    """
    octets = document.stat().st_size
    meta = der.sequence(_NOT_HASHED, der.encode(der.UTF8_STRING, document.name.encode("utf-8", "replace")))
    evidence = der.encode(0xA0, der.sequence(token.encoded))
    content_head = der.head(der.OCTET_STRING, octets)
    inside = len(_VERSION_1) + len(meta) + len(content_head) + octets + len(evidence)
    data_head = der.head(der.SEQUENCE, inside)
    explicit_head = der.head(0xA0, len(data_head) + inside)
    outer = len(schema.ID_CT_TIMESTAMPED_DATA) + len(explicit_head) + len(data_head) + inside

    imprint = token.tst_info.message_imprint
    hashed = hashlib.new(BY_OID[imprint.hash_algorithm].hashlib_name, usedforsecurity=False)

    def fill(file: IO[bytes]) -> None:
        start = (der.head(der.SEQUENCE, outer), schema.ID_CT_TIMESTAMPED_DATA, explicit_head, data_head, _VERSION_1)
        file.write(b"".join((*start, meta, content_head)))
        with document.open("rb") as source:
            while piece := source.read(_PIECE_OCTETS):
                hashed.update(piece)
                file.write(piece)
        if hashed.digest() != imprint.hashed_message:
            raise ConfigError(f"{document} changed while it was stamped: nothing was kept, ask again")
        file.write(evidence)

    _write(path, fill, replace=replace)


def refuse_to_replace(path: Path) -> None:
    """Raises `ConfigError` when the file is there."""
    if path.exists():
        raise ConfigError(f"{path} is there already, and was left as it is; --force replaces it")


def _write(path: Path, fill: Callable[[IO[bytes]], object], *, replace: bool) -> None:
    if not replace:
        refuse_to_replace(path)
    try:
        descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                fill(file)
                os.fchmod(file.fileno(), 0o644)
                file.flush()
                os.fsync(file.fileno())
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
