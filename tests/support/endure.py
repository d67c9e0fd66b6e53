"""`./run endure`: two hundred thousand tokens while everything below them is killed, restarted and restored.

Real TSA processes on a real, durable PostgreSQL; clients that keep asking both of them and write down every serial
number they are granted; faults at known places of the run, yesterday's backup put back among them. In the end every
token in a client's hand must be on record as it is, and no serial number may have come twice, in all lives and on both
time lines of the database. `--seconds` is a load run: full speed, then an immediate shutdown of PostgreSQL.

What decides between two equal epochs and counters after a restore is the random part of the serial number alone. A run
in which that never happened would prove nothing, so it counts as a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from support.endure_clients import Crew, Ledger
from support.endure_machine import Machine

STALL_SECONDS = 120.0
_DEFECT = "a defect: a request was answered with systemFailure"
# Two octets of month, four of epoch, four of counter (lakthan_tsa.serials); what follows is random.
_COUNTED_OCTETS = 10


@dataclass(frozen=True)
class Fault:
    """`strike` breaks, `mend` repairs; after it each of `workers` (None: all) must grant again. `new_era`: the records
    from here on are those of another backup or time line.
    """

    name: str
    strike: Callable[[Machine], None]
    mend: Callable[[Machine], None]
    workers: tuple[int, ...] | None = None
    new_era: bool = False


def kill_worker(number: int) -> Fault:
    """SIGKILL for one worker, which is then started again."""
    return Fault(
        f"kill −9 of worker {number + 1}",
        lambda machine: machine.kill_worker(number),
        lambda machine: machine.start_workers((number,)),
        (number,),
    )


BACKUP = Fault("backup (orderly stop, copy)", Machine.stop_database, Machine.start_database, new_era=True)
KILL_DATABASE = Fault("kill −9 of PostgreSQL", Machine.kill_database, Machine.start_database)
IMMEDIATE = Fault("PostgreSQL immediate", Machine.quit_database, Machine.start_database)
RESTORE = Fault("restore of the backup", Machine.kill_database, Machine.restore, new_era=True)
KILL_ALL = Fault("kill −9 of everything", Machine.kill_everything, Machine.start_everything)

# Shares of the tokens wanted. Both workers lease an epoch between backup and restore, and again after the restore.
WHOLE: tuple[tuple[float, Fault], ...] = (
    (0.08, BACKUP),
    (0.20, kill_worker(0)),
    (0.30, KILL_DATABASE),
    (0.40, kill_worker(1)),
    (0.50, IMMEDIATE),
    (0.62, RESTORE),
    (0.72, kill_worker(0)),
    (0.82, KILL_ALL),
    (0.90, kill_worker(1)),
    (1.00, IMMEDIATE),
)


@dataclass
class Struck:
    """One fault as it went: tokens granted before and until the next one, refusals until all was well again."""

    name: str
    before: int
    after: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    recovery_seconds: float = 0.0


@dataclass
class Outcome:
    """What was seen. `lost`: granted and not on record as it is; `unreceived`: on record, and no client has it;
    `counted_twice`: granted serial numbers that share month, epoch and counter with another one.
    """

    ledger: Ledger
    struck: list[Struck] = field(default_factory=list)
    seconds: float = 0.0
    recorded: int = 0
    recorded_earlier: int | None = None
    lost: list[bytes] = field(default_factory=list)
    duplicates: list[bytes] = field(default_factory=list)
    unreceived: int = 0
    counted_twice: int = 0
    complaints: collections.Counter[str] = field(default_factory=collections.Counter)
    exit_codes: list[int] = field(default_factory=list)

    def faults(self) -> list[str]:
        """One line for each thing that should not be, none when all is well."""
        found = [f"a serial number came twice: {number.hex()}" for number in self.duplicates[:20]]
        found += [f"a granted token is not on record: {number.hex()}" for number in self.lost[:20]]
        found += [f"a wrong reply: {text}" for text in dict.fromkeys(self.ledger.wrong)]
        if self.recorded_earlier is not None and not self.counted_twice:
            found.append("no epoch was leased again after the restore: this run proves nothing about serial numbers")
        if self.complaints[_DEFECT]:
            found.append(f"logged {self.complaints[_DEFECT]} times: {_DEFECT}")
        if any(self.exit_codes):
            found.append(f"SIGTERM ended the workers with {self.exit_codes}")
        return found


def compare(outcome: Outcome, records: dict[bytes, bytes], earlier: dict[bytes, bytes] | None) -> None:
    """Hold what the clients have against the records of both time lines."""
    granted = outcome.ledger.granted
    outcome.recorded, outcome.recorded_earlier = len(records), None if earlier is None else len(earlier)
    # Era 0 is in the backup and so in both time lines, era 1 ended with the earlier one, era 2 is the present.
    lines = {0: [records], 1: [records], 2: [records]}
    if earlier is not None:
        lines = {0: [earlier, records], 1: [earlier], 2: [records]}
    for serial_number, (token_sha256, era) in granted.items():
        if any(line.get(serial_number) != token_sha256 for line in lines[era]):
            outcome.lost.append(serial_number)
    earlier = earlier or {}
    outcome.duplicates = list(outcome.ledger.twice)
    # A record in both time lines was in the backup. With two tokens behind it, it is a number that came twice.
    outcome.duplicates += [number for number in records.keys() & earlier.keys() if records[number] != earlier[number]]
    outcome.unreceived = len((records.keys() | earlier.keys()) - granted.keys())
    counted = collections.Counter(number[:_COUNTED_OCTETS] for number in granted)
    outcome.counted_twice = sum(times for times in counted.values() if times > 1)


class Run:
    """Clients at work on a machine. `tell` hears how far it is and what is happening."""

    def __init__(self, machine: Machine, outcome: Outcome, crew: Crew, tell: Callable[[int, str], None]) -> None:
        self._machine = machine
        self._outcome = outcome
        self._ledger = outcome.ledger
        self._crew = crew
        self._tell = tell

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait. Raises `AssertionError` when nothing at all is granted any more."""
        seen, deadline = -1, 0.0
        while not done():
            granted = len(self._ledger.granted)
            if granted != seen:
                seen, deadline = granted, time.monotonic() + STALL_SECONDS
                self._tell(granted, what)
            assert time.monotonic() < deadline, f"{what}: nothing granted for {STALL_SECONDS:.0f} s"
            await asyncio.sleep(0.01)

    async def strike(self, fault: Fault) -> None:
        """Break something in full load, mend it, and wait until every worker concerned grants again."""
        before = len(self._ledger.granted)
        struck, refused = Struck(fault.name, before), self._ledger.refused.copy()
        if self._outcome.struck:
            self._outcome.struck[-1].after = before - self._outcome.struck[-1].before
        self._outcome.struck.append(struck)
        self._tell(before, fault.name)
        await asyncio.to_thread(fault.strike, self._machine)
        broken_at = time.monotonic()
        # Replies that were on their way belong to the records as they were; from here on none of those can come.
        await self._crew.turn_over()
        self._ledger.era += fault.new_era
        await asyncio.to_thread(fault.mend, self._machine)
        concerned = range(len(self._machine.workers)) if fault.workers is None else fault.workers
        for worker in concerned:
            await self.until(lambda w=worker: self._ledger.sent_at.get(w, 0.0) > broken_at, fault.name)  # type: ignore[misc]
        struck.recovery_seconds = time.monotonic() - broken_at
        struck.refused = self._ledger.refused - refused


