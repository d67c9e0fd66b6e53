"""CRLs that are fetched: every URL of every authority's policy, asked again and again, and imported when it is new.

Promises: each URL is asked often enough for the policy's declared delay, more often as the end of the CRL on record
comes near, and after failures ever less often, but never so that the end is slept through. What cannot be had or is
refused changes nothing, is logged and counted; when the last quarter of a CRL's life has begun and the newest try
failed, or it has ended, `lakthan_registry_crl_overdue` is 1. The responders then do what their profiles say about a CRL
that has ended: they answer `tryLater`. In that last quarter a server is not asked whether there is anything new but for
the list itself: one that says "not modified" of a list that ends may be wrong.

Several registries may fetch the same URL: an import that comes second finds nothing new.

Trusted: an authority's policy, for which URLs may be asked. Not the servers: `crl_import` believes signatures only.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client import CollectorRegistry, Counter, Gauge

from lakthan.errors import LakthanError, StoreUnavailable
from lakthan.store.audit import append_refusal
from lakthan.store.authorities import AuthorityAdmin
from lakthan.telemetry.logs import log
from lakthan_registry.crl_check import CRLRefused
from lakthan_registry.crl_import import import_crl
from lakthan_registry.crl_syntax import read_crl
from lakthan_registry.fetch import MOST_OCTETS, FetchFailed, Validators, fetch

if TYPE_CHECKING:
    import asyncpg

    from lakthan.store.bulk import CRLOutcome
    from lakthan.store.records import CRLSource
    from lakthan_registry.fetch import Fetched

ACTOR = "registry"


@dataclass(frozen=True, slots=True)
class Polling:
    """How often. The policy's declared delay, divided by `part_of_delay`, is the usual interval, within `shortest` and
    `longest`; `reread` is how often the policies are looked at; `back_off` is the pause after the first failure; the
    first tries are spread over `start_spread`.
    """

    part_of_delay: int = 4
    shortest: timedelta = timedelta(seconds=10)
    longest: timedelta = timedelta(minutes=15)
    back_off: timedelta = timedelta(seconds=5)
    longest_back_off: timedelta = timedelta(minutes=5)
    reread: timedelta = timedelta(seconds=30)
    start_spread: timedelta = timedelta(seconds=3)
    most_octets: int = MOST_OCTETS


@dataclass(frozen=True, slots=True)
class Followed:
    """One URL that is asked for the CRLs of an authority."""

    authority_id: int
    authority: str
    url: str
    declared_delay: timedelta


class SourceMetrics:
    """What the sources count, in the registry that is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.fetches = Counter(
            "lakthan_registry_crl_fetches",
            "CRLs asked for, by what came of it: imported, nothing new, not modified, refused, unreachable, "
            "store unavailable.",
            ["authority", "outcome"],
            registry=registry,
        )
        self.refused = Counter(
            "lakthan_registry_source_crls_refused",
            "CRLs from URLs and from the spool that were refused, by the reason.",
            ["source", "authority", "verdict"],
            registry=registry,
        )
        self.next_update = Gauge(
            "lakthan_registry_crl_next_update_timestamp_seconds",
            "The nextUpdate of the newest CRL that was got from a URL.",
            ["authority", "url"],
            registry=registry,
        )
        self.last_success = Gauge(
            "lakthan_registry_crl_last_success_timestamp_seconds",
            "When a URL last gave a CRL that holds, or said that the one on record still does.",
            ["authority", "url"],
            registry=registry,
        )
        self.overdue = Gauge(
            "lakthan_registry_crl_overdue",
            "1 when a CRL nears its end or has ended and no newer one can be had from its URL.",
            ["authority", "url"],
            registry=registry,
        )
        self.spool_files = Counter(
            "lakthan_registry_spool_files",
            "Files taken from the spool: done, failed.",
            ["authority", "outcome"],
            registry=registry,
        )

    def forget(self, authority: str, url: str) -> None:
        """The series of a URL that nobody follows any more."""
        for gauge in (self.next_update, self.last_success, self.overdue):
            gauge.remove(authority, url)


@dataclass(slots=True)
class _State:
    """What is known of one URL. Times are None until a CRL was got or was on record."""

    validators: Validators = field(default_factory=Validators)
    this_update: datetime | None = None
    next_update: datetime | None = None
    failures: int = 0
    refused_as: str | None = None
    overdue: bool = False


