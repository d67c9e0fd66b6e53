"""Copies of the database: what a keyless responder reads there, and what a logical subscriber must be told."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Run `r0007_edge.sql`."""
    execute_sql_beside(__file__)
