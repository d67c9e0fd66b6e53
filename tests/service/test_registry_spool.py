"""CRLs that are dropped into a folder: taken when complete, imported, and put away."""

from __future__ import annotations

import asyncio
import ctypes
import os
import stat
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from lakthan.store.authorities import AuthorityAdmin
from lakthan_registry.spool import Spool, follow_spool
from support.pki import new_ca
from support.publication import World, going, make_crl, publishing_world, until


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """The authority `public-ca` with a policy that names the URL of its web server."""
    async with publishing_world(database_url) as made:
        yield made


def spooling(world: World, folder: Path) -> Coroutine[object, object, None]:
    """The spool on this world."""
    return follow_spool(world.registrar, world.publisher, folder, world.metrics, timedelta(milliseconds=30))


def drop(folder: Path, name: str, octets: bytes) -> None:
    """Put a file into place as one should: written beside, then renamed."""
    (folder / f".{name}.tmp").write_bytes(octets)
    (folder / f".{name}.tmp").rename(folder / name)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """The folder of `public-ca` in a spool."""
    folder = tmp_path / "spool" / "public-ca"
    folder.mkdir(parents=True)
    return folder


def there(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(each.name for each in folder.iterdir())


def names(folder: Path) -> list[str]:
    """The names in a folder without the time in front."""
    return sorted(each.name.split("-", 1)[1] for each in folder.iterdir()) if folder.is_dir() else []


async def test_a_crl_in_the_spool_is_imported_and_put_away(world: World, spool: Path) -> None:
    """Its entries are on record; the file is in done/, and the spool is empty."""
    async with going(spooling(world, spool.parent)):
        drop(spool, "a.crl", make_crl(world.ca, 1, [7]))
        await until(lambda: names(spool / "done") == ["a.crl"])
        assert await world.revoked() == {7}
        drop(spool, "a.crl", make_crl(world.ca, 2, [7, 8]))
        await until(lambda: names(spool / "done") == ["a.crl", "a.crl"])
    assert await world.revoked() == {7, 8}
    assert there(spool) == ["done"]


async def test_a_refused_file_is_put_away_with_the_reason(world: World, spool: Path) -> None:
    """In failed/, with a text beside it; on record as refused, and nothing has changed."""
    async with going(spooling(world, spool.parent)):
        drop(spool, "a.crl", make_crl(world.ca, 1, [7], signed_by=new_ca("Public CA ອອກໃບຢັ້ງຢືນ")))
        await until(lambda: names(spool / "failed") == ["a.crl", "a.crl.txt"])
    [reason] = [each for each in (spool / "failed").iterdir() if each.suffix == ".txt"]
    assert "signature does not verify" in reason.read_text()
    assert await world.revoked() == set()
    assert await world.refusals() == ["signature"]


async def test_a_file_is_taken_when_it_is_complete(world: World, spool: Path) -> None:
    """Half a file whose other half comes later is not taken before two looks found the same; nor is one whose name says
    that it is unfinished.
    """
    octets = make_crl(world.ca, 1, [7])
    authorities = {record.name: record for record in await AuthorityAdmin(world.registrar).authorities()}
    looking = Spool(world.publisher, spool.parent, world.metrics)
    (spool / "b.crl.part").write_bytes(octets)
    (spool / ".c.crl").write_bytes(octets)
    (spool / "a.crl").write_bytes(octets[:100])
    await looking.look(authorities)
    (spool / "a.crl").write_bytes(octets)
    await looking.look(authorities)
    assert there(spool) == [".c.crl", "a.crl", "b.crl.part"]
    await looking.look(authorities)
    assert there(spool) == [".c.crl", "b.crl.part", "done"]
    assert await world.revoked() == {7}


async def test_a_folder_of_nobody_is_left_alone(world: World, spool: Path) -> None:
    """Its files stay, and the other folders are looked at all the same."""
    stranger = spool.parent / "publik-ca"
    stranger.mkdir()
    (stranger / "a.crl").write_bytes(make_crl(world.ca, 1, [9]))
    async with going(spooling(world, spool.parent)):
        drop(spool, "a.crl", make_crl(world.ca, 2, [7]))
        await until(lambda: names(spool / "done") == ["a.crl"])
    assert (stranger / "a.crl").exists()
    assert await world.revoked() == {7}


async def test_a_folder_that_cannot_be_read_is_in_nobodys_way(world: World, spool: Path) -> None:
    """A CA that locks the registry out of its own folder locks out nobody else."""
    records = {record.name: record for record in await AuthorityAdmin(world.registrar).authorities()}
    locked = spool.parent / "a-locked-one"
    locked.mkdir()
    looks = Spool(world.publisher, spool.parent, world.metrics)
    known = {**records, locked.name: records["public-ca"]}
    drop(spool, "a.crl", make_crl(world.ca, 1, [7]))
    drop(locked, "b.crl", make_crl(world.ca, 2, [7, 8]))
    for folder in (spool.parent, spool):
        folder.chmod(0o777)
    with nobodys_eyes(spool, locked):
        for _ in range(3):
            await looks.look(known)
        assert names(spool / "done") == ["a.crl"]
        assert await world.revoked() == {7}


@contextmanager
def nobodys_eyes(open_folder: Path, locked: Path) -> Iterator[None]:
    """See files as somebody who may not read `locked`, also when the tests run as root."""
    above = [each for each in open_folder.parents if each.stat().st_mode & 0o7 != 0o7 and each.owner() == "root"]
    modes = [(each, each.stat().st_mode) for each in (*above, locked)]
    for each in above:
        each.chmod(0o755)
    locked.chmod(0)
    libc = ctypes.CDLL(None)
    if os.geteuid() == 0:
        libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())
        for each, mode in modes:
            each.chmod(stat.S_IMODE(mode))


