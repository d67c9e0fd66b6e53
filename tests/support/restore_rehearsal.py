"""`./run restore-rehearsal`: the database is lost twice under load, and brought back twice.

Three real services on a real PostgreSQL whose log is archived; a CA that pushes revocations, signers, relying parties.
A backup is made while all of them work. Then:

1. every process of the server is killed and its folder removed; the restore goes to the end of the archived log.
   Nothing that was acknowledged may be missing.
2. the same, and the restore goes to an earlier instant, as after a wrong import or with an archive that ends there.
   What was acknowledged after that instant is lost, and the operators' commands must find all of it: the audit chain
   does not hold against its noted head, the CA's CRL says what the database does not, and a responder that lived
   through it says nothing about what it had been told was revoked. The CRL is imported, and all is as before.

No serial number of a token may come twice in all three lives of the database. docs/disaster-recovery.md is the text to
this play.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import asyncpg
import uvloop
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table

from lakthan.store.migrate import migrate
from lakthan_cli.__main__ import main as lakthan
from support.archived_postgres import ArchivedPostgres
from support.estate import AUTHORITY, LOGINS, Estate
from support.estate_clients import Clients, said
from support.service_process import ServiceProcess

SURVIVOR, FRESH = "responder that lived on", "responder started after"
# Month, epoch and counter of a serial number; what follows is random.
_COUNTED_OCTETS = 10

Tell = Callable[[str], None]


@dataclass
class Restored:
    """What there was before a disaster, and what the restored database has of it. `until`: None is the end of the log.

    `lost_…`: acknowledged and not there any more; `lost_early`: of these, acknowledged before `until`. `unheard`: in
    the database although nobody was told (the acknowledgement was under way). `checks`: what the operators' commands
    said.
    """

    name: str
    until: datetime | None
    seconds: float = 0.0
    revocations: int = 0
    tokens: int = 0
    lost_revocations: list[int] = field(default_factory=list)
    lost_tokens: list[bytes] = field(default_factory=list)
    lost_early: list[str] = field(default_factory=list)
    unheard: tuple[int, int] = (0, 0)
    checks: dict[str, str] = field(default_factory=dict)
    heard: dict[str, collections.Counter[str]] = field(default_factory=dict)


@dataclass
class Outcome:
    """The whole rehearsal. `faults`: what should not be; none when all is well."""

    restored: list[Restored] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    tokens: int = 0
    epochs: int = 0
    repeated: int = 0
    counted_twice: int = 0
    archived_segments: int = 0
    seconds: float = 0.0

    def demand(self, fine: object, fault: str) -> None:
        """Take down a fault unless it is fine."""
        if not fine:
            self.faults.append(fault)


class Rehearsal:
    """One rehearsal in `folder`. `size`: so many revocations, and ten times as many tokens, between two events."""

    def __init__(self, folder: Path, size: int, tell: Tell) -> None:
        self._postgres = ArchivedPostgres(folder)
        self._estate = Estate(folder, self._postgres.server.url)
        self._size = size
        self._tell = tell
        self._noted = folder / "heads.txt"
        self._survivor = self._estate.process("ocsp")
        self._registry = self._estate.process("registry")
        self._tsa = self._estate.process("tsa")
        self._fresh: ServiceProcess | None = None
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        """Do it all."""
        began = time.monotonic()
        try:
            await self._open()
            async with self._estate.at_work(
                registry=self._registry,
                tsa=[self._tsa],
                responders={SURVIVOR: self._survivor},
                below=self._postgres.demand_life,
            ) as clients:
                await self._play(clients)
            self._count()
        finally:
            for process in (self._survivor, self._registry, self._tsa, self._fresh):
                if process is not None:
                    process.kill()
            await asyncio.to_thread(self._postgres.close)
        self._outcome.seconds = time.monotonic() - began
        return self._outcome

    async def _open(self) -> None:
        self._tell("making the estate")
        await asyncio.to_thread(self._postgres.make)
        await migrate(self._postgres.server.url())
        await self._postgres.server.ensure_logins(LOGINS)
        # Some certificates stay good to the end.
        await self._estate.fill(self._postgres.server.url(), 8 * self._size)
        await asyncio.to_thread(self._postgres.begin_archiving)
        await self._postgres.until_archiving()
        self._survivor.start()
        await self._start_writers()
        await self._survivor.until_serving()

    async def _start_writers(self) -> None:
        for process in (self._registry, self._tsa):
            process.start()
        for process in (self._registry, self._tsa):
            await process.until_serving()

    async def _work(self, clients: Clients) -> None:
        await clients.until(revoked=self._size, tokens=10 * self._size, heard=self._size)

    async def _play(self, clients: Clients) -> None:
        self._tell("at work")
        await self._work(clients)
        self._tell("backup, while all work")
        clients.allow(self._size)
        await asyncio.to_thread(self._postgres.back_up)
        await self._work(clients)

        await self._note_heads()
        clients.allow(self._size)
        await self._strike(Restored("to the end of the log", None))
        self._tell("at work on the restored database")
        await self._start_writers()
        await self._work(clients)

        until = datetime.now(UTC)
        await self._work(clients)
        await self._note_heads()
        await self._strike(Restored("to an earlier instant", until))
        await self._find_what_was_lost()
        await self._repair()
        await self._start_writers()
        await self._work(clients)
        self._tell("the last checks")
        last = self._outcome.restored[-1]
        code, words = await self._lakthan("audit", "verify")
        self._outcome.demand(code == 0, f"the audit chain does not hold in the end: {words}")
        last.checks["lakthan audit verify, in the end"] = words.splitlines()[-1]

    async def _strike(self, restored: Restored) -> None:
        """Kill it all, remove the data, restore, and compare with the clients' books. Who writes stays away so far."""
        self._tell(f"disaster, and restore {restored.name}")
        await asyncio.to_thread(self._postgres.disaster)
        self._registry.kill()
        self._tsa.kill()
        books = self._estate.books
        restored.seconds = await asyncio.to_thread(self._postgres.restore, restored.until)
        await self._postgres.until_archiving()
        on_record, records = await self._read()
        restored.revocations, restored.tokens = len(books.revoked), len(books.tokens.granted)
        restored.lost_revocations = sorted(books.revoked.keys() - on_record)
        restored.lost_tokens = sorted(
            number for number, (digest, _) in books.tokens.granted.items() if records.get(number) != digest
        )
        restored.unheard = (len(on_record - books.revoked.keys()), len(records.keys() - books.tokens.granted.keys()))
        for number in restored.lost_revocations:
            if restored.until is None or books.revoked[number] < restored.until:
                restored.lost_early.append(f"the revocation of {number:X}")
        for token in restored.lost_tokens:
            if restored.until is None or books.tokens.received[token] < restored.until:
                restored.lost_early.append(f"the token {token.hex()}")
        self._outcome.restored.append(restored)
        self._outcome.demand(not restored.lost_early, f"restored {restored.name}, lost: {restored.lost_early[:5]}")
        code, words = await self._lakthan("audit", "verify", "--noted", self._noted)
        restored.checks["lakthan audit verify --noted"] = _line(words, "was noted", "record")
        if restored.until is None:
            self._outcome.demand(code == 0, f"the audit chain does not hold after the restore: {words}")
        else:
            self._outcome.demand(code == 3, f"nobody noticed that the audit chain lost its end: {words}")
            self._outcome.demand(restored.lost_revocations, "nothing was lost, so nothing is proven about losses")
            self._outcome.demand(restored.lost_tokens, "no token was lost, so nothing is proven about lost tokens")
            code, words = await self._lakthan("audit", "verify")
            self._outcome.demand(code == 0, f"the audit chain that is left does not hold: {words}")
            restored.checks["lakthan audit verify"] = words.splitlines()[-1]

    async def _find_what_was_lost(self) -> None:
        """Before anybody may write again: what do the CRL, the old responder and a new one say?"""
        last = self._outcome.restored[-1]
        crl = self._estate.crl()
        _, words = await self._lakthan("monitor", AUTHORITY, "--once", "--crl", crl, "--json")
        found = {
            int(each["serial_number"], 16)
            for each in json.loads(words)["authorities"][0]["differences"]
            if each["kind"] == "not_revoked"
        }
        self._outcome.demand(
            found == set(last.lost_revocations),
            f"the CRL names {len(found)} certificates, and {len(last.lost_revocations)} revocations are lost",
        )
        last.checks["lakthan monitor --crl"] = f"{len(found)} are on the CRL and not revoked here"
        self._fresh = self._estate.process("ocsp")
        self._fresh.start()
        await self._fresh.until_serving()
        last.heard = await self._ask_about(last.lost_revocations, {SURVIVOR: self._survivor, FRESH: self._fresh})
        survivor, fresh = last.heard[SURVIVOR], last.heard[FRESH]
        self._outcome.demand(
            not survivor["good"] and survivor["try_later"] == len(last.lost_revocations),
            f"a responder that had been told of the revocations says {dict(survivor)}",
        )
        # The danger that the operators' checklist is about: who has never been told cannot know better.
        self._outcome.demand(fresh["good"] == len(last.lost_revocations), f"a new responder says {dict(fresh)}")

    async def _repair(self) -> None:
        self._tell("the CA's CRL is imported")
        last = self._outcome.restored[-1]
        code, words = await self._lakthan("crl", "import", "--authority", AUTHORITY, self._estate.crl(2))
        self._outcome.demand(code == 0, f"the CRL is not imported: {words}")
        responders = {SURVIVOR: self._survivor, FRESH: self._fresh} if self._fresh is not None else {}
        deadline = time.monotonic() + 30
        while True:
            heard = await self._ask_about(sorted(self._estate.books.revoked), responders)
            if all(words == {"revoked": len(self._estate.books.revoked)} for words in heard.values()):
                break
            if time.monotonic() > deadline:
                self._outcome.faults.append(f"after the import the responders say {heard}")
                break
        _, words = await self._lakthan("monitor", AUTHORITY, "--once", "--crl", self._estate.crl(3), "--json")
        left = json.loads(words)["authorities"][0]["differences"]
        self._outcome.demand(
            not [each for each in left if each["kind"] == "not_revoked"], f"the CRL still names more: {left[:3]}"
        )
        last.checks["after lakthan crl import"] = f"every responder: {len(self._estate.books.revoked)} revoked"

    async def _ask_about(
        self, serial_numbers: list[int], responders: dict[str, ServiceProcess]
    ) -> dict[str, collections.Counter[str]]:
        heard: dict[str, collections.Counter[str]] = {}
        async with aiohttp.ClientSession() as session:
            for name, responder in responders.items():
                heard[name] = collections.Counter()
                for serial_number in serial_numbers:
                    url = f"http://127.0.0.1:{responder.port}"
                    async with session.post(url, data=self._estate.question(serial_number)) as reply:
                        heard[name][said(await reply.read())] += 1
        return heard

    async def _note_heads(self) -> None:
        """What an operator has done every hour, and keeps elsewhere."""
        code, words = await self._lakthan("audit", "head")
        assert code == 0, words
        self._noted.write_text(words)

    async def _lakthan(self, *arguments: object) -> tuple[int, str]:
        """`lakthan …` as operators type it, but without a new process each time; the exit code, and what it says."""
        environment = {"DATABASE_URL": self._postgres.server.url()}
        words = [str(each) for each in arguments]
        result = await asyncio.to_thread(CliRunner().invoke, lakthan, words, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output.strip()

    async def _read(self) -> tuple[set[int], dict[bytes, bytes]]:
        connection = await asyncpg.connect(self._postgres.server.url())
        try:
            revoked = await connection.fetch(
                "SELECT serial_number FROM certificate_status WHERE cert_status = 'revoked'"
            )
            tokens = await connection.fetch("SELECT serial_number, token_sha256 FROM timestamp_token")
        finally:
            await connection.close()
        records = {row["serial_number"]: row["token_sha256"] for row in tokens}
        assert len(records) == len(tokens), "the token log itself has a serial number twice"
        return {int.from_bytes(row[0], "big") for row in revoked}, records

    def _count(self) -> None:
        outcome, tokens = self._outcome, self._estate.books.tokens
        outcome.tokens = len(tokens.granted)
        outcome.repeated = len(tokens.twice)
        outcome.epochs = len({number[2:6] for number in tokens.granted})
        counted = collections.Counter(number[:_COUNTED_OCTETS] for number in tokens.granted)
        outcome.counted_twice = sum(times for times in counted.values() if times > 1)
        outcome.archived_segments = self._postgres.archived_segments
        outcome.demand(not tokens.twice, f"a serial number came twice: {[each.hex() for each in tokens.twice[:5]]}")
        outcome.demand(not tokens.wrong, f"a wrong reply of the TSA: {tokens.wrong[:5]}")
        outcome.demand(not self._estate.books.wrong, f"a good after a revocation: {self._estate.books.wrong[:5]}")


def _line(words: str, *wanted: str) -> str:
    """The first line with all of these in it, else the last one."""
    lines = words.splitlines() or [""]
    return next((line for line in lines if all(each in line for each in wanted)), lines[-1])


def show(outcome: Outcome, console: Console) -> None:
    """Print what was seen."""
    table = Table(title="what was acknowledged before the disaster, and what the restored database has of it")
    for column in ("restore", "what", "before", "after", "lost", "of these before the instant", "nobody was told of"):
        table.add_column(column, justify="left" if column in ("restore", "what") else "right")
    for each in outcome.restored:
        for what, before, lost, unheard in (
            ("revocations", each.revocations, len(each.lost_revocations), each.unheard[0]),
            ("tokens", each.tokens, len(each.lost_tokens), each.unheard[1]),
        ):
            early = sum(what.startswith(word.split()[1]) for word in each.lost_early)
            name = f"{each.name} ({each.seconds:.1f} s)" if what == "revocations" else ""
            table.add_row(name, what, *(f"{number:,}" for number in (before, before - lost, lost, early, unheard)))
    console.print(table)
    table = Table("restore", "asked", "says")
    for each in outcome.restored:
        for name, words in each.checks.items():
            table.add_row(each.name, name, words)
        for name, counts in each.heard.items():
            words = ", ".join(f"{times} {word}" for word, times in counts.most_common())
            table.add_row(each.name, f"{name}, about what was lost", words)
    console.print(table)
    console.print(
        f"{outcome.tokens:,} tokens in {outcome.epochs} epochs, {outcome.repeated} serial numbers twice; "
        f"{outcome.counted_twice} share epoch and counter with another; "
        f"{outcome.archived_segments} segments archived; {outcome.seconds:.0f} s"
    )
    for fault in outcome.faults:
        console.print(f"FAULT {fault}", style="red", markup=False, highlight=False)


async def rehearse(folder: Path, size: int, tell: Tell = lambda _: None) -> Outcome:
    """A whole rehearsal."""
    return await Rehearsal(folder, size, tell).run()


def main() -> int:
    """Read the command line and rehearse."""
    parser = argparse.ArgumentParser(prog="./run restore-rehearsal", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=100, help="revocations between two events (default 100)")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    with tempfile.TemporaryDirectory() as folder:
        outcome = uvloop.run(rehearse(Path(folder), arguments.size, lambda what: console.print(f"… {what}")))
    show(outcome, console)
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
