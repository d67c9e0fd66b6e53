"""The events that the code logs, as its source says: for docs/logs.md, which has to list them all.

`python -m support.logged --write` writes the tables of the page.
"""

from __future__ import annotations

import argparse
import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

from lakthan.telemetry.logs import AUDIT_EVENTS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/logs.md"
_LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}
_BEGIN, _END = "<!-- events -->\n", "<!-- end of events -->\n"
# Where the level or the words are chosen while it runs: the source says it in a way that this module cannot read.
_CHOSEN = {
    "clock": ({"info", "warning"}, {"state", "problem", "refusing", "offset_seconds", "bound_seconds"}, True),
    "no tokens: the clock cannot back them": ({"warning"}, {"state", "problem"}, True),
    "tokens go out with a doubtful clock": ({"warning"}, {"state", "problem"}, True),
    "leap second": ({"error"}, {"detail", "seconds"}, True),
    "step": ({"error"}, {"detail", "seconds"}, True),
    "workers were replaced": ({"info", "error"}, {"replaced", "workers", "seconds"}, True),
}


@dataclass
class Event:
    """An event of the log: its levels, the fields that some line of it has, and where it comes from."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)
    rooms: set[str] = field(default_factory=set)
    audit: bool = False


def events() -> dict[str, Event]:
    """Every event, by its words."""
    found: dict[str, Event] = {}
    for chosen, (levels, fields, audit) in _CHOSEN.items():
        found[chosen] = Event(set(levels), set(fields), {"lakthan" if "workers" in chosen else "lakthan_tsa"}, audit)
    for source in sorted([*(ROOT / "shared").rglob("*.py"), *(ROOT / "services").rglob("*.py")]):
        room = source.relative_to(ROOT).parts[1]
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _is_line(node) and isinstance(node.func, ast.Attribute):
                words = _words(node.args[0])
                if words is not None:
                    event = found.setdefault(words, Event(audit=words in AUDIT_EVENTS))
                    event.levels.add(_LEVELS[node.func.attr])
                    event.fields |= {each.arg for each in node.keywords if each.arg} - {"exc_info", "stream"}
                    event.rooms.add(room)
    return found


def _is_line(call: ast.Call) -> bool:
    named = call.func
    if not (isinstance(named, ast.Attribute) and named.attr in _LEVELS and call.args):
        return False
    whose = named.value
    name = whose.id if isinstance(whose, ast.Name) else whose.attr if isinstance(whose, ast.Attribute) else ""
    return name in ("log", "_log")


def _words(argument: ast.expr) -> str | None:
    """The event, with … for what is put in while it runs; None when nothing of it is in the source there."""
    if isinstance(argument, ast.Constant):
        return str(argument.value).replace("%s", "…")
    if isinstance(argument, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in argument.values)
    return None


def tables() -> str:
    """The tables of the page: audit lines, then the others."""
    text = ""
    for audit, title in ((True, "### Audit"), (False, "### Operation")):
        text += f"\n{title}\n\n| event | level | fields | of |\n| --- | --- | --- | --- |\n"
        for words, event in sorted(events().items(), key=lambda item: item[0].lower()):
            if event.audit is audit:
                fields = ", ".join(f"`{each}`" for each in sorted(event.fields))
                rooms = ", ".join(sorted(room.removeprefix("lakthan_") for room in event.rooms))
                text += (
                    f"| {words} | {', '.join(sorted(event.levels))} | {fields} | {rooms.replace('lakthan', 'all')} |\n"
                )
    return text + "\n"


def page() -> str:
    """The page with today's tables."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    return f"{before}{_BEGIN}{tables()}{_END}{rest.partition(_END)[2]}"


def main() -> None:
    """Write the tables, or say that they are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/logs.md is out of date: PYTHONPATH=tests python -m support.logged --write")


if __name__ == "__main__":
    main()
