"""The protocol of a ceremony, for the printer: what was done, when, by whom, and lines to sign.

One list of parts, written twice: as Markdown, which any screen shows, and as one HTML page without anything to load,
which any browser prints.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan_cli.commands.text import moment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lakthan_cli.ceremony.plan import Person

# What people say for a hexadecimal digit, so that b and d, or 8 and a, are not mixed up across a room.
_SPOKEN = {"a": "Alfa", "b": "Bravo", "c": "Charlie", "d": "Delta", "e": "Echo", "f": "Foxtrot"}
_GROUPS_READ_ALOUD = 8


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Lines in which every character counts."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; cells that are '' are there to be written into."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


Part = Heading | Text | Code | Table


def groups(digest: str) -> str:
    """A hexadecimal digest in groups of four."""
    return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


def aloud(digest: str) -> tuple[str, ...]:
    """The first 128 bits in groups, each with its words: enough that nobody can make another that agrees."""
    return tuple(
        f"{group}   {' '.join(_SPOKEN.get(digit, digit) for digit in group)}"
        for group in groups(digest).split()[:_GROUPS_READ_ALOUD]
    )


def signatures(people: Sequence[Person]) -> Table:
    """A line to sign for each."""
    return Table(("name", "role", "time (UTC)", "signature"), [(each.name, each.role, "", "") for each in people])


def steps(done: Sequence[tuple[datetime, str]]) -> Table:
    """What happened, with a box to tick for whoever watched it."""
    return Table(("time", "what was done", "seen"), [(moment(instant), text, "☐") for instant, text in done])


def markdown(title: str, parts: Sequence[Part]) -> str:
    """The protocol in Markdown."""
    blocks = [f"# {_plain(title)}"]
    for part in parts:
        match part:
            case Heading(text):
                blocks.append(f"## {text}")
            case Text(text):
                blocks.append(_plain(text))
            case Code(lines):
                blocks.append("\n".join(("```", *lines, "```")))
            case Table(head, rows):
                ruled = [head, tuple("---" for _ in head), *rows]
                blocks.append("\n".join(f"| {' | '.join(_plain(cell) or '  ' for cell in row)} |" for row in ruled))
    return "\n\n".join(blocks) + "\n"


def page(title: str, parts: Sequence[Part]) -> str:
    """The protocol as one HTML page."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for part in parts:
        match part:
            case Heading(text):
                body.append(f"<h2>{html.escape(text)}</h2>")
            case Text(text):
                body.append(f"<p>{html.escape(text)}</p>")
            case Code(lines):
                body.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
            case Table(head, rows):
                body.append(f"<table><thead>{_row('th', head)}</thead><tbody>")
                body += [_row("td", row) for row in rows]
                body.append("</tbody></table>")
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(body))


def _row(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"


def _plain(text: str) -> str:
    """Nothing in a name may begin a cell, a tag or a line of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""
_STYLE = """
body { font: 10.5pt/1.4 "Noto Sans", "Noto Sans Lao", sans-serif; margin: 2cm auto; max-width: 18cm }
h1 { font-size: 16pt } h2 { font-size: 12pt; margin-top: 1.6em; break-after: avoid }
table { border-collapse: collapse; width: 100% } tr { break-inside: avoid }
th, td { border: 1px solid #777; padding: .3em .5em; text-align: left; vertical-align: top; height: 1.6em }
pre, td { overflow-wrap: anywhere } pre { white-space: pre-wrap; border: 1px solid #777; padding: .6em }
@media print { body { margin: 0; max-width: none } @page { size: A4; margin: 2cm } }
"""
