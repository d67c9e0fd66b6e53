"""A CA's first CRL by columns, and its seal on two processors."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Run `r0009_parallel_import.sql`."""
    execute_sql_beside(__file__)
