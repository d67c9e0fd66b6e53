"""`lakthan keys install`, `retire`, `propose` and `approve`: keys come and go while the service runs.

A LIST is the file that the configuration names as the `keys` of a responder, of the publisher or of a unit. Without
approval one command does it. With approval: propose the act, have it approved, do it with the signatures.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

import click
from rich.progress import Progress, SpinnerColumn, TextColumn

from lakthan.certificates import CertificateView, read_certificates
from lakthan.config import PresignConfig, load
from lakthan.errors import ConfigError
from lakthan.keys import key_list, open_signer
from lakthan.keys.approval import Act, Approver
from lakthan_cli.commands.check_config import read_authorities
from lakthan_cli.commands.ocsp import Instant
from lakthan_cli.commands.text import moment
from lakthan_cli.keys import lists, paper
from lakthan_cli.keys.argument import KeyArgument

if TYPE_CHECKING:
    from lakthan.config import Config, KeyURI
    from lakthan.store.records import AuthorityRecord
    from lakthan_cli.keys.lists import Change, Target

_FILE = click.Path(dir_okay=False, path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., object])


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def put(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return put


_LIST = click.argument("path", metavar="LIST", type=_FILE)
_CONFIG = click.option(
    "--config", "config_path", type=_FILE, required=True, help="The service's configuration, which names LIST."
)
_AT = click.option("--at", type=Instant(), help="From this instant on.  [default: now]")
_INSTALLED = _options(
    _LIST,
    _CONFIG,
    click.option("--certificate", type=_FILE, required=True, help="PEM; named in the list from the list's folder."),
    click.option("--key", required=True, metavar="URI", help="Relative paths in it start at the list's folder."),
    click.option("--chain", type=_FILE, help="PEM of the issuers of a unit's certificate, where it is not the unit's."),
    click.option("--ca", type=_FILE, help="PEM of the responder's CA.  [default: asked of the database]"),
    _AT,
)
_RETIRED = _options(
    _LIST,
    click.argument("which", metavar="KEY"),
    _CONFIG,
    click.option(
        "--at", type=Instant(), help=f"From this instant on.  [default: in {lists.HEARD_BY_ALL.seconds} seconds]"
    ),
    click.option("--force", is_flag=True, help="Also when nothing could be signed afterwards."),
)
_DONE = _options(
    click.option("--act", "act_path", type=_FILE, help="The act as it was proposed and approved."),
    click.option(
        "--approval", "approvals", type=_FILE, multiple=True, help="An approver's signature of it; again for each."
    ),
    click.option("--protocol", "protocols", type=_FILE, multiple=True, help="Write a protocol to print: .md or .html."),
)


class _How(TypedDict):
    """What `_DONE` asks for."""

    act_path: Path | None
    approvals: tuple[Path, ...]
    protocols: tuple[Path, ...]


@click.command()
@_INSTALLED
@_DONE
def install(
    path: Path,
    *,
    config_path: Path,
    certificate: Path,
    key: str,
    chain: Path | None,
    ca: Path | None,
    at: datetime | None,
    **how: Unpack[_How],
) -> None:
    """Put a key into LIST: the service takes it within a second or two, and lets it sign when its time has come.

    The key is opened and proved, its certificate checked as the service does it; what breaks the profile is refused.
    """
    config = load(config_path)
    whose = lists.target_of(config, path)
    with key_list.changing(path):
        change = lists.installation(whose, certificate, key, chain=chain, at=_instant(at, how["act_path"]))
        asyncio.run(_check(config, whose, change, ca))
        change = _do(whose, change, **how)
    view = read_certificates(certificate)[0]
    begins = max(view.not_before, change.entry.installed)
    waits = f"it waits until {moment(begins)}" if begins > datetime.now(UTC) else "it signs within a second or two"
    click.echo(f"installed {change.entry.name} for the {whose.name}: {waits}, and until {moment(view.not_after)}")


@click.command()
@_RETIRED
@_DONE
def retire(
    path: Path,
    which: str,
    *,
    config_path: Path,
    at: datetime | None,
    force: bool,
    **how: Unpack[_How],
) -> None:
    """End a key of LIST: from that instant on it signs nothing.

    KEY is its certificate's file, or the beginning of the certificate's SHA-256.
    """
    whose = lists.target_of(load(config_path), path)
    with key_list.changing(path):
        instant = _instant(at, how["act_path"]) if at or how["act_path"] else _soon()
        change = lists.retirement(whose, which, at=instant, force=force)
        change = _do(whose, change, **how)
    click.echo(f"retired {change.entry.name} of the {whose.name}: from {moment(change.act.at)} on it signs nothing")


@click.group()
def propose() -> None:
    """Write the act that approvers sign; nothing is changed."""


@propose.command("install")
@_INSTALLED
@click.option("--out", type=_FILE, required=True, help="The act, to be signed octet for octet.")
def propose_install(
    path: Path,
    *,
    config_path: Path,
    certificate: Path,
    key: str,
    chain: Path | None,
    ca: Path | None,
    at: datetime | None,
    out: Path,
) -> None:
    """Propose to put a key into LIST. It is checked now, and again when it is installed."""
    config = load(config_path)
    whose = lists.target_of(config, path)
    change = lists.installation(whose, certificate, key, chain=chain, at=_instant(at, None))
    asyncio.run(_check(config, whose, change, ca))
    _propose(change.act, whose, out)


@propose.command("retire")
@_RETIRED
@click.option("--out", type=_FILE, required=True, help="The act, to be signed octet for octet.")
def propose_retire(path: Path, which: str, config_path: Path, at: datetime | None, out: Path, *, force: bool) -> None:
    """Propose to end a key of LIST; KEY as for `retire`. Say --at: the approvers need their time."""
    whose = lists.target_of(load(config_path), path)
    _propose(lists.retirement(whose, which, at=_instant(at, None) if at else _soon(), force=force).act, whose, out)


@click.command()
@click.argument("act_path", metavar="ACT", type=_FILE)
@click.option("--key", type=KeyArgument(), metavar="URI", required=True, help="The approver's own key.")
@click.option("--out", type=_FILE, required=True, help="The signature.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def approve(act_path: Path, key: KeyURI, out: Path, *, yes: bool) -> None:
    """Show an act and sign it. The same as: openssl dgst -sha256 -sign KEY -out OUT ACT."""
    act = _read_act(act_path)
    click.echo(act.text, nl=False)
    if not yes:
        click.confirm("Is this right, compared with what you were told by another way? Sign it", abort=True)

    async def sign() -> bytes:
        signer = open_signer(key)
        try:
            signature = await signer.sign(act.text.encode())
            if not Approver("", signer.public_key).signed(act, signature):
                raise ConfigError("such a signature would not be accepted: use P-256, P-384, RSA (not PSS) or Ed25519")
            return signature
        finally:
            await signer.aclose()

    signature = asyncio.run(sign())
    try:
        with out.open("xb") as file:
            file.write(signature)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    click.echo(f"wrote {out}: send it to whoever does the act")


def _do(whose: Target, change: Change, **how: Unpack[_How]) -> Change:
    """Change the list, and write the protocols."""
    act_path, approvals, protocols = how["act_path"], how["approvals"], how["protocols"]
    for protocol in protocols:
        paper.check(protocol)
    if whose.approvers is not None:
        if act_path is None:
            raise ConfigError(
                f"{whose.approvers.required} approvers must sign this: write the act with `lakthan keys propose`, have "
                "it signed, and come again with --act and --approval"
            )
        proposed = _read_act(act_path)
        if proposed != change.act:
            raise ConfigError(f"{act_path} is another act. This one is:\n{change.act.text}")
        change = lists.approve(change, whose.approvers, [_signature(each) for each in approvals])
    key_list.write(whose.path, change.entries)
    done_at = datetime.now(UTC)
    for protocol in protocols:
        paper.write(protocol, change, whose.path, whose.approvers, done_at)
        click.echo(f"wrote {protocol}: print it and have it signed")
    return change


def _propose(act: Act, whose: Target, out: Path) -> None:
    try:
        with out.open("x", encoding="utf-8", newline="") as file:
            file.write(act.text)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    click.echo(act.text, nl=False)
    required = 0 if whose.approvers is None else whose.approvers.required
    click.echo(f"wrote {out}: {required} approvers sign it, with `lakthan keys approve {out}` or openssl")


async def _check(config: Config, whose: Target, change: Change, ca: Path | None) -> None:
    with Progress(SpinnerColumn(), TextColumn("opening the key and checking the certificate"), transient=True) as shown:
        shown.disable = not shown.console.is_terminal
        issuers = await issuers_of(config, whose, ca)
        await whose.check(key_list.find(change.entry, whose.path), issuers)


async def issuers_of(config: Config, whose: Target, ca: Path | None) -> list[CertificateView]:
    """The certificates of a responder's authority: of that file, else of the database. None for a unit, which needs
    none.
    """
    if isinstance(whose.of, tuple):
        return []
    if ca is not None:
        return read_certificates(ca)
    authorities: list[AuthorityRecord] = []
    if isinstance(whose.of, PresignConfig) and config.publisher is not None:
        authorities = await read_authorities(config.publisher.database, role="lakthan_presigner")
    elif config.ocsp is not None:
        authorities = await read_authorities(config.ocsp.database)
    for authority in authorities:
        if authority.name == whose.of.authority:
            return [CertificateView.from_der(encoded) for encoded in authority.certificates]
    raise ConfigError(
        f"the database has no authority {whose.of.authority!r}: add it, or name its certificate with --ca"
    )


def _instant(at: datetime | None, act_path: Path | None) -> datetime:
    """Whole seconds, as acts have them; what was approved says when."""
    if at is None and act_path is not None:
        return _read_act(act_path).at
    return (at or datetime.now(UTC)).replace(microsecond=0)


def _soon() -> datetime:
    return (datetime.now(UTC) + lists.HEARD_BY_ALL).replace(microsecond=0)


def _read_act(path: Path) -> Act:
    try:
        return Act.read(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"the act {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no act: it is not UTF-8") from error


def _signature(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ConfigError(f"the signature {path} cannot be read: {error.strerror}") from error
