"""`lakthan serve`: become one of the services."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


@click.command()
@click.argument("service", type=click.Choice(["ocsp", "tsa", "registry"]))
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes that share the port."
)
def serve(service: str, config: Path, workers: int) -> None:
    """Run the OCSP responder, the time-stamp authority or the registry until SIGTERM."""
    # This process becomes the service, so that signals and exit codes are its own.
    arguments = ["--config", str(config), *(["--workers", str(workers)] if workers > 1 else [])]
    os.execv(sys.executable, [sys.executable, "-P", "-m", f"lakthan_{service}", *arguments])  # noqa: S606
