"""`lakthan ceremony`: what an offline CA signs, from the plan on paper to the answers that a responder serves.

`plan`, `sign` and `verify` need no database and no network. `import` believes signatures and nothing else.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakthan.certificates import read_certificates
from lakthan.errors import ConfigError
from lakthan_cli import progress
from lakthan_cli.ceremony import bundle
from lakthan_cli.ceremony.acceptance import Acceptance, accept
from lakthan_cli.ceremony.act import perform
from lakthan_cli.ceremony.example import example
from lakthan_cli.ceremony.plan import load
from lakthan_cli.ceremony.programme import LONGEST, programme, status_of
from lakthan_cli.ceremony.protocol import aloud, groups
from lakthan_cli.ceremony.verification import fingerprint
from lakthan_cli.commands.certificate import hexadecimal
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, registry
from lakthan_cli.commands.text import moment
from lakthan_cli.ocsp.certificate import read_certificates as read_client_certificates

if TYPE_CHECKING:
    from lakthan_cli.ceremony.bundle import Bundle, Contents
    from lakthan_cli.ceremony.programme import Programme

_FILE = click.Path(dir_okay=False, path_type=Path)
_ORDER = """\b
In this order:
  offline  lakthan ceremony plan root.pem sub-ca.pem … > plan.toml
           lakthan ceremony sign plan.toml --out FOLDER
  online   lakthan ceremony import FOLDER
"""
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(epilog=_ORDER)
def ceremony() -> None:
    """Sign the status of sub-CAs with a root key that is never online, and bring it to the responders."""


@ceremony.command()
@click.argument("root", type=_FILE)
@click.argument("sub_cas", metavar="[SUB_CA]...", nargs=-1, type=_FILE)
def plan(root: Path, sub_cas: tuple[Path, ...]) -> None:
    """Print an example plan for the certificate ROOT and the certificates SUB_CA that it issued (PEM)."""
    root_view = read_certificates(root)[0]
    views = {path: read_certificates(path)[0] for path in sub_cas}
    for path, view in views.items():
        if not view.issued_by(root_view):
            raise ConfigError(f"{path}: {view.name} was not issued by {root_view.name}: its signature does not verify")
    click.echo(example((root, root_view), views, datetime.now(UTC)), nl=False)


@ceremony.command()
@click.argument("plan", type=_FILE)
@click.option("--out", type=_FOLDER, help="The folder to make; it must not be there.")
@click.option("--dry-run", is_flag=True, help="Show what would be signed; no key is opened.")
@click.option("--yes", is_flag=True, help="Do not ask before the key is opened.")
def sign(plan: Path, out: Path | None, *, dry_run: bool, yes: bool) -> None:
    """Sign the answers and the ARL of a PLAN, and leave them in a folder with a manifest and a protocol to print.

    Everything that is signed is verified by other code before it is written. If anything is wrong, nothing is.
    """
    agreed = load(plan)
    planned = programme(agreed, datetime.now(UTC))
    _show_programme(planned)
    if dry_run:
        click.echo("nothing was signed: this was a dry run")
        return
    if out is None:
        raise click.UsageError("say where the result goes: --out FOLDER")
    if out.exists():
        raise ConfigError(f"{out} is there already: name a new folder, so that no two ceremonies mix")
    if not yes:
        click.confirm("Are the clock and everything above right? Open the key and sign", abort=True)
        planned = programme(agreed, datetime.now(UTC))  # people take their time
    with progress.counted("signing", len(planned.answers) + 1) as bar:
        made = asyncio.run(perform(planned, out, advance=bar.advance))
    _show_fingerprint(made)
    click.echo(f"{len(made.files)} files in {out}; print {out / 'protocol.html'} (or .md) and have it signed")


@ceremony.command()
@click.argument("folder", type=_FOLDER)
@click.option("--root", type=_FILE, required=True, help="The root's certificate, from where you trust it.")
def verify(folder: Path, root: Path) -> None:
    """Verify what a ceremony left in FOLDER against the root's certificate. Needs no database."""
    found = bundle.read(folder)
    with progress.counted("verifying", len(found.files)) as bar:
        contents = bundle.verify(found, read_client_certificates(root), bar.advance)
    _show_contents(contents)
    _show_fingerprint(found)
    click.echo(f"every signature in {folder} verifies, and the answers and the ARL agree")


