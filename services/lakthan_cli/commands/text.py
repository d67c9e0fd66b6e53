"""Statuses and instants in words, the same in every command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.store.records import CertStatus

if TYPE_CHECKING:
    from datetime import datetime

    from lakthan.store.records import StatusRecord


def moment(instant: datetime | None) -> str:
    """An instant in whole seconds, UTC, or nothing."""
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M:%S} UTC"


def in_words(record: StatusRecord, *, already: bool = False) -> str:
    """`good`, or what it is, since when and why."""
    prefix = "already " if already else ""
    if record.cert_status is CertStatus.GOOD:
        return f"{prefix}good"
    since = moment(record.revocation_time)
    if record.held:
        return f"{prefix}held since {since}"
    reason = f", {record.revocation_reason.label}" if record.revocation_reason is not None else ""
    return f"{prefix}revoked since {since}{reason}"
