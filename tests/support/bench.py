"""`./run bench`: what an answer and a token cost beside the signature inside them, in one run on this machine.

Machines are shared and noisy, so every figure is given as a ratio to the raw P-256 signature measured in the same
rounds; the medians of several alternating rounds are printed. The HTTP rows need `wrk` (Debian package wrk) and run
against the real services with a real database; without wrk they are left out and the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
import uvloop
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.identity import Identity
from lakthan.keys.software import SoftwareSigner
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan_ocsp import responder as ocsp_core
from lakthan_ocsp.governor import Span
from lakthan_ocsp.syntax import parse_request as parse_ocsp_request
from lakthan_tsa.authority import TokenTemplate, draft
from lakthan_tsa.syntax import parse_request as parse_tsa_request
from support import tsa
from support.pki import issue, new_ca, new_responder
from support.responder import request_for, running_responder

Measure = Callable[[], Awaitable[float]]
_RAW = "raw P-256 signature"
_CONNECTIONS = 32


def per_second(work: Callable[[], object], seconds: float) -> float:
    """How often `work` runs in a second, measured for about that long."""
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(100):
            work()
        count += 100
    return count / elapsed


def in_process(seconds: float) -> dict[str, Measure]:
    """The rows that need no network: the pure core of both services around a real signature."""
    ca = new_ca("bench CA")
    leaf = issue("leaf", ca)
    issued = new_responder(ca)
    key = issued.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    scheme = ec.ECDSA(hashes.SHA256())
    template = ocsp_core.ResponderTemplate(Identity(CertificateView.of(issued.certificate), SoftwareSigner(key)))
    question = request_for(leaf, ca, nonce=secrets.token_bytes(32))
    now = datetime.now(UTC).replace(microsecond=0)
    span = Span(now, now, now + timedelta(days=1), now + timedelta(hours=1))

    def answer() -> bytes:
        request = parse_ocsp_request(question, max_cert_ids=1)
        drafted = template.draft([(request.cert_ids[0].encoded, ocsp_core.GOOD, b"")], span, nonce=request.nonce)
        return drafted.seal(key.sign(drafted.tbs, scheme))

    unit = tsa.new_unit().identity()
    tokens = TokenTemplate(unit, policy=tsa.POLICY, accuracy=timedelta(seconds=1))
    unit_key = unit.signer._key  # type: ignore[attr-defined]
    offered = frozenset({der.object_identifier(tsa.POLICY)})
    query = tsa.request_for()
    serial_number = b"\x40" + secrets.token_bytes(15)

    def token() -> bytes:
        request = parse_tsa_request(query, offered_policies=offered)
        drafted = draft(request, tokens, serial_number=serial_number, gen_time=datetime.now(UTC))
        return drafted.seal(unit_key.sign(drafted.tbs, scheme))

    def row(work: Callable[[], object]) -> Measure:
        async def measure() -> float:
            return per_second(work, seconds)

        return measure

    message = secrets.token_bytes(300)
    return {
        _RAW: row(lambda: key.sign(message, scheme)),
        "OCSP answer with nonce: parse, build, sign": row(answer),
        "timestamp token with certificates: parse, build, sign": row(token),
    }


async def over_http(wrk: str, seconds: float, folder: Path, stack: AsyncExitStack) -> dict[str, Measure]:
    """The rows over HTTP: the real services in this process, wrk in another."""
    server = await asyncio.to_thread(stack.enter_context, EmbeddedPostgres(folder / "postgres"))
    url = server.url()
    await migrate(url)
    (folder / "ocsp").mkdir()
    responder = await stack.enter_async_context(running_responder(url, folder / "ocsp"))
    leaf = await responder.issue(issue("leaf", responder.ca))
    (folder / "tsa").mkdir()
    authority = await stack.enter_async_context(tsa.running_tsa(url, folder / "tsa", tsa.new_unit()))

    def row(name: str, target: str, body: bytes, media_type: str) -> Measure:
        script = folder / f"{name}.lua"
        octets = "".join(f"\\{octet}" for octet in body)
        script.write_text(f'wrk.method = "POST"\nwrk.body = "{octets}"\nwrk.headers["Content-Type"] = "{media_type}"\n')

        async def measure() -> float:
            command = (wrk, "-t1", f"-c{_CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script), target)
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            printed = (await process.communicate())[0].decode()
            if "Non-2xx" in printed or "Socket errors" in printed:
                raise RuntimeError(f"wrk saw errors:\n{printed}")
            found = re.search(r"Requests/sec:\s+([\d.]+)", printed)
            if found is None:
                raise RuntimeError(f"wrk printed no rate:\n{printed}")
            return float(found[1])

        return measure

    plain, nonced = request_for(leaf, responder.ca), request_for(leaf, responder.ca, nonce=secrets.token_bytes(32))
    return {
        "HTTP: OCSP POST, cached": row("cached", responder.url, plain, "application/ocsp-request"),
        "HTTP: OCSP POST, signed for its nonce": row("live", responder.url, nonced, "application/ocsp-request"),
        "HTTP: token, recorded durably": row("token", authority.url, tsa.request_for(), "application/timestamp-query"),
    }


async def bench(rounds: int, seconds: float) -> None:
    """Measure every row in every round, and print medians and ratios."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    wrk = shutil.which("wrk")
    console = Console()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = in_process(seconds)
        if wrk is not None:
            rows |= await over_http(wrk, seconds, folder, stack)
        rates: dict[str, list[float]] = {name: [] for name in rows}
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=rounds * len(rows))
            for _ in range(rounds):
                for name, measure in rows.items():
                    progress.update(task, description=name)
                    rates[name].append(await measure())
                    progress.advance(task)
    table = Table(title=f"median of {rounds} rounds, {_CONNECTIONS} connections")
    for heading, justify in (
        ("what", "left"),
        ("per second", "right"),
        ("spread", "right"),
        ("of the raw rate", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, measured in rates.items():
        median = statistics.median(measured)
        spread = (max(measured) - min(measured)) / median
        ratio = statistics.median(here / raw for here, raw in zip(measured, rates[_RAW], strict=True))
        table.add_row(name, f"{median:,.0f}", f"±{spread / 2:.0%}", f"{ratio:.2f}")
    console.print(table)
    if wrk is None:
        console.print("The rows over HTTP need wrk: apt install wrk")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often every row is measured (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each time (default 2)")
    arguments = parser.parse_args()
    uvloop.run(bench(arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
