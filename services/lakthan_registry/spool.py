"""CRLs that are dropped into a folder: `SPOOL/AUTHORITY/FILE`, for CAs that can copy a file and nothing else.

Promises: a file is taken when it is complete: its name does not begin with a dot nor end in `.tmp` or `.part`, and two
looks in a row found the same size and time. What was imported goes to `done/` beside it, what was refused to `failed/`,
with the reason in `FILE.txt`; the names there begin with the time, so nothing is replaced. While the store is away,
files stay where they are. A folder that cannot be read, or a file that meets a defect, is in nobody else's way.

Trusted: whoever may write into an authority's folder, to fill the disk and no more: a CRL is believed by its signature,
and only when it is this authority's. Links and devices are not opened.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lakthan.errors import LakthanError, StoreUnavailable
from lakthan.store.status import AuthorityReader
from lakthan.telemetry.logs import log
from lakthan_registry.crl_check import CRLRefused
from lakthan_registry.crl_import import import_crl
from lakthan_registry.fetch import MOST_OCTETS, map_file
from lakthan_registry.sources import ACTOR, record_refusal, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

    from lakthan.store.records import AuthorityRecord
    from lakthan_registry.sources import SourceMetrics

_Identity = tuple[int, int, int]  # inode, size, time of the last change
_DONE, _FAILED = "done", "failed"
_INCOMPLETE = (".tmp", ".part", ".filepart", ".swp")


async def follow_spool(
    reader: asyncpg.Pool,
    publisher: asyncpg.Pool,
    folder: Path,
    metrics: SourceMetrics,
    every: timedelta = timedelta(seconds=2),
) -> None:
    """Look into the spool until cancelled, once in `every`. Pools as for `follow_urls`."""
    spool = Spool(publisher, folder, metrics)
    while True:
        try:
            await spool.look({record.name: record for record in await AuthorityReader(reader).load()})
        except StoreUnavailable as error:
            log.warning("the spool has to wait for the store", error=str(error))
        except OSError as error:
            log.error("the spool cannot be read", folder=str(folder), error=error.strerror)
        except Exception:  # noqa: BLE001 - a defect: the next look may do better
            log.exception("the spool cannot be looked through")
        await asyncio.sleep(every.total_seconds())


class Spool:
    """What the last look found, so that the next one knows which files are complete."""

    def __init__(self, pool: asyncpg.Pool, folder: Path, metrics: SourceMetrics) -> None:
        self._pool = pool
        self._folder = folder
        self._metrics = metrics
        self._seen: dict[Path, _Identity] = {}
        self._stuck: dict[Path, _Identity] = {}  # dealt with, but could not be moved away
        self._strange: set[Path] = set()  # folders of nobody, or that cannot be read: said once

    async def look(self, authorities: dict[str, AuthorityRecord]) -> None:
        """One look: take what is complete."""
        now_there: dict[Path, _Identity] = {}
        for folder in sorted(each for each in self._folder.iterdir() if each.is_dir() and not each.is_symlink()):
            record = authorities.get(folder.name)
            if record is None:
                if folder not in self._strange:
                    log.error("a folder of the spool has the name of no authority", folder=_shown(folder))
                    self._strange.add(folder)
                continue
            try:
                now_there |= _files(folder)
            except OSError as error:
                if folder not in self._strange:
                    log.error("a folder of the spool cannot be read", folder=_shown(folder), error=error.strerror)
                    self._strange.add(folder)
                continue
            self._strange.discard(folder)
        complete = [
            path
            for path, identity in now_there.items()
            if self._seen.get(path) == identity and self._stuck.get(path) != identity
        ]
        self._seen = now_there
        self._stuck = {path: identity for path, identity in self._stuck.items() if path in now_there}
        for path in sorted(complete, key=lambda each: (now_there[each][2], each)):  # the oldest first
            await self._take(path, authorities[path.parent.name])

    async def _take(self, path: Path, record: AuthorityRecord) -> None:
        try:
            done = await import_crl(
                await asyncio.to_thread(_read, path),
                pool=self._pool,
                now=datetime.now(UTC),
                actor=ACTOR,
                through="spool",
                authority_id=record.id,
                acting_for=record.id,
                detail={"file": _shown(path.name)},
            )
        except StoreUnavailable:
            raise
        except (LakthanError, OSError, ValueError) as error:
            reason = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
            if isinstance(error, CRLRefused):
                self._metrics.refused.labels("spool", record.name, error.verdict.label).inc()
                await record_refusal(self._pool, record.id, "spool", error, {"file": _shown(path.name)})
            log.warning("a CRL in the spool is refused", authority=record.name, file=_shown(path.name), error=reason)
            self._put_away(path, record.name, _FAILED, reason)
        except Exception:  # noqa: BLE001 - a defect: said with its traceback, and the other files have their turn
            log.exception("a CRL in the spool cannot be dealt with", authority=record.name, file=_shown(path.name))
            self._stuck[path] = self._seen[path]
        else:
            log.info("CRL imported", authority=record.name, file=_shown(path.name), **summary(done))
            self._put_away(path, record.name, _DONE)

    def _put_away(self, path: Path, authority: str, outcome: str, reason: str = "") -> None:
        self._metrics.spool_files.labels(authority, outcome).inc()
        try:
            _move(path, outcome, reason)
        except OSError as error:
            self._stuck[path] = self._seen[path]
            log.error("a file cannot be moved out of the spool", file=_shown(path), to=outcome, error=error.strerror)


def _shown(path: Path | str) -> str:
    """For logs and records: names of files need not be text."""
    return os.fsencode(path).decode("utf-8", "replace")


def _move(path: Path, outcome: str, reason: str) -> None:
    """Move a file into the folder `outcome` beside it, which must be no link. Raises `OSError`."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{path.name}"
    with _opened(path.parent) as source:
        with suppress(FileExistsError):
            os.mkdir(outcome, dir_fd=source)
        with _opened(outcome, within=source) as target:
            if reason:
                text = os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=target)
                with os.fdopen(text, "w", encoding="utf-8") as file:
                    file.write(f"{reason}\n")
            os.rename(path.name, name, src_dir_fd=source, dst_dir_fd=target)


@contextmanager
def _opened(folder: Path | str, within: int | None = None) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _files(folder: Path) -> dict[Path, _Identity]:
    found = {}
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name.lower().endswith(_INCOMPLETE):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # renamed or taken away just now
        if not stat.S_ISDIR(status.st_mode):
            found[Path(entry.path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _read(path: Path) -> mmap.mmap:
    """A copy of the file's content: who may write there could cut the file short while it is being read.

    Raises `OSError`, and `ValueError` for what is no file, or no CRL by its size.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file, tempfile.TemporaryFile() as copy:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("this is no plain file")
        if not 0 < status.st_size <= MOST_OCTETS:
            raise ValueError(f"a file of {status.st_size} octets is no CRL")
        shutil.copyfileobj(file, copy, 1 << 20)
        return map_file(copy)
