"""`lakthan serve`: become one of the services."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

_MODULES = {
    "ocsp": "lakthan_ocsp",
    "tsa": "lakthan_tsa",
    "registry": "lakthan_registry",
    "publisher": "lakthan_ocsp.publisher",
}


@click.command()
@click.argument("service", type=click.Choice([*_MODULES]))
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes that share the port."
)
@click.option(
    "--linger",
    type=click.FloatRange(0, 3600),
    default=0,
    show_default=True,
    help="Seconds that it goes on after SIGTERM, saying on /readyz that it leaves.",
)
@click.option(
    "--keyless",
    is_flag=True,
    help="ocsp: published answers only, from a copy of the database; no key is opened (as keyless = true in the file).",
)
def serve(service: str, config: Path, workers: int, linger: float, *, keyless: bool) -> None:
    """Run the OCSP responder, the time-stamp authority, the registry or the publisher until SIGTERM."""
    if keyless:
        if service != "ocsp":
            raise click.UsageError(f"--keyless is for ocsp; {service} cannot do without its keys")
        os.environ["LAKTHAN_OCSP__KEYLESS"] = "true"
    # This process becomes the service, so that signals and exit codes are its own.
    arguments = ["--config", str(config), *(["--workers", str(workers)] if workers > 1 else [])]
    arguments += ["--linger", str(linger)] if linger else []
    os.execv(sys.executable, [sys.executable, "-P", "-m", _MODULES[service], *arguments])  # noqa: S606
