"""Bringing a bundle online: whose it is, whether the store can take it, and taking it.

Promises: a bundle is believed by its signatures under the certificates of an authority on record, and by nothing else.
Everything that can be refused is refused before anything is changed; the ARL comes first, because it is what revokes,
and the answers last. An import that was cut off in between is repeated as it is.

Going back is impossible: the ARL of an older ceremony has a lower number than the one on record, and is refused.

Trusted: the certificates of the authority on record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.store.audit import append_refusal
from lakthan.store.changes import ChangeRefused, ChangeWriter
from lakthan.store.published import AnswerPublisher, PublishedAnswer
from lakthan.store.records import CertStatus, Change, ChangeRequest
from lakthan.store.status import AuthorityReader, StatusReader
from lakthan_cli.ceremony import bundle
from lakthan_cli.ceremony.verification import CeremonyRefused, read_arl
from lakthan_cli.commands.certificate import hexadecimal
from lakthan_cli.commands.text import in_words
from lakthan_cli.ocsp.certificate import Certificate
from lakthan_registry.crl_check import CRLRefused
from lakthan_registry.crl_import import import_crl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import asyncpg

    from lakthan.store.bulk import CRLOutcome
    from lakthan.store.records import AuthorityRecord
    from lakthan_cli.ceremony.bundle import Bundle, Contents
    from lakthan_cli.ceremony.verification import StaticAnswer

_THROUGH = "ceremony"


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What an import does, or has done. `ended`: answers that nobody needs any more. `issued`: certificates that come
    on record as good. `differences`: sentences about revocations that are on record otherwise.
    `published`: answers that are new, None for a dry run.
    """

    authority: str
    bundle: Bundle
    contents: Contents
    ended: int
    issued: int
    differences: tuple[str, ...]
    arl: CRLOutcome
    published: int | None


async def accept(
    pool: asyncpg.Pool,
    folder: Path,
    *,
    now: datetime,
    actor: str,
    dry_run: bool = False,
    force: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Acceptance:
    """Import the bundle in `folder`. `pool` acts as `lakthan_registry`. `force`: also when the ARL lists much less than
    the one before. A refusal is on record, unless it is a dry run's.

    Raises `CeremonyRefused`, `CRLRefused`, `ChangeRefused` and `StoreUnavailable`.
    """
    chain = 0  # of no authority, while it is not known whose bundle this is
    detail = {"folder": folder.name}
    try:
        found = bundle.read(folder)
        detail["manifest_sha256"] = found.fingerprint
        authority, issuers = _authority(found, await AuthorityReader(pool).load())
        chain = authority.id
        contents = bundle.verify(found, issuers, advance)
        return await _take(_Import(pool, authority, actor, now, detail, force=force), found, contents, dry_run=dry_run)
    except (CeremonyRefused, CRLRefused, ChangeRefused) as error:
        if not dry_run:
            why = detail | {"what": "ceremony", "why": str(error)}
            await append_refusal(pool, chain, actor=actor, through=_THROUGH, detail=why)
        raise


@dataclass(frozen=True, slots=True)
class _Import:
    """What every step of an import needs."""

    pool: asyncpg.Pool
    authority: AuthorityRecord
    actor: str
    now: datetime
    detail: Mapping[str, str]
    force: bool

    async def arl(self, encoded: bytes, *, dry_run: bool) -> CRLOutcome:
        """Import the ARL, or only find out what that would do."""
        return await import_crl(
            encoded,
            pool=self.pool,
            now=self.now,
            actor=self.actor,
            through=_THROUGH,
            authority_id=self.authority.id,
            force=self.force,
            dry_run=dry_run,
            detail=self.detail,
        )


async def _take(job: _Import, found: Bundle, contents: Contents, *, dry_run: bool) -> Acceptance:
    answers = [answer for answer in contents.answers if answer.next_update > job.now]
    if not answers:
        raise CeremonyRefused("every answer in it has ended: this bundle is too old to be of use")
    unknown, differences = await _check_statuses(job.pool, job.authority, answers)
    arl = await job.arl(contents.arl.encoded, dry_run=True)  # whatever it refuses, it refuses now
    published = None
    if not dry_run:
        arl = await job.arl(contents.arl.encoded, dry_run=False)
        issued = [ChangeRequest(job.authority.id, serial_number, Change.ISSUE) for serial_number in unknown]
        await ChangeWriter(job.pool).record(issued, job.actor, through=_THROUGH, detail=job.detail)
        published = await AnswerPublisher(job.pool).publish(
            job.authority.id,
            [_published(answer) for answer in answers],
            job.actor,
            through=_THROUGH,
            detail=job.detail,
        )
    ended = len(contents.answers) - len(answers)
    return Acceptance(job.authority.name, found, contents, ended, len(unknown), differences, arl, published)


def _authority(found: Bundle, authorities: Sequence[AuthorityRecord]) -> tuple[AuthorityRecord, Sequence[Certificate]]:
    """Whose bundle this is: the authority on record whose key signed the ARL. Its certificates, the longest first."""
    if bundle.ARL_NAME not in found.files:
        raise CeremonyRefused(f"there is no {bundle.ARL_NAME} in it")
    problems = []
    for authority in authorities:
        issuers = sorted(
            (Certificate.from_der(encoded) for encoded in authority.certificates),
            key=lambda each: each.not_after,
            reverse=True,
        )
        try:
            read_arl(found.files[bundle.ARL_NAME], issuers)
        except CeremonyRefused as error:
            problems.append(f"{authority.name}: {error}")
        else:
            return authority, issuers
    raise CeremonyRefused(
        f"no authority on record made {bundle.ARL_NAME}: {'; '.join(problems) or 'there are none'}. Nothing was changed"
    )


async def _check_statuses(
    pool: asyncpg.Pool, authority: AuthorityRecord, answers: Sequence[StaticAnswer]
) -> tuple[list[bytes], tuple[str, ...]]:
    """Gives the good certificates that are not on record yet, and sentences about revocations that are on record with
    another time or reason. Raises `CeremonyRefused` where an answer is overtaken.
    """
    reader = StatusReader(pool)
    unknown = []
    differences = []
    for serial_number, answer in sorted({answer.serial_number: answer for answer in answers}.items()):
        good = answer.cert_status is CertStatus.GOOD  # all of them say the same as the ARL
        record = await reader.find(authority.id, serial_number)
        if good and record is not None and record.cert_status is CertStatus.REVOKED:
            raise CeremonyRefused(
                f"{hexadecimal(serial_number)} of {authority.name} is revoked on record, and answers in this bundle "
                "say that it is good: they were overtaken, and a new ceremony is due"
            )
        if good and record is None:
            unknown.append(serial_number)
        if not good and record is not None and record.revocation_time is not None:
            signed = (answer.revocation_time, answer.revocation_reason)
            if (record.revocation_time, record.revocation_reason) != signed:
                differences.append(
                    f"{hexadecimal(serial_number)} is {in_words(record)} on record, and stays so; the answers and the "
                    "ARL have another time or reason"
                )
    for responder in sorted({answer.responder for answer in answers if answer.responder is not None}):
        record = await reader.find(authority.id, responder)
        if record is not None and record.cert_status is CertStatus.REVOKED:
            raise CeremonyRefused(f"the responder certificate {hexadecimal(responder)}, which signed, is revoked")
    return unknown, tuple(differences)


def _published(answer: StaticAnswer) -> PublishedAnswer:
    return PublishedAnswer(
        answer.serial_number,
        answer.hash_algorithm,
        answer.cert_status,
        answer.produced_at,
        answer.this_update,
        answer.next_update,
        answer.encoded,
    )
