"""`lakthan tsa`: have files stamped by any authority, look into time-stamps, verify them, convert them.

Promises: the exit code is the verdict, as in `lakthan ocsp`: every trouble leaves with 3 or 4. No token that was kept
is ever overwritten unasked.

The operators' commands of the same group live in `tsa_admin`, which is loaded when one of them is used: the users'
side needs no database.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from lakthan import der
from lakthan.errors import ConfigError
from lakthan_cli import progress
from lakthan_cli.commands.ocsp import Instant, VerdictGroup
from lakthan_cli.ocsp import render as ocsp_render
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, read_certificates
from lakthan_cli.ocsp.transport import Transport as StatusTransport
from lakthan_cli.tsa import files, imprint, render, revocation, tree
from lakthan_cli.tsa.checks import Question
from lakthan_cli.tsa.checks import verify as verify_token
from lakthan_cli.tsa.message import Message, TimeStampedData, TimeStampReq, TimeStampResp, read
from lakthan_cli.tsa.stamp import GRAVEST_FIRST, Options, Result, Verdict, stamp
from lakthan_cli.tsa.transport import Transport, read_bearer

_MODULE = "lakthan_cli.commands.tsa_admin"
_ADMIN = {
    "freeze": "Stop a time-stamping unit at once, for good.",
    "tokens": "List the tokens on record.",
    "retention": "Drop the records that need not be kept any longer.",
    "credential": "Make the secret of a client that an authority knows by name.",
}
_DEFAULT_URL = "http://127.0.0.1:3161/"
_EXIT_CODES = """\b
Exit codes:
  0  stamped, or valid
  1  not valid: a check failed
  2  refused: the authority says why
  3  usage: an option or a file is missing or wrong
  4  no answer: connection, HTTP error, or what came is no time-stamp
