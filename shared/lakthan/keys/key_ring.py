"""The keys of one responder or unit at work: opened from its key list, followed while the list changes, let go in time.

Who signs: of the keys that are installed, approved where that is demanded, and not retired, the newest whose
certificate is in force. Older ones stay in reserve until they are retired or end. One whose time has not come is open
already, and takes over by itself two seconds after that instant.

Promises:

- What is wrong with a list, or with one of its keys, never takes a working key away: the ring keeps what it has, says
  so in the log and in `problem`, and looks again. A key leaves by being retired and in no other way; one that is merely
  missing from the list signs on until the process ends.
- A process starts with a list of retired keys only, as it goes on when the last one is retired: nobody signs there, the
  log and `problem` say so, and the next key that is installed does. It does not start with a list from which no key
  comes for another reason: that is a mistake, and a rollout that goes on over it would spread it.
- From the instant at which a key is retired it signs nothing. It leaves a moment earlier (`_EARLY`), so that what it
  has begun is finished by then, and is closed when nobody can wait for it any more.
- Every process follows its list by itself; nobody has to tell it.

Refuses to know: what the service makes of a key (`Made`), and certificates' profiles: `open` checks them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from lakthan.errors import ConfigError, LakthanError
from lakthan.keys import key_list
from lakthan.keys.approval import Act, Approvers, RetiredKeys
from lakthan.keys.key_list import Found, ListedKey
from lakthan.keys.ring_metrics import KeyLife
from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from contextlib import AsyncExitStack
    from pathlib import Path

    from lakthan.certificates import CertificateView
    from lakthan.config import ApprovalConfig

Made = TypeVar("Made")
Role = Literal["OCSP responder of", "time-stamping unit"]

_LOOK_SECONDS = 1.0
# A key that could not be opened, whatever the reason, is tried again so often.
_AGAIN_SECONDS = 10.0
_EARLY = timedelta(seconds=1)
# A request that came before this instant may still be under way, and gets an answer of its own instant.
_LATE = timedelta(seconds=2)
# Longer than the longest deadline of a signature: an HSM's queue, a cloud with its retries.
_LET_GO_SECONDS = 60.0
_ALWAYS, _FOR_EVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(slots=True, eq=False)
class HeldKey(Generic[Made]):
    """An open key. It may sign from `begins` until `ends`; `retired` is None while nobody has said so."""

    sha256: str
    view: CertificateView
    made: Made
    begins: datetime
    installed: datetime
    not_after: datetime
    retired: datetime | None = None

    @property
    def ends(self) -> datetime:
        """From this instant on it signs nothing."""
        return self.not_after if self.retired is None else min(self.not_after, self.retired)

    @property
    def stops(self) -> datetime:
        """From this instant on it begins nothing."""
        return self.not_after if self.retired is None else min(self.not_after, self.retired - _EARLY)

    @property
    def takes_over(self) -> datetime:
        """From this instant on it goes before older ones."""
        return self.begins + _LATE

    def may_sign(self, now: datetime) -> bool:
        """True when its time has come and is not over."""
        return self.takes_over <= now < self.stops


@dataclass(slots=True)
class _Leaving:
    """A key that signs no more, until `close_at` (of `monotonic`), when nobody can wait for it."""

    close: Callable[[], Awaitable[None]]
    close_at: float


@dataclass(slots=True, eq=False)
class KeyRing(Generic[Made]):
    """The keys of whoever has this `name`, an authority or a unit, from the list at `path`. `role`: what it is for.

    `open` makes of a found key what the service works with, and raises `ConfigError` when it may not; `close` lets it
    go. `held`: newest first. `problem`: what is wrong with the list or one of its keys, '' when nothing is.
    """

    role: Role
    name: str
    path: Path | None
    open: Callable[[Found], Awaitable[Made]]
    close: Callable[[Made], Awaitable[None]]
    approvers: Approvers | None = None
    held: list[HeldKey[Made]] = field(default_factory=list)
    problem: str = ""
    _retired: RetiredKeys = field(init=False)
    _all_retired: bool = False
    _stamp: tuple[int, int, int] | None = None
    _again_at: float = 0.0
    _late: bool = False
    _fresh: list[HeldKey[Made]] = field(default_factory=list)
    _leaving: list[_Leaving] = field(default_factory=list)
    _told: list[HeldKey[Made]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._retired = RetiredKeys(None if self.approvers is None else self.approvers.memory, self.target)

    @property
    def target(self) -> str:
        """Whom the keys sign for, as acts and the log name it."""
        return target(self.role, self.name)

    def lives(self, speaking: Callable[[HeldKey[Made]], bool]) -> list[KeyLife]:
        """Every key, for the metrics. `speaking`: whether it is the one that signs."""
        return [KeyLife(self.name, key.sha256[:16], key.begins, key.ends, speaking(key)) for key in self.held]

    def hold(self, view: CertificateView, made: Made) -> None:
        """The one key of a target without a list. Whether it is in force is looked at with every signature."""
        self.held = [HeldKey(key_list.digest_of(view), view, made, view.not_before, _ALWAYS, view.not_after)]

    async def load(self, now: datetime, *, late: bool = False) -> None:
        """Read the list for the first time. Raises `ConfigError` when it holds no key that can be used, unless all of
        them are retired. `late`: see `Found`.
        """
        self._late = late
        await self._read(now)
        self._late = False
        if not self.held and not self._all_retired:
            raise ConfigError(f"{self.target}: {self.problem}")
        self._told = self.signing(now)

    def signing(self, now: datetime) -> list[HeldKey[Made]]:
        """Those that may sign now, the one that does first. Where nobody may, those that are installed: who asks one of
        them is told why. One that is to be installed later is never among them.
        """
        return [key for key in self.held if key.may_sign(now)] or [key for key in self.held if key.installed <= now]

    async def watch(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Follow the list and the time until cancelled; call `changed` after every reading, and when another key signs.

        A reading may take its time, as keys are opened; the instants at which keys begin and end are kept all the same.
        """
        reading: asyncio.Task[None] | None = None
        try:
            while self.path is not None:
                await asyncio.sleep(self._seconds_to_next(datetime.now(UTC)))
                read = False
                if reading is not None and reading.done():
                    reading.result()
                    reading, read = None, True
                if reading is None and self._is_due():
                    reading = asyncio.create_task(self._read(datetime.now(UTC)))
                now = datetime.now(UTC)
                self._drop_retired(now)
                signing = self.signing(now)
                if read or signing != self._told:
                    if signing[:1] != self._told[:1]:
                        log.warning("another key signs", target=self.target, certificate=_names(signing[:1]))
                    self._told = signing
                    await changed()
                await self._let_go()
        finally:
            if reading is not None:
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading

    async def aclose(self) -> None:
        """Close every key."""
        for key in self.held + self._fresh:
            await self.close(key.made)
        for leaving in self._leaving:
            await leaving.close()
        self.held, self._fresh, self._leaving = [], [], []

    def _seconds_to_next(self, now: datetime) -> float:
        """Until the next look: at once when somebody's time begins or ends before."""
        instants = [instant for key in self.held for instant in (key.takes_over, key.stops) if instant > now]
        return max(0.001, min(_LOOK_SECONDS, (min(instants, default=_FOR_EVER) - now).total_seconds()))

    def _is_due(self) -> bool:
        if self._stamp != _stamp(self.path):
            return True
        return bool(self.problem) and monotonic() >= self._again_at

    async def _read(self, now: datetime) -> None:
        """Take over what the list says; keep what there is where it says nothing sensible."""
        assert self.path is not None  # noqa: S101 - only a ring with a list reads one
        self._stamp = _stamp(self.path)
        self._again_at = monotonic() + _AGAIN_SECONDS
        try:
            entries = key_list.read(self.path)
        except ConfigError as error:
            self._say([str(error)])
            return
        held, problems = {key.sha256: key for key in self.held}, []
        unknown: list[tuple[ListedKey, datetime | None]] = []
        for entry in entries:
            retired, problem = self._when_retired(entry)
            if problem:
                problems.append(f"{entry.name}: {problem}")
            key = held.get(entry.sha256)
            if key is None:
                unknown.append((entry, retired))
            else:
                key.retired = retired
                if self.approvers is None:
                    key.installed, key.begins = entry.installed, max(key.view.not_before, entry.installed)
        gone = [retired is not None and now >= retired - _EARLY for _, retired in unknown]
        for (entry, retired), is_gone in zip(unknown, gone, strict=True):
            if not is_gone:
                try:
                    await self._open(entry, retired)
                except (LakthanError, ValueError) as error:  # ValueError: a certificate that cryptography cannot read
                    problems.append(f"{entry.name}: {error}")
        listed = {entry.sha256 for entry in entries}
        problems += [
            f"{key.view.name} ({key.sha256[:16]}…) is missing from {self.path} without being retired, and signs on"
            for key in held.values()
            if key.sha256 not in listed and key.retired is None and now < key.not_after
        ]
        # A key that was retired meanwhile has left `held`, and stays away.
        self.held, self._fresh = self.held + self._fresh, []
        self.held.sort(key=lambda key: (key.begins, key.installed, key.view.not_before), reverse=True)
        self._all_retired = bool(entries) and not held and all(gone)
        if self._all_retired:
            problems.append(self._nobody())
        elif not self.held and not problems:
            problems.append(f"{self.path} has no key that may sign: install one")
        self._say(problems)
        log.info("key list read", target=self.target, keys=_names(self.held))

    async def _open(self, entry: ListedKey, retired: datetime | None) -> None:
        if self.approvers is not None:
            self.approvers.demand(Act.installing(self.target, entry), entry.approvals)
        found = replace(key_list.find(entry, self.path), late=self._late)  # type: ignore[arg-type]  # `_read` has one
        made = await self.open(found)
        begins = max(found.view.not_before, entry.installed)
        ends = found.view.not_after
        self._fresh.append(HeldKey(entry.sha256, found.view, made, begins, entry.installed, ends, retired))

    def _when_retired(self, entry: ListedKey) -> tuple[datetime | None, str]:
        """When the key of an entry ends, as far as that was approved, and what is wrong with what the list says."""
        if self.approvers is None:
            return entry.retired, ""
        known = self._retired.when(entry.sha256)
        if entry.retired is None:
            return known, "" if known is None else "it was retired before, and stays so: this list is an older one"
        problem = ""
        if known is None or entry.retired < known:
            try:
                self.approvers.demand(Act.retiring(self.target, entry, entry.retired), entry.retirement_approvals)
                self._retired.remember(entry.sha256, entry.retired)
            except LakthanError as error:
                problem = str(error)
        return self._retired.when(entry.sha256), problem

    def _drop_retired(self, now: datetime) -> None:
        """Those that were retired leave. One whose certificate has ended may stay: who asks is told why."""
        for key in [key for key in self.held if key.retired is not None and now >= key.stops]:
            if len(self.held) == 1:
                self._say([self._nobody()])
            self.held.remove(key)
            self._leaving.append(_Leaving(partial(self.close, key.made), monotonic() + _LET_GO_SECONDS))
            log.info("a key is retired", target=self.target, certificate=_names([key]))

    def _nobody(self) -> str:
        return f"every key of {self.path} is retired: nothing can be signed; install one"

    async def _let_go(self) -> None:
        for leaving in [each for each in self._leaving if monotonic() >= each.close_at]:
            self._leaving.remove(leaving)
            await leaving.close()

    def _say(self, problems: list[str]) -> None:
        problem = "; ".join(problems)
        if problem and problem != self.problem:
            log.error("not all is well with a key list", target=self.target, problem=problem)
        elif self.problem and not problem:
            log.info("all is well with the key list again", target=self.target)
        self.problem = problem


