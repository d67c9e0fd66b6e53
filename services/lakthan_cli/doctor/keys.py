"""What `lakthan check-config` opens, as findings; and the certificates behind it held against profiles and clock."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from lakthan_cli.commands.check_config import Findings, Opened
from lakthan_cli.commands.check_config import look as open_everything
from lakthan_cli.doctor.notes import Notes, Patient
from lakthan_registry.authority_check import Level, check_responder_certificate

if TYPE_CHECKING:
    from datetime import datetime

_SOON = timedelta(days=7)
_OF_KEYS = "`lakthan keys list` and `lakthan keys selftest` show the key by itself; docs/keys.md"


async def look(patient: Patient, notes: Notes) -> Findings:
    """Open keys, certificates and the rest as a start would: each key signs and verifies a random message."""
    found = await open_everything(patient.config)
    for what, problem in found.rows:
        subject = what.partition(": ")[2]
        if subject.startswith("database"):
            continue  # the area `database` says more
        is_key = subject.startswith(("responder of", "unit "))
        if problem:
            todo = _OF_KEYS if is_key else "correct it in the configuration: docs/configuration.md"
            notes.failure(what, "opens", problem, todo)
        else:
            notes.ok(what, "opens", "the key signs, and is the certificate's" if is_key else "as it must be")
    for each in found.opened:
        _certificate(each, patient.now, notes)
    return found


def _certificate(opened: Opened, now: datetime, notes: Notes) -> None:
    judged = []
    if opened.nocheck and opened.issuers:
        judged = check_responder_certificate(opened.view, opened.issuers, now, opened.nocheck)
    for finding in judged:
        note = notes.failure if finding.level is Level.ERROR else notes.warning
        note(opened.what, "certificate", f"{finding.certificate}: {finding.what}", finding.todo)
    end = min(opened.ends, opened.view.not_after)
    until = f"{opened.view.name}: until {end:%Y-%m-%d %H:%M} UTC"
    if end < now:
        notes.failure(opened.what, "certificate", f"{until}: it has ended", "have it renewed now: docs/keys.md")
    elif opened.view.not_before > now:
        said = f"it begins at {opened.view.not_before:%Y-%m-%d %H:%M} UTC"
        notes.failure(opened.what, "certificate", said, "look at the clocks of both machines")
    elif end - now < _SOON:
        notes.warning(opened.what, "certificate", until, "have it renewed this week: docs/keys.md")
    elif not judged:
        notes.ok(opened.what, "certificate", until)
