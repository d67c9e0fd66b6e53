"""The keys of one responder at work: who signs, who waits, who leaves, and what a bad list cannot do."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan.certificates import CertificateView
from lakthan.config import ApprovalConfig
from lakthan.errors import ConfigError, KeyAway
from lakthan.identity import Identity
from lakthan.keys import key_list, key_ring
from lakthan.keys.approval import Act
from lakthan.keys.key_list import Found, ListedKey
from lakthan.keys.key_ring import KeyRing, open_ring
from lakthan.keys.software import SoftwareSigner
from support.pki import Issued, issue, new_ca, new_responder

CA = new_ca("CA")
APPROVERS = [issue("approver one"), issue("approver two")]
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
TARGET = "OCSP responder of public-ca"


@dataclass
class House:
    """A folder with a list, and whoever opens its keys. `away`: names of keys that cannot be had now."""

    folder: Path
    away: set[str] = field(default_factory=set)
    closed: list[str] = field(default_factory=list)
    told: int = 0
    approval: ApprovalConfig | None = None

    @property
    def path(self) -> Path:
        """The list."""
        return self.folder / "keys.toml"

    def key(self, name: str, begins: timedelta = -DAY, installed: timedelta = -DAY) -> ListedKey:
        """A new key with its certificate, as an entry that is not in the list yet."""
        made = new_responder(CA, valid=(begins, timedelta(days=30)))
        certificate, key = made.write(self.folder, name)
        digest = key_list.digest_of(CertificateView.of(made.certificate))
        at = (datetime.now(UTC) + installed).replace(microsecond=0)
        return ListedKey(certificate=certificate.name, sha256=digest, key=f"file:{key.name}", installed=at)

    def write(self, *entries: ListedKey) -> None:
        """Replace the list."""
        key_list.write(self.path, entries)

    async def open(self, found: Found) -> Identity:
        """Open a key as the services do."""
        if found.certificate.stem in self.away:
            raise KeyAway(f"{found.certificate.stem} is away")
        return await Identity.open(found.certificate, found.key, late=found.late)

    async def close(self, identity: Identity) -> None:
        """Let it go."""
        self.closed.append(key_list.digest_of(identity.view))
        await identity.signer.aclose()

    async def changed(self) -> None:
        """The service hears of it."""
        self.told += 1

    @asynccontextmanager
    async def ring(self) -> AsyncIterator[KeyRing[Identity]]:
        """The list at work, followed."""
        ring = await open_ring(
            "OCSP responder of", "public-ca", self.path, self.open, self.close, approval=self.approval, late=False
        )
        watching = asyncio.create_task(ring.watch(self.changed))
        try:
            yield ring
        finally:
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching
            await ring.aclose()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """A folder; rings look at their list all the time."""
    monkeypatch.setattr(key_ring, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(key_ring, "_AGAIN_SECONDS", 0.05)
    return House(tmp_path)


async def until(true: Callable[[], object]) -> None:
    """Return when something is so."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def held(ring: KeyRing[Identity]) -> list[str]:
    """The digests of the keys of a ring, newest first."""
    return [key.sha256 for key in ring.held]


def signs(ring: KeyRing[Identity]) -> str:
    """The digest of the key that signs now."""
    return ring.signing(datetime.now(UTC))[0].sha256


def approved(entry: ListedKey, *, retire: bool = False) -> ListedKey:
    """The entry with both approvers' signatures."""
    act = Act.installing(TARGET, entry)
    if retire:
        assert entry.retired is not None
        act = Act.retiring(TARGET, entry, entry.retired)
    signatures = tuple(_sign(each, act) for each in APPROVERS)
    return msgspec.structs.replace(entry, **{"retirement_approvals" if retire else "approvals": signatures})


def _sign(approver: Issued, act: Act) -> str:
    return base64.b64encode(asyncio.run(SoftwareSigner(approver.key).sign(act.text.encode()))).decode()


async def test_the_newest_in_force_signs(house: House) -> None:
    """Of two in force the newer one; one whose certificate is not in force yet waits, and takes over by itself."""
    old, new, coming = house.key("old", -2 * DAY, -2 * DAY), house.key("new"), house.key("coming", SECOND)
    house.write(new, coming, old)
    async with house.ring() as ring:
        assert held(ring) == [coming.sha256, new.sha256, old.sha256]
        assert signs(ring) == new.sha256
        assert house.told == 0
        await until(lambda: house.told)
        assert signs(ring) == coming.sha256
        assert held(ring) == [coming.sha256, new.sha256, old.sha256]


