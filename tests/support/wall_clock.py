"""A wall clock for one process, stepped under it by libfaketime."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from pathlib import Path

from support.programs import need


class WallClock:
    """The wall clock of one process: this machine's, plus an offset that can change while the process runs."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.offset = 0.0
        self.set(0.0)

    def set(self, offset: float) -> None:
        """Step it, at once."""
        self.offset = offset
        self._write(f"{offset:+.6f}")

    def _write(self, what: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{what}\n")
        new.replace(self._file)

    def freeze(self) -> None:
        """It stands still at this second."""
        self._write(datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"))

    def environment(self) -> dict[str, str]:
        """What the process is started with."""
        faketime = need("faketime")
        printed = subprocess.run([faketime, "-f", "+0", "env"], check=True, capture_output=True, text=True).stdout
        preload = next(line for line in printed.splitlines() if line.startswith("LD_PRELOAD="))
        return {
            **os.environ,
            "LD_PRELOAD": preload.partition("=")[2],
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
