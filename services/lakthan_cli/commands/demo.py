"""`lakthan demo`: progress goes to standard error, what scripts wait for to standard output."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from lakthan_cli.demo.runner import Options, run


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="The demo's folder. It is made at the first start and used again later.",
)
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--ocsp-port", type=click.IntRange(1, 65535), help="[default: 6960, or a free one when taken]")
@click.option("--tsa-port", type=click.IntRange(1, 65535), help="[default: 3161, or a free one when taken]")
@click.option("--registry-port", type=click.IntRange(1, 65535), help="[default: 8443, or a free one when taken]")
@click.option(
    "--database",
    envvar="DATABASE_URL",
    show_envvar=True,
    help="The URL of a PostgreSQL database of your own, as its owner. Without it the demo runs one.",
)
def demo(
    *,
    directory: Path,
    host: str | None,
    ocsp_port: int | None,
    tsa_port: int | None,
    registry_port: int | None,
    database: str | None,
) -> None:
    """Run a whole national PKI on this machine: CAs, OCSP responder, time-stamp authority, registry.

    When everything answers, a line that begins with "lakthan demo ready" is printed, and commands to try. Ctrl-C stops
    everything; what was recorded stays in the folder.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    options = Options(
        directory, host, {"ocsp": ocsp_port, "tsa": tsa_port, "registry": registry_port}, database or None
    )
    with console.status("starting …") as spinner:

        def tell(text: str) -> None:
            console.print(f"[dim]lakthan demo: {escape(text)}[/dim]")

        def ready(text: str) -> None:
            spinner.stop()
            click.echo(text)

        run(options, tell, ready)
