"""The tables of `docs/configuration.md` out of `lakthan.config`: every key, its type, its default and what it means.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, NAME being the struct; everything else on the page is
written by hand. What an option means is the string below its field in the code, so it is said once.

`python -m support.configuration` is part of `./run check`: it fails when the page is out of date, when a field has no
text, or when a struct has no table. With `--write` it brings the page up to date.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as types

from lakthan import config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
_TABLE = re.compile(r"(?<=<!-- table: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
_BELOW = "a table"
_CUSTOM = {"Path": "path", "KeyURI": "key URI"}


def structs() -> dict[str, type[msgspec.Struct]]:
    """Every table of the configuration by the name of its struct, but for the file itself."""
    found = vars(config).values()
    return {
        each.__name__: each
        for each in found
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each is not config.Config
    }


def meanings(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string below each field that the struct has of its own, on one line."""
    (body,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = after.value if isinstance(after, ast.Expr) else None
            text = said.value if isinstance(said, ast.Constant) and isinstance(said.value, str) else ""
            found[field.target.id] = " ".join(text.split())
    return found


def table(struct: type[msgspec.Struct]) -> str:
    """Its rows, in the order of the code."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    fields = {field.name: field for field in info.fields}
    lines = ["| key | type | default | what it is |", "| --- | --- | --- | --- |"]
    for name, text in meanings(struct).items():
        if not text:
            raise ValueError(f"{struct.__name__}.{name}: a string below it must say what it means")
        means, _, default = text.partition(" Default: ")
        cells = (f"`{name}`", _type(fields[name].type), default or _default(fields[name]), means.removesuffix("."))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(kind: types.Type) -> str:
    """What is written in TOML, in words."""
    if isinstance(kind, types.UnionType):
        return " or ".join(_type(each) for each in kind.types if not isinstance(each, types.NoneType))
    if isinstance(kind, types.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, types.CustomType):
        return _CUSTOM[kind.cls.__name__]
    if isinstance(kind, types.StructType):
        return _BELOW
    if isinstance(kind, types.DictType):
        return "tables"
    if isinstance(kind, types.ListType | types.VarTupleType):
        inner = kind.item_type
        return "tables" if isinstance(inner, types.StructType) else f"list of {_plural(_type(inner))}"
    if isinstance(kind, types.IntType | types.FloatType):
        return _number(kind)
    words: dict[type, str] = {types.StrType: "string", types.BoolType: "boolean", types.TimeDeltaType: "duration"}
    return words[type(kind)]


def _plural(word: str) -> str:
    return f"{word}s" if word in {"string", "path"} else word


def _number(kind: types.IntType | types.FloatType) -> str:
    word = "integer" if isinstance(kind, types.IntType) else "number"
    if kind.ge is not None and kind.le is not None:
        return f"{word}, {_plain(kind.ge)} to {_plain(kind.le)}"
    if kind.ge is not None:
        return f"{word}, {_plain(kind.ge)} or more"
    return f"{word}, more than {_plain(kind.gt)}" if kind.gt is not None else word


def _default(field: types.Field) -> str:
    if field.required:
        return "required"
    value: Any = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, msgspec.Struct):
        return ""
    if value is None or value in ((), []):
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{_plain(value)}`"


def _plain(value: object) -> str:
    """As TOML has it."""
    if isinstance(value, timedelta):
        return _duration(int(value.total_seconds()))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _duration(seconds: int) -> str:
    """ISO 8601 in the largest unit that needs no fraction."""
    for unit, size in (("H", 3600), ("M", 60)):
        if seconds and seconds % size == 0:
            return f"PT{seconds // size}{unit}"
    return f"PT{seconds}S"


def page(before: str) -> str:
    """The page with its tables made anew. Raises `ValueError` for a struct without a table."""
    known = structs()
    found = {match[1] for match in _TABLE.finditer(before)}
    if found != known.keys():
        raise ValueError(f"{PAGE.name} and lakthan.config differ in their tables: {sorted(found ^ known.keys())}")
    return _TABLE.sub(lambda match: f"{match[1]}{match[2]}\n{table(known[match[1]])}\n", before)


def main() -> int:
    """Check the page, or write it; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m support.configuration", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/configuration.md")
    before = PAGE.read_text(encoding="utf-8")
    try:
        after = page(before)
    except ValueError as error:
        print(error)
        return 1
    if parser.parse_args().write:
        PAGE.write_text(after, encoding="utf-8")
    elif before != after:
        print(f"docs/{PAGE.name} is out of date: python -m support.configuration --write (with tests/ on PYTHONPATH)")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
