"""Authorities, statuses with their only way in, time-stamp records, and the rights of the three services."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Run `r0001_first_schema.sql`."""
    execute_sql_beside(__file__)
