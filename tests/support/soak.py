"""`./run soak --hours N`: everything runs for hours under a steady load while everything that can rotate rotates.

All four services as an operator starts them, on a durable PostgreSQL; clients of every habit, whose every answer is
judged; an operator who renews keys, certificates, tokens and secrets, drops months of records, rotates logs, replaces
workers and restarts the database, again and again. Every few seconds it is measured what each process needs.

The exit code is 1 when an answer was wrong, a token was lost, a request failed while nothing was announced, a process
grew, or something did not rotate. docs/soak.md is the page to it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from support.soak_clients import USUAL, Clients, Rates
from support.soak_diary import Diary, Line, read
from support.soak_judge import Verdict, judge
from support.soak_oracle import Oracle
from support.soak_report import markdown, put_into, tables, write_svg
from support.soak_rotations import ROTATIONS, Operator
from support.soak_samples import Sampler
from support.soak_world import AHEAD, LIVE, Spans, World

_SHORT_SECONDS = 900.0
_UPHEAVALS_UNTIL = 0.3
_STOP_SECONDS = 600.0
Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Plan:
    """How long, and how fast things rotate in that time. `rounds`: of everything that rotates unnoticed; `upheavals`:
    of what ends processes and connections, all within the first third, so that leaks can be seen after them.
    """

    seconds: float
    rounds: int
    upheavals: int
    spans: Spans
    certificates: dict[str, int]
    sample_seconds: float
    scrape_seconds: float
    interval_seconds: float
    rates: Rates = USUAL
    leaky: bool = False

    def wanted(self) -> dict[str, int]:
        """How often each rotation has to be seen."""
        few = dict.fromkeys(ROTATIONS, self.rounds)
        for what in list(ROTATIONS)[list(ROTATIONS).index("configuration and workers (SIGHUP)") :]:
            few[what] = self.upheavals
        if self.leaky:
            few = dict.fromkeys(few, 0)
        return few


def plan(seconds: float, rates: Rates = USUAL, *, rounds: int = 2, leaky: bool = False) -> Plan:
    """Of so many seconds; `rounds`: of a short one. Under a quarter of an hour everything is quicker, and nothing is
    proven about leaks that are small.
    """
    if seconds < _SHORT_SECONDS:
        spans = Spans(timedelta(seconds=5), timedelta(minutes=2))
        return Plan(seconds, rounds, 1, spans, {LIVE: 300, AHEAD: 60}, 0.5, 2.0, 2.0, rates, leaky)
    rounds = max(6, round(seconds / 450))
    spans = Spans(timedelta(minutes=2), timedelta(minutes=10))
    return Plan(seconds, rounds, 2, spans, {LIVE: 1000, AHEAD: 100}, 5.0, 15.0, 60.0, rates, leaky)


class Soak:
    """One run in `folder`."""

    def __init__(self, folder: Path, plan: Plan, diary: Diary, tell: Tell) -> None:
        self._plan = plan
        self._diary = diary
        self._tell = tell
        self._world = World(folder, plan.spans, months=plan.rounds, leaky=plan.leaky)
        self._oracle = Oracle(self._world, diary)
        self._clients = Clients(self._world, diary, self._oracle, plan.rates)
        self._sampler = Sampler(self._world, diary, self._clients)
        self._operator = Operator(self._world, diary, self._oracle, self._clients)

    async def run(self) -> None:
        """All of it."""
        plan, diary = self._plan, self._diary
        this = asyncio.current_task()
        assert this is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, this.cancel)
        try:
            self._tell(0, "starting")
            await self._world.open()
            await self._operator.begin()
            await self._clients.fill(plan.certificates)
            await self._world.until_published(plan.certificates[AHEAD])
            diary.begin(rotations=plan.wanted(), how=ROTATIONS, seconds=plan.seconds)
            async with self._clients.at_work():
                await self._work()
            await self._oracle.compare()
            totals = self._totals()
        finally:
            await self._sampler.close()
            codes = await self._world.close()
        for name, code in codes.items():
            if code:
                diary.wrong(f"{name} ended with {code}")
        diary.write("end", totals=totals)

    async def _work(self) -> None:
        plan = self._plan
        beside = [
            asyncio.create_task(self._again_and_again(plan.sample_seconds, self._sampler.sample)),
            asyncio.create_task(self._again_and_again(plan.scrape_seconds, self._sampler.scrape)),
            asyncio.create_task(self._again_and_again(plan.interval_seconds, self._take_times)),
        ]
        operating = asyncio.create_task(self._operate())
        try:
            while not operating.done() or self._diary.now() < self._ends():
                self._tell(self._diary.now(), f"{self._diary.rotations.total():,} rotations")
                for task in [*beside, *self._clients.ended()]:
                    if task.done():
                        task.result()
                        raise AssertionError(f"{task} has ended by itself")
                if operating.done():
                    operating.result()
                for name, service in self._world.services.items():
                    assert service.exit_code is None, f"{name} ended by itself with {service.exit_code}"
                assert self._diary.now() < plan.seconds + _STOP_SECONDS, "the operator never comes to an end"
                await asyncio.sleep(0.5)
            await self._sampler.sample()
        finally:
            for task in (*beside, operating):
                task.cancel()
            await asyncio.gather(*beside, operating, return_exceptions=True)

    def _ends(self) -> float:
        """There is some time left to look at after the last event, however slow this machine is."""
        events: list[float] = [line["until"] for line in self._diary.lines if line["kind"] == "event"]
        return max([self._plan.seconds, *(until + self._plan.seconds / 4 for until in events)])

    async def _again_and_again(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        next_at = time.monotonic()
        while True:
            await work()
            next_at = max(next_at + seconds, time.monotonic())
            await asyncio.sleep(next_at - time.monotonic())

    async def _take_times(self) -> None:
        if self._clients.times:
            self._sampler.latencies()
        for of, name in (("GET", "answers signed anew"), ("published", "published answers signed anew")):
            self._diary.seen(name, self._oracle.renewed.pop(of, 0))

    async def _operate(self) -> None:
        """Every step at its time: the upheavals in the first third, all else evenly over the whole."""
        plan, operator = self._plan, self._operator
        await asyncio.sleep(min(5.0, plan.seconds / 20))
        if plan.leaky:
            return
        first = self._diary.now()
        calm = [first + (plan.seconds - first) * number / plan.rounds for number in range(plan.rounds)]
        events = plan.upheavals * len(operator.upheavals.steps())
        loud = [plan.seconds * _UPHEAVALS_UNTIL * (number + 0.5) / events for number in range(events)]
        await operator.work(calm, loud)

    def _totals(self) -> dict[str, int | str]:
        complaints = {
            event: times
            for log in (*(each.log for each in self._world.services.values()), self._world.audit)
            for (level, event), times in log.counts.items()
            if level in ("error", "critical")
        }
        for event in complaints:
            if "defect" in event or event.startswith("no JSON"):
                self._diary.wrong(f"logged: {event}")
        oracle, clients = self._oracle, self._clients
        return {
            "OCSP answers, each judged": oracle.answers.total() - oracle.answers["token"],
            "OCSP signatures verified": oracle.checked["OCSP"],
            "tokens, each read and compared with the record": oracle.answers["token"],
            "token signatures verified": oracle.checked["token"],
            "changes acknowledged": clients.changes.total(),
            "published answers withheld for a moment after a change": oracle.withheld,
            "connections that PostgreSQL has served": len(self._sampler.backends),
            "logged as errors": ", ".join(f"{times} × {event}" for event, times in sorted(complaints.items())) or 0,
        }


async def soak(folder: Path, plan: Plan, diary_path: Path, tell: Tell = lambda *_: None) -> list[Line]:
    """A whole run; gives its diary."""
    diary = Diary(diary_path)
    try:
        await Soak(folder, plan, diary, tell).run()
    finally:
        diary.close()
    return diary.lines


def show(lines: list[Line], verdict: Verdict, console: Console) -> None:
    """Print what came of it."""
    for title, rows in tables(lines, verdict).items():
        table = Table(*rows[0], title=title)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    for fault in verdict.faults:
        console.print(f"FAULT {fault}", style="red", markup=False, highlight=False)


def _machine() -> str:
    return f"{os.cpu_count()} cores, PostgreSQL durable, services and clients on the same machine."


def main() -> int:
    """Read the command line and soak."""
    parser = argparse.ArgumentParser(
        prog="./run soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--hours", type=float, default=1.0, help="how long (default 1)")
    long.add_argument("--minutes", type=float, help="the same in minutes; under 15 everything rotates faster")
    parser.add_argument("--load", type=float, default=1.0, help="times the usual load of some 200 requests a second")
    parser.add_argument("--diary", type=Path, help="where the samples go, one JSON object a line, and stay")
    parser.add_argument("--judge", type=Path, metavar="DIARY", help="run nothing: show what an earlier run wrote")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="put the table into soak.md there, with soak.svg")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if arguments.judge is not None:
        lines = read(arguments.judge)
    else:
        seconds = arguments.hours * 3600 if arguments.minutes is None else arguments.minutes * 60
        rates = Rates({of: each * arguments.load for of, each in USUAL.kinds.items()}, USUAL.changes * arguments.load)
        columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
        with (
            tempfile.TemporaryDirectory(prefix="lakthan-soak-") as folder,
            Progress(*columns, console=console, transient=True) as bar,
        ):
            task = bar.add_task("", total=seconds)
            diary = arguments.diary or Path(folder) / "diary.jsonl"
            (Path(folder) / "world").mkdir()
            lines = uvloop.run(
                soak(
                    Path(folder) / "world",
                    plan(seconds, rates),
                    diary,
                    lambda at, what: bar.update(task, completed=at, description=what),
                )
            )
    verdict = judge(lines)
    show(lines, verdict, console)
    if arguments.into is not None:
        write_svg(arguments.into / "soak.svg", lines, verdict)
        put_into(arguments.into / "soak.md", markdown(lines, verdict, _machine()))
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    with suppress(asyncio.CancelledError):
        raise SystemExit(main())
    raise SystemExit(130)
