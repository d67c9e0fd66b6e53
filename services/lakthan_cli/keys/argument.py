"""A key's URI on the command line."""

from __future__ import annotations

from pathlib import Path

import click

from lakthan.config import KeyURI


class KeyArgument(click.ParamType[KeyURI]):
    """A key's URI on the command line."""

    name = "key"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> KeyURI:
        """The URI, with the current folder as its start."""
        del param, ctx
        return value if isinstance(value, KeyURI) else KeyURI(str(value), Path.cwd())
