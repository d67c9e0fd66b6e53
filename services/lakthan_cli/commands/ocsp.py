"""`lakthan ocsp`: ask any responder about certificates, look into OCSP messages, verify answers.

Promises: the exit code is the verdict, and nothing else ever looks like one: Python and click use 1 and 2 for troubles,
which here would say "revoked" and "unknown", so every trouble leaves with 3 or 4.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from lakthan.errors import ConfigError, LakthanError
from lakthan_cli.ocsp import render, tree
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, read_certificates
from lakthan_cli.ocsp.message import OCSPRequest, OCSPResponse, read
from lakthan_cli.ocsp.query import GRAVEST_FIRST, Asker, Options, Result, verify_file
from lakthan_cli.ocsp.request import HASHES
from lakthan_cli.ocsp.transport import Transport

_USAGE = 3
_TROUBLE = 4
_INTERRUPTED = 130
_AT_ONCE = 8
_EXIT_CODES = """\b
Exit codes:
  0  good
  1  revoked
  2  unknown: the responder does not know the certificate
  3  usage: an option, a file or the issuer is missing or wrong
  4  no answer (connection, tryLater, unauthorized, …), or one that does not verify
Of several certificates the gravest counts, in the order 3, 4, 1, 2, 0."""


class VerdictGroup(click.Group):
    """The group; every trouble in it leaves with an exit code that is no verdict."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        """Reads the command line."""
        with _exit_codes():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command."""
        with _exit_codes():
            return super().invoke(ctx)


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.show()
        raise click.exceptions.Exit(_USAGE) from error
    except LakthanError as error:
        click.ClickException(str(error)).show()
        raise click.exceptions.Exit(_USAGE) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(_INTERRUPTED) from error
    except BrokenPipeError as error:
        raise click.exceptions.Exit(_TROUBLE) from error  # whoever read our words has gone
    except click.exceptions.Exit:
        raise
    except Exception as error:
        # A defect: seen in full, and not mistaken for "revoked".
        traceback.print_exc()
        raise click.exceptions.Exit(_TROUBLE) from error


class Instant(click.ParamType[datetime]):
    """An instant in ISO 8601; without a zone it is UTC."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """An aware datetime."""
        if isinstance(value, datetime):
            return value
        try:
            instant = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time: write 2026-03-01T12:00:00Z, or 2026-03-01", param, ctx)
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


_file = click.Path(dir_okay=False, path_type=Path)
_file_or_input = click.Path(dir_okay=False, allow_dash=True)
_at = click.option("--at", type=Instant(), help="Verify for this time instead of now (ISO 8601; UTC without a zone).")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, described in docs/commands.md.")


@click.group(cls=VerdictGroup, epilog=_EXIT_CODES)
def ocsp() -> None:
    """Ask any OCSP responder, look into OCSP messages, verify answers."""


@ocsp.command(epilog=_EXIT_CODES)
@click.argument("certificates", metavar="CERT...", nargs=-1, required=True, type=_file)
@click.option(
    "--issuer", type=_file, help="The issuer's certificate.  [default: caIssuers, or ca.pem, chain.pem beside]"
)
@click.option("--url", metavar="URL", help="The responder.  [default: those that the certificate names, in order]")
@click.option("--hash", "hash_name", type=click.Choice([*HASHES]), default="sha256", show_default=True)
@click.option("--nonce/--no-nonce", default=True, show_default=True, help="Send a nonce, so that the answer is new.")
@click.option("--require-nonce", is_flag=True, help="An answer without the nonce does not verify.")
@click.option("--get/--post", "by_get", default=False, help="How to ask.  [default: POST]")
@click.option("--save", type=click.Path(path_type=Path), help="Keep the answer; with several CERTs, a folder for all.")
@click.option("--trust", type=_file, help="The certificates to trust. Without them the issuer is believed as it is.")
@_at
@click.option(
    "--timeout", "timeout_seconds", type=click.FloatRange(0.1, 600), default=10, show_default=True, help="Seconds."
)
@_json
def query(
    *,
    certificates: Sequence[Path],
    issuer: Path | None,
    url: str | None,
    hash_name: str,
    nonce: bool,
    require_nonce: bool,
    by_get: bool,
    save: Path | None,
    trust: Path | None,
    at: datetime | None,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Ask for the status of each CERT, verify the answer, and say what it is worth.

    CERT is a file in PEM or DER. Its issuer and its responder are found through the certificate.
    """
    if require_nonce and not nonce:
        raise click.UsageError("--require-nonce needs a nonce: leave out --no-nonce")
    options = Options(
        issuer=None if issuer is None else read_certificates(issuer),
        trust=None if trust is None else read_certificates(trust),
        url=url,
        hash_name=hash_name,
        nonce=nonce,
        require_nonce=require_nonce,
        method="GET" if by_get else "POST",
        at=at,
    )
    files = [(path, read_certificates(path)) for path in certificates]
    results = asyncio.run(_ask(files, options, timeout_seconds, progress=not as_json))
    if save is not None:
        _save(results, save)
    _leave(results, as_json=as_json)


