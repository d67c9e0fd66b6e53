"""`lakthan keys`: make the keys of responders and time-stamping units, ask a CA for their certificates, try them.

A key is its URI: `file:ocsp.pem`, or `pkcs11:token=…;object=…?module-path=…&pin-source=…`. Relative paths start at the
current folder, except for `keys list`, where they start at the configuration's.
"""

from __future__ import annotations

import asyncio
import base64
import os
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import click
from cryptography import x509
from rich.console import Console
from rich.table import Table

from lakthan.certificates import read_certificates
from lakthan.config import KeyURI, load
from lakthan.errors import LakthanError
from lakthan.keys import generate as making
from lakthan.keys import key_list, open_signer, prove
from lakthan.keys.csr import Purpose, certification_request
from lakthan_cli.commands.key_est import reenroll
from lakthan_cli.commands.key_lists import approve, install, propose, retire
from lakthan_cli.keys.argument import KeyArgument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from lakthan.certificates import CertificateView
    from lakthan.config import Config, ResponderConfig, UnitConfig
    from lakthan.keys import Signer
    from lakthan.keys.key_list import ListedKey

_Result = TypeVar("_Result")


_FINE = ("ok", "retired")
_KEY = click.argument("key", type=KeyArgument(), metavar="URI")
_KIND = click.option("--kind", type=click.Choice(making.KINDS), default="P-256", show_default=True)


@click.group()
def keys() -> None:
    """Make keys, ask for their certificates, try them."""


@keys.command()
@_KEY
@_KIND
def generate(key: KeyURI, kind: str) -> None:
    """Make a new key under URI: in a file, or in an HSM that never lets it out."""
    making.generate(key, kind)
    click.echo(f"made a {kind} key: {key.uri}")


@keys.command()
@_KEY
@click.option("--subject", required=True, metavar="NAME", help="As in RFC 4514: CN=OCSP responder 7,O=Public CA,C=LA")
@click.option(
    "--for",
    "purpose",
    type=click.Choice([each.name.lower() for each in Purpose]),
    required=True,
    help="What the certificate is for: signing OCSP answers, or time stamps.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A file.  [default: standard output]")
def csr(key: KeyURI, subject: str, purpose: str, out: Path | None) -> None:
    """Write a certification request (PKCS#10, PEM) for the key at URI."""
    try:
        name = x509.Name.from_rfc4514_string(subject)
    except ValueError as error:
        raise click.BadParameter(f"{subject!r} is no name: write CN=…,O=…,C=LA", param_hint="--subject") from error

    async def ask(signer: Signer) -> bytes:
        return await certification_request(signer, name.public_bytes(), Purpose[purpose.upper()])

    encoded = base64.b64encode(asyncio.run(_with(key, ask))).decode()
    lines = "\n".join(textwrap.wrap(encoded, 64))
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n"
    if out is None:
        click.echo(pem, nl=False)
    else:
        out.write_text(pem)
        click.echo(f"wrote {out}: have the CA certify it, then name certificate and key in the configuration")


@keys.command()
@_KEY
@click.option("--certificate", type=click.Path(dir_okay=False, path_type=Path), help="That the key must belong to.")
@click.option("--count", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="Signatures to make.")
def selftest(key: KeyURI, certificate: Path | None, count: int) -> None:
    """Sign random octets with the key at URI, verify every signature, and say how long one takes."""
    view = read_certificates(certificate)[0] if certificate else None

    async def try_it(signer: Signer) -> tuple[str, float]:
        certified = signer.public_key if view is None else view.certificate.public_key()
        await prove(signer, certified)
        message = os.urandom(32)
        started = perf_counter()
        for _ in range(count):
            await signer.sign(message)
        each_seconds = (perf_counter() - started) / count
        await prove(signer, certified)
        return signer.algorithm.label, each_seconds

    label, each_seconds = asyncio.run(_with(key, try_it))
    belongs = f", and belongs to {view.name}" if view else ""
    click.echo(f"ok: {label}{belongs}; {count} signatures, one after the other: {each_seconds * 1000:.3f} ms each")


@keys.command("list")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def list_keys(file: Path) -> None:
    """Every key of the configuration FILE: whether it signs, as whom, and until when. Exit code 1 when one does not."""
    rows = asyncio.run(_look(load(file)))
    table = Table("for", "key", "algorithm", "certificate", "from (UTC)", "ends (UTC)", "left", "proof")
    for row in rows:
        table.add_row(*row)
    Console(width=None if os.isatty(1) else 220).print(table)
    broken = sum(1 for row in rows if row[-1] not in _FINE)
    if broken:
        raise click.ClickException(f"{broken} of {len(rows)} keys cannot be used")


@dataclass(frozen=True, slots=True)
class _Named:
    """A key of the configuration. `begins` and `retired`: what its key list says."""

    what: str
    uri: str
    open: Callable[[], tuple[CertificateView, KeyURI]]
    begins: datetime | None = None
    retired: datetime | None = None


async def _look(config: Config) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    now = datetime.now(UTC)
    for named in _named(config):
        algorithm = subject = begins = ends = left = ""
        proof = "ok"
        try:
            view, key = named.open()
            subject = view.name
            begins = f"{max(view.not_before, named.begins or view.not_before):%Y-%m-%d %H:%M}"
            last = view.not_after if named.retired is None else min(view.not_after, named.retired)
            ends, left = f"{last:%Y-%m-%d %H:%M}", f"{(last - now).days} d"
            if named.retired is not None and named.retired <= now:
                proof = "retired"
            else:
                signer = open_signer(key)
                algorithm = signer.algorithm.label
                try:
                    await prove(signer, view.certificate.public_key())
                finally:
                    await signer.aclose()
        except LakthanError as error:
            proof = str(error)
        rows.append((named.what, named.uri, algorithm, subject, begins, ends, left, proof))
    return rows


def _named(config: Config) -> Iterator[_Named]:
    of: list[tuple[str, ResponderConfig | UnitConfig]] = [
        (f"OCSP of {each.authority}", each) for each in (config.ocsp.responders if config.ocsp else ())
    ]
    of += [
        (f"publisher of {each.authority}", each) for each in (config.publisher.responders if config.publisher else ())
    ]
    units = [(f"time-stamping unit {name}", unit) for name, unit in (config.tsa.units.items() if config.tsa else ())]
    for what, settings in (*of, *units):
        if settings.keys is not None:
            yield from _listed(what, settings.keys)
        elif settings.key is not None and settings.certificate is not None:
            yield _Named(what, settings.key.uri, partial(_pair, settings.certificate, settings.key))


def _listed(what: str, path: Path) -> Iterator[_Named]:
    try:
        entries = key_list.read(path)
    except LakthanError as error:
        yield _Named(what, str(path), partial(_raise, error))
        return
    for entry in entries:
        yield _Named(what, entry.key, partial(_found, entry, path), entry.installed, entry.retired)


def _pair(certificate: Path, key: KeyURI) -> tuple[CertificateView, KeyURI]:
    return read_certificates(certificate)[0], key


def _found(entry: ListedKey, path: Path) -> tuple[CertificateView, KeyURI]:
    found = key_list.find(entry, path)
    return found.view, found.key


def _raise(error: LakthanError) -> tuple[CertificateView, KeyURI]:
    raise error


for command in (install, retire, propose, approve, reenroll):
    keys.add_command(command)


async def _with(key: KeyURI, work: Callable[[Signer], Awaitable[_Result]]) -> _Result:
    signer = open_signer(key)
    try:
        return await work(signer)
    finally:
        await signer.aclose()
