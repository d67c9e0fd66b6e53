"""The answers of a responder in a file, for when there is no database: written while there is one, read when not.

The file is a log. First a snapshot: an instant (a heartbeat of the database), the authorities, the answers; then what
became of them: certificates that changed, answers that came anew, later instants. What is read is true as of the last
instant in it, and as old as that says.

Promises: a snapshot appears whole or not at all (made aside, synced, renamed); a change is in the file before this
process can answer by it. What is damaged is not used: every record has a checksum; behind a damaged one of the
snapshot the next counts again, but a damaged record behind the snapshot may have been a change, so from there on
nothing counts and the state is that of the instant before. A file that is not ours is none.

Refuses to know: databases, and what is to be kept. Trusted: whoever may write this file can have old answers given,
until they are too old, and no others: clients verify them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from struct import Struct as Layout
from typing import BinaryIO

import msgspec

from lakthan.store.kept import AnswerKey, KeptAnswer
from lakthan.store.published import Found, PublishedAnswer, Standing
from lakthan.store.records import AuthorityRecord
from lakthan.telemetry.logs import log
from lakthan_ocsp.responder import CERT_ID_HASHES

_MAGIC = b"lakthan warm start 1\n"
_FRAME = Layout(">II")  # length of the record, and its CRC-32
_LONGEST = 16 << 20
# The database may be back at any moment, with a newer answer.
_LOOK_AGAIN = timedelta(seconds=60)
HASHES = {algorithm.label: algorithm for algorithm in CERT_ID_HASHES}


class Instant(msgspec.Struct, frozen=True, array_like=True, tag="instant"):
    """All that is committed before `at`, by the database's clock, is in the records before this one."""

    at: datetime


class Authorities(msgspec.Struct, frozen=True, array_like=True, tag="authorities"):
    """All of them, instead of those before."""

    authorities: tuple[AuthorityRecord, ...]


class Whole(msgspec.Struct, frozen=True, array_like=True, tag="whole"):
    """The end of the snapshot."""


class Changed(msgspec.Struct, frozen=True, array_like=True, tag="changed"):
    """The answers about a certificate may not be given any more; '' for all certificates of the authority."""

    authority_id: int
    serial_number: bytes = b""


Record = Instant | Authorities | KeptAnswer | Whole | Changed
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Damaged(Exception):
    """What was found wrong in a file."""


@dataclass
class Warm:
    """What a file says. `at`: how old that is; `damage`: what was not as it was written, '' when nothing was."""

    at: datetime
    authorities: tuple[AuthorityRecord, ...] = ()
    answers: dict[AnswerKey, list[KeptAnswer]] = field(default_factory=dict)
    damage: str = ""

    def find(self, key: AnswerKey, now: datetime) -> tuple[Standing, Found | None]:
        """As `PublishedReader.find`; NONE means only that no answer was kept."""
        kept = self.answers.get(key)
        if not kept:
            return Standing.NONE, None
        valid = [each for each in kept if each.this_update <= now < each.next_update]
        if not valid:
            return Standing.NOT_NOW, None
        newest = max(valid, key=lambda each: (each.published_at, each.this_update))
        soon = now + _LOOK_AGAIN
        until = min([newest.next_update, soon, *(each.this_update for each in kept if each.this_update > now)])
        answer = PublishedAnswer(
            newest.serial_number,
            HASHES[newest.cert_id_hash],
            newest.cert_status,
            newest.produced_at,
            newest.this_update,
            newest.next_update,
            newest.response,
        )
        return Standing.CURRENT, Found(answer, until)

    def _take(self, record: Record) -> None:
        match record:
            case KeptAnswer():
                kept = self.answers.setdefault(record.key, [])
                kept[:] = [each for each in kept if each.this_update != record.this_update] + [record]
            case Changed(authority_id, b""):
                for key in [key for key in self.answers if key.authority_id == authority_id]:
                    del self.answers[key]
            case Changed(authority_id, serial_number):
                for label in HASHES:
                    self.answers.pop(AnswerKey(authority_id, serial_number, label), None)
            case Authorities(authorities):
                self.authorities = authorities


