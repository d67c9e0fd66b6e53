"""The published answers as files that any web server gives out: the path of a file is the request of a GET.

A GET's path is the base64 of the OCSPRequest (RFC 9919 §6), and what nearly all clients send is the same request to the
octet: one CertID with NULL parameters, nothing else. So its base64 is the file's path, a `/` in it begins a folder, and
a server that leaves paths alone finds it. Other spellings and requests are not there.

Promises: a file holds one whole answer, or is not there; it was published, says what was on record when it was written,
and its time of modification is the answer's thisUpdate. With `follow` a file whose certificate changed is gone, and the
new one there, within a second of what the database says. A file that is no answer is never touched.

Trusted: the store; and whoever can write the folder. Clients verify what they get.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from lakthan import der
from lakthan.errors import StoreUnavailable
from lakthan.store.records import CertStatus
from lakthan.telemetry.logs import log
from lakthan_ocsp import usual_request
from lakthan_ocsp.publisher.voice import before_serial, issuers_of
from lakthan_ocsp.responder import CERT_ID_HASHES, refusal
from lakthan_ocsp.syntax import OCSPResponseStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from lakthan.algorithms import HashAlgorithm
    from lakthan.store.answer_files import AnswerReader, Outline
    from lakthan.store.presigned import Presigned
    from lakthan.store.records import AuthorityRecord
    from lakthan.store.status import AuthorityReader

_PAGE = 500
_LOOK_SECONDS = 0.2
_WAIT_SECONDS = 60.0
_READABLE = 0o644
# No request begins so: the base64 of each begins with M.
REFUSAL = "unauthorized"
_Any = TypeVar("_Any")


@dataclass(slots=True)
class Tally:
    """What was done to the files."""

    written: int = 0
    removed: int = 0
    unchanged: int = 0


def paths(authority: AuthorityRecord, serial_number: bytes, cert_id_hash: HashAlgorithm) -> list[str]:
    """The paths of GET requests about a certificate, without the first slash: one for each name with each key."""
    found = []
    for issuer in issuers_of(authority):
        cert_id = der.sequence(before_serial(issuer, cert_id_hash), der.encode(der.INTEGER, serial_number))
        request = der.sequence(der.sequence(der.sequence(der.sequence(cert_id))))
        found.append(base64.b64encode(request).decode())
    return found


@dataclass(slots=True)
class Folder:
    """The files below `root`."""

    root: Path
    tally: Tally = field(default_factory=Tally)

    def holds(self, path: str, this_update: datetime, size: int) -> bool:
        """True when that very answer is there, by its time and size."""
        try:
            found = os.stat(self.root / path)  # noqa: PTH116 - a hundred thousand of them
        except FileNotFoundError:
            return False
        return int(found.st_mtime) == int(this_update.timestamp()) and found.st_size == size

    def write(self, path: str, response: bytes, this_update: datetime) -> None:
        """Put an answer there, whole, in one step."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.parent / f".{secrets.token_hex(8)}"
        scratch.write_bytes(response)
        scratch.chmod(_READABLE)
        os.utime(scratch, (this_update.timestamp(),) * 2)
        scratch.replace(file)
        self.tally.written += 1

    def write_refusal(self) -> None:
        """The answer `unauthorized` (RFC 9919 §3.2.3), for a server that has no responder behind it."""
        octets = refusal(OCSPResponseStatus.UNAUTHORIZED)
        file = self.root / REFUSAL
        if not file.is_file() or file.read_bytes() != octets:
            file.write_bytes(octets)
            file.chmod(_READABLE)

    def remove(self, path: str) -> None:
        """Take an answer away, and the folders that it leaves empty."""
        file = self.root / path
        try:
            file.unlink()
        except FileNotFoundError:
            return
        self.tally.removed += 1
        for folder in file.parents:
            if folder == self.root:
                break
            with suppress(OSError):  # there are others in it
                folder.rmdir()

    def requests(self) -> Iterator[tuple[str, usual_request.Usual]]:
        """Every file whose path is a request, with that request."""
        for folder, _, names in os.walk(self.root):
            above = os.path.relpath(folder, self.root)
            for name in names:
                path = name if above == "." else f"{above}/{name}"
                request = _request(path)
                if request is not None:
                    yield path, request


def _request(path: str) -> usual_request.Usual | None:
    try:
        return usual_request.read(binascii.a2b_base64(path.encode("ascii"), strict_mode=True))
    except (binascii.Error, UnicodeEncodeError):
        return None


