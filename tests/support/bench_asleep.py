"""What a responder does while an HSM sleeps five seconds over every signature, and while it is removed with the folder
of its tokens: one real process, asked by HTTP.

Three authorities: the key of `asleep` lies in a token behind a library that sleeps (`slow_hsm`), that of `other-hsm`
in SoftHSM, that of `file` in a file. The same questions are asked while all is well, and while the first one sleeps and
many want its answers. An answer from memory costs nothing but the event loop's turn, so its time is the loop's latency.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from lakthan.config import KeyURI
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest
from support.pki import issue, new_ca, new_responder
from support.propagation import Connection, Question
from support.responder import ACTOR
from support.slow_hsm import SlowHSM
from support.softhsm import new_token, tokens_folder

_SLEEP_MILLISECONDS = 5000
_SESSIONS, _WAITING = 4, 4
_WANT_THE_SLEEPING_ONE = 24
_PAUSE_SECONDS = 0.005


@dataclass
class Asked:
    """What was asked of one authority in one way: the seconds that its answers took, by what they said."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, status: str, seconds: float) -> None:
        """One answer."""
        self.seconds.setdefault(status, []).append(seconds)


async def ask(port: int, question: Question, until: float, asked: Asked) -> None:
    """Ask again and again, by one client."""
    connection = await Connection.open(port)
    while time.monotonic() < until:
        answer = await connection.ask(question)
        asked.add(answer.status, answer.heard - answer.sent)
        await asyncio.sleep(_PAUSE_SECONDS)
    connection.close()


async def bench(seconds: float, home: Path) -> Table:
    """All times, in one table."""
    hsm = SlowHSM.build(home)
    with EmbeddedPostgres(home / "postgres", durable=False) as server:
        async with _world(server.url(database="postgres"), home, hsm) as (port, questions):
            times = {"signs": await _measure(port, questions, seconds / 3, 1)}
            hsm.sleep(_SLEEP_MILLISECONDS)
            times["sleeps"] = await _measure(port, questions, seconds, _WANT_THE_SLEEPING_ONE)
            hsm.sleep(0)
            first = next(iter(questions.values()))
            await _until_good(port, first)
            with _removed(hsm, home / "its-token"):
                times["is removed"] = await _measure(port, questions, seconds / 3, 4)
            recovered_seconds = await _until_good(port, first)
            times["is back"] = await _measure(port, questions, seconds / 3, 1)
    title = (
        f"An HSM that sleeps {_SLEEP_MILLISECONDS / 1000:.0f} s over every signature (x-sessions={_SESSIONS}, "
        f"x-waiting={_WAITING}, {_WANT_THE_SLEEPING_ONE} clients want its answers); then it is removed, put back, and "
        f"signs again after {recovered_seconds:.2f} s"
    )
    heads = ("authority, and what is asked", "while it", "answer", "answers", "median ms", "99 % ms", "longest ms")
    table = Table(*heads, title=title)
    for what in questions:
        for when, asked in times.items():
            for status, took in sorted(asked[what].seconds.items()):
                table.add_row(what, when, status, f"{len(took):,}", *_figures(took))
        table.add_section()
    return table


@contextmanager
def _removed(hsm: SlowHSM, names_its_folder: Path) -> Iterator[None]:
    """While this lasts the device is gone, and so is the folder of its token."""
    folder = Path(names_its_folder.read_text())
    safe = names_its_folder.with_name("safe")
    shutil.move(folder, safe)
    hsm.sleep(-1)
    yield
    shutil.move(safe, folder)
    hsm.sleep(0)


async def _until_good(port: int, question: Question) -> float:
    """Ask until there is an answer; gives the seconds."""
    began = time.monotonic()
    connection = await Connection.open(port)
    while (await connection.ask(question)).status != "good":  # noqa: ASYNC110 - the responder says when
        await asyncio.sleep(_PAUSE_SECONDS)
    connection.close()
    return time.monotonic() - began


