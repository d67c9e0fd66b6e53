"""`./run floods`: what honest clients notice while one address floods the services, and what the flood gets.

Real services on a real PostgreSQL; a crowd of honest clients, each at an address of its own, whose every answer is
verified; and one flood after the other from another address and process. The tables say for each how long honest
clients waited alone, beside a busy program and in the flood, what the flood got and how quickly it was refused, and
the memory of the service. Fails when an honest client was refused or got something wrong, when a refusal was not the
protocol's own, or when memory grew beyond its bound.

The services have a processor to themselves. The flood is a process that gets what others leave (SCHED_IDLE), so that
the clients that are measured need not wait for it; what they notice of its mere presence is measured too, by a program
of the same kind that is busy and asks nobody anything.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from support.bench_report import put_into
from support.floods_crowd import Crowd, Seen
from support.floods_house import NOISY, QUIET, SLOW_PATH, House
from support.floods_kinds import FLOODS, Flood, Material, be_busy, play, step_back
from support.floods_report import FLOODED, HONEST, Played, markdown

_LOOK_SECONDS = 0.2
_WARM_UP_SECONDS = 1.0
_CALM_SECONDS = 2.0
# By then the limits are found: pressure is two quarters of a second in a row, and a queue that was let in leaves.
SETTLED_SECONDS = 2.0


def materials(house: House) -> Mapping[str, Material]:
    """What floods send, by name."""
    mark = bytes(range(100, 132))
    quiet, noisy = house.certificates[QUIET][0], house.certificates[NOISY][0]

    def around(question: bytes, random: bytes, path: bytes = b"/") -> Material:
        body = question.partition(b"\r\n\r\n")[2]
        before, _, after = body.partition(random)
        return Material(before, len(random), after, path)

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
        "slow token": around(token.octets, token.imprint, SLOW_PATH),
    }


async def one(house: House, flood: Flood, seconds: float, pool: ProcessPoolExecutor) -> Played:
    """Play a flood, between honest clients that are alone and their last answers."""
    seconds = max(seconds, flood.at_least)
    loop = asyncio.get_running_loop()
    crowd = Crowd(house, flood.service, slow_key=flood.way == "offer")
    alone, busy, during, witnessed = Seen(), Seen(), Seen(), Seen()
    async with crowd.at_work():
        await asyncio.sleep(_WARM_UP_SECONDS)
        crowd.seen = alone
        await asyncio.sleep(seconds / 2)
        crowd.seen = busy
        await loop.run_in_executor(pool, be_busy, seconds / 2)
        memory_before = peak = house.memory(flood.service)
        crowd.seen, crowd.witnessed = during, witnessed
        port, material = house.services[flood.service].port, materials(house)[flood.material]
        playing = loop.run_in_executor(pool, play, flood, port, material, seconds)
        while not playing.done():
            await asyncio.wait([playing], timeout=_LOOK_SECONDS)
            peak = max(peak, house.memory(flood.service))
        got = await playing
        crowd.seen, crowd.witnessed = Seen(), None
    await asyncio.sleep(_CALM_SECONDS)
    return Played(
        flood,
        alone=alone.judged(flood.protocol),
        busy=busy.judged(flood.protocol),
        during=during.judged(flood.protocol),
        settled=during.after(SETTLED_SECONDS).judged(flood.protocol),
        witness=witnessed.judged(flood.protocol, may_be_closed=True),
        got=got,
        memory=(memory_before, peak, house.memory(flood.service)),
    )


async def run(chosen: list[Flood], seconds: float, console: Console) -> tuple[list[Played], list[str]]:
    """Play them one after the other."""
    results: list[Played] = []
    columns = (TextColumn("{task.description:<50}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="lakthan-floods-") as folder,
        Progress(*columns, console=console, transient=True, refresh_per_second=1) as bar,
    ):
        task = bar.add_task("starting", total=len(chosen))
        house = House(Path(folder))
        complaints: list[str] = []
        try:
            await house.open()
            with ProcessPoolExecutor(1, mp_context=spawn, initializer=step_back) as pool:
                for flood in chosen:
                    bar.update(task, description=flood.name)
                    results.append(played := await one(house, flood, seconds, pool))
                    for cells in (played.honest(), played.flooded()):
                        console.print(" | ".join(cells), markup=False, highlight=False)
                    for problem in played.problems:
                        console.print(f"FAULT {flood.name}: {problem}", style="red", markup=False, highlight=False)
                    bar.advance(task)
        finally:
            complaints = await asyncio.to_thread(house.close)
    return results, complaints


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--only", default="", help="Floods whose name has one of these words, comma separated.")
@click.option("--seconds", default=10.0, show_default=True, help="How long each flood lasts; slow ones 25 or more.")
@click.option("--write", type=click.Path(path_type=Path), help="Where the results go, as JSON.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, exists=True),
    help='A Markdown file whose section "The last run" gets the tables, such as docs/floods.md.',
)
def main(only: str, seconds: float, write: Path | None, into: Path | None) -> None:
    """Play the floods."""
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    chosen = [each for each in FLOODS if not words or any(word in each.name.lower() for word in words)]
    if not chosen:
        raise click.UsageError(f"no flood has {only!r} in its name; there are: " + "; ".join(e.name for e in FLOODS))
    console = Console(width=None if sys.stdout.isatty() else 190)
    results, complaints = uvloop.run(run(chosen, seconds, console))
    for titles, rows in (
        (HONEST, [each.honest() for each in results]),
        (FLOODED, [each.flooded() for each in results]),
    ):
        shown = Table(*titles, show_lines=True)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for complaint in complaints:
        console.print(f"FAULT {complaint}", style="red", markup=False, highlight=False)
    if write is not None:
        columns = (*HONEST, *FLOODED[1:])
        documents = [dict(zip(columns, (*each.honest(), *each.flooded()[1:]), strict=True)) for each in results]
        write.write_text(json.dumps(documents, ensure_ascii=False, indent=1))
    if into is not None:
        put_into(into, markdown(results, seconds))
    sys.exit(bool(complaints) or any(each.problems for each in results))


if __name__ == "__main__":
    main()
