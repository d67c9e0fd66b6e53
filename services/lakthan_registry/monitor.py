"""Do the CRLs that a CA publishes and the OCSP answers say the same? (ETSI EN 319 411-1 CSS-6.3.10-08 and -09)

Every entry of the CRLs is compared with the store, and everything that the store has as revoked with the CRLs, serial
number by serial number. The responders are asked over HTTP about whatever differs and about entries picked at random,
or about all of them. The two may differ for the delay that the authority has declared: a difference that is younger is
`pending`, an older one an alarm.

How old a difference is: a change in the store counts from when it was recorded, an entry of a CRL from the thisUpdate
of the CRL in which it was first seen. The monitor remembers that from one run to the next (`Report.since`), also past
runs that could not look; a run that remembers nothing counts from the thisUpdate of the current CRL, and may so take an
old difference for a young one. What a responder differed in is asked again, whatever else is picked.

When not all CRLs can be had, what the store has beyond those that can is no difference: the missing one may list it.

A CA may take a certificate off its CRLs when it has ended (RFC 5280 §3.3). Where the end is not on record and the
revocation came from an earlier CRL, that is what has probably happened: such are counted and no difference.

Refuses to know: why they differ. It changes nothing.

Trusted: the store for what is on record, an authority's policy for where its CRLs are.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.records import CRLReason, StatusRecord
from lakthan.store.revoked import RevokedReader
from lakthan.store.status import StatusReader
from lakthan_registry.fetch import FetchFailed, Validators, fetch
from lakthan_registry.monitor_ask import NoAnswer, Said, ask_about
from lakthan_registry.monitor_crl import CRLUnusable, PublishedCRL, Revocation, read_published

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import asyncpg

    from lakthan.store.records import AuthorityRecord

# A difference from one run to the next: where, about which serial number, of which kind.
Which = tuple[str, bytes, "Kind"]

STORE = "store"
SAMPLE = 500
# So many differences of a kind are looked into one by one; of more, the rest is counted.
_MOST_DETAILS = 1000


class Kind(Enum):
    """How the two sides differ."""

    NOT_REVOKED = "on the CRL, not revoked by OCSP"
    NOT_ON_CRL = "revoked by OCSP, not on the CRL"
    OTHER_TIME = "other revocation time"
    OTHER_REASON = "other reason"
    BEHIND = "the responder is behind the store"


@dataclass(frozen=True, slots=True)
class Difference:
    """One certificate about which two sides differ. `where`: `store`, or the URL of the responder. `crl`, `ocsp`: what
    each says, None for nothing. `since`: when that began, as far as is known. `alarm`: longer than declared.
    """

    where: str
    serial_number: bytes
    kind: Kind
    crl: Said | None
    ocsp: Said | None
    since: datetime
    alarm: bool


@dataclass(slots=True)
class Report:
    """What a comparison found for one authority.

    `crls`: what was read. `compared`: entries compared with the store. `asked`: for each responder how many answers
    were compared. `uncounted`: differences beyond those listed. `ended`: revoked certificates that are not on the CRL
    any more, and whose end is not on record: they have probably ended. `problems`: what could not be compared.
    `carried`: what an earlier run found and this one could not look at.
    """

    authority: str
    at: datetime
    declared_delay: timedelta
    crls: list[PublishedCRL] = field(default_factory=list)
    compared: int = 0
    asked: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    uncounted: int = 0
    ended: int = 0
    problems: list[str] = field(default_factory=list)
    carried: dict[Which, datetime] = field(default_factory=dict)

    @property
    def alarms(self) -> list[Difference]:
        """What has lasted longer than the declared delay."""
        return [each for each in self.differences if each.alarm]

    @property
    def in_order(self) -> bool:
        """True when there is no alarm, and everything could be compared."""
        return not self.alarms and not self.problems

    @property
    def since(self) -> dict[Which, datetime]:
        """What the next run has to remember."""
        return self.carried | {(each.where, each.serial_number, each.kind): each.since for each in self.differences}


@dataclass(frozen=True, slots=True)
class _Means:
    """What a comparison asks."""

    statuses: StatusReader
    revoked: RevokedReader
    session: aiohttp.ClientSession
    responders: Sequence[str]
    sample: int | None


class Monitor:
    """Compares one authority. `pool` acts as a role that sees all authorities (`lakthan_auditor`).

    `sample`: about so many entries on which store and CRL agree are the responders asked as well; None for all.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        session: aiohttp.ClientSession,
        *,
        responders: Sequence[str] = (),
        sample: int | None = SAMPLE,
    ) -> None:
        self._session = session
        self._authorities = AuthorityAdmin(pool)
        self._means = _Means(StatusReader(pool), RevokedReader(pool), session, responders, sample)

    async def compare(
        self,
        authority: AuthorityRecord,
        *,
        sources: Sequence[str] | None = None,
        since: Mapping[Which, datetime] | None = None,
    ) -> Report:
        """One comparison. `sources`: URLs and paths of CRLs, those of the policy when left out; `since`: what the run
        before had to remember. Raises `StoreUnavailable`; everything else that fails is a problem in the report.
        """
        policy = await self._authorities.policy(authority.id)
        report = Report(authority.name, datetime.now(UTC), policy.declared_delay)
        known = await self._authorities.authorities()
        wanted = policy.crl_urls if sources is None else sources
        for source in wanted:
            try:
                crl = await self._read(source, authority, known)
            except (CRLUnusable, FetchFailed) as error:
                report.problems.append(str(error))
                continue
            report.crls.append(crl)
            if crl.next_update is not None and crl.next_update < report.at:
                report.problems.append(f"{source}: the CRL ended at {crl.next_update:%Y-%m-%d %H:%M:%S} UTC")
        if not report.crls:
            if not report.problems:
                report.problems.append("no CRL is known: give the authority a policy with a CRL's URL, or name a CRL")
            report.carried = dict(since or {})
            return report
        await _Comparison(self._means, authority, report, since or {}, whole=len(report.crls) == len(wanted)).run()
        return report

    async def _read(self, source: str, authority: AuthorityRecord, known: Sequence[AuthorityRecord]) -> PublishedCRL:
        if source.startswith(("http://", "https://")):
            fetched = await fetch(self._session, source, Validators())
            data = bytes(fetched.octets) if fetched is not None else b""
        else:
            try:
                data = await asyncio.to_thread(Path(source).read_bytes)
            except OSError as error:
                raise CRLUnusable(f"{source}: {error.strerror}") from error
        return await asyncio.to_thread(read_published, source, data, authority, known)


