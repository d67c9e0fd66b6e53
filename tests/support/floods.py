"""`./run floods`: what honest clients notice while one address floods the services, and what the flood gets.

Real services on a real PostgreSQL; a crowd of honest clients, each at an address of its own, whose every answer is
verified; and one flood after the other from another address and process. The table says for each what the crowd got
before and during it, what the flood got, and the memory of the service. Fails when an honest client was refused or got
something wrong, when a refusal was not the protocol's own, or when memory grew beyond its bound.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from support.bench_report import put_into
from support.floods_crowd import Crowd, Seen
from support.floods_house import NOISY, QUIET, House
from support.floods_kinds import FLOODS, Flood, Got, Material, play

# What each service may say to a flood; the rest is wrong. 413: a body that is too large.
_WORDS = {"ocsp": {"tryLater", "503", "408", "413", "closed"}, "tsa": {"429", "503", "408", "413", "closed"}}
MOST_GROWTH = 400 << 20
_LOOK_SECONDS = 0.2
_COLUMNS = (
    "flood",
    "honest before: answered, p99",
    "honest during: answered, refused, p99",
    "the flood: connections made, answered",
    "refused",
    "quickest",
    "memory before, peak, after",
)


@dataclass
class Played:
    """One flood as it went. Memory in octets."""

    flood: Flood
    before: Seen
    during: Seen
    got: Got
    memory: tuple[int, int, int]

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        found = [f"an honest client got {what} ({times}×)" for what, times in self.during.wrong.items()]
        found += [f"an honest client was refused: {what} ({times}×)" for what, times in self.during.refused.items()]
        if not self.during.seconds:
            found.append("no honest client was answered")
        refused = set(self.got.refused)
        allowed = set() if self.flood.innocent else _WORDS[self.flood.service]
        found += [f"the flood was refused by {word}" for word in sorted(refused - allowed)]
        if self.memory[1] - self.memory[0] > MOST_GROWTH:
            found.append(f"memory grew by {(self.memory[1] - self.memory[0]) >> 20} MiB")
        return found

    def cells(self) -> list[str]:
        """For the table."""
        refused = ", ".join(f"{times:,} {word}" for word, times in self.got.refused.most_common()) or "0"
        honest = sum(self.during.refused.values()) + sum(self.during.wrong.values())
        quickest = "" if self.got.quickest == float("inf") else f"{self.got.quickest * 1000:.1f} ms"
        return [
            self.flood.name,
            f"{len(self.before.seconds):,}, {self.before.p99_milliseconds:.1f} ms",
            f"{len(self.during.seconds):,}, {honest}, {self.during.p99_milliseconds:.1f} ms",
            f"{self.got.connections:,}, {self.got.answered:,}",
            refused,
            quickest,
            ", ".join(f"{octets >> 20}" for octets in self.memory) + " MiB",
        ]


def materials(house: House) -> Mapping[str, Material]:
    """What floods send, by name."""
    mark = bytes(range(100, 132))
    quiet, noisy = house.certificates[QUIET][0], house.certificates[NOISY][0]

    def around(question: bytes, random: bytes) -> Material:
        body = question.partition(b"\r\n\r\n")[2]
        before, _, after = body.partition(random)
        return Material(before, len(random), after)

    serial = house.ocsp_question(quiet, QUIET).octets
    token = house.token_question()
    return {
        "often": Material(serial.partition(b"\r\n\r\n")[2]),
        "seldom": around(house.ocsp_question(house.certificates[QUIET][1], QUIET, nonce=mark).octets, mark),
        "nonce": around(house.ocsp_question(quiet, QUIET, nonce=mark).octets, mark),
        # The last octets of a serial number, so that it stays a positive one.
        "serial": around(serial, quiet.serial_number[-8:]),
        "noisy": around(house.ocsp_question(noisy, NOISY, nonce=mark).octets, mark),
        "token": around(token.octets, token.imprint),
    }


async def one(house: House, crowd: Crowd, flood: Flood, seconds: float, pool: ProcessPoolExecutor) -> Played:
    """Play a flood."""
    service = house.ocsp if flood.service == "ocsp" else house.tsa
    crowd.seen = before = Seen()
    await asyncio.sleep(seconds / 2)
    memory_before = peak = house.memory(service)
    crowd.seen = during = Seen()
    loop = asyncio.get_running_loop()
    playing = loop.run_in_executor(pool, play, flood, service.port, materials(house)[flood.material], seconds)
    while not playing.done():
        await asyncio.wait([playing], timeout=_LOOK_SECONDS)
        peak = max(peak, house.memory(service))
    got = await playing
    crowd.seen = Seen()
    await asyncio.sleep(1.0)
    return Played(flood, before, during, got, (memory_before, peak, house.memory(service)))


async def run(chosen: list[Flood], seconds: float, console: Console) -> tuple[list[Played], list[str]]:
    """Play them one after the other."""
    results: list[Played] = []
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="lakthan-floods-") as folder,
        Progress(*columns, console=console, transient=True) as bar,
        ProcessPoolExecutor(1, mp_context=spawn) as pool,
    ):
        task = bar.add_task("starting", total=len(chosen))
        house = House(Path(folder))
        complaints: list[str] = []
        try:
            await house.open()
            async with Crowd(house).at_work() as crowd:
                await asyncio.sleep(1.0)
                for flood in chosen:
                    bar.update(task, description=flood.name)
                    results.append(await one(house, crowd, flood, seconds, pool))
                    console.print(" | ".join(results[-1].cells()), markup=False, highlight=False)
                    for problem in results[-1].problems:
                        console.print(f"FAULT {flood.name}: {problem}", style="red", markup=False, highlight=False)
                    bar.advance(task)
        finally:
            complaints = await asyncio.to_thread(house.close)
    return results, complaints


def markdown(results: list[Played], seconds: float) -> str:
    """The table for a page."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    lines += ["| " + " | ".join(each.cells()) + " |" for each in results]
    clean = sum(not each.problems for each in results)
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"{day}: {clean} of {len(results)} floods without a fault, {seconds:.0f} s each. "
        "Services, database, flood and honest clients share one small machine.\n\n" + "\n".join(lines) + "\n"
    )


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--only", default="", help="Floods whose name has one of these words, comma separated.")
@click.option("--seconds", default=8.0, show_default=True, help="How long each flood lasts.")
@click.option("--write", type=click.Path(path_type=Path), help="Where the results go, as JSON.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, exists=True),
    help='A Markdown file whose section "The last run" gets the table, such as docs/floods.md.',
)
def main(only: str, seconds: float, write: Path | None, into: Path | None) -> None:
    """Play the floods."""
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    chosen = [each for each in FLOODS if not words or any(word in each.name.lower() for word in words)]
    if not chosen:
        raise click.UsageError(f"no flood has {only!r} in its name; there are: " + "; ".join(e.name for e in FLOODS))
    console = Console(width=None if sys.stdout.isatty() else 190)
    results, complaints = uvloop.run(run(chosen, seconds, console))
    shown = Table(show_lines=True)
    for column in _COLUMNS:
        shown.add_column(column)
    for each in results:
        shown.add_row(*each.cells())
    console.print(shown)
    for complaint in complaints:
        console.print(f"FAULT {complaint}", style="red", markup=False, highlight=False)
    if write is not None:
        write.write_text(
            json.dumps(
                [dict(zip(_COLUMNS, each.cells(), strict=True)) for each in results], ensure_ascii=False, indent=1
            )
        )
    if into is not None:
        put_into(into, markdown(results, seconds))
    sys.exit(bool(complaints) or any(each.problems for each in results))


if __name__ == "__main__":
    main()
