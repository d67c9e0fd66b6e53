"""The tool that makes the tables of docs/configuration.md: what it says is what the code does."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal

import msgspec
import pytest

from support import configuration


class Documented(msgspec.Struct):
    """A table of a configuration."""

    name: str
    """What it is called."""
    pause: timedelta = timedelta(minutes=90)
    """How long | at most. Default: as long as it takes"""
    patience: timedelta = timedelta(hours=12)
    """Until
    it gives up."""
    share: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """A part."""
    words: tuple[Literal["a", "b"], ...] = ("a",)
    """Some."""


class Silent(msgspec.Struct):
    """A table whose option nobody explains."""

    name: str
    other: int = 1
    """Explained."""


def test_a_table() -> None:
    """Names, types and defaults as they are written in TOML; the text of a field, in one line; a default in words."""
    assert configuration.table(Documented).splitlines()[2:] == [
        "| `name` | string | required | What it is called |",
        "| `pause` | duration | as long as it takes | How long \\| at most |",
        "| `patience` | duration | `PT12H` | Until it gives up |",
        "| `share` | number, more than 0 | none | A part |",
        "| `words` | list of `a`, `b` | `a` | Some |",
    ]


def test_an_option_without_a_text() -> None:
    """It is refused by its name."""
    with pytest.raises(ValueError, match=r"Silent\.name: a string below it must say what it means"):
        configuration.table(Silent)


def test_a_table_too_few() -> None:
    """A struct of the configuration that the page has no place for is named."""
    page = configuration.PAGE.read_text(encoding="utf-8").replace("<!-- table: ClockConfig -->", "")
    with pytest.raises(ValueError, match="ClockConfig"):
        configuration.page(page)


@pytest.mark.parametrize("name", sorted(configuration.structs()))
def test_defaults_can_be_written_as_they_stand(name: str) -> None:
    """A default that the page shows, put into the file, is the default."""
    struct = configuration.structs()[name]
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    shown = re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^`]+)` \|", configuration.table(struct), re.MULTILINE)
    for key, default in shown:
        field = fields[key]
        if key == "url" or field.default is msgspec.NODEFAULT or isinstance(field.default, tuple):
            continue
        assert msgspec.convert(default, field.type, strict=False) == field.default, key
