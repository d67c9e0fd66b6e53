"""`./run upgrade-check`: the release before this one on the new schema, and this one on the old.

The previous release (tests/deploy/previous_release) is checked out beside this checkout and makes its own schema. Its
three services and their clients are at work while everything of an upgrade happens, in the order of docs/upgrading.md:

1. this release's services start too early, on the old schema: they wait, say what to run, and take no traffic;
2. this release's `lakthan db migrate` brings the schema up while the old services work;
3. the waiting services begin by themselves; old and new ones serve side by side, whichever registry a CA pushes to;
4. back: the old services, started anew, run on the new schema and on what the new ones wrote there.

The clients count everything that is not as it was: no answer may fail and no revocation may be missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from lakthan.store.audit_verify import verify
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate, status
from lakthan.store.pool import open_pool
from lakthan.store.schema import revisions
from support.estate import LOGINS, MODULES, Estate
from support.estate_clients import Clients
from support.service_process import ServiceProcess

CHECKOUT = Path(__file__).parents[2]
NAMED_IN = CHECKOUT / "tests" / "deploy" / "previous_release"
OLD, NEW = "previous release", "this release"
_BUILD_SECONDS = 600.0

Tell = Callable[[str], None]


@dataclass
class Outcome:
    """What was seen: a row for each code, schema and step, with what came of it; and `faults`, what should not be."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, code: str, schema: str, step: str, result: str) -> None:
        """A row of the table."""
        self.rows.append((code, schema, step, result))

    def demand(self, fine: object, fault: str) -> None:
        """Take down a fault unless it is fine."""
        if not fine:
            self.faults.append(fault)


def previous_release() -> str:
    """The commit or tag of the release before this one."""
    [name] = [line for line in NAMED_IN.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return name.strip()


def check_out(release: str, folder: Path) -> Path:
    """The files of a release in `folder`. Raises `RuntimeError` with what to do when this clone does not have them."""
    found = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "--verify", "--quiet", f"{release}^{{commit}}"],
        check=False,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise RuntimeError(
            f"the previous release {release} is not in this clone: fetch the whole history with "
            f"`git fetch --unshallow --tags`, or name another one in {NAMED_IN.relative_to(CHECKOUT)}"
        )
    folder.mkdir()
    files = ("run", "uv.lock", "pyproject.toml", "shared", "services")
    command = ["git", "-C", str(CHECKOUT), "archive", found.stdout.strip(), *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "-C", str(folder)], check=True, stdin=archive.stdout)
    if archive.returncode:
        raise RuntimeError(f"git cannot give the files of {release}")
    return folder


def environment_of(code: Path) -> Path:
    """The Python that has what a checkout needs: this one when both need the same, else one that its `run` builds."""

    def needs(checkout: Path) -> str:
        command = [sys.executable, str(checkout / "run"), "requirements"]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout).stdout

    if needs(code) == needs(CHECKOUT):
        return Path(sys.executable)
    built = code / ".environments"
    subprocess.run(
        [sys.executable, str(code / "run"), "lakthan", "--help"],
        check=True,
        capture_output=True,
        cwd=code,
        env={**os.environ, "LAKTHAN_RUN_DIR": str(built)},
        timeout=_BUILD_SECONDS,
    )
    [python] = built.glob("runtime-*/bin/python")
    return python


@dataclass
class Services:
    """The three services of one release."""

    ocsp: ServiceProcess
    tsa: ServiceProcess
    registry: ServiceProcess

    def __iter__(self) -> Iterator[ServiceProcess]:
        return iter((self.ocsp, self.tsa, self.registry))

    def start(self) -> None:
        """All of them."""
        for each in self:
            each.start()

    async def until_serving(self) -> None:
        """Until all of them do."""
        for each in self:
            await each.until_serving()


