"""The logs of a soak: followed and counted, and rotated as logrotate does it."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any


class Log:
    """A log file that is followed, counted, and rotated under the hands of whoever writes it.

    `events`: the lines since `forget`; `counts`: of all lines, by level and event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def follow(self) -> None:
        """Read what is new."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._at:
                self._at = 0
            file.seek(self._at)
            new = file.read()
            self._at += len(new)
            *lines, self._rest = (self._rest + new).split(b"\n")
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"level": "error", "event": f"no JSON: {line[:200].decode(errors='replace')}"}
        self.events.append(event)
        self.counts[event.get("level", ""), event.get("event", "")] += 1

    def forget(self) -> None:
        """What has been seen need not be remembered."""
        self.follow()
        self.events = []

    def copy_truncate(self) -> None:
        """As logrotate's `copytruncate`: whoever writes keeps the file, and it is empty."""
        self.follow()
        os.truncate(self.path, 0)
        self._at = 0

    def move_away(self) -> None:
        """As logrotate without it: whoever writes has to make a new one."""
        self.follow()
        older = self.path.with_suffix(".1")
        self.path.replace(older)
        before, self.path = self.path, older
        self.follow()
        self.path, self._at, self._rest = before, 0, b""
