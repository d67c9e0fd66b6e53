"""`docs/conformance.md` out of what code and tests cite: requirement → code → tests → status.

The requirements are data (`docs/requirements/*.toml`, a file for each service); code and tests cite them by name, as in
`OCSP-17` and `TSA-K5`, in docstrings and comments. A requirement is *implemented* when a test that runs cites it,
*diverges* when `docs/divergences.md` has a heading with its name, *not applicable* when the data says whose business
it is. Everything else is undecided, and `./run check` fails. So do citations of requirements, and of sections of RFCs,
that do not exist.

It reads sources and runs nothing: that the citing tests pass is what `./run test` is for.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = "docs/conformance.md"
_CODE = ("services", "shared")
_TESTS = "tests"
# These two write about citations without citing.
_EXCEPT = {"tests/support/conformance.py", "tests/unit/test_conformance.py"}
_RFC = re.compile(r"RFC\s+(\d+)\s+(§[0-9A-Z][0-9A-Za-z.]*(?:(?:,\s+|\s+and\s+)§[0-9A-Z][0-9A-Za-z.]*)*)")
_SHOWN = 4
# What a requirement's name begins with, and the heading of its part of the page.
_SERVICES = {"OCSP": "OCSP responder", "TSA": "Time-stamp authority"}

IMPLEMENTED = "implemented"
DIVERGES = "diverges"
NOT_APPLICABLE = "not applicable"
UNDECIDED = "undecided"


@dataclass
class Requirement:
    """One requirement, and where it is cited."""

    name: str
    source: str
    text: str
    applies: str
    why: str
    diverges: bool = False
    code: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """One of the four words."""
        if self.applies:
            return NOT_APPLICABLE
        if self.diverges:
            return DIVERGES
        return IMPLEMENTED if self.tests else UNDECIDED


@dataclass(frozen=True)
class Place:
    """A line of a source file. `scope`: the dotted name of what it is in; `skipped`: in a test that never runs."""

    path: str
    line: int
    scope: str
    skipped: bool

    @property
    def is_test(self) -> bool:
        """True inside a test function."""
        return self.path.startswith(f"{_TESTS}/") and any(part.startswith("test_") for part in self.scope.split("."))


@dataclass
class Conformance:
    """Everything that was found. `problems`: a line for each thing that somebody has to put right."""

    requirements: dict[str, Requirement]
    problems: list[str]

    def count(self, status: str) -> int:
        """How many requirements have this status."""
        return _count(self.requirements.values(), status)

    @property
    def summary(self) -> str:
        """The numbers in a line."""
        return _summary(self.requirements.values())


def _count(requirements: Iterable[Requirement], status: str) -> int:
    return sum(requirement.status == status for requirement in requirements)


def _summary(requirements: Collection[Requirement]) -> str:
    words = (IMPLEMENTED, DIVERGES, NOT_APPLICABLE, UNDECIDED)
    counted = ", ".join(f"{_count(requirements, word)} {word}" for word in words)
    return f"{len(requirements)} requirements: {counted}"


def survey(root: Path) -> Conformance:
    """Read requirements, divergences and all sources below `root`."""
    requirements = _requirements(root / "docs" / "requirements")
    problems: list[str] = []
    prefixes = "|".join(sorted({_prefix(name) for name in requirements}))
    citation = re.compile(rf"\b(?:{prefixes})-[A-Z]?\d+\b")
    sections = _sections(root / "docs" / "requirements" / "sections.toml")
    for name in _divergences(root / "docs" / "divergences.md", citation):
        if name not in requirements:
            problems.append(f"docs/divergences.md: there is no requirement {name}")
        elif requirements[name].applies:
            problems.append(f"docs/divergences.md: {name} is the business of the {requirements[name].applies}")
        else:
            requirements[name].diverges = True
    for requirement in requirements.values():
        problems += [f"{requirement.name}: {fault}" for fault in _wrong_sections(requirement.source, sections)]
    for place, text in _lines(root):
        problems += [f"{place.path}:{place.line}: {fault}" for fault in _wrong_sections(text, sections)]
        for name in citation.findall(text):
            if name not in requirements:
                problems.append(f"{place.path}:{place.line}: there is no requirement {name}")
            elif place.is_test and place.skipped:
                problems.append(f"{place.path}:{place.line}: {name} is cited by a test that never runs")
            else:
                _note(requirements[name], place)
    undecided = [requirement.name for requirement in requirements.values() if requirement.status == UNDECIDED]
    if undecided:
        problems.append(f"{len(undecided)} undecided, no test cites them: {', '.join(undecided)}")
    return Conformance(requirements, problems)


def _prefix(name: str) -> str:
    return name.partition("-")[0]


def _note(requirement: Requirement, place: Place) -> None:
    if place.is_test:
        cited, shown = requirement.tests, f"{place.path.removeprefix(f'{_TESTS}/')}::{place.scope}"
    elif place.path.startswith(f"{_TESTS}/"):
        return
    else:
        module = ".".join(Path(place.path).with_suffix("").parts[1:])
        cited, shown = requirement.code, f"{module}.{place.scope}" if place.scope else module
    if shown not in cited:
        cited.append(shown)


def _requirements(folder: Path) -> dict[str, Requirement]:
    found: dict[str, Requirement] = {}
    for path in sorted(folder.glob("*.toml")):
        if path.name == "sections.toml":
            continue
        for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
            found[name] = Requirement(
                name, entry["source"], entry["text"], entry.get("applies", ""), entry.get("why", "")
            )
    return found


def _divergences(page: Path, citation: re.Pattern[str]) -> list[str]:
    headings = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return [name for heading in headings for name in citation.findall(heading)]


# ---- sections of the RFCs -------------------------------------------------------------------------------------------


def _sections(path: Path) -> dict[str, set[str]]:
    """The sections of each RFC; `4.2.1-3` in the file is 4.2.1, 4.2.2 and 4.2.3."""
    table: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for rfc, words in table.items():
        found[rfc] = set()
        for word in words.split():
            first, _, last = word.partition("-")
            stem, _, number = first.rpartition(".")
            numbers = range(int(number), int(last) + 1) if last else (number,)
            found[rfc] |= {f"{stem}.{each}" if stem else str(each) for each in numbers}
    return found


def _wrong_sections(text: str, sections: dict[str, set[str]]) -> Iterator[str]:
    for match in _RFC.finditer(text):
        rfc = f"RFC {match[1]}"
        if rfc not in sections:
            yield f"the sections of {rfc} are not in docs/requirements/sections.toml: add them"
            continue
        for section in re.findall(r"§([0-9A-Za-z.]+)", match[2]):
            if section.rstrip(".") not in sections[rfc]:
                yield f"{rfc} has no §{section.rstrip('.')}"


# ---- sources --------------------------------------------------------------------------------------------------------


def _lines(root: Path) -> Iterator[tuple[Place, str]]:
    """Every line of code and tests with its place; a citation that runs over the end of a line is put together."""
    for top in (*_CODE, _TESTS):
        for path in sorted((root / top).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix not in (".py", ".sql") or name in _EXCEPT:
                continue
            text = path.read_text(encoding="utf-8")
            scopes = _scopes(text) if path.suffix == ".py" else {}
            lines = text.splitlines()
            for number, line in enumerate(lines, 1):
                scope, skipped = scopes.get(number, ("", False))
                following = lines[number].strip().removeprefix("#") if number < len(lines) else ""
                broken = re.search(r"RFC \d+$|\bRFC$", line.rstrip())
                yield Place(name, number, scope, skipped), f"{line} {following}" if broken else line


def _scopes(source: str) -> dict[int, tuple[str, bool]]:
    """For every line inside a function or class: its dotted name, and whether it is a test that is always skipped."""
    found: dict[int, tuple[str, bool]] = {}

    def enter(node: ast.AST, scope: str, *, skipped: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                enter(child, scope, skipped=skipped)
                continue
            name = f"{scope}.{child.name}" if scope else child.name
            never = skipped or any(
                re.search(r"\bmark\.(skip|xfail)\b", ast.unparse(decorator)) for decorator in child.decorator_list
            )
            first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
            for line in range(first, (child.end_lineno or first) + 1):
                found[line] = (name, never)
            enter(child, name, skipped=never)

    enter(ast.parse(source), "", skipped=False)
    return found


# ---- the page -------------------------------------------------------------------------------------------------------


def page(found: Conformance) -> str:
    """The whole of docs/conformance.md."""
    lines = [
        "# Conformance",
        "",
        "Made by `python -m support.conformance --write` from what code and tests cite, not by hand. `./run check`",
        "fails when it is out of date, or when a requirement is undecided. The requirements: `docs/requirements/`.",
        "What is deliberately otherwise, and why: [divergences](divergences.md).",
        "",
        f"**{found.summary}.**",
    ]
    for prefix in dict.fromkeys(_prefix(name) for name in found.requirements):
        own = [each for each in found.requirements.values() if _prefix(each.name) == prefix]
        lines += ["", f"## {_SERVICES[prefix]}", "", f"{_summary(own)}.", ""]
        lines += ["| requirement | source | status | code | tests |", "| --- | --- | --- | --- | --- |"]
        lines += map(_row, own)
    return "\n".join(lines) + "\n"


def _row(each: Requirement) -> str:
    others = f"{NOT_APPLICABLE}: {each.applies}, {each.why}"
    status = {DIVERGES: f"[{DIVERGES}](divergences.md)", NOT_APPLICABLE: others}
    cells = (
        f"**{each.name}** {each.text}",
        each.source,
        status.get(each.status, each.status),
        _some(each.code),
        _some(each.tests),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _some(places: list[str]) -> str:
    shown = [f"`{place}`" for place in places[:_SHOWN]]
    if len(places) > _SHOWN:
        shown.append(f"and {len(places) - _SHOWN} more")
    return "<br>".join(shown)


def main() -> int:
    """Check, or write the page with `--write`; give the exit code, 1 if something has to be put right."""
    parser = argparse.ArgumentParser(prog="python -m support.conformance", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/conformance.md")
    write = parser.parse_args().write
    found = survey(CHECKOUT)
    path = CHECKOUT / PAGE
    if write:
        path.write_text(page(found), encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != page(found):
        found.problems.append(
            f"{PAGE} is out of date: python -m support.conformance --write (with tests/ on PYTHONPATH)"
        )
    for problem in found.problems:
        print(problem)
    print(found.summary)
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
