"""The schema's history: one revision per file in `versions`, each a thin module beside the SQL that it runs.

A revision is written once and never edited after a release; the next change is the next revision. There is no way
back down: an audit trail that can be migrated away is none, and a restore from backup is the honest undo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import op


def execute_sql_beside(revision_file: str) -> None:
    """Run the `.sql` file beside a revision, all of its statements, in the transaction of that revision."""
    script = Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8")

    async def run(connection: Any) -> None:  # noqa: ANN401 - SQLAlchemy hands the driver's connection over untyped
        await connection.execute(script)

    bind = op.get_bind()
    # SQLAlchemy sends BEGIN with the first statement that goes through it, and the script does not.
    bind.exec_driver_sql("SELECT 1")
    bind.connection.dbapi_connection.run_async(run)  # type: ignore[union-attr]
