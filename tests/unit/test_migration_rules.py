"""What a revision of the schema may do, so that the release before it can go on working (docs/upgrading.md).

The SQL is read as it is, without comments and without the bodies of functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lakthan.store.migrate

SCRIPTS = sorted((Path(lakthan.store.migrate.__file__).parent / "migrations" / "versions").glob("*.sql"))
# Nothing may hold these for long: they have millions of rows, or a row is written for everything that happens.
BIG = frozenset(
    {
        *("certificate_status", "status_change", "bulk_change", "published_answer"),
        *("timestamp_token", "audit_record", "serial_epoch", "clock_event"),
    }
)
# What history did. There is no release before 0002 that could run beside it; the others are applied while the release
# before works (./run upgrade-check), and hold a large table while they read it once: docs/upgrading.md says so.
HISTORY = {
    *[("0002", rule) for rule in ("drops", "backfill", "revokes")],
    ("0005", "constraint"),  # of status_change, for the actor's name
    ("0006", "index"),  # of published_answer and, by blocks, of status_change
}


def statements(script: str) -> Iterator[str]:
    """Each statement, in one line and small letters."""
    script = re.sub(r"--[^\n]*", "", script)
    script = re.sub(r"\$(\w*)\$.*?\$\1\$", "''", script, flags=re.DOTALL)
    script = re.sub(r"\bbegin\s+atomic\b.*?\bend;", ";", script, flags=re.DOTALL | re.IGNORECASE)
    for statement in script.split(";"):
        if words := " ".join(statement.split()).lower():
            yield words


def broken_rules(script: str) -> set[str]:
    """The rules that a revision breaks, by their names."""
    every = list(statements(script))
    made = (re.match(r"create (?:unlogged )?table (?:if not exists )?(\w+)", each) for each in every)
    own = {each[1] for each in made if each}
    broken = set()
    for each in every:
        if re.match(r"drop (table|view|function|procedure|trigger|type|domain|sequence|role|policy|schema)\b", each):
            broken.add("drops")
        if re.match(r"(update|delete from|insert into) ", each) and _table(each) not in own:
            broken.add("backfill")
        if re.match(r"lock\b|truncate\b|cluster\b|vacuum full\b|reindex\b(?!.*concurrently)", each):
            broken.add("lock")
        index = re.match(r"create (?:unique )?index (?!concurrently)(?:if not exists )?\w* ?on (?:only )?(\w+)", each)
        if index and index[1] in BIG - own:
            broken.add("index")
        if re.match(r"revoke .* from (?!public\b)", each):
            broken.add("revokes")
        if re.match(r"alter ", each) and re.search(r"\brename\b", each):
            broken.add("renames")
        if re.match(r"alter table ", each) and _table(each) not in own:
            broken |= set(_broken_by_alter(each))
    return broken


def _table(statement: str) -> str:
    found = re.match(
        r"(?:alter table|update|delete from|insert into) (?:if exists )?(?:only )?(?:public\.)?(\w+)", statement
    )
    assert found, statement
    return found[1]


def _broken_by_alter(statement: str) -> Iterator[str]:
    if re.search(r"\bdrop (?!default\b|not null\b|constraint\b|identity\b)", statement):
        yield "drops"
    if re.search(r"\balter (?:column )?\w+ (?:set data )?type\b", statement):
        yield "type"
    if re.search(r"\bset not null\b", statement) or re.search(
        r"\badd (?:column )?(?!constraint\b)[^,]*\bnot null\b(?![^,]*\bdefault\b)", statement
    ):
        yield "not null"
    if re.search(r"\badd (?:constraint \w+ )?(?:check|foreign key|unique|primary key|exclude)\b", statement) and not (
        re.search(r"\bnot valid\b|\busing index\b", statement)
    ):
        yield "constraint"


def test_revisions_only_expand() -> None:
    """No revision takes away, renames or narrows what the release before it uses, and none holds a large table for
    long; what history did is on a list, and the list has nothing that is not so.
    """
    found = {
        (script.name[1:5], rule) for script in SCRIPTS for rule in broken_rules(script.read_text(encoding="utf-8"))
    }
    assert found == HISTORY


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("DROP TABLE heartbeat", "drops"),
        ("ALTER TABLE audit_record DROP COLUMN detail", "drops"),
        ("DROP FUNCTION seal_bulk(bigint)", "drops"),
        ("ALTER TABLE audit_record RENAME COLUMN detail TO details", "renames"),
        ("ALTER FUNCTION f() RENAME TO g", "renames"),
        ("ALTER TABLE authority ALTER COLUMN name TYPE varchar(10)", "type"),
        ("ALTER TABLE authority ALTER name SET DATA TYPE text", "type"),
        ("ALTER TABLE authority ALTER COLUMN name SET NOT NULL", "not null"),
        ("ALTER TABLE authority ADD COLUMN country text NOT NULL", "not null"),
        ("ALTER TABLE authority ADD CONSTRAINT short CHECK (length(name) < 10)", "constraint"),
        ("ALTER TABLE crl_hold ADD FOREIGN KEY (authority_id) REFERENCES authority", "constraint"),
        ("CREATE INDEX ON timestamp_token (tsu)", "index"),
        ("CREATE UNIQUE INDEX by_hash ON certificate_status (certificate_sha256)", "index"),
        ("UPDATE certificate_status SET version = version", "backfill"),
        ("LOCK TABLE status_change", "lock"),
        ("REVOKE SELECT ON authority FROM lakthan_responder", "revokes"),
    ],
)
def test_each_rule_finds_its_breach(statement: str, rule: str) -> None:
    """Each of these would break the release before, or hold it up, and is found whatever stands around it."""
    script = f"-- A comment; with a semicolon\nCREATE TABLE own (n integer);\n  {statement};\nGRANT SELECT ON own TO x;"
    assert broken_rules(script) == {rule}


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE authority ADD COLUMN country text",
        "ALTER TABLE authority ADD COLUMN country text NOT NULL DEFAULT 'LA'",
        "ALTER TABLE authority ADD CONSTRAINT short CHECK (length(name) < 10) NOT VALID",
        "ALTER TABLE authority VALIDATE CONSTRAINT short",
        "ALTER TABLE authority DROP CONSTRAINT short",
        "ALTER TABLE own ALTER COLUMN n TYPE bigint, ALTER n SET NOT NULL",
        "CREATE INDEX ON own (n)",
        "CREATE INDEX ON crl_scope (name)",
        "CREATE INDEX CONCURRENTLY of_tsu ON timestamp_token (tsu)",
        "INSERT INTO own VALUES (1)",
        "REVOKE EXECUTE ON FUNCTION f() FROM PUBLIC",
        "CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DROP TABLE x; END $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql BEGIN ATOMIC UPDATE heartbeat SET at = now(); END",
    ],
)
def test_what_only_adds_is_allowed(statement: str) -> None:
    """New tables, columns with a default or none, functions, indexes of small tables: nobody is disturbed."""
    assert broken_rules(f"CREATE TABLE own (n integer);\n{statement};\n") == set()