def pause(failures: int, next_update: datetime | None, now: datetime, delay: timedelta, polling: Polling) -> timedelta:
    """How long to wait before the next try, after so many failures in a row."""
    if failures:
        wanted = min(polling.back_off * 2.0 ** min(failures - 1, 20), polling.longest_back_off)
    else:
        wanted = min(max(delay / polling.part_of_delay, polling.shortest), polling.longest)
    if next_update is not None and next_update > now:
        wanted = min(wanted, max((next_update - now) / 4, polling.shortest))
    return wanted


def is_overdue(this_update: datetime | None, next_update: datetime | None, failures: int, now: datetime) -> bool:
    """Whether somebody should look: see the module. CAs publish a new list before the old one ends (RFC 5280 §5.1.2.5),
    so the last tenth of a list's life is late also where the server answers.
    """
    if next_update is None:
        return failures > 0
    left, life = next_update - now, next_update - (this_update or next_update)
    return left <= timedelta(0) or left < life / 10 or (failures > 0 and left < life / 4)


def _nears_its_end(state: _State, now: datetime) -> bool:
    return is_overdue(state.this_update, state.next_update, 1, now)


async def follow_urls(
    reader: asyncpg.Pool, publisher: asyncpg.Pool, metrics: SourceMetrics, polling: Polling = Polling()
) -> None:
    """Follow the URLs of every policy until cancelled. `reader` reads authorities and policies (`lakthan_registrar`),
    `publisher` imports, for one authority at a time (`lakthan_publisher`).
    """
    followers: dict[Followed, asyncio.Task[None]] = {}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=True) as session:
        poller = _Poller(session, publisher, metrics, polling)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        wanted = await _read_policies(reader)
                    except StoreUnavailable as error:
                        log.warning("the CRL URLs cannot be read", error=str(error))
                    except Exception:  # noqa: BLE001  # a defect: what is followed is followed on
                        log.exception("the CRL URLs cannot be read")
                    else:
                        for gone in followers.keys() - wanted.keys():
                            followers.pop(gone).cancel()
                            metrics.forget(gone.authority, gone.url)
                        for new in wanted.keys() - followers.keys():
                            followers[new] = group.create_task(poller.follow(new, wanted[new]))
                    await asyncio.sleep(polling.reread.total_seconds())
        finally:
            for task in followers.values():
                task.cancel()


async def _read_policies(reader: asyncpg.Pool) -> dict[Followed, CRLSource | None]:
    """What is to be followed, each with the CRL that the authority's statuses come from now."""
    wanted = {}
    admin = AuthorityAdmin(reader)
    for record in await admin.authorities():
        policy = await admin.policy(record.id)
        for url in policy.crl_urls:
            wanted[Followed(record.id, record.name, url, policy.declared_delay)] = record.crl
    return wanted


