"""The demo's life: folder, PKI, database, services, ready; and all of it back in the reverse order.

Promises: whatever ends it (Ctrl-C, SIGTERM, a failure on the way, a service that dies), nothing that it started is
left running. After a `kill -9` the next start finds everything as it was recorded.

Refuses to know: the terminal. Progress goes to a function that it is given.

Trusted: `DATABASE_URL`, when given, is used for everything, as its owner.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan_cli.demo import folder, pki
from lakthan_cli.demo.addresses import Addresses, choose, differences
from lakthan_cli.demo.announcement import announcement
from lakthan_cli.demo.children import Child
from lakthan_cli.demo.configuration import probe_toml, services_toml
from lakthan_cli.demo.publication import PublicationPoint, serving
from lakthan_cli.demo.registration import register
from lakthan_cli.demo.tokens import ensure_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    Tell = Callable[[str], None]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOGINS = {
    "ocsp": "lakthan_responder",
    "tsa": "lakthan_tsa",
    "registry": "lakthan_registry",
    "publisher": ("lakthan_publisher", "lakthan_registrar", "lakthan_auditor"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. `ports`: those named on the command line, by service."""

    directory: Path
    host: str | None = None
    ports: Mapping[str, int | None] = field(default_factory=dict)
    database_url: str | None = None


@dataclass(frozen=True, slots=True)
class Database:
    """A running database. `services`: the URLs for their configuration, none when they are in `environment`."""

    owner: str
    registry: str
    publisher: str
    services: Mapping[str, str]
    environment: Mapping[str, str]
    server: EmbeddedPostgres | None

    async def ensure_logins(self) -> None:
        """The logins of the embedded server; somebody else's has its own."""
        if self.server is not None:
            await self.server.ensure_logins(_LOGINS)


def run(options: Options, tell: Tell, ready: Tell) -> None:
    """Run the demo until it is asked to stop. `tell` gets progress, `ready` the announcement, once.

    Raises `ConfigError` when it cannot start, `ChildEnded` when a service ends by itself.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with folder.locked(options.directory):
            addresses, demo_pki = _prepare(options, tell)
            with _database(options, tell) as database:
                try:
                    asyncio.run(
                        _serve(
                            directory=options.directory,
                            addresses=addresses,
                            demo_pki=demo_pki,
                            database=database,
                            tell=tell,
                            ready=ready,
                        )
                    )
                finally:
                    # Impatience must not turn an orderly stop of the database into a recovery at the next start.
                    for number in _SIGNALS:
                        signal.signal(number, signal.SIG_IGN)
    except (KeyboardInterrupt, asyncio.CancelledError):
        tell("stopped")


def _prepare(options: Options, tell: Tell) -> tuple[Addresses, pki.DemoPKI]:
    """Choose the addresses, and make, open or renew the PKI."""
    directory = options.directory
    certified = folder.read_addresses(directory) if pki.exists(directory) else None
    addresses = choose(options.host, options.ports, certified)
    now = datetime.now(UTC)
    if certified is None:
        tell(f"making the demo PKI in {directory / 'pki'}")
        folder.write_addresses(directory, addresses)
        return addresses, pki.make(directory, addresses.urls, now)
    for sentence in differences(certified, addresses):
        tell(f"note: {sentence}")
    demo_pki = pki.load(directory)
    for name in pki.renew(demo_pki, certified.urls, now):
        tell(f"renewed {directory / name}: it had run out, or was about to")
    return addresses, demo_pki


@contextmanager
def _database(options: Options, tell: Tell) -> Iterator[Database]:
    if options.database_url:
        tell("using the database that was given")
        # It may hold a password, which belongs into no file.
        environment = {"DATABASE_URL": options.database_url}
        yield Database(options.database_url, options.database_url, options.database_url, {}, environment, None)
        return
    tell("starting PostgreSQL")
    with EmbeddedPostgres(options.directory) as server:
        publisher = server.url("publisher")
        services = {"ocsp": server.url("ocsp"), "tsa": server.url("tsa"), "registry": publisher}
        yield Database(server.url(), server.url("registry"), publisher, services, {}, server)


async def _serve(
    *,
    directory: Path,
    addresses: Addresses,
    demo_pki: pki.DemoPKI,
    database: Database,
    tell: Tell,
    ready: Tell,
) -> None:
    _cancel_on_signals()
    async with AsyncExitStack() as stack:
        for revision in await migrate(database.owner):
            tell(f"database brought to revision {revision}")
        await database.ensure_logins()
        pool = await open_pool(
            database.registry, role="lakthan_registry", min_size=1, max_size=4, application_name="lakthan-demo"
        )
        stack.push_async_callback(pool.close)
        tell(f"{await register(pool, demo_pki)} new certificates on record")
        for name in await ensure_tokens(database.publisher, directory):
            tell(f"made a token for the registry: {directory / name}")
        publication = PublicationPoint(pool, demo_pki.authorities).application()
        await stack.enter_async_context(serving(publication, addresses.host, addresses.ports["publication"]))
        configuration = directory / "lakthan.toml"
        folder.write_text(configuration, services_toml(addresses, database.services))
        folder.write_text(directory / "probe.toml", probe_toml(addresses))
        pki.write_registry_chain(demo_pki)
        tell("starting the services")
        children = []
        for name in ("ocsp", "tsa", "registry"):
            arguments = [sys.executable, "-P", "-m", f"lakthan_{name}", "--config", str(configuration)]
            log = directory / "log" / f"{name}.log"
            child = await Child.start(name, arguments, log, database.environment)
            stack.push_async_callback(child.stop)
            children.append(child)
        await asyncio.gather(
            *(child.until_ready(addresses.url(f"{child.name}_admin") + "/readyz") for child in children)
        )
        shown = folder.Running(database.owner, database.registry) if database.server else folder.Running(None, None)
        stack.enter_context(folder.announced(directory, shown))
        ready(announcement(directory, addresses))
        raise await _first_to_end(children)


async def _first_to_end(children: list[Child]) -> Exception:
    """Wait for a child to end, which none should. Gives the error that says how it did."""
    waits = {asyncio.create_task(child.process.wait()): child for child in children}
    ended, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    return waits[ended.pop()].ended()


def _cancel_on_signals() -> None:
    """Let the first SIGINT or SIGTERM cancel this task; the later ones must not cut its cleaning up short."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        if task is not None and not task.cancelling():
            task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, cancel)
