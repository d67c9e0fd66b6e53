"""Who may write for which authority, credentials for that, and the audit chain that holds every change."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run `r0002_registry.sql`."""
    execute_sql_beside(__file__)
