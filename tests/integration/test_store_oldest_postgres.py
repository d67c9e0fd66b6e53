"""The schema on the oldest PostgreSQL that it promises to run on, with what its newest functions do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from lakthan import der
from lakthan.store.audit_verify import verify
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.bulk import CRLOutcome, import_issued
from lakthan.store.changes import ChangeWriter
from lakthan.store.crl_scopes import CRLScopes
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.embedded_binaries import OLDEST_MAJOR
from lakthan.store.migrate import migrate, status
from lakthan.store.pool import open_pool
from lakthan_registry.crl_import import import_crl
from support.crl import Listed, entry, new_crl
from support.pki import new_ca
from support.programs import absent

_PROGRAMS = Path(f"/usr/lib/postgresql/{OLDEST_MAJOR}/bin")


async def test_every_revision_and_an_import_on_the_oldest_postgresql(tmp_path: Path) -> None:
    """All revisions apply; a CRL, the next one, a list and a single change are recorded, and all of it adds up."""
    if not (_PROGRAMS / "postgres").exists():
        absent("postgresql", f"{_PROGRAMS} is not there (Debian package: postgresql-{OLDEST_MAJOR})")
    ca = new_ca("House CA")
    begins = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    with EmbeddedPostgres(tmp_path, durable=False, binaries=_PROGRAMS) as server:
        assert await migrate(server.url())
        state = await status(server.url())
        assert state.current == state.head
        pool = await open_pool(
            server.url(), role="lakthan_registry", min_size=1, max_size=2, application_name="lakthan-test"
        )
        version = await pool.fetchval("SELECT current_setting('server_version_num')::integer / 10000")
        assert version == OLDEST_MAJOR
        authority_id = await AuthorityAdmin(pool).add_authority("House CA", [ca.der], actor="me")

        async def take(number: int, *entries: bytes) -> CRLOutcome:
            data = new_crl(ca, Listed(entries, number, this_update=begins + timedelta(minutes=number)))
            return await import_crl(data, pool=pool, now=datetime.now(UTC), actor="me", through="test")

        first = await take(1, entry(b"\x01", 1), entry(b"\x02", 6))
        assert (first.revoked, first.held) == (1, 1)
        await ChangeWriter(pool).issue(authority_id, b"\x03", actor="me")
        second = await take(2, entry(b"\x01", 1), entry(b"\x03", 4), entry(b"\x04"))
        assert (second.revoked, second.released, second.unchanged) == (2, 1, 1)
        listed = await import_issued(
            pool, authority_id, [(b"\x05", None, None, None, None, None)], actor="me", through="test"
        )
        assert listed.issued == 1
        [scope] = await CRLScopes(pool).load()
        await CRLScopes(pool).retire(authority_id, scope.id, actor="me")
        report = await verify(pool)
        assert (report.findings, report.statuses) == ([], 5)

        # A great first CRL has a table of its own (decision 0020).
        ca = new_ca("Great CA")
        await AuthorityAdmin(pool).add_authority("Great CA", [ca.der], actor="me")
        great = await take(1, *(entry(der.integer_content(number), 1) for number in range(1, 10_001)))
        assert great.revoked == 10_000
        report = await verify(pool)
        assert (report.findings, report.statuses) == ([], 10_005)
        await pool.close()