async def test_installed_says_from_when_on(house: House) -> None:
    """A key whose certificate is in force signs nothing before the instant of its installation."""
    old, new = house.key("old", -2 * DAY, -2 * DAY), house.key("new", -DAY, DAY)
    house.write(old, new)
    async with house.ring() as ring:
        assert signs(ring) == old.sha256
        house.write(old, msgspec.structs.replace(new, installed=old.installed))
        await until(lambda: signs(ring) == new.sha256)


async def test_installed_and_retired_while_it_runs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new key comes in; the old one leaves before the instant at which it is retired, and is closed afterwards."""
    monkeypatch.setattr(key_ring, "_LET_GO_SECONDS", 0.0)
    old, new = house.key("old", -2 * DAY, -2 * DAY), house.key("new")
    house.write(old)
    async with house.ring() as ring:
        house.write(old, new)
        await until(lambda: signs(ring) == new.sha256)
        retired = (datetime.now(UTC) + 2 * SECOND).replace(microsecond=0)
        house.write(msgspec.structs.replace(old, retired=retired), new)
        await until(lambda: held(ring) == [new.sha256])
        assert datetime.now(UTC) < retired
        await until(lambda: house.closed == [old.sha256])
    assert house.closed == [old.sha256, new.sha256]


async def test_the_retired_one_was_signing(house: House) -> None:
    """When the newest is retired, the one in reserve signs again: another key, and the service hears of it."""
    old, new = house.key("old", -2 * DAY, -2 * DAY), house.key("new")
    house.write(old, new)
    async with house.ring() as ring:
        assert signs(ring) == new.sha256
        house.write(old, msgspec.structs.replace(new, retired=datetime.now(UTC)))
        await until(lambda: house.told)
        assert signs(ring) == old.sha256


@pytest.mark.parametrize("text", ["", "[[key]", "[[key]]\ncertificate = 1\n", None])
async def test_a_bad_list_changes_nothing(text: str | None, house: House) -> None:
    """Emptied, broken, or gone: the key signs on, somebody is told, and the next good list is taken."""
    only, new = house.key("only"), house.key("new", -2 * DAY, -2 * DAY)
    house.write(only)
    async with house.ring() as ring:
        if text is None:
            house.path.unlink()
        else:
            house.path.write_text(text)
        await until(lambda: ring.problem)
        assert held(ring) == [only.sha256]
        house.write(only, new)
        await until(lambda: not ring.problem and len(ring.held) == 2)
        assert signs(ring) == only.sha256


async def test_one_bad_key_among_good_ones(house: House) -> None:
    """Somebody else's key, a missing certificate, a key that is away: the others come in, and those are tried again."""
    good, wrong, away = house.key("good"), house.key("wrong"), house.key("away")
    other = house.key("other")
    house.away.add("away")
    wrong = msgspec.structs.replace(wrong, key=other.key)
    missing = msgspec.structs.replace(other, certificate="missing.pem")
    house.write(wrong, missing, away, good)
    async with house.ring() as ring:
        assert held(ring) == [good.sha256]
        for word in ("does not belong", "missing.pem cannot be read", "away is away"):
            assert word in ring.problem
        house.away.clear()
        await until(lambda: away.sha256 in held(ring))
        assert "away is away" not in ring.problem


async def test_what_is_missing_signs_on(house: House) -> None:
    """A key that merely vanishes from the list is not retired by that; one that was, may be removed from it."""
    old, new = house.key("old", -2 * DAY, -2 * DAY), house.key("new")
    house.write(old, new)
    async with house.ring() as ring:
        house.write(old)
        await until(lambda: "without being retired" in ring.problem)
        assert signs(ring) == new.sha256
        house.write(old, msgspec.structs.replace(new, retired=datetime.now(UTC)))
        await until(lambda: held(ring) == [old.sha256])
        house.write(old)
        await until(lambda: not ring.problem)


async def test_nothing_to_begin_with(house: House) -> None:
    """A list without a key that may sign is no reason to start, unless its keys were retired."""
    with pytest.raises(ConfigError, match="cannot be read"):
        async with house.ring():
            raise AssertionError("it started without a list")
    house.write()
    with pytest.raises(ConfigError, match="has no key that may sign: install one"):
        async with house.ring():
            raise AssertionError("it started without a key")
    retired, away = msgspec.structs.replace(house.key("old"), retired=datetime.now(UTC)), house.key("away")
    house.write(retired, away)
    house.away = {"away"}
    with pytest.raises(ConfigError, match="away is away"):
        async with house.ring():
            raise AssertionError("it started without a key that ought to be there")


