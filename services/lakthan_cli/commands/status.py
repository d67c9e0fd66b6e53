"""`lakthan status`: what is on record about a certificate, and how it came to be."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from lakthan.store.changes import ChangeWriter
from lakthan.store.status import StatusReader
from lakthan_cli.commands.certificate import Subject, certificate_options, find_subject, hexadecimal
from lakthan_cli.commands.database import DatabaseOptions, database_options, registry
from lakthan_cli.commands.text import in_words, moment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from lakthan.store.records import CRLReason, StatusChange, StatusRecord


@click.command()
@certificate_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; instants in ISO 8601.")
@database_options
def status(
    *,
    certificate: Path | None,
    authority: str | None,
    serial: int | None,
    as_json: bool,
    directory: Path | None,
    url: str | None,
) -> None:
    """Show the status on record of the certificate CERT, or of the one of --authority and --serial.

    A certificate that is not on record is "unknown", as an OCSP client is told.
    """

    async def look_up() -> tuple[Subject, StatusRecord | None, list[StatusChange]]:
        async with registry(DatabaseOptions(directory, url)) as pool:
            subject = await find_subject(pool, certificate, authority, serial)
            record = await StatusReader(pool).find(subject.authority_id, subject.serial_number)
            history = await ChangeWriter(pool).history(subject.authority_id, subject.serial_number)
            return subject, record, history

    found = asyncio.run(look_up())
    click.echo(_as_json(*found) if as_json else _as_text(*found))


def _as_text(subject: Subject, record: StatusRecord | None, history: Sequence[StatusChange]) -> str:
    lines = [
        f"authority      {subject.authority}",
        f"serial number  {hexadecimal(subject.serial_number)}",
        f"status         {'unknown: not on record' if record is None else in_words(record)}",
    ]
    if record is not None and record.invalidity_date is not None:
        lines.append(f"invalid since  {moment(record.invalidity_date)}")
    not_after = subject.not_after if record is None else record.not_after
    if not_after is not None:
        lines.append(f"not after      {moment(not_after)}")
    if history:
        rows = [("version", "recorded at", "change", "revocation time", "reason", "by")]
        rows += [
            (
                str(change.version),
                moment(change.recorded_at),
                change.request.change.label,
                moment(change.request.revocation_time),
                _label(change.request.revocation_reason) or "",
                change.actor,
            )
            for change in history
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines.append("")
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    return "\n".join(lines)


def _as_json(subject: Subject, record: StatusRecord | None, history: Sequence[StatusChange]) -> str:
    document = {
        "authority": subject.authority,
        "serial_number": hexadecimal(subject.serial_number),
        "cert_status": "unknown" if record is None else record.cert_status.label,
        "revocation_time": _iso(record.revocation_time if record else None),
        "revocation_reason": _label(record.revocation_reason if record else None),
        "invalidity_date": _iso(record.invalidity_date if record else None),
        "not_after": _iso(record.not_after if record else subject.not_after),
        "version": record and record.version,
        "history": [
            {
                "version": change.version,
                "recorded_at": _iso(change.recorded_at),
                "change": change.request.change.label,
                "revocation_time": _iso(change.request.revocation_time),
                "revocation_reason": _label(change.request.revocation_reason),
                "invalidity_date": _iso(change.request.invalidity_date),
                "not_after": _iso(change.request.not_after),
                "actor": change.actor,
            }
            for change in history
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _iso(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()


def _label(reason: CRLReason | None) -> str | None:
    return None if reason is None else reason.label