async def open_ring(
    role: Role,
    name: str,
    path: Path,
    open_key: Callable[[Found], Awaitable[Made]],
    close: Callable[[Made], Awaitable[None]],
    *,
    approval: ApprovalConfig | None,
    late: bool,
) -> KeyRing[Made]:
    """The ring of the list at `path`, read. Raises `ConfigError`. `late`: a key may be away at first."""
    ring = KeyRing(role, name, path, open_key, close, None if approval is None else Approvers(approval))
    try:
        await ring.load(datetime.now(UTC), late=late)
    except BaseException:
        await ring.aclose()
        raise
    return ring


async def open_rings(opening: Iterable[Awaitable[KeyRing[Made]]], stack: AsyncExitStack) -> list[KeyRing[Made]]:
    """Open rings all at the same time, because an HSM or a cloud that is away takes seconds to be found so; `stack`
    closes them. Raises what the first of those that failed raised.
    """
    opened = await asyncio.gather(*opening, return_exceptions=True)
    rings = [ring for ring in opened if not isinstance(ring, BaseException)]
    for ring in rings:
        stack.push_async_callback(ring.aclose)
    for error in opened:
        if isinstance(error, BaseException):
            raise error
    for ring in rings:
        log.info("keys are open", target=ring.target, certificates=_names(ring.held))
    return rings


def target(role: Role, name: str) -> str:
    """Whom a key signs for, as acts and the log name it."""
    return f"{role} {name}"


def _names(keys: list[HeldKey[Made]]) -> list[str]:
    return [f"{key.view.name} ({key.sha256[:16]}…)" for key in keys]


def _stamp(path: Path | None) -> tuple[int, int, int]:
    try:
        found = path.stat()  # type: ignore[union-attr]  # only a ring with a list asks
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