@ceremony.command("import")
@click.argument("folder", type=_FOLDER)
@click.option("--dry-run", is_flag=True, help="Verify and compare with the database; change nothing.")
@click.option("--force", is_flag=True, help="Also when the ARL lists much less than the one before.")
@database_options
def import_(folder: Path, *, dry_run: bool, force: bool, directory: Path | None, url: str | None) -> None:
    """Publish the answers of the ceremony in FOLDER, and take over its ARL.

    The bundle is believed by its signatures under an authority on record, and refused whole if anything is wrong.
    """

    async def take() -> Acceptance:
        # How much there is to verify is not known before the bundle has been read.
        with progress.counted("verifying", None) as bar:
            async with registry(DatabaseOptions(directory, url)) as pool:
                return await accept(
                    pool,
                    folder,
                    now=datetime.now(UTC),
                    actor=actor(),
                    dry_run=dry_run,
                    force=force,
                    advance=bar.advance,
                )

    done = asyncio.run(take())
    _show_contents(done.contents)
    _show_fingerprint(done.bundle)
    would = "would be " if done.published is None else ""
    arl = done.arl
    click.echo(f"ARL of {done.authority}: " + ("nothing new" if arl.nothing_new else f"{arl.revoked} {would}revoked"))
    for difference in done.differences:
        click.echo(f"note: {difference}")
    if done.issued:
        click.echo(f"{done.issued} certificates {would}on record as good, which were not known")
    if done.ended:
        click.echo(f"{done.ended} answers have ended and are left out")
    valid = len(done.contents.answers) - done.ended
    if done.published is None:
        click.echo(f"{valid} answers would be published; nothing was changed: this was a dry run")
    else:
        click.echo(f"{done.published} answers published, {valid - done.published} were there already")


def _show_programme(planned: Programme) -> None:
    plan = planned.plan
    table = _table("certificate", "serial number", "status", "answers", "from", "until", title=plan.ceremony.title)
    for sub_ca in plan.sub_cas:
        answers = planned.of(sub_ca)
        status = status_of(sub_ca).label
        if sub_ca.revocation_reason is not None:
            status += f" {moment(sub_ca.revocation_time)}, {sub_ca.revocation_reason.label}"
        table.add_row(
            escape(sub_ca.name),
            hexadecimal(sub_ca.serial_number),
            status,
            str(len(answers)),
            moment(min((answer.period.this_update for answer in answers), default=None)),
            moment(max((answer.period.next_update for answer in answers), default=None)),
        )
    Console().print(table)
    spans = [answer.period.next_update - answer.period.this_update for answer in planned.answers]
    signer = plan.signer_view
    for what, value in (
        ("plan", f"{plan.path}, SHA-256 {groups(fingerprint(plan.text))}"),
        ("root", f"{plan.root_view.name}, SHA-256 {groups(fingerprint(plan.root_view.encoded))}"),
        ("answers", f"{len(planned.answers)}, signed by {signer.name}, with {', '.join(h.label for h in plan.hashes)}"),
        (
            "limits",
            f"longest {max(spans).days} days, {LONGEST.days} allowed; its certificate ends {moment(signer.not_after)}",
        ),
        ("ARL", f"number {plan.arl.number}, until {moment(planned.arl_next_update)}"),
        ("clock", f"this machine says {moment(planned.now)}"),
    ):
        click.echo(f"{what.ljust(8)} {value}")


def _table(*headings: str, title: str | None = None) -> Table:
    """Nothing in it is cut off, however narrow the screen: people compare digits."""
    table = Table(title=title and escape(title), title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _show_contents(contents: Contents) -> None:
    table = _table("serial number", "status", "answers", "from", "until", "signed by")
    for serial_number in sorted({answer.serial_number for answer in contents.answers}):
        about = [answer for answer in contents.answers if answer.serial_number == serial_number]
        status = " and ".join(sorted({answer.cert_status.label for answer in about}))
        table.add_row(
            hexadecimal(serial_number),
            status,
            str(len(about)),
            moment(min(answer.this_update for answer in about)),
            moment(max(answer.next_update for answer in about)),
            escape(", ".join(sorted({answer.signer for answer in about}))),
        )
    Console().print(table)
    arl = contents.arl
    click.echo(
        f"ARL number {arl.number}, {len(arl.entries)} entries, {moment(arl.this_update)} to {moment(arl.next_update)}"
    )


def _show_fingerprint(made: Bundle) -> None:
    click.echo(f"SHA-256 of {bundle.MANIFEST}, to be compared aloud with the printed protocol:")
    click.echo(f"  {groups(made.fingerprint)}")
    for line in aloud(made.fingerprint):
        click.echo(f"  {line}")
