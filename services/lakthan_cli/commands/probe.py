"""`lakthan probe`: ask a running installation what its clients ask, and say what is wrong with the answers."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import click

from lakthan.telemetry import logs
from lakthan_cli.commands.spans import Span
from lakthan_cli.findings import EXIT_CODES, MonitoringCommand, as_json, gravest, show
from lakthan_cli.probe import plan as plans
from lakthan_cli.probe import round as probe_round
from lakthan_cli.probe.listen import address, listen

_OF_THE_DEMO = Path("demo/probe.toml")
_file = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=MonitoringCommand, epilog=EXIT_CODES)
@click.argument("plan", metavar="[PLAN]", required=False, type=_file)
@click.option("--ocsp", "ocsp_urls", metavar="URL", multiple=True, help="An OCSP URL to ask; repeatable.")
@click.option("--issuer", type=_file, help="The CA of the certificates that follow.")
@click.option("--good", metavar="CERT", help="A certificate that is good: a file, or serial:HEX.")
@click.option("--revoked", metavar="CERT", help="One that is revoked.")
@click.option("--unissued", metavar="CERT", help="One that the CA never issued.  [default: a random serial number]")
@click.option("--tsa", "tsa_urls", metavar="URL", multiple=True, help="The URL of a time-stamp authority; repeatable.")
@click.option("--policy", "policies", metavar="OID", multiple=True, help="A policy to stamp under; repeatable.")
@click.option("--trust", multiple=True, type=_file, help="A file with trust anchors; repeatable.")
@click.option("--listen", "where", metavar="HOST:PORT", help="Go on, and serve /metrics and /livez there.")
@click.option("--every", type=Span(), default="PT1M", show_default=True, help="With --listen: how often.")
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object, described in docs/probe.md.")
def probe(
    *,
    plan: Path | None,
    ocsp_urls: tuple[str, ...],
    issuer: Path | None,
    good: str | None,
    revoked: str | None,
    unissued: str | None,
    tsa_urls: tuple[str, ...],
    policies: tuple[str, ...],
    trust: tuple[Path, ...],
    where: str | None,
    every: timedelta,
    json_output: bool,
) -> None:
    """Ask a running installation from outside, as its clients do, and say what is wrong with its answers.

    What to ask is in PLAN, a TOML file (docs/probe.md), or in options, or both; with neither, it is the demo in ./demo.
    """
    if issuer is None and (ocsp_urls or good or revoked or unissued):
        raise click.UsageError("--issuer is missing: whose certificates are these?")
    authorities = []
    if issuer is not None:
        # Of a random number alone nobody learns much, so without options it is asked beside something else.
        authorities = [
            plans.AuthorityPlan(
                urlsplit(ocsp_urls[0]).netloc if ocsp_urls else issuer.stem,
                issuer,
                good,
                revoked,
                unissued or "random",
                ocsp_urls,
            )
        ]
    tsas = [plans.TSAPlan(url, policies) for url in tsa_urls]
    if plan is None and not authorities and not tsas and _OF_THE_DEMO.exists():
        plan = _OF_THE_DEMO
    whole = plans.combined(None if plan is None else plans.read(plan), authorities, tsas, trust)
    if where is not None:
        host, port = address(where)
        logs.configure("probe")
        asyncio.run(listen(whole, host, port, every))
        return
    outcome = asyncio.run(probe_round.go(whole))
    if json_output:
        click.echo(json.dumps(as_json(outcome.findings), indent=2, ensure_ascii=False))
    else:
        show(outcome.findings)
    raise click.exceptions.Exit(gravest(outcome.findings).exit_code)
