"""Progress bars, the same in every command: on standard error, there only while a person looks, gone at the end."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import ProgressColumn

# A file's name may hold brackets.
_WHAT = TextColumn("{task.description}", markup=False)


class Bar:
    """A running bar."""

    def __init__(self, progress: Progress, what: str, total: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, rows=0, rate=0.0)
        self._began = time.monotonic()

    def advance(self, count: float = 1) -> None:
        """So many more are done."""
        self._progress.advance(self._task, count)

    def reached(self, completed: float, total: float | None = None) -> None:
        """So many are done, of `total` if that is known by now."""
        self._progress.update(self._task, completed=completed, total=total)

    def rows(self, rows: int) -> None:
        """So many rows were in what is done; their rate follows."""
        self._progress.update(self._task, rows=rows, rate=rows / max(time.monotonic() - self._began, 1e-6))

    def says(self, what: str) -> None:
        """What is done now."""
        self._progress.update(self._task, description=what)


@contextmanager
def counted(what: str, total: float | None, *, shown: bool = True) -> Iterator[Bar]:
    """A bar that counts: 3/7. `shown`: False for what is over before anybody could look."""
    with _bar(_WHAT, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), shown=shown) as begin:
        yield begin(what, total)


@contextmanager
def rated(what: str, total: float | None, *, unit: str) -> Iterator[Bar]:
    """A bar with per cent, and rows a second. `unit`: what the rows are called."""
    rows = TextColumn(f"{{task.fields[rows]:,}} {unit}, {{task.fields[rate]:,.0f}}/s")
    with _bar(_WHAT, BarColumn(), TaskProgressColumn(), rows, TimeRemainingColumn()) as begin:
        yield begin(what, total)


@contextmanager
def _bar(*columns: ProgressColumn, shown: bool = True) -> Iterator[Callable[[str, float | None], Bar]]:
    console = Console(stderr=True)
    disable = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=disable, transient=True) as progress:
        yield lambda what, total: Bar(progress, what, total)
