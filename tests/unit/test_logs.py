"""What the log says of requests and for auditors, how much of it there is at most, and that its page is complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lakthan.errors import ConfigError
from lakthan.telemetry import logs
from lakthan.telemetry.logs import AUDIT_EVENTS
from lakthan.telemetry.request_log import RequestLog
from support import logged

# In a process of its own, because a process is configured once.
PROGRAM = """
import sys
from pathlib import Path
from lakthan.telemetry import logs
from lakthan.telemetry.request_log import request_log
logs.configure("test")
logs.use(lines_per_second=3, audit=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
request_log.use(0.1, names_certificates=True)
"""


def lines(code: str, *arguments: str, **options: object) -> list[dict[str, object]]:
    """The lines on standard error."""
    command = [sys.executable, "-c", PROGRAM + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, **options)  # type: ignore[call-overload]
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_the_page_lists_every_event() -> None:
    """docs/logs.md has each event that the source logs, with its levels and fields, and no other."""
    assert logged.PAGE.read_text(encoding="utf-8") == logged.page()


def test_every_audit_event_exists() -> None:
    """What is named as audit matter is logged somewhere, word for word."""
    assert set(logged.events()) >= AUDIT_EVENTS


def test_a_flood_of_one_event_is_bounded() -> None:
    """Of one event so many lines a second; others are not touched; the next line says how many were left out."""
    said = lines(
        """
import time
for _ in range(1000): logs.log.warning("flood")
logs.log.warning("another")
before = int(time.monotonic())
while int(time.monotonic()) == before: pass
logs.log.warning("flood")
"""
    )
    flood = [line for line in said if line["event"] == "flood"]
    assert len(flood) < 20
    assert len(flood) + sum(int(str(line.get("left_out", 0))) for line in flood) == 1001
    assert [line["event"] for line in said].count("another") == 1


def test_audit_lines_are_never_left_out_and_have_a_file_of_their_own(tmp_path: Path) -> None:
    """They are all in the file and not on standard error, each with its service; a file that was moved away is made
    anew.
    """
    file = tmp_path / "audit.log"
    said = lines(
        """
for number in range(50): logs.log.info("changes accepted", number=number)
import os
os.rename(sys.argv[1], sys.argv[1] + ".1")
logs.log.info("stopping")
logs.log.info("something else")
""",
        str(file),
    )
    assert [line["event"] for line in said] == ["something else"]
    old = [json.loads(line) for line in Path(f"{file}.1").read_text().splitlines()]
    assert [line["number"] for line in old] == list(range(50))
    assert {(line["stream"], line["service"], line["level"]) for line in old} == {("audit", "test", "info")}
    assert json.loads(file.read_text())["event"] == "stopping"


def test_audit_lines_can_go_to_a_file_descriptor() -> None:
    """`fd:N` writes to a descriptor that was inherited."""
    reading, writing = os.pipe()
    try:
        lines('logs.log.info("stopping")', f"fd:{writing}", pass_fds=[writing])
        os.close(writing)
        assert json.loads(os.read(reading, 4096))["stream"] == "audit"
    finally:
        os.close(reading)


def test_an_audit_file_that_cannot_be_written(tmp_path: Path) -> None:
    """It is an error of the configuration, said at the start."""
    with pytest.raises(ConfigError, match="cannot be written to"):
        logs.use(lines_per_second=3, audit=tmp_path / "missing" / "audit.log")


def test_a_sample_of_the_requests() -> None:
    """One of ten gets a line, evenly; what is notable always does; nothing before the share is known."""
    requests = RequestLog()
    assert not any(requests.due() for _ in range(100))
    assert not requests.due(notable=True)
    requests.use(0.1, names_certificates=True)
    assert [requests.due() for _ in range(100)].count(True) == 10
    assert requests.due(notable=True)
    assert (requests.interval(notable=False), requests.interval(notable=True)) == (10, 1)
    requests.use(0.0, names_certificates=True)
    assert not any(requests.due() for _ in range(1000))
    assert requests.due(notable=True)


def test_the_line_of_a_request() -> None:
    """It has an id of its own and says what was answered; certificates are named only where that is wanted."""
    said = lines(
        """
request_log.note(outcome="good", method="GET", certificate="1:0a")
request_log.use(1.0, names_certificates=False)
request_log.note(outcome="revoked", method="POST", certificate="1:0a")
"""
    )
    assert [(line["outcome"], line.get("certificate")) for line in said] == [("good", "1:0a"), ("revoked", None)]
    assert len({line["request_id"] for line in said}) == 2