async def test_another_authoritys_crl_is_refused_in_this_folder(world: World, spool: Path) -> None:
    """Who may write into one CA's folder cannot bring another CA's list, be it genuine."""
    other = new_ca("Other CA")
    await AuthorityAdmin(world.registrar).add_authority("other-ca", [other.der], actor="test")
    async with going(spooling(world, spool.parent)):
        drop(spool, "a.crl", make_crl(other, 1, [7]))
        await until(lambda: names(spool / "failed") == ["a.crl", "a.crl.txt"])
    assert await world.revoked() == set()


async def test_links_and_pipes_are_not_opened(world: World, spool: Path, tmp_path: Path) -> None:
    """A link out of the folder is put away unread, a pipe does not make the registry wait."""
    secret = tmp_path / "secret"
    secret.write_bytes(make_crl(world.ca, 1, [7]))
    (spool / "link.crl").symlink_to(secret)
    os.mkfifo(spool / "pipe.crl")
    async with going(spooling(world, spool.parent)):
        await until(lambda: names(spool / "failed") == ["link.crl", "link.crl.txt", "pipe.crl", "pipe.crl.txt"])
    assert await world.revoked() == set()
    assert secret.exists()


@pytest.mark.parametrize("links", [("done",), ("done", "failed")], ids=" and ".join)
async def test_links_in_the_place_of_done_and_failed_are_not_followed(
    world: World, spool: Path, tmp_path: Path, links: tuple[str, ...]
) -> None:
    """Who may write into the folder cannot have files put into another one; the list is imported once all the same."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in links:
        (spool / name).symlink_to(elsewhere)
    authorities = {record.name: record for record in await AuthorityAdmin(world.registrar).authorities()}
    looking = Spool(world.publisher, spool.parent, world.metrics)
    drop(spool, "a.crl", make_crl(world.ca, 1, [7]))
    for _ in range(4):
        await looking.look(authorities)
    assert there(elsewhere) == []
    assert await world.revoked() == {7}
    labels = {"authority": "public-ca", "outcome": "done"}
    assert world.registry.get_sample_value("lakthan_registry_spool_files_total", labels) == 1


async def test_a_name_that_is_no_text_does_no_harm(world: World, spool: Path) -> None:
    """Names of files are octets: the list is imported, and another one is refused, like any other."""
    (spool / os.fsdecode(b"a\xff.crl")).write_bytes(make_crl(world.ca, 1, [7]))
    (spool / os.fsdecode(b"b\xff.crl")).write_bytes(b"nothing")
    async with going(spooling(world, spool.parent)):
        await until(lambda: len(names(spool / "done")) == 1 and len(names(spool / "failed")) == 2)
    assert await world.revoked() == {7}


async def test_a_spool_that_is_not_there_yet_is_waited_for(world: World, tmp_path: Path) -> None:
    """The folder can be mounted or made later."""
    folder = tmp_path / "later" / "public-ca"
    async with going(spooling(world, folder.parent)):
        await asyncio.sleep(0)
        folder.mkdir(parents=True)
        drop(folder, "a.crl", make_crl(world.ca, 1, [7]))
        await until(lambda: names(folder / "done") == ["a.crl"])
