"""`./run bench`: everything that is promised about speed, measured in one run on this machine, beside its peers.

Our services run as real processes on a real database with fsync on; the peers are Debian's nginx, golang-cfssl and
openssl; the load is wrk. Rounds alternate between all of them, because machines are shared and noisy. The folder keeps
the table of certificates for the next run, and gets `bench.json` and `bench.svg`.

docs/performance.md says how to read the result.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from support import bench_report
from support.bench_machine import BenchError, Children, choose_cores, describe, program
from support.bench_rows import ROWS, Row
from support.bench_subjects import Bench
from support.bench_world import SMALL_ROWS, World


@dataclass(frozen=True)
class Effort:
    """How much is done: rounds, seconds of each measurement, rows of the large table, distinct requests."""

    rounds: int
    seconds: int
    certificates: int
    distinct: int


_KEYS = [row.key for row in ROWS]


def _rows(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[Row]:
    wanted = value.split(",") if value else _KEYS
    unknown = set(wanted) - set(_KEYS)
    if unknown:
        raise click.BadParameter(f"there is no row {min(unknown)!r}; the rows are {', '.join(_KEYS)}")
    return [row for row in ROWS if row.key in wanted]


@click.command(name="./run bench", help=__doc__)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often everything is measured."
)
@click.option("--seconds", type=click.IntRange(1), default=3, show_default=True, help="How long each time.")
@click.option("--quick", is_flag=True, help="Two rounds of one second, a million certificates: to see that it works.")
@click.option("--full", is_flag=True, help="Ten million distinct requests for the row about memory: half an hour more.")
@click.option("--only", "rows", callback=_rows, metavar="ROW,ROW", help=f"Only these rows: {', '.join(_KEYS)}.")
@click.option("--certificates", type=click.IntRange(SMALL_ROWS), default=10_000_000, help="In the large table.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench-results"),
    show_default=True,
    help="For the results and the data that is used again.",
)
@click.option(
    "--into",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='A Markdown file whose section "The last run" gets the table, such as docs/performance.md.',
)
def main(
    rounds: int,
    seconds: int,
    *,
    quick: bool,
    full: bool,
    rows: list[Row],
    certificates: int,
    folder: Path,
    into: Path | None,
) -> None:
    """See the module."""
    if quick:
        rounds, seconds, certificates = 2, 1, min(certificates, 1_000_000)
    distinct = certificates if full else min(certificates, 300_000 if quick else 1_000_000)
    console = Console(width=max(150, Console().width))
    try:
        text = _bench(console, rows, Effort(rounds, seconds, certificates, distinct), folder.absolute())
        if into is not None:
            bench_report.put_into(into, text)
    except BenchError as error:
        console.print(f"[red]bench:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)


def _bench(console: Console, rows: list[Row], effort: Effort, folder: Path) -> str:
    """Measure, show and write; gives the table as Markdown."""
    for name in ("wrk", "nginx", "cfssl", "openssl"):
        program(name)
    server_core, load_core = choose_cores()
    if server_core == load_core:
        console.print("[yellow]There is one core only: servers and load share it, and the ratios say little.[/]")
    machine = describe(f"servers on {server_core}, load and PostgreSQL on {load_core}")
    # Whatever is started without a core of its own, PostgreSQL first of all, stays off the servers' core.
    os.sched_setaffinity(0, {load_core})
    with Children(folder / "log") as children:
        world = World(folder / "data", children, server_core=server_core)
        with world.postgres:
            bench = Bench(world, children, server_core, load_core, effort.seconds, effort.certificates, effort.distinct)
            _load(console, world, effort.certificates if {"never-seen", "memory"} & {row.key for row in rows} else 0)
            _measure(console, bench, rows, effort.rounds)
            bench.facts["tables"] = {name: world.table_size(f"bench_{name}") for name in ("small", "large")}
    found = bench_report.results(rows, bench.measured, bench.cpu_micros)
    console.print(bench_report.table(found, effort.rounds))
    for failure in bench.failures:
        console.print(f"[red]not used:[/] {escape(failure)}", highlight=False)
    for what, fact in bench.facts.items():
        console.print(f"{what}: {fact}", highlight=False)
    for what, value in machine.items():
        console.print(f"{what}: {value}", highlight=False)
    console.print(bench_report.HOW_TO_READ, highlight=False)
    bench_report.write_json(folder / "bench.json", found, bench.measured, machine, bench.facts)
    bench_report.write_svg(folder / "bench.svg", found, effort.rounds)
    console.print(f"Written: {folder / 'bench.json'} and {folder / 'bench.svg'}", highlight=False)
    return bench_report.markdown(found, machine, bench.facts, effort.rounds)


def _load(console: Console, world: World, certificates: int) -> None:
    with Progress(console=console, transient=True) as progress:
        for name, rows in (("small", SMALL_ROWS), ("large", certificates)):
            task = progress.add_task(f"certificates in the {name} table", total=rows)
            world.load(f"bench_{name}", rows, lambda there, task=task: progress.update(task, completed=there))  # type: ignore[misc]


def _measure(console: Console, bench: Bench, rows: list[Row], rounds: int) -> None:
    columns = (TextColumn("{task.description:<42}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("starting and looking at one response of each")
        for row in rows:
            row.prepare(bench)
        repeated = list(dict.fromkeys(name for row in rows if not row.once for name in row.subjects))
        once = list(dict.fromkeys(name for row in rows if row.once for name in row.subjects))
        plan = repeated * rounds + once
        progress.update(task, total=len(plan))
        for name in plan:
            progress.update(task, description=name)
            bench.measure(name)
            progress.advance(task)


if __name__ == "__main__":
    main(prog_name="./run bench")