def read(path: Path) -> Warm | None:
    """What the file says; None, with a line in the log, when it says nothing that can be used. Blocks."""
    try:
        with path.open("rb") as file:
            warm = _read(file)
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        log.error("the answers kept on disk cannot be used", file=str(path), problem=str(error))
        return None
    if warm.damage:
        log.error("a part of the answers kept on disk is damaged and is not used", file=str(path), problem=warm.damage)
    return warm


def _read(file: BinaryIO) -> Warm:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise Damaged("it is no such file, or one of another version")
    records = _records(file)
    first = next(records, None)
    if not isinstance(first, Instant):
        raise Damaged("its beginning is damaged")
    warm, whole, lost = Warm(first.at), False, 0
    for record in records:
        if record is None:
            lost += 1
            if whole:
                break  # it may have been a change
        elif isinstance(record, Whole):
            whole = True
        elif isinstance(record, Instant):
            # Without the end of the snapshot nobody knows whether the changes since were all read.
            warm.at = record.at if whole else warm.at
        else:
            warm._take(record)  # noqa: SLF001 - this module's own
    if lost:
        warm.damage = f"{lost} records behind the snapshot" if whole else f"{lost} records of the snapshot"
    elif not whole:
        warm.damage = "the end of the snapshot is missing"
    return warm


def _records(file: BinaryIO) -> Iterator[Record | None]:
    """One after another; None for a damaged one. A last one that was not written to its end is none."""
    while len(frame := file.read(_FRAME.size)) == _FRAME.size:
        length, checksum = _FRAME.unpack(frame)
        if length > _LONGEST:
            yield None
            return
        octets = file.read(length)
        if len(octets) < length:
            return
        try:
            yield _decode(octets) if zlib.crc32(octets) == checksum else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            yield None


class WarmFile:
    """The writing side: one snapshot at a time, and notes behind it. `settle` and `sync` wait for the disk and may run
    in a thread; all else belongs to the event loop. `octets`: of the file now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = path.with_name(path.name + ".new")
        self._file: BinaryIO | None = None
        self._new: BinaryIO | None = None
        self._while_new: list[Record] = []
        self._unsynced = False
        self.octets = 0

    def begin(self, at: datetime, authorities: Iterable[AuthorityRecord]) -> None:
        """Begin a new snapshot, of a state that is at least as new as `at`."""
        self.give_up()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._new = os.fdopen(descriptor, "wb")
        self._new.write(_MAGIC)
        self.add([Instant(at), Authorities(tuple(authorities))])

    def add(self, records: Iterable[Record]) -> None:
        """Write into the snapshot that was begun."""
        assert self._new is not None  # noqa: S101 - see `begin`
        self._new.writelines(map(_framed, records))

    def settle(self) -> None:
        """End the snapshot and wait until it is on the disk."""
        assert self._new is not None  # noqa: S101 - see `begin`
        self.add([Whole()])
        self._new.flush()
        os.fsync(self._new.fileno())

    def finish(self) -> None:
        """Put the settled snapshot, with what was noted since it was begun, in the place of the file."""
        assert self._new is not None  # noqa: S101 - see `begin`
        self.add(self._while_new)
        self._new.flush()
        self._aside.replace(self._path)
        self.close()
        self._file, self._new, self._while_new = self._new, None, []
        self._unsynced = True
        self.octets = self._file.tell()

    def give_up(self) -> None:
        """Forget a snapshot that was begun."""
        if self._new is not None:
            self._new.close()
        self._new, self._while_new = None, []

    def note(self, record: Record) -> None:
        """Write what happened, so that it outlives this process; `sync` makes it outlive the machine."""
        if self._new is not None:
            self._while_new.append(record)
        if self._file is not None:
            self._file.write(_framed(record))
            self._file.flush()
            self._unsynced = True
            self.octets = self._file.tell()

    def sync(self) -> None:
        """Wait until all that was noted is on the disk."""
        if self._file is not None and self._unsynced:
            self._unsynced = False
            os.fsync(self._file.fileno())
            _sync_folder(self._path.parent)

    def close(self) -> None:
        """Let the file go, as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _framed(record: Record) -> bytes:
    octets = _encode(record)
    return _FRAME.pack(len(octets), zlib.crc32(octets)) + octets


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