@ocsp.command()
@click.argument("file", type=_file_or_input, default="-")
@_json
def show(*, file: str, as_json: bool) -> None:
    """Show all that is in FILE, an OCSP request or response; without FILE, in what comes by standard input.

    DER, PEM, base64, and the URL of a GET are understood. Nothing is verified: the exit code is 0 when it can be read.
    """
    message = tree.of_message(_read_message(file))
    click.echo(json.dumps(message, indent=2, ensure_ascii=False) if as_json else "\n".join(render.as_tree(message)))


@ocsp.command(epilog=_EXIT_CODES)
@click.argument("response", type=_file_or_input)
@click.option("--cert", "certificate", type=_file, required=True, help="The certificate that it is about.")
@click.option("--issuer", type=_file, help="The issuer's certificate.  [default: ca.pem or chain.pem beside CERT]")
@click.option("--trust", type=_file, required=True, help="The certificates to trust.")
@_at
@_json
def verify(
    *,
    response: str,
    certificate: Path,
    issuer: Path | None,
    trust: Path,
    at: datetime | None,
    as_json: bool,
) -> None:
    """Verify RESPONSE, an answer that was kept, and say what it says about the certificate. Nobody is asked."""
    message = _read_message(response)
    if isinstance(message, OCSPRequest):
        raise ConfigError(f"{response} is a request: give the response to it")
    options = Options(
        issuer=None if issuer is None else read_certificates(issuer), trust=read_certificates(trust), at=at
    )
    result = verify_file(certificate, read_certificates(certificate), message, options)
    _leave([result], as_json=as_json)


async def _ask(
    files: Sequence[tuple[Path, list[Certificate]]], options: Options, timeout_seconds: float, *, progress: bool
) -> list[Result]:
    console = Console(stderr=True)
    shown = progress and len(files) > 1 and console.is_terminal
    gate = asyncio.Semaphore(_AT_ONCE)
    with Progress(console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task("asking", total=len(files))
        async with Transport.open(timeout_seconds) as transport:
            asker = Asker(options, transport)

            async def one(path: Path, certificates: list[Certificate]) -> Result:
                async with gate:
                    result = await asker.ask(path, certificates)
                bar.advance(task)
                return result

            return await asyncio.gather(*(one(*each) for each in files))


def _leave(results: Sequence[Result], *, as_json: bool) -> None:
    """Print, and leave with the exit code that fits."""
    exit_code = next(code for code in GRAVEST_FIRST if any(each.verdict.exit_code == code for each in results))
    if as_json:
        document = {"exit_code": exit_code, "results": [render.as_json(each) for each in results]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    elif len(results) == 1:
        click.echo(render.as_text(results[0]))
    else:
        click.echo(render.as_summary(results))
    sys.exit(exit_code)


def _save(results: Sequence[Result], save: Path) -> None:
    """Keep each response as it came, verified or not. Raises `ConfigError`."""
    try:
        if len(results) > 1:
            save.mkdir(parents=True, exist_ok=True)
        for number, each in enumerate(results, 1):
            target = save if len(results) == 1 else save / f"{number:03}-{each.path.stem}.ocsp"
            if each.response is not None:
                target.write_bytes(each.response.encoded)
    except OSError as error:
        raise ConfigError(f"the answer cannot be kept in {save}: {error.strerror}") from error


def _read_message(name: str) -> OCSPRequest | OCSPResponse:
    try:
        return read(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except Unreadable as error:
        what = "what came by standard input" if name == "-" else name
        raise ConfigError(f"{what} cannot be read as an OCSP request or response: it is {error}") from error
