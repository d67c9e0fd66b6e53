"""Is the schema as new as this release needs? What a service asks before it begins.

A release that needs a newer schema than there is waits, is not ready, and says what to run; it begins by itself as soon
as that was done. A schema that is newer than the release is right: the release before runs on it while the new one
rolls out (decision 0023).

Promises: any of the limited roles can ask, for `lakthan.store.migrate` lets them read which revision it made; whoever
may not read that has a schema of a release that did not know of this question, which is an older one. Alembic is not
loaded for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from lakthan.errors import StoreUnavailable
from lakthan.store.pool import unavailable_as_such

if TYPE_CHECKING:
    from collections.abc import Iterable

_VERSIONS = Path(__file__).parent / "migrations" / "versions"
_REMEDY = "run `lakthan db migrate` of this release as the owner of the database; this service begins by itself then"


def revisions(folder: Path = _VERSIONS) -> list[str]:
    """The revisions that this release knows, oldest first."""
    return sorted(path.name[1:5] for path in folder.glob("r[0-9][0-9][0-9][0-9]_*.sql"))


async def schema_problem(pool: asyncpg.Pool) -> str:
    """What keeps this release from working on the database; '' when nothing does."""
    try:
        with unavailable_as_such():
            current = await pool.fetchval("SELECT version_num FROM public.alembic_version")
    except asyncpg.UndefinedTableError:
        return f"the database is empty: {_REMEDY}"
    except asyncpg.InsufficientPrivilegeError:
        return f"the schema of the database is that of an older release: {_REMEDY}"
    except StoreUnavailable as error:
        return str(error)
    known = revisions()
    if current in known[:-1]:
        return f"the schema of the database is at revision {current} and this release needs {known[-1]}: {_REMEDY}"
    return ""


def readable_by(roles: Iterable[str]) -> str:
    """The statement that lets roles ask."""
    return f"GRANT SELECT ON public.alembic_version TO {', '.join(roles)}"
