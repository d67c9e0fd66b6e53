"""`lakthan publish`: the published answers as files that a web server gives out."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lakthan.config import load
from lakthan.errors import ConfigError
from lakthan.store.answer_files import AnswerReader
from lakthan.store.pool import open_pool
from lakthan.store.presigned import Presigned
from lakthan.store.status import AuthorityReader
from lakthan_cli import progress
from lakthan_cli.commands.database import DatabaseOptions, database_options, registry
from lakthan_ocsp.publisher.static import Folder, StaticAnswers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg


@click.command()
@click.option(
    "--static",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    required=True,
    help="The folder that the web server gives out; it is made if need be.",
)
@click.option(
    "--authority", "names", metavar="NAME", multiple=True, help="Of this one only. May be given several times."
)
@click.option("--follow", is_flag=True, help="Go on until SIGTERM: a change is in the folder within a second.")
@click.option(
    "--every",
    "every_seconds",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="With --follow: how often everything is compared.",
)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the database of [ocsp] in this file, with the rights of a responder.",
)
@database_options
def publish(
    *,
    folder: Path,
    names: tuple[str, ...],
    follow: bool,
    every_seconds: float,
    config: Path | None,
    directory: Path | None,
    url: str | None,
) -> None:
    """Write the published answers as files, each at the path that a GET for it has.

    Files of answers that no longer hold go; other files in the folder stay. An answer is there as it was signed, so the
    web server needs neither key nor database.
    """
    options = DatabaseOptions(directory, url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(_publish(folder, names, every_seconds if follow else None, config, options))
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


async def _publish(
    root: Path, names: tuple[str, ...], every_seconds: float | None, config: Path | None, options: DatabaseOptions
) -> None:
    async with _pool(config, options) as pool:
        folder = Folder(root)
        answers = StaticAnswers(folder, AuthorityReader(pool), AnswerReader(pool), Presigned(pool), names)
        found = await answers.load()
        missing = set(names) - {authority.name for authority in found}
        if missing:
            raise ConfigError(f"there is no authority {', '.join(sorted(missing))}")
        folder.write_refusal()
        with progress.counted("answers", await answers.count()) as bar:
            await answers.everything(bar.advance)
        tally = folder.tally
        said = f"{tally.written:,} answers written, {tally.removed:,} removed, {tally.unchanged:,} as they were"
        click.echo(f"{root}: {said}")
        if every_seconds is not None:
            stop = asyncio.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await answers.follow(every_seconds, stop)
            click.echo(f"{root}: {tally.written:,} answers written and {tally.removed:,} removed until now")


@asynccontextmanager
async def _pool(config: Path | None, options: DatabaseOptions) -> AsyncIterator[asyncpg.Pool]:
    if config is None:
        async with registry(options) as pool:
            yield pool
        return
    settings = load(config).ocsp
    if settings is None:
        raise ConfigError(f"{config} has no [ocsp] table")
    pool = await open_pool(
        settings.database.url,
        role="lakthan_responder",
        min_size=1,
        max_size=1,
        password=settings.database.password(),
        application_name="lakthan-publish",
    )
    try:
        yield pool
    finally:
        await pool.close()