class StaticAnswers:
    """Keeps `folder` as the store is. `names`: of these authorities, or of all that have published answers.

    The readers act as `lakthan_responder` or `lakthan_registry`. Every method but `follow` raises `StoreUnavailable`,
    and `OSError` when the folder cannot be written.
    """

    def __init__(
        self,
        folder: Folder,
        authorities: AuthorityReader,
        answers: AnswerReader,
        changes: Presigned,
        names: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._authorities = authorities
        self._answers = answers
        self._changes = changes
        self._names = names
        self._records: dict[int, AuthorityRecord] = {}
        self._positions: dict[int, int] = {}
        # Certificates that changed and have no answer yet, and until when they are asked for again and again.
        self._waiting: dict[int, dict[bytes, float]] = {}
        self._all_again = False

    async def load(self) -> list[AuthorityRecord]:
        """Read the authorities, and note where the changes stand: what `everything` finds afterwards is newer."""
        self._records = {
            record.id: record
            for record in await self._authorities.load()
            if not self._names or record.name in self._names
        }
        for authority_id in self._records:
            if authority_id not in self._positions:
                self._positions[authority_id] = await self._changes.position(authority_id)
        return list(self._records.values())

    async def count(self) -> int:
        """How many answers there are, about."""
        return sum([await self._answers.count(authority_id) for authority_id in self._records])

    async def everything(self, advance: Callable[[int], None] = lambda _: None, *, following: bool = False) -> None:
        """Write what is missing or new, take away what no longer holds. `advance` is told how many were looked at.
        `following`: take in changes meanwhile.
        """
        for authority in list(self._records.values()):
            after = (b"", "")
            while page := await self._answers.page(authority.id, after, datetime.now(UTC), _PAGE):
                await self._bring(authority, page)
                after = (page[-1].serial_number, page[-1].cert_id_hash.label)
                advance(len(page))
                if following:
                    await self.changed()
        for files in _batched(self._folder.requests(), _PAGE):
            await self._tidy(files)
            if following:
                await self.changed()

    async def follow(self, every_seconds: float, stop: asyncio.Event) -> None:
        """Take in every change, and look at everything as often as said, until `stop`."""
        loop = asyncio.get_running_loop()
        looked_at = loop.time()
        while not stop.is_set():
            try:
                await self.changed()
                if self._all_again or loop.time() - looked_at >= every_seconds:
                    self._all_again = False
                    looked_at = loop.time()
                    await self.everything(following=True)
            except StoreUnavailable as error:
                log.warning("the published answers cannot be read", problem=str(error))
                self._all_again = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await stop.wait()

    async def changed(self) -> None:
        """Take in what has changed since the last time: an answer that says otherwise goes at once."""
        reload = False
        for authority_id, authority in list(self._records.items()):
            changes = await self._changes.changes(authority_id, self._positions[authority_id])
            self._positions[authority_id] = changes.number
            reload |= changes.authority
            self._all_again |= changes.many or changes.authority or changes.more
            now = asyncio.get_running_loop().time()
            waiting = self._waiting.setdefault(authority_id, {})
            waiting.update({each.serial_number: now + _WAIT_SECONDS for each in changes.certificates})
            for some in _batched(list(waiting), _PAGE):
                there = await self._bring_about(authority, some)
                for serial_number in some:
                    if serial_number in there or waiting[serial_number] <= now:
                        del waiting[serial_number]
        if reload:
            await self.load()

    async def _bring_about(self, authority: AuthorityRecord, serial_numbers: Sequence[bytes]) -> set[bytes]:
        """Bring the files about these certificates up to date; gives those that have an answer now."""
        outlines = await self._answers.about(authority.id, serial_numbers, datetime.now(UTC))
        await self._bring(authority, outlines)
        there = {(each.serial_number, each.cert_id_hash) for each in outlines if not _withheld(authority, each)}
        for serial_number in serial_numbers:
            for algorithm in CERT_ID_HASHES:
                if (serial_number, algorithm) not in there:
                    for path in paths(authority, serial_number, algorithm):
                        self._folder.remove(path)
        return {serial_number for serial_number, _ in there}

    async def _bring(self, authority: AuthorityRecord, outlines: Sequence[Outline]) -> None:
        wanted: dict[Outline, list[str]] = {}
        for each in outlines:
            if _withheld(authority, each):
                continue
            for path in paths(authority, each.serial_number, each.cert_id_hash):
                if self._folder.holds(path, each.this_update, each.size):
                    self._folder.tally.unchanged += 1
                else:
                    wanted.setdefault(each, []).append(path)
        if wanted:
            for each, response in await self._answers.responses(authority.id, list(wanted)):
                for path in wanted[each]:
                    self._folder.write(path, response, each.this_update)

    async def _tidy(self, files: Sequence[tuple[str, usual_request.Usual]]) -> None:
        """Take away what no published answer stands behind."""
        by_issuer = {
            issuer.cert_id(algorithm, b"\x01").issuer: authority
            for authority in self._records.values()
            for issuer in issuers_of(authority)
            for algorithm in {usual[1] for _, usual in files}
        }
        ours: dict[int, list[tuple[str, HashAlgorithm, bytes]]] = {}
        for path, (_, algorithm, issuer, serial_number, _) in files:
            authority = by_issuer.get(issuer)
            if authority is not None:  # else it is another authority's, whose files others may keep here
                ours.setdefault(authority.id, []).append((path, algorithm, serial_number))
        for authority_id, mine in ours.items():
            authority = self._records[authority_id]
            outlines = await self._answers.about(authority_id, list({each[2] for each in mine}), datetime.now(UTC))
            there = {(each.cert_id_hash, each.serial_number) for each in outlines if not _withheld(authority, each)}
            for path, algorithm, serial_number in mine:
                if (algorithm, serial_number) not in there:
                    self._folder.remove(path)


def _withheld(authority: AuthorityRecord, answer: Outline) -> bool:
    """The CA itself is revoked (RFC 6960 §2.7)."""
    return authority.revocation_time is not None and answer.cert_status is CertStatus.GOOD


def _batched(items: Iterable[_Any], size: int) -> Iterator[list[_Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
