"""A CA's first CRL: a table of its own for its history, and a seal of fewer pieces."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Run `r0008_first_import.sql`."""
    execute_sql_beside(__file__)
