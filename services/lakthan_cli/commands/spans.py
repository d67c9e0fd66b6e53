"""Spans of time on the command line, ISO 8601 as in the configuration: `PT1H`, `P90D`."""

from __future__ import annotations

from datetime import timedelta

import click
import msgspec


class Span(click.ParamType[timedelta]):
    """A span longer than nothing."""

    name = "span"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The span."""
        if isinstance(value, timedelta):
            return value
        try:
            span = msgspec.convert(value, timedelta)
        except msgspec.ValidationError:
            span = timedelta(0)
        if span <= timedelta(0):
            self.fail(f"{value!r} is no span of time: write PT1H for an hour, P90D for ninety days", param, ctx)
        return span


def in_iso(span: timedelta) -> str:
    """The span as the command line takes it."""
    days, rest = divmod(span, timedelta(days=1))
    hours, rest = divmod(rest, timedelta(hours=1))
    minutes, rest = divmod(rest, timedelta(minutes=1))
    date = f"{days}D" if days else ""
    parts = ((hours, "H"), (minutes, "M"), (rest.total_seconds(), "S"))
    time = "".join(f"{value:g}{unit}" for value, unit in parts if value)
    return f"P{date}T{time}" if time else f"P{date or 'T0S'}"
