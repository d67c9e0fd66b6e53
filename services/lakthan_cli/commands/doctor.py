"""`lakthan doctor`: what is wrong on this machine, before a client or an auditor finds it."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec

from lakthan.config import Config, load
from lakthan.errors import ConfigError
from lakthan.telemetry import logs
from lakthan_cli.commands.spans import Span
from lakthan_cli.doctor.examine import examine
from lakthan_cli.doctor.notes import Patient
from lakthan_cli.findings import EXIT_CODES, MonitoringCommand, as_json, gravest, show

SERVICES = ("ocsp", "tsa", "registry", "publisher")


@click.command(cls=MonitoringCommand, epilog=EXIT_CODES)
@click.option("--config", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file.")
@click.option(
    "--service",
    "services",
    type=click.Choice(SERVICES),
    multiple=True,
    help="Look only at what this service needs, as in its pod; repeatable.  [default: all that are configured]",
)
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of ocsp and tsa on this machine."
)
@click.option("--offline", is_flag=True, help="Leave out the URLs in certificates.")
@click.option(
    "--patience", type=Span(), default="PT5S", show_default=True, help="How long to wait for each URL and NTP server."
)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object, as `lakthan probe` does.")
def doctor(
    *, path: Path, services: tuple[str, ...], workers: int, offline: bool, patience: timedelta, json_output: bool
) -> None:
    """Look at this machine, at what the configuration names and at the database, and say what to do.

    Clock, database, keys, certificates, ports, files, the URLs in certificates, limits. Nothing is changed, and no
    secret is printed. Run it where the service runs, as its user.
    """
    config = _only(load(path), services)
    if all(getattr(config, name) is None for name in SERVICES):
        wanted = " or ".join(f"[{name}]" for name in services or SERVICES)
        raise ConfigError(f"{path} has no {wanted} table, so there is nothing to look at")
    # What the parts of services say as they are opened are findings here, and standard output is for these alone.
    logs.configure("doctor")
    logging.disable(logging.CRITICAL)
    findings = asyncio.run(examine(Patient(path, config, workers, offline, patience, datetime.now(UTC))))
    if json_output:
        click.echo(json.dumps(as_json(findings), indent=2, ensure_ascii=False))
    else:
        show(findings)
    raise click.exceptions.Exit(gravest(findings).exit_code)


def _only(config: Config, services: tuple[str, ...]) -> Config:
    if not services:
        return config
    return msgspec.structs.replace(config, **{name: None for name in SERVICES if name not in services})