@asynccontextmanager
async def _running(
    machine: Machine, outcome: Outcome, clients: int, tell: Callable[[int, str], None]
) -> AsyncIterator[Run]:
    """Clients at work on a machine; at the end, the workers stop in good order and the outcome is filled in."""
    try:
        tell(0, "starting")
        await asyncio.to_thread(machine.start)
        started = time.monotonic()
        async with Crew(outcome.ledger, machine.workers, clients) as crew:
            yield Run(machine, outcome, crew, tell)
        outcome.seconds = time.monotonic() - started
        granted = len(outcome.ledger.granted)
        if outcome.struck:
            outcome.struck[-1].after = granted - outcome.struck[-1].before
        tell(granted, "comparing with the records")
        outcome.exit_codes = [await asyncio.to_thread(worker.stop) for worker in machine.workers]
        for worker in machine.workers:
            outcome.complaints += worker.complaints()
        compare(outcome, await asyncio.to_thread(machine.records), await asyncio.to_thread(machine.earlier_records))
    finally:
        await asyncio.to_thread(machine.close)


def _silent(_granted: int, _what: str) -> None:
    """For runs that nobody watches."""


async def endure(
    folder: Path,
    tokens: int,
    plan: Sequence[tuple[float, Fault]] = WHOLE,
    *,
    clients: int = 8,
    workers: int = 2,
    module: Sequence[str] = ("lakthan_tsa",),
    tell: Callable[[int, str], None] = _silent,
) -> Outcome:
    """Grant `tokens` tokens, with each fault of `plan` when its share of them is reached."""
    outcome = Outcome(Ledger())
    granted = outcome.ledger.granted
    async with _running(Machine(folder, workers, module), outcome, clients, tell) as run:
        for share, fault in plan:
            # At least some tokens lie between two faults, however long the last one took.
            enough = max(int(tokens * share), len(granted) + tokens // 100)
            await run.until(lambda enough=enough: len(granted) >= enough, "stamping")  # type: ignore[misc]
            await run.strike(fault)
    return outcome


async def load(
    folder: Path, seconds: float, *, clients: int, workers: int, tell: Callable[[int, str], None] = _silent
) -> Outcome:
    """Stamp at full speed for some time, and shut PostgreSQL down at once while all clients go on."""
    outcome = Outcome(Ledger())
    async with _running(Machine(folder, workers), outcome, clients, tell) as run:
        end = time.monotonic() + seconds
        await run.until(lambda: time.monotonic() > end, "stamping")
        await run.strike(IMMEDIATE)
    return outcome


def show(outcome: Outcome, console: Console) -> None:
    """Print what was seen."""
    granted = len(outcome.ledger.granted)
    table = Table(title=f"{granted:,} tokens in {outcome.seconds:,.0f} s, faults included")
    for column in ("fault", "tokens before", "after", "refused until well", "recovery"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for struck in outcome.struck:
        refused = "\n".join(f"{times:,} {name}" for name, times in struck.refused.most_common())
        table.add_row(
            struck.name, f"{struck.before:,}", f"{struck.after:,}", refused or "0", f"{struck.recovery_seconds:.2f} s"
        )
    console.print(table)
    table = Table(show_header=False)
    earlier = outcome.recorded_earlier
    for name, value in (
        ("granted tokens", granted + len(outcome.ledger.twice)),
        ("records now", outcome.recorded),
        ("records of the time line that the restore ended", "-" if earlier is None else earlier),
        ("recorded, but received by nobody", outcome.unreceived),
        *((f"refused: {name}", times) for name, times in outcome.ledger.refused.most_common()),
        *((f"logged: {name}", times) for name, times in outcome.complaints.most_common()),
        ("granted with an epoch and a counter of another one", outcome.counted_twice),
        ("wrong replies", len(outcome.ledger.wrong)),
        ("duplicates", len(outcome.duplicates)),
        ("lost", len(outcome.lost)),
    ):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else value)
    console.print(table)
    for fault in outcome.faults():
        console.print(f"FAULT {fault}", style="red", markup=False, highlight=False)


async def watched(arguments: argparse.Namespace) -> int:
    """A run with a progress bar; gives the exit code, 1 if there is a fault."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, console=console, transient=True) as bar,
    ):
        task = bar.add_task("", total=None if arguments.seconds else arguments.tokens)

        def tell(granted: int, what: str) -> None:
            bar.update(task, completed=granted, description=what)

        options = {"clients": arguments.clients, "workers": arguments.workers}
        if arguments.seconds:
            outcome = await load(Path(folder), arguments.seconds, tell=tell, **options)
        else:
            outcome = await endure(Path(folder), arguments.tokens, tell=tell, **options)
    show(outcome, console)
    return 1 if outcome.faults() else 0


def main() -> int:
    """Read the command line and endure."""
    parser = argparse.ArgumentParser(prog="./run endure", description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=200_000, help="how many (default 200000)")
    parser.add_argument("--seconds", type=float, default=0.0, help="instead of all that, so long at full speed")
    parser.add_argument("--clients", type=int, default=8, help="that ask at the same time (default 8)")
    parser.add_argument("--workers", type=int, default=2, help="TSA processes, two or more (default 2)")
    arguments = parser.parse_args()
    if arguments.workers < 2:
        parser.error("two workers at least: one of them is killed while the other goes on")
    return uvloop.run(watched(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
