"""Import a CRL: read it, judge it, and bring the store to what it says, in one transaction.

Promises: a CRL that is refused, for whatever reason, has changed nothing; a revocation on record is never taken back;
the same CRL a second time is no error and changes nothing. While one CRL of an authority is imported, no other is.

It refuses to know where the CRL comes from (a file, a URL, a request) and what the time is: `now` is the caller's.
The rules are in `crl_check`, the way into the store in `lakthan.store.bulk`; `docs/crl-import.md` tells both.

Trusted: `actor`, `through` and `acting_for` are what the caller has authenticated.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.store.bulk import (
    CRLFacts,
    CRLImport,
    CRLOutcome,
    ListContradictsItself,
    authorities_seen,
    crl_import,
)
from lakthan.store.changes import NotYourAuthority
from lakthan_registry.crl_check import (
    CRLRefused,
    Names,
    Verdict,
    check_drop,
    check_form,
    check_freshness,
    check_succession,
    find_issuer,
)
from lakthan_registry.crl_rows import crl_rows
from lakthan_registry.crl_syntax import CRL, CRLSyntaxError, UnknownCriticalExtension, read_crl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from mmap import mmap

    import asyncpg

    from lakthan.store.records import AuthorityRecord


async def import_crl(
    data: bytes | mmap,
    *,
    pool: asyncpg.Pool,
    now: datetime,
    actor: str,
    through: str,
    url: str | None = None,
    authority_id: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    acting_for: int | None = None,
    detail: Mapping[str, str] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> CRLOutcome:
    """Import the CRL `data`, DER or PEM.

    `authority_id`: it must be a CRL of this authority. `url`: where it was fetched. `force`: accept a large drop in
    entries. `dry_run`: change nothing, say what would change. `acting_for`: the authority that the caller may act for,
    needed by everybody but the operator. `progress` is called with the entries that are read, their octets, and all
    octets of the CRL's entries.

    Raises `CRLRefused`, `StoreUnavailable`.
    """
    try:
        crl = read_crl(data)
        names = Names(await authorities_seen(pool, acting_for))
        issuer = await asyncio.to_thread(find_issuer, crl, names)
        if authority_id not in (None, issuer.id):
            raise CRLRefused(
                Verdict.UNKNOWN_ISSUER, f"the CRL is of {issuer.name}, another authority than the one meant"
            )
        check_form(crl)
        check_freshness(crl, now)
        facts = _facts(crl, issuer, await asyncio.to_thread(crl.sha256), url)

        async def work(transaction: CRLImport) -> CRLOutcome:
            return await _compare_and_apply(
                transaction, crl, facts, _rows(crl, issuer, names, progress), actor=actor, force=force, dry_run=dry_run
            )

        return await crl_import(
            pool,
            facts,
            work,
            actor=actor,
            through=through,
            detail={**_on_record(facts, forced=force), **(detail or {})},
            acting_for=acting_for,
        )
    except CRLSyntaxError as error:
        raise CRLRefused(Verdict.MALFORMED, str(error)) from error
    except UnknownCriticalExtension as error:
        raise CRLRefused(Verdict.CRITICAL_EXTENSION, f"{error} (RFC 5280 §5.3)") from error
    except NotYourAuthority as error:
        raise CRLRefused(Verdict.NOT_ALLOWED, f"the CRL lists certificates of another authority: {error}") from error
    except ListContradictsItself as error:
        raise CRLRefused(Verdict.CONTRADICTING_ENTRIES, f"the CRL contradicts itself: {error}") from error


async def _compare_and_apply(
    transaction: CRLImport,
    crl: CRL,
    facts: CRLFacts,
    rows: Iterator[bytes],
    *,
    actor: str,
    force: bool,
    dry_run: bool,
) -> CRLOutcome:
    current = await transaction.scope()
    if current is not None and current.crl_sha256 == facts.sha256:
        return CRLOutcome(
            facts.authority_id,
            facts.crl_number,
            facts.delta,
            entries=current.complete_entries,
            unchanged=current.complete_entries,
            nothing_new=True,
            dry_run=dry_run,
        )
    check_succession(crl, current)
    await transaction.stage(rows)
    plan = await transaction.plan()
    if not crl.delta and not force:
        check_drop(plan, current, await transaction.drop_limit_percent())
    return CRLOutcome(
        facts.authority_id,
        facts.crl_number,
        facts.delta,
        plan.entries,
        plan.revoked,
        plan.held,
        plan.released,
        plan.reason_changed,
        plan.unchanged,
        plan.vanished,
        version=None if dry_run else await transaction.apply(plan, actor),
        dry_run=dry_run,
    )


def _rows(
    crl: CRL, issuer: AuthorityRecord, names: Names, progress: Callable[[int, int, int], None] | None
) -> Iterator[bytes]:
    def authority_of(name: bytes) -> int:
        found = names.find(name)
        if len(found) != 1:
            raise CRLRefused(
                Verdict.UNKNOWN_AUTHORITY,
                f"the indirect CRL lists certificates of {len(found) or 'no'} authorities on record with the name "
                f"{name.hex()}; it must be one",
            )
        return found[0].id

    start, end = crl.entries_span
    entries = 0
    for chunk in crl_rows(crl, issuer.id, authority_of):
        yield chunk.row
        entries += chunk.entries
        if progress is not None:
            progress(entries, chunk.octets, end - start)


def _facts(crl: CRL, issuer: AuthorityRecord, sha256: bytes, url: str | None) -> CRLFacts:
    if crl.next_update is None:
        raise AssertionError("check_freshness refuses a CRL without nextUpdate")
    return CRLFacts(issuer.id, crl.scope, crl.delta, crl.crl_number, crl.this_update, crl.next_update, sha256, url)


def _on_record(facts: CRLFacts, *, forced: bool) -> dict[str, str]:
    found = {"crl_sha256": facts.sha256.hex(), "crl": "delta" if facts.delta else "complete"}
    if facts.crl_number is not None:
        found["crl_number"] = str(facts.crl_number)
    if facts.url is not None:
        found["url"] = facts.url
    if forced:
        found["forced"] = "true"
    return found
