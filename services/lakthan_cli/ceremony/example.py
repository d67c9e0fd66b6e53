"""The plan that `lakthan ceremony plan` writes: everything filled in that can be known, and a word about the rest."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

from lakthan.algorithms import HashAlgorithm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    from lakthan.certificates import CertificateView

_WEEKS = 26


def example(root: tuple[Path, CertificateView], sub_cas: Mapping[Path, CertificateView], now: datetime) -> str:
    """The text of a plan for this root and these certificates of it. `now`: the answers begin at the next midnight."""
    path, view = root
    begin = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    until = min(begin + timedelta(weeks=_WEEKS), view.not_after)
    return _TEXT.format(
        title=_text(f"{view.name}: status of its sub-CAs"),
        root=_text(str(path)),
        root_sha256=HashAlgorithm.SHA_256.digest(view.encoded).hex(),
        root_name=view.name,
        begin=_instant(begin),
        until=_instant(until),
        sub_cas="".join(_sub_ca(*each) for each in sub_cas.items()),
    )


def _sub_ca(path: Path, view: CertificateView) -> str:
    return f"""
# {view.name}
# serial number {view.certificate.serial_number:x}, until {view.not_after:%Y-%m-%d}
[[sub_ca]]
certificate = {_text(str(path))}
status = "good"
"""


def _instant(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


_TEXT = """\
# The plan of a ceremony. `lakthan ceremony sign PLAN --dry-run` shows what it comes to; no key is opened for that.
# Paths start at this file's folder. Instants are UTC: 2026-12-01T00:00:00Z.

[ceremony]
title = {title}
place = ""
# So many of the witnesses below must sign the protocol.
witnesses_required = 2

# Who does something, and as what.
[[ceremony.people]]
name = "…"
role = "ceremony administrator"

[[ceremony.people]]
name = "…"
role = "key holder 1"

[[ceremony.witnesses]]
name = "…"
role = "internal auditor"

[[ceremony.witnesses]]
name = "…"
role = "witness from outside"

# {root_name}
# SHA-256 {root_sha256}
[root]
certificate = {root}
key = "file:root.key"

# Who signs the answers instead of the root: a responder certificate that the root itself issued (id-kp-OCSPSigning).
# Needed when the root's keyUsage has no digitalSignature. The ARL is always signed by the root.
# [responder]
# certificate = "root-responder.pem"
# key = "file:root-responder.key"

[answers]
from = {begin}
until = {until}
# Without a period: one answer for the whole time, which nobody can take back before its end. With one: consecutive
# answers; once a sub-CA is revoked, an older answer that somebody kept is believed until its own period ends.
period = "P14D"
overlap = "P2D"
hashes = ["SHA-1", "SHA-256"]

[arl]
# Greater than that of every ARL or CRL that this root signed before.
number = 1
# next_update = {until}

# One for every certificate that the root issued and that is still asked about. For a revoked one:
#   status = "revoked"
#   reason = "cessationOfOperation"        # keyCompromise, cACompromise, superseded, …
#   revocation_time = 2026-11-20T09:30:00Z # not later than `from`
# Without its file: serial_number = "3FA2" (hexadecimal, or decimal:16290) and name = "…".
{sub_cas}"""
