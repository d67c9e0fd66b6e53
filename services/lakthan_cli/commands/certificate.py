"""Which certificate a command is about: a file, or an authority and a serial number.

Promises: a file is believed only when the key of an authority on record verifies its signature. Otherwise nothing
happens: revoking a serial number at the wrong authority would hit somebody else's certificate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakthan import der
from lakthan.certificates import CertificateView, read_certificates
from lakthan.errors import ConfigError
from lakthan.store.status import AuthorityReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import asyncpg

    from lakthan.store.records import AuthorityRecord


@dataclass(frozen=True, slots=True)
class Subject:
    """A certificate as the store knows it. `not_after` is None when only the serial number was given."""

    authority_id: int
    authority: str
    serial_number: bytes
    not_after: datetime | None

    def __str__(self) -> str:
        """For people: authority and serial number in hexadecimal."""
        return f"serial number {hexadecimal(self.serial_number)} of {self.authority}"


class SerialNumber(click.ParamType[int]):
    """A serial number: hexadecimal as tools print it, or `decimal:` and decimal digits."""

    name = "serial"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number. Plain digits are hexadecimal, as they are everywhere else in PKI."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        decimal = re.fullmatch(r"decimal:(-?[0-9]+)", text, re.IGNORECASE)
        if decimal:
            return int(decimal[1])
        digits = re.fullmatch(r"(-?)(?:0x)?([0-9a-f]+(?:[: ]?[0-9a-f]+)*)", text, re.IGNORECASE)
        if not digits:
            self.fail(
                f"{text!r} is not a serial number: write it in hexadecimal (3FA2, 0x3fa2, 3f:a2), "
                "or in decimal as decimal:16290",
                param,
                ctx,
            )
        return int(digits[1] + re.sub("[: ]", "", digits[2]), 16)


def certificate_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add CERT, `--authority` and `--serial` to a command; they arrive as `certificate`, `authority`, `serial`."""
    for option in (
        click.option(
            "--serial",
            type=SerialNumber(),
            help="The serial number in hexadecimal (3FA2, 0x3fa2, 3f:a2), or decimal:NUMBER.",
        ),
        click.option("--authority", metavar="NAME", help="The name of the authority that issued it."),
        click.argument(
            "certificate",
            metavar="[CERT]",
            required=False,
            type=click.Path(dir_okay=False, path_type=Path),
        ),
    ):
        function = option(function)
    return function


async def find_subject(
    pool: asyncpg.Pool, certificate: Path | None, authority: str | None, serial: int | None
) -> Subject:
    """The certificate that the user means. Raises `ConfigError` when no authority issued it, and
    `click.UsageError` when it is not said, or said twice.
    """
    if certificate is not None:
        if authority is not None or serial is not None:
            raise click.UsageError("give a certificate file, or --authority and --serial, but not both")
        view = read_certificates(certificate)[0]
        issuer = _issuer_of(view, certificate, await AuthorityReader(pool).load())
        serial_number = der.integer_content(view.certificate.serial_number)
        return Subject(issuer.id, issuer.name, serial_number, view.not_after)
    if authority is None or serial is None:
        raise click.UsageError("give a certificate file, or both --authority and --serial")
    known = {record.name: record for record in await AuthorityReader(pool).load()}
    if authority not in known:
        names = ", ".join(known) or "none at all"
        raise ConfigError(f"there is no authority {authority!r} on record: there are {names}")
    return Subject(known[authority].id, authority, der.integer_content(serial), None)


def hexadecimal(serial_number: bytes) -> str:
    """A serial number as tools print it: the hexadecimal digits of its value."""
    value = int.from_bytes(serial_number, "big", signed=True)
    digits = f"{abs(value):x}"
    return ("-" if value < 0 else "") + digits.zfill(len(digits) + len(digits) % 2)


def _issuer_of(view: CertificateView, path: Path, authorities: Sequence[AuthorityRecord]) -> AuthorityRecord:
    for record in authorities:
        if any(view.issued_by(CertificateView.from_der(encoded)) for encoded in record.certificates):
            return record
    names = ", ".join(record.name for record in authorities) or "none at all"
    raise ConfigError(
        f"no authority on record signed {path} (there are {names}); its issuer is "
        f"{view.issuer_name}. Nothing was changed"
    )
