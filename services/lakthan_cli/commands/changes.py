"""`lakthan revoke`, `hold` and `unhold`: one change each, on record when the command returns.

Asking for the state that a certificate is in already is no error: the command says since when, and records nothing.
A change that the rules forbid (a revocation is final) is, and records nothing either.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from lakthan.store.changes import ChangeRefused, ChangeWriter
from lakthan.store.records import CertStatus, Change, ChangeRequest, CRLReason
from lakthan.store.status import StatusReader
from lakthan_cli.commands.certificate import certificate_options, find_subject
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, registry
from lakthan_cli.commands.text import in_words

if TYPE_CHECKING:
    from pathlib import Path

    from lakthan.store.records import StatusRecord

_REASONS = {
    reason.label.lower(): reason
    for reason in CRLReason
    if reason not in (CRLReason.CERTIFICATE_HOLD, CRLReason.REMOVE_FROM_CRL)
}


class Reason(click.ParamType[CRLReason]):
    """A CRLReason in the spelling of RFC 5280 §5.3.1, in upper or lower case."""

    name = "reason"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> CRLReason:
        """The reason; those that do not revoke for good are refused with the way to go."""
        if isinstance(value, CRLReason):
            return value
        reason = _REASONS.get(str(value).lower())
        if reason is None:
            hint = "; to suspend a certificate, use `lakthan hold`" if "hold" in str(value).lower() else ""
            labels = ", ".join(each.label for each in _REASONS.values())
            self.fail(f"{value!r} is no reason for a revocation: choose one of {labels}{hint}", param, ctx)
        return reason


@click.command()
@certificate_options
@click.option("--reason", type=Reason(), help="As in RFC 5280: keyCompromise, superseded, …  [default: none]")
@database_options
def revoke(
    *,
    certificate: Path | None,
    authority: str | None,
    serial: int | None,
    reason: CRLReason | None,
    directory: Path | None,
    url: str | None,
) -> None:
    """Revoke the certificate CERT, or the one of --authority and --serial. This is final.

    Repeating it is fine: it says since when the certificate is revoked. Another reason than the recorded one is
    refused.
    """
    _change(Change.REVOKE, (certificate, authority, serial), DatabaseOptions(directory, url), reason)


@click.command()
@certificate_options
@database_options
def hold(
    certificate: Path | None, authority: str | None, serial: int | None, directory: Path | None, url: str | None
) -> None:
    """Suspend the certificate CERT, or the one of --authority and --serial, until `lakthan unhold`."""
    _change(Change.HOLD, (certificate, authority, serial), DatabaseOptions(directory, url))


@click.command()
@certificate_options
@database_options
def unhold(
    certificate: Path | None, authority: str | None, serial: int | None, directory: Path | None, url: str | None
) -> None:
    """Make the suspended certificate CERT, or the one of --authority and --serial, good again."""
    _change(Change.UNHOLD, (certificate, authority, serial), DatabaseOptions(directory, url))


def _change(
    change: Change,
    which: tuple[Path | None, str | None, int | None],
    database: DatabaseOptions,
    reason: CRLReason | None = None,
) -> None:
    click.echo(asyncio.run(_record(change, which, database, reason)))


async def _record(
    change: Change,
    which: tuple[Path | None, str | None, int | None],
    database: DatabaseOptions,
    reason: CRLReason | None,
) -> str:
    async with registry(database) as pool:
        subject = await find_subject(pool, *which)
        # Its end goes with the revocation of a certificate that was never announced; the others have it on record.
        not_after = subject.not_after if change is Change.REVOKE else None
        request = ChangeRequest(
            subject.authority_id, subject.serial_number, change, revocation_reason=reason, not_after=not_after
        )
        reader = StatusReader(pool)
        try:
            [version] = await ChangeWriter(pool).record([request], actor())
        except ChangeRefused as error:
            record = await reader.find(subject.authority_id, subject.serial_number)
            if record is None or not _is_so_already(change, reason, record):
                # The database knows authorities by number, people know them by name.
                words = str(error).replace(f"authority {subject.authority_id} ", f"{subject.authority} ")
                raise ChangeRefused(f"{words}. Nothing was changed") from error
            return f"{subject} is {in_words(record, already=True)}; nothing was changed (version {record.version})"
        record = await reader.find(subject.authority_id, subject.serial_number)
        said = in_words(record) if record is not None and record.version == version else change.label
        return f"{subject} is now {said} (version {version})"


def _is_so_already(change: Change, reason: CRLReason | None, record: StatusRecord) -> bool:
    match change:
        case Change.REVOKE:
            for_good = record.cert_status is CertStatus.REVOKED and not record.held
            return for_good and reason in (None, record.revocation_reason)
        case Change.HOLD:
            return record.held
        case _:
            return record.cert_status is CertStatus.GOOD
