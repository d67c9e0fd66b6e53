"""`./run faults`: everything below the services is broken, one thing after the other, and every answer is judged.

Real services with two workers each, real PostgreSQL (durable, a standby where a fault needs one) behind a line between
two network namespaces, a real PKCS#11 token, and clients that never stop asking. An oracle that knows every change
looks at each answer: signature, status, time, serial number, record. The table says what was served right, refused,
wrong and lost for each fault, and how long it took until all was well again. Needs root.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from faults.play import Played, play, table
from faults.rows import FAULTS, Fault


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--times", default=3, show_default=True, help="How often each fault is played.")
@click.option("--only", default="", help="Faults whose name has one of these words, comma separated.")
@click.option("--write", type=click.Path(path_type=Path), help="Where the results go, as JSON.")
def main(times: int, only: str, write: Path | None) -> None:
    """Play the faults."""
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    chosen = [each for each in FAULTS if not words or any(word in each.name.lower() for word in words)]
    if not chosen:
        raise click.UsageError(f"no fault has {only!r} in its name; there are: " + "; ".join(e.name for e in FAULTS))
    console = Console(width=None if sys.stdout.isatty() else 140)
    results = _play_all(chosen, times, console)
    console.print(table(results))
    for each in results:
        for problem in dict.fromkeys([*each.wrong, *each.lost]):
            console.print(f"[red]{each.fault}:[/] {problem}", highlight=False)
    if write is not None:
        write.write_text(json.dumps([asdict(each) for each in results], ensure_ascii=False, indent=1))
    sys.exit(not all(each.clean for each in results))


def _play_all(chosen: list[Fault], times: int, console: Console) -> list[Played]:
    results = []
    columns = (TextColumn("{task.description:<46}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(chosen) * times)
        for fault in chosen:
            for _ in range(times):
                bar.update(task, description=fault.name)
                with tempfile.TemporaryDirectory() as folder:
                    played = uvloop.run(play(fault, Path(folder)))
                results.append(played)
                bar.advance(task)
                if not played.clean:
                    console.print(f"[red]{fault.name}[/]: {len(played.wrong)} wrong, {len(played.lost)} lost")
    return results


if __name__ == "__main__":
    main()
