"""What a soak writes down while it runs: one JSON object a line, so that a run that is broken off can be judged too.

Everything that is judged and drawn afterwards is in this file and nowhere else. `t` is in seconds since the beginning.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Diary:
    """Lines of these kinds: `begin` (the plan), `sample` (processes, database), `scrape` (a `/metrics`), `latency` (of
    an interval, by kind of request), `trouble` (an answer that was none, `of` which kind), `event` (announced: from
    `t` to `until`, with the kinds that may have `trouble` then), `rotation` (seen to have happened), `wrong` (never
    allowed), `end`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._began = time.monotonic()
        self.lines: list[Line] = []
        self.rotations: Counter[str] = Counter()

    def begin(self, **about: Any) -> None:  # noqa: ANN401 - as below
        """All is ready: time is counted from here."""
        self._began = time.monotonic()
        self.write("begin", **about)

    def now(self, at: float | None = None) -> float:
        """Seconds since the beginning; `at`: of this instant of `time.monotonic`."""
        return round((time.monotonic() if at is None else at) - self._began, 3)

    def write(self, kind: str, at: float | None = None, **about: Any) -> None:  # noqa: ANN401 - whatever JSON can say
        """Add a line."""
        line = {"kind": kind, "t": self.now() if at is None else at, **about}
        self.lines.append(line)
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def seen(self, what: str, times: int = 1) -> None:
        """A rotation has happened and shows in what clients get."""
        if times:
            self.rotations[what] += times
            self.write("rotation", what=what, times=times)

    def wrong(self, words: str) -> None:
        """Something that must never be."""
        self.write("wrong", words=words)

    def trouble(self, of: str, words: str, at: float | None = None) -> None:
        """Something that may only be while an event lasts. `at`: of `time.monotonic`, when it was sent."""
        self.write("trouble", of=of, words=words, sent=self.now(at))

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def read(path: Path) -> list[Line]:
    """The lines of a diary; a last one that was cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