def _figures(took: list[float]) -> tuple[str, str, str]:
    in_order = sorted(took)
    places = (statistics.median(in_order), in_order[int(len(in_order) * 0.99)], in_order[-1])
    return tuple(f"{place * 1000:,.1f}" for place in places)  # type: ignore[return-value]


async def _measure(port: int, questions: dict[str, Question], seconds: float, want_the_first: int) -> dict[str, Asked]:
    until = time.monotonic() + seconds
    asked = {what: Asked() for what in questions}
    first = next(iter(questions))
    clients = [ask(port, question, until, asked[what]) for what, question in questions.items()]
    clients += [ask(port, questions[first], until, asked[first]) for _ in range(want_the_first - 1)]
    await asyncio.gather(*clients)
    return asked


@asynccontextmanager
async def _world(url: str, home: Path, hsm: SlowHSM) -> AsyncIterator[tuple[int, dict[str, Question]]]:
    """The responder process and what it is asked, the sleeping one first. Signed anew: with a nonce."""
    await migrate(url)
    tokens = tokens_folder(home)
    others = new_token(tokens, home)
    before = set(tokens.iterdir())
    its_own = new_token(tokens, home)
    (folder,) = set(tokens.iterdir()) - before
    (home / "its-token").write_text(str(folder))
    async with AsyncExitStack() as stack:
        pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=2, application_name="bench")
        stack.push_async_callback(pool.close)
        authorities, changes = AuthorityAdmin(pool), ChangeWriter(pool)
        tables: list[str] = []
        by_name: dict[str, tuple[Question, Question]] = {}
        for name in ("asleep", "other-hsm", "file"):
            ca = new_ca(name)
            responder = new_responder(ca)
            certificate, _ = responder.write(home, name)
            token = its_own if name == "asleep" else others
            token.put(name, responder.key)
            bounds = f"&x-sessions={_SESSIONS}&x-waiting={_WAITING}&x-deadline=30"
            key = {
                "asleep": hsm.uri(its_own, name, bounds),
                "other-hsm": others.uri(name),
                "file": KeyURI(f"file:{name}.key", home),
            }[name]
            tables.append(
                f'[[ocsp.responders]]\nauthority = "{name}"\ncertificate = "{certificate}"\nkey = "{key.uri}"\n'
            )
            authority_id = await authorities.add_authority(name, [ca.der])
            leaves = [issue(f"leaf {number}", ca) for number in range(2)]
            requests = [ChangeRequest(authority_id, leaf.serial_number, Change.ISSUE) for leaf in leaves]
            await changes.record(requests, ACTOR)
            by_name[name] = (Question(leaves[0], ca, nonce=True), Question(leaves[1], ca))
        config = home / "ocsp.toml"
        database = f'[ocsp.database]\nurl = "{url}"\nconnections = 2\n'
        config.write_text("[ocsp]\nport = 0\nadmin_port = 0\n" + database + "".join(tables))
        port = await _start(config, stack)
        # Two copies of SoftHSM in one process disturb each other while they start.
        for signed, remembered in by_name.values():
            await _until_good(port, signed)
            await _until_good(port, remembered)
        asked = {f"{name}, signed anew": signed for name, (signed, _) in by_name.items()}
        asked |= {f"{name}, from memory": remembered for name, (_, remembered) in by_name.items()}
        yield port, asked


async def _start(config: Path, stack: AsyncExitStack) -> int:
    """A responder; gives its port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "lakthan_ocsp", "--config", str(config)), stderr=asyncio.subprocess.PIPE
    )

    async def end() -> None:
        if process.returncode is None:
            process.terminate()
        await process.wait()

    stack.push_async_callback(end)
    log = process.stderr
    assert log is not None
    lines: list[bytes] = []
    while b"changes are heard" not in (line := await log.readline()):
        lines.append(line)
        if not line:
            raise AssertionError(b"".join(lines).decode())
    port: int = next(json.loads(line)["port"] for line in lines if b"serving OCSP" in line)

    async def drain() -> None:
        while await log.readline():
            pass

    draining = asyncio.ensure_future(drain())
    stack.callback(draining.cancel)
    return port