Of several files the gravest counts, in the order 3, 1, 2, 4, 0."""


class _Group(VerdictGroup):
    """The users' commands, and those of operators when they are installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        there = importlib.util.find_spec(_MODULE) is not None
        return [*super().list_commands(ctx), *(_ADMIN if there else ())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ADMIN and importlib.util.find_spec(_MODULE) is not None:
            command: click.Command = getattr(importlib.import_module(_MODULE), cmd_name)
            return command
        return super().get_command(ctx, cmd_name)


def _policy(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        try:
            der.object_identifier(value)
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is no object identifier, such as 0.4.0.2023.1.1") from error
    return value


def _digest(_: click.Context, __: click.Parameter, value: str | None) -> bytes | None:
    if value is None:
        return None
    try:
        return bytes.fromhex(value.replace(":", ""))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not hexadecimal") from error


_file = click.Path(dir_okay=False, path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, described in docs/commands.md.")
_force = click.option("--force", is_flag=True, help="Replace files that are there already.")
_timeout = click.option(
    "--timeout", "timeout_seconds", type=click.FloatRange(0.1, 600), default=20, show_default=True, help="Seconds."
)


@click.group(cls=_Group, epilog=_EXIT_CODES)
def tsa() -> None:
    """Have files stamped by any authority, look into time-stamps, verify them; run an authority."""


@tsa.command(epilog=_EXIT_CODES)
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=_file)
@click.option(
    "--url", metavar="URL", envvar="LAKTHAN_TSA_URL", default=_DEFAULT_URL, show_default=True, help="The authority."
)
@click.option("--hash", "hash_name", type=click.Choice([*imprint.ASKED]), default="sha256", show_default=True)
@click.option(
    "--policy", metavar="OID", callback=_policy, help="The policy to stamp under.  [default: the authority's]"
)
@click.option("--nonce/--no-nonce", default=True, show_default=True, help="Send a nonce, so that the token is new.")
@click.option("--no-certs", is_flag=True, help="Do not ask for certificates: a small token, not checked here.")
@click.option(
    "--embed",
    is_flag=True,
    help="Keep document and token in one file, FILE.tsd (TimeStampedData, RFC 5544). FILE itself stays as it is.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to keep the token: a file (.tsr: the response, .tst: the token alone), or a folder for a FILE.tsr of "
    "each.  [default: FILE.tsr beside each FILE]",
)
@click.option("--trust", type=_file, help="The certificates to trust; the token must lead to one of them.")
@click.option("--jobs", type=click.IntRange(1, 256), default=8, show_default=True, help="How many at once.")
@click.option(
    "--tries", type=click.IntRange(1, 100), default=5, show_default=True, help="How often to ask a busy authority."
)
@click.option("--bearer-file", type=_file, help="A file with the API token for an authority that wants one.")
@_timeout
@_force
@_json
def request(
    *,
    paths: Sequence[Path],
    url: str,
    hash_name: str,
    policy: str | None,
    nonce: bool,
    no_certs: bool,
    embed: bool,
    output: Path | None,
    trust: Path | None,
    jobs: int,
    tries: int,
    bearer_file: Path | None,
    timeout_seconds: float,
    force: bool,
    as_json: bool,
) -> None:
    """Have each FILE stamped, check the token, and keep it.

    Only the digest of a FILE leaves this machine. A token that does not check out is not kept. An authority that is
    busy (HTTP 429, 503) is asked again when its Retry-After says so.
    """
    if no_certs and (embed or trust):
        raise click.UsageError("--no-certs leaves nothing to check or to embed: leave it out")
    targets = _targets(paths, output, embed=embed)
    options = Options(
        url,
        imprint.ASKED[hash_name],
        policy=policy,
        nonce=nonce,
        certificates=not no_certs,
        embed=embed,
        replace=force,
        trust=None if trust is None else read_certificates(trust),
    )

    async def run(progress: Callable[[], None]) -> list[Result]:
        gate = asyncio.Semaphore(jobs)
        bearer = None if bearer_file is None else _bearer(bearer_file)
        async with Transport.open(timeout_seconds, tries=tries, jobs=jobs, bearer=bearer) as transport:

            async def one(path: Path, target: Path) -> Result:
                async with gate:
                    result = await stamp(path, target, options, transport)
                progress()
                return result

            return await asyncio.gather(*(one(*each) for each in zip(paths, targets, strict=True)))

    _leave(_with_progress("stamping", len(paths), run, shown=not as_json), as_json=as_json)


@tsa.command(epilog=_EXIT_CODES)
@click.argument("paths", metavar="TOKEN...", nargs=-1, required=True, type=_file)
@click.option("--data", type=_file, help="The document.  [default: that in TOKEN, or TOKEN without .tsr or .tst]")
@click.option("--digest", metavar="HEX", callback=_digest, help="The document's digest, in place of the document.")
@click.option("--query", type=_file, help="The request: nonce and policy must be those that were asked for.")
@click.option("--trust", type=_file, help="The certificates to trust.  [default: those of this system]")
@click.option("--chain", type=_file, help="Certificates that are not in the token: the unit's, or CAs above it.")
@click.option("--at", type=Instant(), help="Verify for this time instead of now (ISO 8601; UTC without a zone).")
@click.option("--revocation", is_flag=True, help="Ask OCSP or CRLs whether the unit or a CA above it was revoked.")
@_timeout
@_json
def verify(
    *,
    paths: Sequence[Path],
    data: Path | None,
    digest: bytes | None,
    query: Path | None,
    trust: Path | None,
    chain: Path | None,
    at: datetime | None,
    revocation: bool,
    timeout_seconds: float,
    as_json: bool,
) -> None:
    """Verify each TOKEN (.tsr, .tst or .tsd) against its document, and say what it proves.

    Nobody is asked unless --revocation is given.
    """
    if data is not None and digest is not None:
        raise click.UsageError("--data and --digest say the same thing: give one of them")
    anchors = _system_trust() if trust is None else read_certificates(trust)
    question = Question(
        at or datetime.now(UTC),
        digest,
        None if query is None else _read_request(query),
        anchors,
        [] if chain is None else read_certificates(chain),
    )

    async def run(progress: Callable[[], None]) -> list[Result]:
        results = []
        async with StatusTransport.open(timeout_seconds) as transport:
            for path in paths:
                results.append(await _verified(path, data, question, transport if revocation else None))
                progress()
        return results

    _leave(_with_progress("verifying", len(paths), run, shown=not as_json), as_json=as_json)


@tsa.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@_json
def show(*, file: str, as_json: bool) -> None:
    """Show all that is in FILE: a request, a response, a token; without FILE, in what comes by standard input.

    DER, PEM and base64 are understood. Nothing is verified: the exit code is 0 when it can be read.
    """
    message = tree.of_message(_read(file))
    text = json.dumps(message, indent=2, ensure_ascii=False) if as_json else "\n".join(ocsp_render.as_tree(message))
    click.echo(text)


@tsa.command()
@click.argument("source", metavar="IN", type=click.Path(dir_okay=False, allow_dash=True))
@click.argument("target", metavar="OUT", type=_file)
@_force
def convert(*, source: str, target: Path, force: bool) -> None:
    """Make a response (.tsr) of a token (.tst), or the other way round; OUT's suffix says which.

    Of a document with its token in one (.tsd) either can be made, and stands for the document alone.
    """
    content = files.converted(_read(source), target.suffix.lower())
    files.write(target, content, replace=force)
    click.echo(f"{target}: {len(content)} octets")


def _targets(paths: Sequence[Path], output: Path | None, *, embed: bool) -> list[Path]:
    """Where each token goes. Raises `click.UsageError` when that is not clear, or would cost somebody a file."""
    suffix = files.EMBEDDED if embed else files.RESPONSE
    if output is None:
        targets = [path.with_name(path.name + suffix) for path in paths]
    elif len(paths) == 1 and not output.is_dir():
        if (output.suffix.lower() == files.EMBEDDED) is not embed:
            raise click.UsageError("a .tsd is what --embed makes, and nothing else is one")
        targets = [output]
    else:
        if output.exists() and not output.is_dir():
            raise click.UsageError(f"{output} is a file, and several tokens need a folder")
        output.mkdir(parents=True, exist_ok=True)
        targets = [output / (path.name + suffix) for path in paths]
    resolved = [target.resolve() for target in targets]
    twice = next((target for target, real in zip(targets, resolved, strict=True) if resolved.count(real) > 1), None)
    if twice is not None:
        raise click.UsageError(f"two tokens would go to {twice}: stamp files of one name in several runs")
    if spoiled := {path.resolve() for path in paths} & set(resolved):
        raise click.UsageError(f"the token would replace a document, {spoiled.pop()}: choose another --output")
    return targets


async def _verified(path: Path, data: Path | None, question: Question, transport: StatusTransport | None) -> Result:
    """The verdict about one token; with a transport, revocation included."""
    base = Result(path, Verdict.USAGE)
    try:
        message = _read(str(path))
        token = files.token_in(message)
        if token is not None:
            question = replace(question, digest=_digest_for(message, path, data, question))
    except ConfigError as error:
        return replace(base, problem=str(error))
    if isinstance(message, TimeStampReq):
        return replace(base, problem=f"{path} is a request: give the response to it")
    if token is None or (isinstance(message, TimeStampResp) and not message.granted):
        words = message.words if isinstance(message, TimeStampResp) else ""
        return replace(base, verdict=Verdict.REFUSED, problem=f"the authority said {words}")
    verification = verify_token(token, question)
    if transport is not None:
        others = [*token.certificates, *question.others]
        more = await revocation.checks(verification, token.tst_info.gen_time, others, transport)
        verification = replace(verification, checks=(*verification.checks, *more))
    response = message if isinstance(message, TimeStampResp) else None
    verdict = Verdict.VALID if verification.verified else Verdict.NOT_VALID
    problem = None if verification.verified else verification.first_failure
    return replace(base, verdict=verdict, problem=problem, response=response, token=token, verification=verification)


def _digest_for(message: Message, path: Path, data: Path | None, question: Question) -> bytes | None:
    """The digest of the document that the token should be about; None when only its request is known."""
    if question.digest is not None:
        return question.digest
    token = files.token_in(message)
    algorithm = None if token is None else imprint.BY_OID.get(token.tst_info.message_imprint.hash_algorithm)
    embedded = message if isinstance(message, TimeStampedData) else None
    if embedded is not None and embedded.hash_protected:
        raise ConfigError(f"{path}: its token covers the metadata too (hashProtected), which is not verified here")
    if data is None and embedded is not None and embedded.content is not None:
        return None if algorithm is None else imprint.digest(embedded.content, algorithm)
    beside = path.with_suffix("")
    found = data or (beside if path.suffix.lower() in (files.RESPONSE, files.TOKEN) and beside.is_file() else None)
    if found is not None:
        return None if algorithm is None else imprint.digest_of(found, algorithm)
    if question.request is None:
        raise ConfigError(f"the document of {path} is not known: give it with --data, or its --digest")
    return None


def _system_trust() -> list[Certificate]:
    """The certificates that this system trusts. Raises `ConfigError` when it names none."""
    where = ssl.get_default_verify_paths().cafile
    if where is None:
        raise ConfigError("this system names no trusted certificates: give those to trust with --trust")
    return read_certificates(Path(where))


def _with_progress(what: str, total: int, run: Callable[[Callable[[], None]], object], *, shown: bool) -> list[Result]:
    """Run it under a progress bar, which is there only for several files and for a person who looks."""
    with progress.counted(what, total, shown=shown and total > 1) as bar:
        return asyncio.run(run(bar.advance))  # type: ignore[arg-type]


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


def _read_request(path: Path) -> TimeStampReq:
    message = _read(str(path))
    if not isinstance(message, TimeStampReq):
        raise ConfigError(f"{path} is no request: give the .tsq that was sent")
    return message


def _bearer(path: Path) -> str:
    try:
        return read_bearer(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API token in {path} cannot be read: {error}") from error


def _read(name: str) -> Message:
    try:
        return read(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {os.strerror(error.errno or 0)}") from error
    except Unreadable as error:
        what = "what came by standard input" if name == "-" else name
        raise ConfigError(f"{what} cannot be read as a time-stamp request, response or token: it is {error}") from error
