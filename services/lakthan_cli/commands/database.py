"""Which database a command works on, and who is recorded as the one who did it.

The first of these that is given: `--database`, `--dir`, the environment's DATABASE_URL, the demo in `./demo`.
"""

from __future__ import annotations

import os
import pwd
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakthan.errors import ConfigError
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.pool import open_pool
from lakthan_cli.demo import folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import asyncpg


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """What the user said about the database."""

    directory: Path | None
    url: str | None

    def given_url(self) -> str | None:
        """The URL of a database that is not a demo's own, if that is meant."""
        return self.url or (None if self.directory else os.environ.get("DATABASE_URL") or None)

    def demo_directory(self) -> Path:
        """The demo that is meant when there is no URL."""
        return self.directory or Path("demo")


def database_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--dir` and `--database` to a command; they arrive as `directory` and `url`."""
    for option in (
        click.option("--database", "url", help="A database URL.  [default: the environment's DATABASE_URL]"),
        click.option(
            "--dir",
            "directory",
            type=click.Path(file_okay=False, path_type=Path),
            help="The folder of a demo.  [default: ./demo]",
        ),
    ):
        function = option(function)
    return function


@asynccontextmanager
async def registry(options: DatabaseOptions) -> AsyncIterator[asyncpg.Pool]:
    """A pool that acts as the registry. Raises `ConfigError` when no demo runs in the folder, `StoreUnavailable`."""
    url = options.given_url()
    if url is None:
        directory = options.demo_directory()
        running = folder.read_running(directory)
        if running is None:
            raise ConfigError(
                f"no demo is running in {directory}: start it with `lakthan demo --dir {directory}`, "
                "or name a demo with --dir or a database with --database"
            )
        url = running.registry
        if url is None:
            raise ConfigError(f"the demo in {directory} uses a DATABASE_URL: give the same one with --database")
    pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=1, application_name="lakthan-cli")
    try:
        yield pool
    finally:
        await pool.close()


@contextmanager
def owner_url(options: DatabaseOptions) -> Iterator[str]:
    """The URL of the database's owner. A demo's PostgreSQL that is not running is started for as long as this lasts.

    Raises `ConfigError`.
    """
    url = options.given_url()
    if url is not None:
        yield url
        return
    directory = options.demo_directory()
    running = folder.read_running(directory)
    if running is None:
        if not (directory / "postgres").is_dir():
            raise ConfigError(f"there is no demo in {directory}: name one with --dir, or a database with --database")
        with folder.locked(directory), EmbeddedPostgres(directory) as server:
            yield server.url()
    elif running.owner is None:
        raise ConfigError(f"the demo in {directory} uses a DATABASE_URL: give the same one with --database")
    else:
        yield running.owner


def actor() -> str:
    """Who does this, for the record. From the user id: the environment's word is anybody's."""
    number = os.getuid()
    try:
        return f"cli:{pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"cli:uid {number}"
