"""`./run fuzz --minutes N`: libFuzzer on every parser for so long, guided by coverage; and a table of what it did.

Each target runs in a process of its own, with a limit of memory and of time for each input. It begins with the seeds
and what once crashed (tests/fuzz), and with what earlier runs found (`--corpus`, a folder to keep). What crashes is
written to tests/fuzz/crashers/NAME, to be fixed and kept.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from support.fuzz_targets import FOLDER, TARGETS, Target

_MEMORY_MIB = 1024
_SECONDS_EACH = 10
# The exception, and where libFuzzer says what else went wrong.
_TOLD = re.compile(
    rb"[\w.]+(Error|Finding|Exception|Interrupt|Rejection)\b|==\d+== *ERROR|SUMMARY|ALARM|  File .*(lakthan|fuzz_)"
)
_STATUS = re.compile(rb"#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")


@dataclass
class Result:
    """What one target did. `lines`: read and there are, of its modules. `told`: the end of what it said of a crash."""

    executions: int = 0
    edges: int = 0
    features: int = 0
    corpus: int = 0
    seconds: float = 0.0
    lines: tuple[int, int] = (0, 0)
    crashes: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def fuzz_one(name: str, seconds: int, corpus: Path, *, tick: Any = None) -> Result:  # noqa: ANN401 - called with seconds
    """Run libFuzzer on one target."""
    corpus.mkdir(parents=True, exist_ok=True)
    crashers = FOLDER / "crashers" / name
    crashers.mkdir(parents=True, exist_ok=True)
    before = set(crashers.iterdir())
    result, began, done = Result(), time.monotonic(), False
    command = [
        *(
            sys.executable,
            "-P",
            "-m",
            "support.fuzz_one",
            name,
            str(corpus),
            str(FOLDER / "seeds" / name),
            str(crashers),
        ),
        *(f"-max_total_time={seconds}", f"-max_len={TARGETS[name].largest}", f"-rss_limit_mb={_MEMORY_MIB}"),
        *(f"-timeout={_SECONDS_EACH}", f"-artifact_prefix={crashers}/", "-print_final_stats=1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as child:
        for line in child.stderr or ():
            status = _STATUS.search(line)
            if status:
                result.executions, result.edges, result.features, result.corpus = map(int, status.groups())
            done = done or line.startswith(b"Done ")
            if _TOLD.match(line):
                result.told = [*result.told[-5:], line.decode("utf-8", "replace").rstrip()[:400]]
            if tick is not None:
                tick(time.monotonic() - began)
    result.seconds = time.monotonic() - began
    result.crashes = [path.name for path in set(crashers.iterdir()) - before]
    # While Python ends, libFuzzer's own alarm may still come; who had said that it is done is done.
    if child.returncode and not (child.returncode == -signal.SIGALRM and done) and not result.crashes:
        result.crashes = [f"ended with {child.returncode}"]
    if not any(crashers.iterdir()):
        crashers.rmdir()
    return result


def inputs(name: str, *more: Path) -> Iterator[bytes]:
    """The seeds of a target, what once crashed it, and what else is in these folders."""
    for folder in (FOLDER / "seeds" / name, FOLDER / "crashers" / name, *more):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield path.read_bytes()


def lines_read(target: Target, octets: Sequence[bytes]) -> tuple[int, int]:
    """How many lines of a target's modules these inputs run through, and how many there are."""
    files = {str(importlib.import_module(module).__file__) for module in target.modules}
    seen: set[tuple[str, int]] = set()
    with _tracing(files, seen):
        for one in octets:
            target.run(one)
    there = {(file, line) for file in files for line in _lines(compile(Path(file).read_text("utf-8"), file, "exec"))}
    return len(seen & there), len(there)


@contextmanager
def _tracing(files: set[str], seen: set[tuple[str, int]]) -> Iterator[None]:
    def trace(frame: FrameType, _event: str, _argument: object) -> Any:  # noqa: ANN401 - as settrace wants it
        if frame.f_code.co_filename not in files:
            return None
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _lines(code: CodeType) -> Iterator[int]:
    """The lines inside of functions."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x02 and not constant.co_name.startswith("<"):  # a function's, not a class's
                yield from (line for _, _, line in constant.co_lines() if line and line != constant.co_firstlineno)
            yield from _lines(constant)


def fuzz_parsers(minutes: float, names: Sequence[str], keep: Path | None) -> int:
    """Fuzz them one after another and print the table; the exit code is 1 when something crashed."""
    console = Console()
    results: dict[str, Result] = {}
    seconds = max(1, round(minutes * 60))
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=seconds * len(names))
            for done, name in enumerate(names):
                bar.update(task, description=f"fuzzing {name}")
                result = fuzz_one(
                    name,
                    seconds,
                    folder / name,
                    tick=lambda took, done=done: bar.update(task, completed=done * seconds + took),
                )
                if not result.crashes:
                    result.lines = lines_read(TARGETS[name], list(inputs(name, folder / name)))
                results[name] = result
    _show(console, results)
    return 1 if any(result.crashes for result in results.values()) else 0


def _show(console: Console, results: dict[str, Result]) -> None:
    table = Table(title="parsers under libFuzzer")
    table.add_column("target")
    for heading in ("executions", "a second", "edges", "features", "corpus", "lines", "crashes"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        read, there = result.lines
        table.add_row(
            name,
            f"{result.executions:,}",
            f"{result.executions / max(result.seconds, 0.1):,.0f}",
            f"{result.edges:,}",
            f"{result.features:,}",
            f"{result.corpus:,}",
            f"{read / there:.0%} of {there}" if there else "",
            str(len(result.crashes)),
        )
    console.print(table)
    for name, result in results.items():
        for crash in result.crashes:
            console.print(f"[red]CRASH[/] {name}: {crash}", highlight=False)
            console.print("\n".join(result.told), highlight=False, markup=False)
