"""`./run simulate`: a responder, its database and its clients through thousands of histories in simulated time.

The promise that is tried: nobody is told *good* three seconds after the certificate stopped being so, whatever is slow,
lost, cut, stopped or restarted meanwhile (docs/propagation.md). What is simulated, and what is real, is in
`support.simulated_responder`; what is checked of every answer, in `support.simulated_oracle`.

A history that breaks the promise is made as short as it can be and printed; with the same --seed it comes again.
"""

from __future__ import annotations

import argparse
import logging
import random
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from support.simulated_machine import Simulation

_STEPS_OF_ONE = 60
_HISTORIES_AT_ONCE = 25


def histories(machine: type[Simulation], number: int, steps: int, chosen: int, *, shrink: bool = True) -> None:
    """Run that many histories of that many moves each. Raises what went wrong in the shortest of those that did."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    run_state_machine_as_test(
        seed(chosen)(machine),
        settings=settings(
            max_examples=number,
            stateful_step_count=steps,
            phases=phases,
            deadline=None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def main() -> int:
    """Read the command line and simulate; the exit code is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="./run simulate", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="how many moves (default 10000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="to repeat a run")
    arguments = parser.parse_args()
    logging.getLogger("lakthan").setLevel(logging.CRITICAL)
    console, started = Console(), time.monotonic()
    console.print(f"seed {arguments.seed}")
    columns = (TextColumn("simulating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    broken = ""
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=arguments.steps)
        batch = arguments.seed
        while Simulation.counts["steps"] < arguments.steps:
            try:
                histories(Simulation, _HISTORIES_AT_ONCE, _STEPS_OF_ONE, batch)
            except AssertionError as error:
                broken = "\n".join([str(error), *getattr(error, "__notes__", [])])
                break
            batch += 1
            bar.update(task, completed=Simulation.counts["steps"])
    seconds = time.monotonic() - started
    table = Table(title=f"{Simulation.counts['steps']:,} moves in {seconds:,.0f} s (seed {arguments.seed})")
    table.add_column("what happened")
    table.add_column("times", justify="right")
    for what, times in sorted(Simulation.counts.items()):
        table.add_row(what, f"{times:,}")
    console.print(table)
    if broken:
        console.print("[red]BROKEN[/]", broken, highlight=False)
        return 1
    console.print("Every answer was right: none was good after the bound.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