class Check:
    """One check in `folder`. `size`: so many revocations, and some tokens and answers, in each step."""

    def __init__(self, folder: Path, size: int, tell: Tell) -> None:
        self._folder = folder
        self._size = size
        self._tell = tell
        self.outcome = Outcome()
        self._postgres = EmbeddedPostgres(folder / "database", durable=False)
        self._code = folder / "previous"
        self._estate = Estate(folder, self._postgres.url)
        self._all: list[ServiceProcess] = []

    async def run(self) -> Outcome:
        """Do it all."""
        began = time.monotonic()
        release = previous_release()
        self._tell(f"checking out the previous release, {release}")
        await asyncio.to_thread(check_out, release, self._code)
        self._python = await asyncio.to_thread(environment_of, self._code)
        self._old_head = revisions(self._code / "shared" / "lakthan" / "store" / "migrations" / "versions")[-1]
        self._new_head = revisions()[-1]
        try:
            await asyncio.to_thread(self._postgres.start)
            await self._upgrade()
        finally:
            for process in self._all:
                process.kill()
            await asyncio.to_thread(self._postgres.stop)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _services(self, *, old: bool) -> Services:
        code, python = (self._code, self._python) if old else (None, None)
        made = Services(*(self._estate.process(name, code=code, python=python) for name in MODULES))
        self._all += made
        return made

    async def _upgrade(self) -> None:
        self._tell(f"the old schema, revision {self._old_head}")
        await self._old_command("db", "migrate", "--database", self._postgres.url())
        made = (await status(self._postgres.url())).current
        self.outcome.demand(made == self._old_head, f"the previous release made revision {made} of the schema")
        await self._postgres.ensure_logins(LOGINS)
        await self._estate.fill(self._postgres.url(), 8 * self._size)
        old, new = self._services(old=True), self._services(old=False)
        old.start()
        await old.until_serving()
        async with self._estate.at_work(
            registry=old.registry, tsa=[old.tsa, new.tsa], responders={OLD: old.ocsp}
        ) as clients:
            clients.served = True
            with self._step(OLD, self._old_head, "answers, stamps, hears what is pushed"):
                await self._work(clients)
            await self._too_early(new)
            await self._migrate(clients)
            with self._step(OLD, self._new_head, "goes on, not started anew"):
                await self._work(clients)
            with self._step(NEW, self._new_head, "begins by itself when the schema is there"):
                await new.until_serving()
                clients.responders[NEW] = new.ocsp
                await self._work(clients)
            clients.registry = new.registry
            with self._step(f"{OLD}, and {NEW}", self._new_head, "side by side; CAs push to the new registry"):
                await self._work(clients)
            await self._back(clients, old)
        await self._judge()

    async def _too_early(self, new: Services) -> None:
        """What this release does on the old schema."""
        self._tell("this release's services start before the migration")
        new.start()
        async with aiohttp.ClientSession() as session:
            for service, process in zip(MODULES, new, strict=True):
                said = await process.until_event('"waiting"')
                admin = f"http://127.0.0.1:{said['admin_port']}"
                async with session.get(f"{admin}/livez") as reply:
                    self.outcome.demand(reply.status == 200, f"{service} waits for the schema and is not alive")
                async with session.get(f"{admin}/readyz") as reply:
                    text = await reply.text()
                    self.outcome.demand(reply.status == 503, f"{service} is ready on a schema that is too old")
                self.outcome.demand("lakthan db migrate" in text, f"{service} does not say what to run: {text}")
                self.outcome.demand(not process.serves(), f"{service} serves on a schema that is too old")
                self.outcome.note(
                    NEW, self._old_head, f"{service} starts too early", "alive, not ready; " + text.strip()
                )

    async def _migrate(self, clients: Clients) -> None:
        with self._step(OLD, f"{self._old_head} → {self._new_head}", "at work while the new release migrates") as step:
            migrating = asyncio.create_task(migrate(self._postgres.url()))
            await self._work(clients)
            applied = await migrating
            step.append(f"applied {', '.join(applied)}")

    async def _back(self, clients: Clients, old: Services) -> None:
        """The new release was a mistake: its predecessor comes back."""
        clients.registry = None
        del clients.responders[OLD]
        for process in old:
            code = await asyncio.to_thread(process.stop)
            self.outcome.demand(code == 0, f"{process.module} of the previous release ended with {code}")
        old.start()
        with self._step(OLD, self._new_head, "started anew there: the way back"):
            await old.until_serving()
            clients.responders[OLD] = old.ocsp
            clients.registry = old.registry
            await self._work(clients)

    async def _work(self, clients: Clients) -> None:
        await clients.until(revoked=self._size, tokens=10 * self._size, heard=4 * self._size)

    @contextmanager
    def _step(self, code: str, schema: str, step: str) -> Iterator[list[str]]:
        """Whatever fails until the end of the block is a fault of this step."""
        self._tell(f"{code} on {schema}: {step}")
        books = self._estate.books
        failed = {name: counts.copy() for name, counts in books.refused.items()}
        wrong, tokens_wrong = len(books.wrong), len(books.tokens.wrong)
        not_granted = books.tokens.refused.copy()
        revoked, granted = len(books.revoked), len(books.tokens.granted)
        heard = {name: counts.total() for name, counts in books.heard.items()}
        books.slowest.clear()
        words: list[str] = []
        yield words
        for name, counts in books.refused.items():
            more = counts - failed.get(name, type(counts)())
            self.outcome.demand(not more, f"{code} on {schema}, {step}: {name} said {dict(more)}")
        # A TSA that waits for its schema, or is being started, is not there, as a load balancer knows.
        refused = books.tokens.refused - not_granted
        del refused["(nobody there)"]
        self.outcome.demand(not refused, f"{code} on {schema}, {step}: a TSA said {dict(refused)}")
        self.outcome.demand(len(books.wrong) == wrong, f"{code} on {schema}, {step}: {books.wrong[wrong:][:3]}")
        self.outcome.demand(len(books.tokens.wrong) == tokens_wrong, f"{step}: {books.tokens.wrong[tokens_wrong:][:3]}")
        answers = sum(counts.total() for counts in books.heard.values()) - sum(heard.values())
        revoked, granted = len(books.revoked) - revoked, len(books.tokens.granted) - granted
        slowest = 1000 * max(books.slowest.values(), default=0)
        result = f"{answers} answers (slowest {slowest:.0f} ms), {revoked} revocations, {granted} tokens"
        self.outcome.note(code, schema, step, "; ".join([result, *words]))

    async def _judge(self) -> None:
        books = self._estate.books
        told = dict(books.served)
        self.outcome.demand(books.served["acknowledged"], f"no revocation was acknowledged by all responders: {told}")
        self.outcome.demand(not books.tokens.twice, "a serial number of a token came twice")
        for process in self._all:
            complaints = process.complaints()
            self.outcome.demand(not complaints, f"{process.module} logged: {complaints[:3]}")
        pool = await open_pool(
            self._postgres.url(), role="lakthan_registry", min_size=1, max_size=1, application_name="test"
        )
        try:
            report = await verify(pool)
            tokens = await pool.fetch("SELECT serial_number FROM timestamp_token")
            revoked = await pool.fetch("SELECT serial_number FROM certificate_status WHERE cert_status = 'revoked'")
        finally:
            await pool.close()
        self.outcome.demand(not report.findings, f"the audit chain does not hold: {report.findings[:3]}")
        lost = books.tokens.granted.keys() - {row[0] for row in tokens}
        self.outcome.demand(not lost, f"{len(lost)} granted tokens are not on record")
        forgotten = books.revoked.keys() - {int.from_bytes(row[0], "big") for row in revoked}
        self.outcome.demand(not forgotten, f"{len(forgotten)} acknowledged revocations are not on record")
        self.outcome.note(
            f"{OLD}, {NEW}",
            self._new_head,
            "what all of them wrote",
            f"{report.records} audit records, all of them hold",
        )

    async def _old_command(self, *arguments: str) -> None:
        """`lakthan …` of the previous release."""
        paths = os.pathsep.join([str(self._code / "shared"), str(self._code / "services")])
        process = await asyncio.create_subprocess_exec(
            str(self._python),
            "-P",
            "-m",
            "lakthan_cli",
            *arguments,
            env={**os.environ, "PYTHONPATH": paths},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        words, _ = await process.communicate()
        assert process.returncode == 0, words.decode()


def show(outcome: Outcome, console: Console) -> None:
    """Print what was seen."""
    table = Table("code", "schema", "step", "result", title="version × schema")
    for row in outcome.rows:
        table.add_row(*row)
    console.print(table)
    for fault in outcome.faults:
        console.print(f"FAULT {fault}", style="red", markup=False, highlight=False)


async def check(folder: Path, size: int, tell: Tell = lambda _: None) -> Outcome:
    """A whole check."""
    return await Check(folder, size, tell).run()


def main() -> int:
    """Read the command line and check."""
    parser = argparse.ArgumentParser(prog="./run upgrade-check", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=50, help="revocations in each step (default 50)")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    with tempfile.TemporaryDirectory() as folder:
        outcome = uvloop.run(check(Path(folder), arguments.size, lambda what: console.print(f"… {what}")))
    show(outcome, console)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