async def test_a_start_with_retired_keys_only(house: House) -> None:
    """It signs nothing and says so, for as long as that is so, until another key is installed; as it is where the last
    key is retired while the process runs.
    """
    retired, new = msgspec.structs.replace(house.key("old"), retired=datetime.now(UTC)), house.key("new")
    house.write(retired)
    async with house.ring() as ring:
        assert not ring.held
        assert not ring.signing(datetime.now(UTC))
        assert "is retired: nothing can be signed; install one" in ring.problem
        house.write(retired, new)
        await until(lambda: held(ring) == [new.sha256])
        await until(lambda: house.told)
        assert ring.problem == ""
        house.write(retired, msgspec.structs.replace(new, retired=datetime.now(UTC)))
        await until(lambda: not ring.held)
        read_last = ring._again_at
        await until(lambda: ring._again_at != read_last)
        assert "is retired: nothing can be signed; install one" in ring.problem


@pytest.fixture
def strict(house: House) -> House:
    """The same where two of two must approve, and what was retired is remembered."""
    (house.folder / "approvers.pem").write_bytes(
        b"".join(each.certificate.public_bytes(Encoding.PEM) for each in APPROVERS)
    )
    (house.folder / "memory").mkdir()
    house.approval = ApprovalConfig(house.folder / "approvers.pem", 2, house.folder / "memory")
    return house


async def test_a_key_that_nobody_approved(strict: House) -> None:
    """Whoever can write the list, and nothing else, brings no key in: no new one, and none by another's signatures."""
    good = await asyncio.to_thread(approved, strict.key("good", -2 * DAY, -2 * DAY))
    one = msgspec.structs.replace(strict.key("one"), approvals=good.approvals)
    moved = msgspec.structs.replace(await asyncio.to_thread(approved, strict.key("two")), key="file:good.key")
    strict.write(good)
    async with strict.ring() as ring:
        strict.write(good, one, moved, strict.key("three"))
        await until(lambda: ring.problem)
        assert held(ring) == [good.sha256]
        assert ring.problem.count("2 of 2 must approve it") == 3


async def test_a_retirement_that_nobody_approved(strict: House) -> None:
    """It takes no key away, in a process that runs and in one that starts."""
    good = await asyncio.to_thread(approved, strict.key("good"))
    strict.write(good)
    async with strict.ring() as ring:
        strict.write(msgspec.structs.replace(good, retired=datetime.now(UTC)))
        await until(lambda: ring.problem)
        assert "to retire" in ring.problem
        assert held(ring) == [good.sha256]
    async with strict.ring() as ring:
        assert held(ring) == [good.sha256]
        assert "to retire" in ring.problem


async def test_an_older_list_brings_nothing_back(strict: House) -> None:
    """What was retired with approval stays so: in the process that saw it, and in the next one, which did not."""
    old, new = [
        await asyncio.to_thread(approved, each) for each in (strict.key("old", -2 * DAY, -2 * DAY), strict.key("new"))
    ]
    strict.write(old, new)
    async with strict.ring() as ring:
        gone = msgspec.structs.replace(old, retired=datetime.now(UTC).replace(microsecond=0))
        strict.write(await asyncio.to_thread(approved, gone, retire=True), new)
        await until(lambda: held(ring) == [new.sha256])
        strict.write(old, new)
        await until(lambda: "this list is an older one" in ring.problem)
        assert held(ring) == [new.sha256]
    async with strict.ring() as ring:
        assert held(ring) == [new.sha256]
        assert "this list is an older one" in ring.problem


async def test_nobody_signs_before_he_is_installed(house: House) -> None:
    """Where no other key is left, one that is to be installed later waits all the same; then it signs."""
    later = house.key("later", installed=timedelta(hours=1))
    house.write(later)
    async with house.ring() as ring:
        assert held(ring) == [later.sha256]
        now = datetime.now(UTC)
        assert ring.signing(now) == []
        assert [key.sha256 for key in ring.signing(later.installed + 3 * SECOND)] == [later.sha256]


async def test_a_certificate_whose_time_has_not_come_is_asked(house: House) -> None:
    """A key that is installed, and whose certificate is not in force yet, is the one that says so."""
    early = house.key("early", begins=DAY)
    house.write(early)
    async with house.ring() as ring:
        assert signs(ring) == early.sha256
