"""Where the findings of one area are written down, and what every look-around is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lakthan_cli.findings import Finding, Grade

if TYPE_CHECKING:
    from lakthan.config import Config


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at. `workers`: processes of each service on this machine. `now`: the time of the look-around."""

    path: Path
    config: Config
    workers: int
    offline: bool
    patience: timedelta
    now: datetime


@dataclass(slots=True)
class Notes:
    """The findings of one area."""

    area: str
    findings: list[Finding] = field(default_factory=list)

    def ok(self, subject: str, check: str, said: str) -> None:
        """In order."""
        self.findings.append(Finding(self.area, subject, check, Grade.OK, said))

    def warning(self, subject: str, check: str, said: str, todo: str, details: Sequence[str] = ()) -> None:
        """It will hurt one day."""
        self.findings.append(Finding(self.area, subject, check, Grade.WARNING, said, todo, tuple(details)))

    def failure(self, subject: str, check: str, said: str, todo: str, details: Sequence[str] = ()) -> None:
        """It does not work, or somebody can do what only we may."""
        self.findings.append(Finding(self.area, subject, check, Grade.FAILURE, said, todo, tuple(details)))
