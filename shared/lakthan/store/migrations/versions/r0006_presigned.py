"""Answers signed ahead by a publisher, and the heartbeat by which copies of the database know their age."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Run `r0006_presigned.sql`."""
    execute_sql_beside(__file__)
