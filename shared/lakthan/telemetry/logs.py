"""Structured logs: one JSON object a line on standard error; coloured text when a person is looking.

Lines carry what happened, never a secret and never a client's address. Requests are counted (`/metrics`), and a sample
of them has lines (`lakthan.telemetry.request_log`).

A flood of requests must not fill a disk: of one event a process writes so many lines in a second at most, and the next
one says how many were left out. Lines that are audit matter are never left out. They have `stream: "audit"` and can go
to a file of their own, which may be moved away at any time (a new one is made).

docs/logs.md lists every event.
"""

from __future__ import annotations

import logging
import sys
import time
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING

import structlog

from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

log: structlog.stdlib.BoundLogger = structlog.get_logger("lakthan")

AUDIT = "audit"
# What an auditor asks for: who served when, with which configuration and keys, who was let in and who was not, what was
# accepted. Verdicts of the clock say so themselves.
AUDIT_EVENTS = frozenset(
    {
        "CRL imported",
        "TLS files read",
        "a CRL in the spool is refused",
        "a caller was refused",
        "a client was refused",
        "a key is retired",
        "a key that was away at the start signs",
        "a unit is frozen and stamps no more",
        "another key signs",
        "changes accepted",
        "configuration read",
        "credentials read",
        "key list read",
        "keys are open",
        "publishing",
        "replacing the workers one after the other",
        "serving CAs",
        "serving OCSP",
        "serving OCSP without keys",
        "serving timestamps",
        "starting workers",
        "stopping",
        "workers were replaced",
    }
)
_FILE_DESCRIPTOR = "fd:"
_LINES_PER_SECOND = 20


class _Limit:
    """Leaves out what is too much."""

    def __init__(self) -> None:
        self.lines_per_second = _LINES_PER_SECOND
        self._written: dict[str, tuple[int, int]] = {}  # of an event: in which second, and how many lines
        self._left_out: dict[str, int] = {}

    def __call__(self, _logger: object, _name: str, line: MutableMapping[str, object]) -> MutableMapping[str, object]:
        """As a processor of structlog."""
        event, second = str(line["event"]), int(time.monotonic())
        if line.get("stream") == AUDIT:
            return line
        began, count = self._written.get(event, (second, 0))
        if began != second:
            count = 0
        if count >= self.lines_per_second:
            self._left_out[event] = self._left_out.get(event, 0) + 1
            raise structlog.DropEvent
        self._written[event] = second, count + 1
        left_out = self._left_out.pop(event, 0)
        if left_out:
            line["left_out"] = left_out
        return line


_limit = _Limit()


def configure(service: str) -> None:
    """Send every line, those of libraries too, through one formatter that adds time, level and `service`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(colours=sys.stderr.isatty()))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _mark_audit,
            _limit,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def use(*, lines_per_second: int, audit: Path | None) -> None:
    """What the configuration says. Raises `ConfigError` when the file cannot be written to."""
    _limit.lines_per_second = lines_per_second
    if audit is None:
        return
    try:
        handler: logging.Handler
        if audit.name.startswith(_FILE_DESCRIPTOR):
            descriptor = int(audit.name.removeprefix(_FILE_DESCRIPTOR))
            handler = logging.StreamHandler(open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        else:
            handler = WatchedFileHandler(audit, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"[log] audit: {audit} cannot be written to: {error}") from error
    handler.setFormatter(_formatter(colours=False))
    handler.addFilter(_is_audit)
    root = logging.getLogger()
    for each in root.handlers:
        each.addFilter(lambda record: not _is_audit(record))
    root.addHandler(handler)


def _is_audit(record: logging.LogRecord) -> bool:
    return isinstance(record.msg, dict) and record.msg.get("stream") == AUDIT


def _mark_audit(_logger: object, _name: str, line: MutableMapping[str, object]) -> MutableMapping[str, object]:
    if line["event"] in AUDIT_EVENTS:
        line["stream"] = AUDIT
    return line


_SHARED: list[structlog.typing.Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def _formatter(*, colours: bool) -> structlog.stdlib.ProcessorFormatter:
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if colours else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, *_SHARED],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
