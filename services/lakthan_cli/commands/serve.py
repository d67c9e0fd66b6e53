"""`lakthan serve`: become one of the services."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command()
@click.argument("service", type=click.Choice(["ocsp", "tsa"]))
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file.")
def serve(service: str, config: Path) -> None:
    """Run the OCSP responder or the time-stamp authority until SIGTERM."""
    # This process becomes the service, so that signals and exit codes are its own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", f"lakthan_{service}", "--config", str(config)])  # noqa: S606