class _Comparison:
    """One run: the entries of all CRLs together on one side, the store and the responders on the other.

    `whole`: every CRL there is could be read.
    """

    def __init__(
        self,
        means: _Means,
        authority: AuthorityRecord,
        report: Report,
        remembered: Mapping[Which, datetime],
        *,
        whole: bool,
    ) -> None:
        self._means = means
        self._authority = authority
        self._report = report
        self._remembered = remembered
        self._whole = whole
        self._entries: dict[bytes, Revocation] = {}
        for crl in report.crls:
            for serial_number, revocation in crl.entries.items():
                self._entries.setdefault(serial_number, revocation)
        self._this_update = max(crl.this_update for crl in report.crls)
        self._counts = dict.fromkeys(Kind, 0)

    async def run(self) -> None:
        """Fill the report."""
        unmatched, lacking = await self._with_the_store()
        await self._not_revoked_here(unmatched)
        if self._whole:
            await self._not_on_a_crl(lacking)
        else:
            self._report.carried = {
                which: since for which, since in self._remembered.items() if which[1] not in self._entries
            }
        asked = self._to_be_asked(lacking)
        issuer = self._report.crls[0].issuer
        for url in self._means.responders:
            answers = await ask_about(self._means.session, url, issuer, asked)
            self._take_answers(url, answers, {record.serial_number: record for record in lacking})

    async def _with_the_store(self) -> tuple[set[bytes], list[StatusRecord]]:
        """Gives the entries that the store does not have as revoked, and what it has beyond the entries."""
        unmatched, lacking = set(self._entries), []
        oldest = min(crl.this_update for crl in self._report.crls)
        async for record in self._means.revoked.revoked(self._authority.id):
            entry = self._entries.get(record.serial_number)
            if entry is not None:
                unmatched.discard(record.serial_number)
                self._same(STORE, record.serial_number, entry, _revocation(record))
            elif record.not_after is None or record.not_after > oldest:
                lacking.append(record)
        self._report.compared = len(self._entries)
        return unmatched, lacking

    async def _not_revoked_here(self, serial_numbers: Iterable[bytes]) -> None:
        for serial_number in sorted(serial_numbers):
            if self._counts[Kind.NOT_REVOKED] >= _MOST_DETAILS:
                self._report.uncounted += 1
                continue
            record = await self._means.statuses.find(self._authority.id, serial_number)
            said = Said("unknown" if record is None else record.cert_status.label)
            self._differs(STORE, serial_number, Kind.NOT_REVOKED, said)

    async def _not_on_a_crl(self, lacking: list[StatusRecord]) -> None:
        recorded = await self._means.revoked.recorded([record.version for record in lacking])
        for record in lacking:
            at, from_crl = recorded[record.version]
            if record.not_after is None and from_crl:
                self._report.ended += 1
            else:
                self._differs(STORE, record.serial_number, Kind.NOT_ON_CRL, _said(record), since=at)

    def _to_be_asked(self, lacking: list[StatusRecord]) -> list[bytes]:
        differing = {each.serial_number for each in self._report.differences}
        agreed = [serial_number for serial_number in self._entries if serial_number not in differing]
        sample = self._means.sample
        if sample is not None and sample < len(agreed):
            agreed = random.sample(agreed, sample)
        differing |= {record.serial_number for record in lacking[:_MOST_DETAILS]}
        differing |= {serial_number for where, serial_number, _ in self._remembered if where != STORE}
        return sorted(differing | set(agreed))

    def _take_answers(
        self, url: str, answers: Mapping[bytes, Said | NoAnswer], lacking: Mapping[bytes, StatusRecord]
    ) -> None:
        failures = [answer for answer in answers.values() if isinstance(answer, NoAnswer)]
        if failures:
            self._report.problems.append(f"{url}: {len(failures)} of {len(answers)} answers failed: {failures[0]}")
        self._report.asked[url] = len(answers) - len(failures)
        for serial_number, answer in answers.items():
            if isinstance(answer, NoAnswer):
                self._carry(url, serial_number)
                continue
            entry = self._entries.get(serial_number)
            if entry is None:
                record = lacking.get(serial_number)
                if record is not None and answer.revocation != _revocation(record):
                    self._differs(url, serial_number, Kind.BEHIND, answer)
            elif answer.revocation is None:
                self._differs(url, serial_number, Kind.NOT_REVOKED, answer)
            else:
                self._same(url, serial_number, entry, answer.revocation)

    def _carry(self, where: str, serial_number: bytes) -> None:
        """What an earlier run found about the certificate keeps its age, for this one could not look."""
        for kind in Kind:
            which = where, serial_number, kind
            if which in self._remembered:
                self._report.carried[which] = self._remembered[which]

    def _same(self, where: str, serial_number: bytes, entry: Revocation, ours: Revocation) -> None:
        if self._authority.revocation_time is not None and where != STORE:
            return  # the CA itself is revoked, and all its certificates with it since then (RFC 6960 §2.7)
        if entry.time != ours.time:
            self._differs(where, serial_number, Kind.OTHER_TIME, Said("revoked", ours))
        if entry.reason is not ours.reason:
            self._differs(where, serial_number, Kind.OTHER_REASON, Said("revoked", ours))

    def _differs(
        self, where: str, serial_number: bytes, kind: Kind, ocsp: Said, *, since: datetime | None = None
    ) -> None:
        if self._counts[kind] >= _MOST_DETAILS:
            self._report.uncounted += 1
            return
        self._counts[kind] += 1
        entry = self._entries.get(serial_number)
        began = self._remembered.get((where, serial_number, kind), since or self._this_update)
        alarm = self._report.at - began > self._report.declared_delay
        crl = None if entry is None else Said("revoked", entry)
        self._report.differences.append(Difference(where, serial_number, kind, crl, ocsp, began, alarm))


def _revocation(record: StatusRecord) -> Revocation:
    assert record.revocation_time is not None  # noqa: S101 - the table's own constraint
    reason = record.revocation_reason
    return Revocation(record.revocation_time, CRLReason.UNSPECIFIED if reason is None else reason)


def _said(record: StatusRecord) -> Said:
    return Said("revoked", _revocation(record))
