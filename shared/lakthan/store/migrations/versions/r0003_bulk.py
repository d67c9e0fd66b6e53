"""Many statuses at once: CRLs and issued lists, staged by COPY and applied as sets."""

from __future__ import annotations

from lakthan.store.migrations import execute_sql_beside

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Run `r0003_bulk.sql`."""
    execute_sql_beside(__file__)
