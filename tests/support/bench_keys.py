"""How fast keys sign, in one run: in the process, in a token (SoftHSM), in a token behind a socket (p11-kit), and by
pkcs11-tool; and what a responder does while an HSM sleeps five seconds over every signature (`bench_asleep`).

    ./run bench-keys                 some minutes
    ./run bench-keys --soak 60       eight sessions at once for a minute with every kind of key

One error, or one signature that does not verify, ends the run with exit code 1. Of the signatures of a row up to 20,000
are verified by cryptography, and up to 25 by openssl, spread over its whole length.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lakthan.config import KeyURI
from lakthan.keys import Signer, open_signer, signer
from support import bench_asleep
from support.fake_kms import openssl_agrees
from support.pki import PrivateKey, new_key
from support.programs import need
from support.sidecar import CLIENT, sidecar
from support.softhsm import MODULE, PIN, Token, new_token, tokens_folder

_KINDS = ("P-256", "P-384", "RSA-2048", "RSA-2048 PSS", "RSA-3072", "RSA-3072 PSS", "RSA-4096", "Ed25519")
_TICK_SECONDS = 0.002
_MOST_VERIFIED, _MOST_BY_OPENSSL = 20_000, 25
# How pkcs11-tool is told to sign as we do; EC and Edwards keys need no more than the name of the mechanism.
_PSS_OPTIONS = ("--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256", "--salt-len", "32")


@dataclass(frozen=True)
class Measured:
    """`verified`: by cryptography and by openssl. `longest_seconds`: for which the event loop stood still.
    `cpu_seconds`: of this process for one signature, which a busy neighbour disturbs less than the rate.
    """

    per_second: float
    signatures: int
    verified: tuple[int, int]
    longest_seconds: float
    cpu_seconds: float


async def measure(key: Signer, kind: str, home: Path, seconds: float, at_once: int) -> Measured:
    """Sign with so many callers for so long, and verify of that what can be verified in a reasonable time."""
    stop = time.perf_counter() + seconds
    kept: list[tuple[bytes, bytes]] = []
    made, keep_every = 0, 1
    longest = 0.0

    async def call(number: int) -> None:
        nonlocal made, keep_every
        count = 0
        while time.perf_counter() < stop:
            message = b"%d %d" % (number, count)
            count += 1
            signature = await key.sign(message)
            made += 1
            if not made % keep_every:
                kept.append((message, signature))
                if (
                    len(kept) > _MOST_VERIFIED
                ):  # half of them, spread over the time so far, and half as many from now on
                    del kept[::2]
                    keep_every *= 2
            await asyncio.sleep(0)

    async def tick() -> None:
        nonlocal longest
        while time.perf_counter() < stop:
            before = time.perf_counter()
            await asyncio.sleep(_TICK_SECONDS)
            longest = max(longest, time.perf_counter() - before - _TICK_SECONDS)

    began, cpu_began = time.perf_counter(), time.process_time()
    await asyncio.gather(tick(), *(call(number) for number in range(at_once)))
    took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    for message, signature in kept:
        signer.verify(key.public_key, key.algorithm.hash, signature, message, pss=key.algorithm.pss)
    sample = kept[:: max(1, len(kept) // _MOST_BY_OPENSSL)][:_MOST_BY_OPENSSL]
    for message, signature in sample:
        if not await openssl_agrees(key.public_key, kind, message, signature, home, pss=key.algorithm.pss):
            raise AssertionError(f"openssl does not verify a signature of {kind}")
    return Measured(made / took, made, (len(kept), len(sample)), longest, cpu / made)


async def bench(seconds: float, soak: float, kinds: tuple[str, ...], home: Path) -> Table:
    """All rows. `soak`: how long the one with eight sessions lasts."""
    heads = ("key", "where", "callers", "signatures", "verified, by openssl", "per second", "of software")
    table = Table(*heads, "CPU µs", "loop held")
    token = new_token(tokens_folder(home), home)
    with Progress(transient=True) as progress:
        for kind in progress.track(kinds, description="measuring"):
            name, pss = kind.removesuffix(" PSS"), kind.endswith("PSS")
            more = "&x-signature=pss" if pss else ""
            key = new_key(name)
            label = kind.replace(" ", "-")
            identifier = token.put(label, key)
            software = await _measured(_software(key, home, label, pss=pss), name, home, seconds, 1)
            rows = [("in the process", 1, software)]
            for sessions, lasts in ((1, seconds), (8, soak)):
                uri = token.uri(label, more=f"&x-sessions={sessions}&x-waiting=1000{more}")
                row = await _measured(open_signer(uri), name, home, lasts, sessions)
                rows.append((f"token, {sessions} sessions", sessions, row))
            if name != "Ed25519":  # p11-kit 0.24 of Debian 12 does not carry CKM_EDDSA
                with sidecar(token) as address:
                    os.environ["P11_KIT_SERVER_ADDRESS"] = address
                    text = f"pkcs11:token={token.label};object={label}?module-path={CLIENT}&pin-source=pin{more}"
                    row = await _measured(open_signer(KeyURI(text, home)), name, home, seconds, 4)
                    rows.append(("token behind p11-kit", 4, row))
            rows.append(("pkcs11-tool, each a process", 1, await _foreign(token, kind, identifier, key, seconds)))
            for where, callers, row in rows:
                cpu = f"{row.cpu_seconds * 1e6:,.0f}" if row.cpu_seconds else ""
                held = f"{row.longest_seconds * 1000:.1f} ms" if row.longest_seconds else ""
                verified = f"{row.verified[0]:,}, {row.verified[1]}"
                ratio = f"{row.per_second / software.per_second:.3f}"
                cells = (str(callers), f"{row.signatures:,}", verified, f"{row.per_second:,.0f}", ratio, cpu, held)
                table.add_row(kind, where, *cells)
            table.add_section()
    return table


async def _measured(opened: Signer, kind: str, home: Path, seconds: float, at_once: int) -> Measured:
    try:
        return await measure(opened, kind, home, seconds, at_once)
    finally:
        await opened.aclose()


def _software(key: PrivateKey, home: Path, label: str, *, pss: bool) -> Signer:
    path = home / f"{label}.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return open_signer(KeyURI(f"file:{path.name}{'?x-signature=pss' if pss else ''}", home))


async def _foreign(token: Token, kind: str, identifier: str, key: PrivateKey, seconds: float) -> Measured:
    """pkcs11-tool, which starts the library, logs in and finds the key for every signature."""
    home = token.home
    message = home / "to-sign"
    message.write_bytes(b"ResponseData")
    name, pss = kind.removesuffix(" PSS"), kind.endswith("PSS")
    mechanism: tuple[str, ...]
    if name.startswith("P-") or pss:  # these want a digest
        message.write_bytes(hashlib.new("sha384" if name == "P-384" else "sha256", b"ResponseData").digest())
    if name.startswith("P-"):
        mechanism = ("ECDSA", "--signature-format", "rs")
    elif name == "Ed25519":
        mechanism = ("EDDSA",)
    else:
        mechanism = ("RSA-PKCS-PSS", *_PSS_OPTIONS) if pss else ("SHA256-RSA-PKCS",)
    command = [str(need("pkcs11-tool")), "--module", str(MODULE), "--token-label", token.label, "--login", "--pin", PIN]
    command += ["--sign", "--id", identifier, "--input-file", str(message), "--output-file", str(home / "signed")]
    command += ["--mechanism", *mechanism]
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = await process.communicate()
        if process.returncode:
            raise AssertionError(f"pkcs11-tool, {kind}: {said.decode()}")
        count += 1
    took = time.perf_counter() - began
    signature = (home / "signed").read_bytes()
    if name.startswith("P-"):
        half = len(signature) // 2
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        signature = encode_dss_signature(r, s)
    if not await openssl_agrees(key.public_key(), name, b"ResponseData", signature, home, pss=pss):
        raise AssertionError(f"openssl does not verify what pkcs11-tool signed with {kind}")
    return Measured(count / took, count, (0, 1), 0.0, 0.0)


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="for each row  [2]")
    parser.add_argument("--soak", type=float, default=4, help="seconds for each row with eight sessions  [4]")
    parser.add_argument("--kinds", nargs="*", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--asleep", type=float, default=12, help="seconds with an HSM that sleeps; 0: not at all  [12]")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        if arguments.kinds:
            console.print(asyncio.run(bench(arguments.seconds, arguments.soak, tuple(arguments.kinds), home)))
        if arguments.asleep:
            console.print(asyncio.run(bench_asleep.bench(arguments.asleep, home)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
