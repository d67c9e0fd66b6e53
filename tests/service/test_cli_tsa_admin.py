"""`lakthan tsa tokens`, `freeze`, `retention` and `credential`, on a database with tokens."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lakthan.store.pool import open_pool
from lakthan.store.records import TokenRecord
from lakthan.store.tokens import TokenLog
from lakthan_cli.__main__ import main
from support.tsa import Unit, new_unit

NOW = datetime.now(UTC).replace(microsecond=250_000)
MONTH = 0x4000 + (NOW.year - 2000) * 12 + NOW.month - 1


@pytest.fixture(scope="module")
def unit() -> Unit:
    """The unit of some of the tokens."""
    return new_unit()


def tsu_of(unit: Unit) -> str:
    """Its name in the records."""
    return hashlib.sha256(unit.leaf.der).hexdigest()


@pytest.fixture
def url(database_url: str, unit: Unit) -> str:
    """A database with three tokens: of the unit with a good clock, of the unit with a bad one, of another unit."""

    async def fill() -> None:
        pool = await open_pool(
            database_url, role="lakthan_tsa", min_size=1, max_size=1, application_name="lakthan-test"
        )
        bounds = (timedelta(milliseconds=1), timedelta(milliseconds=600), None)
        await TokenLog(pool).append(
            [
                TokenRecord(
                    MONTH.to_bytes(2, "big") + number.to_bytes(16, "big"),
                    NOW,
                    "0.4.0.2023.1.1",
                    "SHA-256",
                    bytes([number]) * 32,
                    "f" * 64 if bound is None else tsu_of(unit),
                    "in sync",
                    bound,
                    bytes(32),
                )
                for number, bound in enumerate(bounds, 1)
            ]
        )
        await pool.close()

    asyncio.run(fill())
    return database_url


def run(url: str, *arguments: str | Path) -> Result:
    """`lakthan tsa …` on the database."""
    return CliRunner().invoke(main, ["tsa", *map(str, arguments), "--database", url], catch_exceptions=False)


def listed(url: str, *arguments: str | Path) -> list[dict[str, str]]:
    """The rows of `lakthan tsa tokens` since yesterday."""
    result = run(url, "tokens", "--from", f"{NOW - timedelta(days=1):%Y-%m-%d}", *arguments)
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(result.stdout.splitlines()))


def test_tokens(url: str, unit: Unit, tmp_path: Path) -> None:
    """What an incident touches is listed: all of a time span, of one unit, or with a clock that was off or unknown.

    TSA-C7.
    """
    certificate, _ = unit.leaf.write(tmp_path, "tsu")
    assert [row["clock_bound_us"] for row in listed(url)] == ["1000", "600000", ""]
    assert [row["clock_bound_us"] for row in listed(url, "--tsu", certificate)] == ["1000", "600000"]
    assert [row["clock_bound_us"] for row in listed(url, "--clock-worse-than", "500ms")] == ["600000", ""]
    [row] = listed(url, "--tsu", tsu_of(unit).upper(), "--clock-worse-than", "0.5s")
    assert row["imprint"] == "SHA-256:" + "02" * 32
    assert row["serial_number"].endswith("02")
    assert listed(url, "--to", (NOW - timedelta(hours=1)).isoformat()) == []


def test_tokens_as_json(url: str) -> None:
    """The same as JSON, an object a line; the count goes to standard error, so that a pipe gets rows only."""
    result = run(url, "tokens", "--from", (NOW - timedelta(hours=1)).isoformat(), "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["clock_bound_us"] for row in rows] == [1000, 600_000, None]
    assert datetime.fromisoformat(rows[0]["gen_time"]) == NOW
    assert result.stderr == "3 tokens\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from", "yesterday"),
        ("--from", "2026-01-01", "--clock-worse-than", "fast"),
        ("--from", "2026-01-01", "--tsu", "nowhere.pem"),
    ],
)
def test_tokens_with_a_slip(url: str, arguments: tuple[str, ...]) -> None:
    """A time, duration or unit that is none is named."""
    result = run(url, "tokens", *arguments)
    assert result.exit_code != 0
    assert arguments[-1] in result.output


def test_freeze(url: str, unit: Unit, tmp_path: Path) -> None:
    """A freeze says since when, by whom and why; repeating it tells the first one's story. TSA-O1."""
    certificate, _ = unit.leaf.write(tmp_path, "tsu")
    first = run(url, "freeze", certificate, "--reason", "seen on a stick")
    assert first.exit_code == 0, first.output
    assert first.output.startswith(f"unit {tsu_of(unit)} is frozen since")
    assert "seen on a stick" in first.output
    again = run(url, "freeze", tsu_of(unit), "--reason", "something else")
    assert again.output == first.output.replace("is frozen", "was frozen already")
    assert run(url, "freeze", certificate).exit_code != 0  # no reason, no freeze


def test_retention(url: str) -> None:
    """Months are shown with their counts; without --yes nothing is dropped; the present month cannot be. TSA-O1."""
    shown = run(url, "retention")
    assert shown.output == f"{NOW:%Y-%m}  3 tokens\n"
    past = run(url, "retention", "--drop-before", f"{NOW:%Y-%m}")
    assert "would drop 0 tokens of 0 months" in past.output
    assert "dropped 0 tokens" in run(url, "retention", "--drop-before", f"{NOW:%Y-%m}", "--yes").output
    future = run(url, "retention", "--drop-before", f"{NOW.year + 1}-01", "--yes")
    assert future.exit_code != 0
    assert "present month" in future.output
    assert run(url, "retention").output == shown.output


def test_credential() -> None:
    """A new secret comes with the entry for the file: the hash is that of the secret, which is not in the entry."""
    arguments = ["tsa", "credential", "ໂຮງໝໍ", "--profile", "default", "--profile", "qualified"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    secret = result.stderr.rsplit(" ", 1)[1].strip()
    [(name, entry)] = tomllib.loads(result.stdout).items()
    assert name == "ໂຮງໝໍ"
    assert entry["profiles"] == ["default", "qualified"]
    assert entry["secret_sha256"] == [hashlib.sha256(secret.encode()).hexdigest()]
    assert len(secret) >= 43
    assert secret not in result.stdout