class _Poller:
    """Asks one URL at a time, over and over."""

    def __init__(
        self, session: aiohttp.ClientSession, pool: asyncpg.Pool, metrics: SourceMetrics, polling: Polling
    ) -> None:
        self._session = session
        self._pool = pool
        self._metrics = metrics
        self._polling = polling

    async def follow(self, followed: Followed, on_record: CRLSource | None) -> None:
        """Until cancelled. `on_record`: the CRL that was the last one before the start."""
        state = _State()
        if on_record is not None and on_record.url == followed.url:
            state.this_update, state.next_update = on_record.this_update, on_record.next_update
        await asyncio.sleep(self._polling.start_spread.total_seconds() * random.random())  # noqa: S311  # spreads load
        while True:
            outcome = await self._try(followed, state)
            self._metrics.fetches.labels(followed.authority, outcome).inc()
            self._report(followed, state)
            wait = pause(state.failures, state.next_update, datetime.now(UTC), followed.declared_delay, self._polling)
            await asyncio.sleep(wait.total_seconds() * random.uniform(0.8, 1))  # noqa: S311  # never later than planned

    async def _try(self, followed: Followed, state: _State) -> str:
        """One try, and the word for what came of it."""
        try:
            validators = Validators() if _nears_its_end(state, datetime.now(UTC)) else state.validators
            fetched = await fetch(self._session, followed.url, validators, most_octets=self._polling.most_octets)
            outcome = "not modified" if fetched is None else await self._import(followed, state, fetched)
        except CRLRefused as error:
            await self._refused(followed, state, error)
            outcome = "refused"
        except FetchFailed as error:
            self._failed(followed, state, "cannot be fetched", str(error))
            outcome = "unreachable"
        except StoreUnavailable as error:
            self._failed(followed, state, "cannot be imported now", str(error))
            outcome = "store unavailable"
        except LakthanError as error:
            self._failed(followed, state, "cannot be imported", str(error))
            outcome = "refused"
        except Exception:  # noqa: BLE001  # a defect: said with its traceback, and the other URLs go on
            state.failures += 1
            log.exception("a CRL cannot be followed", authority=followed.authority, url=followed.url)
            outcome = "internal error"
        else:
            state.failures = 0
            state.refused_as = None
            self._metrics.last_success.labels(followed.authority, followed.url).set_to_current_time()
        return outcome

    async def _import(self, followed: Followed, state: _State, fetched: Fetched) -> str:
        done = await import_crl(
            fetched.octets,
            pool=self._pool,
            now=datetime.now(UTC),
            actor=ACTOR,
            through="url",
            url=followed.url,
            authority_id=followed.authority_id,
            acting_for=followed.authority_id,
        )
        crl = await asyncio.to_thread(read_crl, fetched.octets)
        state.this_update, state.next_update = crl.this_update, crl.next_update
        # Only now: what was refused is fetched again, for the reason may go away (a delta whose base comes later).
        state.validators = fetched.validators
        if done.nothing_new:
            return "nothing new"
        log.info("CRL imported", authority=followed.authority, url=followed.url, **summary(done))
        return "imported"

    async def _refused(self, followed: Followed, state: _State, error: CRLRefused) -> None:
        self._failed(followed, state, "is refused", str(error))
        self._metrics.refused.labels("url", followed.authority, error.verdict.label).inc()
        if state.refused_as != error.verdict.label:  # on record once, and not again every few minutes
            await record_refusal(self._pool, followed.authority_id, "url", error, {"url": followed.url})
            state.refused_as = error.verdict.label

    def _failed(self, followed: Followed, state: _State, what: str, why: str) -> None:
        state.failures += 1
        log.warning(f"a CRL {what}", authority=followed.authority, url=followed.url, failures=state.failures, error=why)

    def _report(self, followed: Followed, state: _State) -> None:
        if state.next_update is not None:
            self._metrics.next_update.labels(followed.authority, followed.url).set(state.next_update.timestamp())
        overdue = is_overdue(state.this_update, state.next_update, state.failures, datetime.now(UTC))
        self._metrics.overdue.labels(followed.authority, followed.url).set(overdue)
        if overdue and not state.overdue:
            log.error(
                "no fresh CRL: OCSP answers end with the one on record",
                authority=followed.authority,
                url=followed.url,
                next_update=None if state.next_update is None else state.next_update.isoformat(),
            )
        elif state.overdue and not overdue:
            log.info("a fresh CRL again", authority=followed.authority, url=followed.url)
        state.overdue = overdue


def summary(done: CRLOutcome) -> dict[str, int | bool | None]:
    """The figures of an import for the log."""
    return {
        "crl_number": done.crl_number,
        "delta": done.delta,
        "entries": done.entries,
        "revoked": done.revoked,
        "held": done.held,
        "released": done.released,
        "version": done.version,
    }


async def record_refusal(
    pool: asyncpg.Pool, authority_id: int, through: str, error: CRLRefused, detail: dict[str, str]
) -> None:
    """Put the refusal of a CRL on record. The store may be away just then: that is logged, and not fatal."""
    try:
        await append_refusal(
            pool,
            authority_id,
            actor=ACTOR,
            through=through,
            detail={**detail, "verdict": error.verdict.label, "error": str(error)},
            acting_for=authority_id,
        )
    except LakthanError as away:
        log.warning("a refusal could not be put on record", error=str(away))
    except Exception:  # noqa: BLE001  # a defect: the CRL is refused all the same, and the others go on
        log.exception("a refusal could not be put on record")
