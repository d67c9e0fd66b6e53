"""A root, its sub-CAs and a plan in a folder, for the tests of ceremonies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from click.testing import CliRunner, Result
from cryptography import x509

from lakthan_cli.__main__ import main
from support.pki import Issued, issue, new_responder

DAY = timedelta(days=1)
YEARS = timedelta(days=7000)


def key_usage(*, digital_signature: bool, crl_sign: bool = True) -> tuple[x509.KeyUsage, bool]:
    """A CA's keyUsage, critical."""
    return (
        x509.KeyUsage(
            digital_signature=digital_signature,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=crl_sign,
            encipher_only=False,
            decipher_only=False,
        ),
        True,
    )


def new_root(name: str = "ລາວ National Root", *, kind: str = "P-384", digital_signature: bool = True) -> Issued:
    """A root that may sign answers itself, or may not."""
    usage = key_usage(digital_signature=digital_signature)
    return issue(name, kind=kind, ca=True, extensions=(usage,), valid=(-40 * DAY, YEARS))


@dataclass
class Room:
    """A folder with a root and two sub-CAs as PEM files, and what is run in it."""

    folder: Path
    root: Issued
    good: Issued
    revoked: Issued
    responder: Issued | None = None

    def plan(
        self,
        *,
        number: int = 1,
        answers: str = "",
        begin: datetime | None = None,
        days: float = 90,
        revoked: bool = True,
        extra: str = "",
        name: str = "plan.toml",
    ) -> Path:
        """Write a plan: one good sub-CA, one revoked an hour before it begins, which is an hour ago unless said."""
        begin = (begin or datetime.now(UTC) - timedelta(hours=1)).replace(microsecond=0)
        until = (begin + timedelta(days=days)).replace(microsecond=0)
        gone = f'reason = "cessationOfOperation"\nrevocation_time = {instant(begin - timedelta(hours=1))}'
        responder = '[responder]\ncertificate = "responder.pem"\nkey = "file:responder.key"' if self.responder else ""
        path = self.folder / name
        path.write_text(f"""
[ceremony]
title = "The sub-CAs of the National Root ຮາກ"
place = "Vientiane"
witnesses_required = 1
people = [{{ name = "Khamla", role = "ceremony administrator" }}]
witnesses = [{{ name = "Bounmy | <b>", role = "auditor" }}]

[root]
certificate = "root.pem"
key = "file:root.key"

{responder}

[answers]
from = {instant(begin)}
until = {instant(until)}
{answers}

[arl]
number = {number}

[[sub_ca]]
certificate = "good.pem"
status = "good"

[[sub_ca]]
certificate = "revoked.pem"
status = "{"revoked" if revoked else "good"}"
{gone if revoked else ""}
{extra}
""")
        return path

    def run(self, *arguments: str | Path) -> Result:
        """Run `lakthan ceremony` with these arguments."""
        return CliRunner().invoke(main, ["ceremony", *map(str, arguments)])

    def sign(self, plan: Path, out: str = "out") -> Path:
        """Hold the ceremony; gives its folder."""
        result = self.run("sign", plan, "--out", self.folder / out, "--yes")
        assert result.exit_code == 0, result.output
        return self.folder / out


def instant(value: datetime) -> str:
    """As TOML writes it."""
    return f"{value:%Y-%m-%dT%H:%M:%SZ}"


def new_room(folder: Path, *, kind: str = "P-384", delegated: bool = False) -> Room:
    """Make the PKI in `folder`. `delegated`: a responder signs, for a root whose key may not."""
    root = new_root(kind=kind, digital_signature=not delegated)
    usage = key_usage(digital_signature=False)
    made = [
        issue(name, root, ca=True, extensions=(usage,), valid=(-35 * DAY, 3000 * DAY)) for name in ("good", "revoked")
    ]
    responder = new_responder(root, valid=(-35 * DAY, 400 * DAY)) if delegated else None
    room = Room(folder, root, made[0], made[1], responder)
    for name, issued in files(room):
        issued.write(folder, name)
    return room


def files(room: Room) -> Sequence[tuple[str, Issued]]:
    """Every certificate with the name of its files."""
    named = [("root", room.root), ("good", room.good), ("revoked", room.revoked)]
    return [*named, ("responder", room.responder)] if room.responder else named
