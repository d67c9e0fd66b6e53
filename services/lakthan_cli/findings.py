"""What a look-around found, and how it is told: `lakthan probe` from outside, `lakthan doctor` from inside.

Promises: everything that was looked at is a finding, also what is in order; whatever is not says what to do about it.
The gravest finding is the exit code, as programs of monitoring expect it (0 OK, 1 warning, 2 failure), and every
trouble on the way there is 3, so that a wrong option never looks like a failing service.

Refuses to know: what is looked at.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lakthan.errors import LakthanError
from lakthan_cli.ocsp.render import clean

UNKNOWN = 3
_INTERRUPTED = 130
_WIDTH_OF_FILES = 160
EXIT_CODES = """\b
Exit codes, as programs of monitoring expect them:
  0  all is in order
  1  a warning: something will soon fail, or hurts some clients
  2  a failure
  3  it could not be looked at: an option or a file is missing or wrong"""


class Grade(Enum):
    """How grave a finding is, with the exit code that says it."""

    OK = ("ok", 0, "green")
    WARNING = ("warning", 1, "yellow")
    FAILURE = ("failure", 2, "bold red")

    def __init__(self, label: str, exit_code: int, colour: str) -> None:
        self.label = label
        self.exit_code = exit_code
        self.colour = colour


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `area` and `subject`: where, from the large to the small. `check`: what was asked of it, one of a fixed set of
    words. `said`: what there is. `todo`: what to do about it, '' when it is in order. `details`: what else helps.
    """

    area: str
    subject: str
    check: str
    grade: Grade
    said: str
    todo: str = ""
    details: tuple[str, ...] = ()


def gravest(findings: Iterable[Finding]) -> Grade:
    """The grade of all together."""
    return max((each.grade for each in findings), key=lambda grade: grade.exit_code, default=Grade.OK)


def as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """For machines; the keys are always all there."""
    grade = gravest(findings)
    return {
        "exit_code": grade.exit_code,
        "grade": grade.label,
        "findings": [
            {
                "area": each.area,
                "subject": each.subject,
                "check": each.check,
                "grade": each.grade.label,
                "said": each.said,
                "todo": each.todo,
                "details": list(each.details),
            }
            for each in _sorted(findings)
        ],
    }


def show(findings: Sequence[Finding]) -> None:
    """A table for people, the gravest first."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_FILES)
    table = Table(box=SIMPLE_HEAD)
    for heading in ("", "where", "of", "check", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for each in _sorted(findings):
        said = each.said if each.grade is Grade.OK else "\n".join([each.said, *each.details])
        words = (each.area, each.subject, each.check, said, each.todo)
        # What came from outside reaches the terminal as text: no markup, no control character.
        table.add_row(Text(each.grade.label, each.grade.colour), *(Text(_lines(word)) for word in words))
    console.print(table)
    counts = [f"{sum(1 for each in findings if each.grade is grade)} {grade.label}" for grade in reversed(Grade)]
    grade = gravest(findings)
    console.print(Text(f"{grade.label}: {', '.join(counts)}", grade.colour))


def _lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.split("\n"))


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda each: -each.grade.exit_code)


class MonitoringCommand(click.Command):
    """A command whose exit code is a grade: every trouble leaves with 3."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """Reads the command line."""
        with _trouble_is_unknown():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command."""
        with _trouble_is_unknown():
            return super().invoke(ctx)


@contextmanager
def _trouble_is_unknown() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.show()
        raise click.exceptions.Exit(UNKNOWN) from error
    except LakthanError as error:
        click.ClickException(str(error)).show()
        raise click.exceptions.Exit(UNKNOWN) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(_INTERRUPTED) from error
    except click.exceptions.Exit:
        raise
    except Exception as error:
        # A defect: seen in full, and not mistaken for a verdict.
        traceback.print_exc()
        raise click.exceptions.Exit(UNKNOWN) from error
