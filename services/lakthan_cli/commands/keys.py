"""`lakthan keys`: make the keys of responders and time-stamping units, ask a CA for their certificates, try them.

A key is its URI: `file:ocsp.pem`, or `pkcs11:token=…;object=…?module-path=…&pin-source=…`. Relative paths start at the
current folder, except for `keys list`, where they start at the configuration's.
"""

from __future__ import annotations

import asyncio
import base64
import os
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import click
from cryptography import x509
from rich.console import Console
from rich.table import Table

from lakthan.certificates import CertificateView, read_certificates
from lakthan.config import KeyURI, load
from lakthan.errors import LakthanError
from lakthan.keys import generate as making
from lakthan.keys import open_signer, prove
from lakthan.keys.csr import Purpose, certification_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from lakthan.config import Config
    from lakthan.keys import Signer

_Result = TypeVar("_Result")


class KeyArgument(click.ParamType[KeyURI]):
    """A key's URI on the command line."""

    name = "key"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> KeyURI:
        """The URI, with the current folder as its start."""
        del param, ctx
        return value if isinstance(value, KeyURI) else KeyURI(str(value), Path.cwd())


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
    table = Table("for", "key", "algorithm", "certificate", "ends (UTC)", "left", "proof")
    for row in rows:
        table.add_row(*row)
    Console(width=None if os.isatty(1) else 200).print(table)
    broken = sum(1 for row in rows if row[-1] != "ok")
    if broken:
        raise click.ClickException(f"{broken} of {len(rows)} keys cannot be used")


async def _look(config: Config) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for what, key, certificate in _named(config):
        algorithm = subject = ends = left = ""
        try:
            view: CertificateView = read_certificates(certificate)[0]
            subject, ends = view.name, f"{view.not_after:%Y-%m-%d %H:%M}"
            left = f"{(view.not_after - datetime.now(UTC)).days} d"
            signer = open_signer(key)
            algorithm = signer.algorithm.label
            try:
                await prove(signer, view.certificate.public_key())
            finally:
                await signer.aclose()
        except LakthanError as error:
            rows.append((what, key.uri, algorithm, subject, ends, left, str(error)))
        else:
            rows.append((what, key.uri, algorithm, subject, ends, left, "ok"))
    return rows


def _named(config: Config) -> Iterator[tuple[str, KeyURI, Path]]:
    for responder in config.ocsp.responders if config.ocsp else ():
        if responder.key is not None and responder.certificate is not None:
            yield f"OCSP of {responder.authority}", responder.key, responder.certificate
    for name, unit in config.tsa.units.items() if config.tsa else ():
        yield f"time-stamping unit {name}", unit.key, unit.certificate


async def _with(key: KeyURI, work: Callable[[Signer], Awaitable[_Result]]) -> _Result:
    signer = open_signer(key)
    try:
        return await work(signer)
    finally:
        await signer.aclose()
