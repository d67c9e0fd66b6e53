"""`./run faults`: everything below the services is broken, one thing after the other, and every answer is judged.

Real services with two workers each, real PostgreSQL (durable, a standby where a fault needs one) behind a line between
two network namespaces, a real PKCS#11 token, and clients that never stop asking. An oracle that knows every change
looks at each answer: signature, status, time, serial number, record. The table says what was served right, refused,
wrong and lost for each fault, and how long it took until all was well again. Needs root.

All faults are played once, then all again. A fault whose stage cannot be set is said to have failed, and the next one
is played. Each is played in a process of its own; with `--jobs` several at once, which gives every one less of the
machine.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from faults.play import Played, play
from faults.rows import FAULTS
from support.bench_report import put_into
from support.faults_report import markdown, table


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--times", default=3, show_default=True, help="How often each fault is played.")
@click.option("--only", default="", help="Faults whose name has one of these words, comma separated.")
@click.option("--jobs", default=1, show_default=True, help="How many are played at the same time.")
@click.option("--write", type=click.Path(path_type=Path), help="Where the results go, as JSON.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, exists=True),
    help='A Markdown file whose section "The last run" gets the table, such as docs/faults.md.',
)
def main(times: int, only: str, jobs: int, write: Path | None, into: Path | None) -> None:
    """Play the faults."""
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    chosen = [each.name for each in FAULTS if not words or any(word in each.name.lower() for word in words)]
    if not chosen:
        raise click.UsageError(f"no fault has {only!r} in its name; there are: " + "; ".join(e.name for e in FAULTS))
    console = Console(width=None if sys.stdout.isatty() else 170)
    began = time.monotonic()
    results = []
    columns = (TextColumn("{task.description:<46}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(chosen) * times)
        for played in _played(chosen * times, jobs):
            results.append(played)
            bar.update(task, description=played.fault, advance=1)
            if not played.clean:
                console.print(f"[red]{played.fault}[/]: {_complaint(played)}", highlight=False)
            if write is not None:
                write.write_text(json.dumps([vars(each) for each in results], ensure_ascii=False, indent=1))
    results.sort(key=lambda each: chosen.index(each.fault))
    console.print(table(results))
    if into is not None:
        put_into(into, markdown(results, time.monotonic() - began))
    sys.exit(not all(each.clean for each in results))


def _complaint(played: Played) -> str:
    if played.failed:
        return f"could not be played: {played.failed}"
    problems = [*dict.fromkeys([*played.wrong, *played.lost])] or ["not everything is answered again"]
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return f"{len(played.wrong)} wrong, {len(played.lost)} lost: " + "; ".join(problems[:5]) + more


def _played(names: list[str], jobs: int) -> Iterator[Played]:
    """In the order in which they end."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        playing = [pool.submit(play_one, name) for name in names]
        try:
            for each in as_completed(playing):
                yield each.result()
        finally:
            pool.shutdown(cancel_futures=True)


def play_one(name: str) -> Played:
    """The fault of this name, once. What kept it from being played is in the result."""
    [fault] = [each for each in FAULTS if each.name == name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            return uvloop.run(play(fault, Path(folder)))
        except Exception as error:  # noqa: BLE001 - the others are played all the same, and it is said and counted
            traceback.print_exc()
            return Played(name, failed=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
