"""What `./run bench` makes of its measurements: the verdicts, the numbers for machines, and the picture."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from math import nan
from pathlib import Path

from rich.console import Console

from support.bench_report import markdown, put_into, results, table, write_json, write_svg
from support.bench_rows import ROWS, Claim, Row
from support.bench_subjects import without_load
from support.bench_world import SMALL_ROWS, serial_number
from support.bench_wrk import literal

MEASURED = {"ours": [100.0, 90.0, 120.0], "theirs": [50.0, 60.0, 40.0], "slow ms": [3.0, 1.0, 2.0]}
CPU = {"ours": [10.0, 12.0, 11.0], "theirs": [22.0, 22.0, 22.0]}


def row(*claims: Claim) -> Row:
    """A row with these claims."""
    return Row("key", "a title <with> signs & such", lambda _bench: None, claims)


def test_verdicts() -> None:
    """Ratios are of the same round, and their median counts; "at most" counts the other way; without a bound there is
    no verdict.
    """
    found = results(
        [
            row(
                Claim("ours", "theirs", 2.0),
                Claim("ours", "theirs", 2.1),
                Claim("ours", None, 99),
                Claim("slow ms", None, 2, at_most=True),
                Claim("slow ms", None, 1.9, at_most=True),
                Claim("ours", "theirs"),
            )
        ],
        MEASURED,
        CPU,
    )
    assert [result.passed for result in found] == [True, False, True, True, False, None]
    assert (found[0].low, found[0].value, found[0].high) == (1.5, 2.0, 3.0)
    assert found[0].cpu_micros == 11.0
    assert found[0].cpu_ratio == 2.0
    assert found[3].cpu_micros is None


def test_failures_are_left_out() -> None:
    """A round in which one of the two failed says nothing of their ratio; a claim without any measurement is not
    shown.
    """
    measured = {"ours": [100.0, nan, 120.0], "theirs": [50.0, 60.0, nan], "never": [nan]}
    found = results([row(Claim("ours", "theirs", 1.9), Claim("never", None, 1), Claim("ours", None, 1))], measured, {})
    assert [(result.claim.subject, result.value) for result in found] == [("ours", 2.0), ("ours", 110.0)]


def test_everything_is_written(tmp_path: Path) -> None:
    """The JSON has every round, the picture is well-formed XML with a bar for every bound, the table a line for every
    claim.
    """
    claims = (Claim("ours", "theirs", 2.1), Claim("slow ms", None, 2, at_most=True), Claim("ours", "theirs"))
    found = results([row(*claims)], MEASURED, CPU)
    write_json(tmp_path / "bench.json", found, MEASURED, {"processor": "any"}, {"a fact": 1})
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["measured"] == MEASURED
    assert [claim["passed"] for claim in document["claims"]] == [False, True, None]
    write_svg(tmp_path / "bench.svg", found, 3)
    picture = ET.parse(tmp_path / "bench.svg").getroot()  # noqa: S314 - our own
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 2
    output = io.StringIO()
    Console(file=output, width=160).print(table(found, 3))
    assert output.getvalue().count("ours") == 2


def test_into_a_document(tmp_path: Path) -> None:
    """Only the section of the last run is replaced, once and again."""
    found = results([row(Claim("ours", "theirs", 2.1))], MEASURED, CPU)
    document = tmp_path / "performance.md"
    document.write_text("# Title\n\n## The last run\n\nold\n\n## After\n\ntext\n")
    for _ in range(2):
        put_into(document, markdown(found, {"processor": "any"}, {}, 3))
        text = document.read_text()
        assert text.startswith("# Title\n\n## The last run\n\nMedians of 3")
        assert text.endswith("\n## After\n\ntext\n")
        assert text.count("| ours |") == 1
        assert "old" not in text


def test_the_load_is_taken_off() -> None:
    """A load that uses a third of two cores does not count against the server; what the server leaves idle does."""
    assert without_load(2000, 2.0, 0.0, 1) == 1000
    assert without_load(8000, 4.0, 0.0, 2) == 4000  # three seconds of two cores, of which others had two
    assert without_load(8000, 4.0, 4.0, 2) == 2000


def test_rows_name_their_subjects() -> None:
    """Keys differ, so that `--only` means one row, and every row has something to measure."""
    assert len({each.key for each in ROWS}) == len(ROWS)
    assert all(each.subjects for each in ROWS)


def test_serial_numbers_differ() -> None:
    """Every row of the tables has a serial number of its own, positive and minimal."""
    numbers = {serial_number(n) for n in range(1, SMALL_ROWS + 1)} | {
        serial_number(9_999_999),
        serial_number(10_000_000),
    }
    assert len(numbers) == SMALL_ROWS + 2
    assert all(len(number) == 16 and 0 < number[0] < 0x80 for number in numbers)


def test_octets_in_lua() -> None:
    """Octets are written so that the next digit cannot run into them."""
    assert literal(b"\x00\n9") == '"\\000\\010\\057"'
