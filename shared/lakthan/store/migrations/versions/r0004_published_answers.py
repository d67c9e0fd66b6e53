"""Answers that were signed elsewhere, with an offline CA's key, and are given out as they are."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Run `r0004_published_answers.sql`."""
    execute_sql_beside(__file__)
