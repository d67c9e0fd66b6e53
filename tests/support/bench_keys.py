"""How fast keys sign, in one run: in the process, in a token (SoftHSM), and in a token behind a socket (p11-kit).

`python -m support.bench_keys --seconds 60` also is the endurance run of the PKCS#11 adapter: eight sessions at once for
that long with every kind of key; every signature is verified, and one error ends the run with exit code 1. The last
rows say how long the event loop was held up meanwhile, also by a device that sleeps five seconds over a signature.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lakthan.config import KeyURI
from lakthan.keys import Signer, cryptoki, open_signer, signer
from support.pki import PrivateKey, new_key
from support.sidecar import CLIENT, sidecar
from support.softhsm import new_token, tokens_folder

_KINDS = ("P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519")
_TICK_SECONDS = 0.002


@dataclass(frozen=True)
class Measured:
    """`longest_seconds`: for which the event loop stood still."""

    per_second: float
    signatures: int
    longest_seconds: float


async def measure(key: Signer, seconds: float, at_once: int) -> Measured:
    """Sign with so many callers for so long, and verify everything that was signed."""
    stop = time.perf_counter() + seconds
    made: list[tuple[bytes, bytes]] = []
    longest = 0.0

    async def call(number: int) -> None:
        count = 0
        while time.perf_counter() < stop:
            message = b"%d %d" % (number, count)
            count += 1
            made.append((message, await key.sign(message)))
            await asyncio.sleep(0)

    async def tick() -> None:
        nonlocal longest
        while time.perf_counter() < stop:
            before = time.perf_counter()
            await asyncio.sleep(_TICK_SECONDS)
            longest = max(longest, time.perf_counter() - before - _TICK_SECONDS)

    began = time.perf_counter()
    await asyncio.gather(tick(), *(call(number) for number in range(at_once)))
    took = time.perf_counter() - began
    for message, signature in made:
        signer.verify(key.public_key, key.algorithm.hash, signature, message)
    return Measured(len(made) / took, len(made), longest)


async def bench(seconds: float, kinds: tuple[str, ...]) -> Table:
    """All rows."""
    table = Table("key", "where", "callers", "signatures", "per second", "of the software key", "loop held up, at most")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        token = new_token(tokens_folder(home), home)
        for kind in track(kinds, "measuring", transient=True):
            key = new_key(kind)
            token.put(kind, key)
            software = await measure(_software(key, home, kind), seconds / 4, 1)
            rows = [("in the process", 1, software)]
            for sessions in (1, 8):
                opened = open_signer(token.uri(kind, more=f"&x-sessions={sessions}&x-waiting=1000"))
                rows.append((f"token, {sessions} sessions", sessions, await measure(opened, seconds, sessions)))
                await opened.aclose()
            for where, callers, row in rows:
                table.add_row(kind, where, str(callers), str(row.signatures), *_figures(row, software))
            if kind == "Ed25519":  # p11-kit 0.24 of Debian 12 does not carry CKM_EDDSA
                continue
            with sidecar(token) as address:
                os.environ["P11_KIT_SERVER_ADDRESS"] = address
                uri = f"pkcs11:token={token.label};object={kind}?module-path={CLIENT}&pin-source=pin"
                opened = open_signer(KeyURI(uri, home))
                row = await measure(opened, seconds / 4, 4)
                table.add_row(kind, "token behind p11-kit", "4", str(row.signatures), *_figures(row, software))
                await opened.aclose()
        slept = await _sleeping(open_signer(token.uri(kinds[0])))
        table.add_row(kinds[0], "token, asleep for 5 s", "1", str(slept.signatures), *_figures(slept, slept))
    return table


def _figures(row: Measured, beside: Measured) -> tuple[str, str, str]:
    ratio = row.per_second / beside.per_second
    return f"{row.per_second:,.0f}", f"{ratio:.2f}", f"{row.longest_seconds * 1000:.1f} ms"


def _software(key: PrivateKey, home: Path, kind: str) -> Signer:
    path = home / f"{kind}.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return open_signer(KeyURI(f"file:{path.name}", home))


async def _sleeping(opened: Signer) -> Measured:
    """A device that takes five seconds over one signature."""
    quick = cryptoki.Cryptoki.sign

    def slow(self: cryptoki.Cryptoki, *arguments: Any) -> bytes:  # noqa: ANN401 - handed on
        time.sleep(5)
        return quick(self, *arguments)

    cryptoki.Cryptoki.sign = slow  # type: ignore[method-assign, assignment]
    try:
        return await measure(opened, 1, 1)
    finally:
        cryptoki.Cryptoki.sign = quick  # type: ignore[method-assign]


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="for each row with a token")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    arguments = parser.parse_args()
    table = asyncio.run(bench(arguments.seconds, tuple(arguments.kinds)))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
