"""Load: wrk on its own core, with requests that Lua makes where every one has to be another.

Promises: a rate is only given for a run without a single socket error or HTTP error, and whose responses had on average
the size of the one that was verified before: a server that answers quickly with errors is not fast.

wrk is C and spends 5 to 10 µs on a request, so that the servers measured here are busy before it is. Its latencies are
corrected for what a stalled connection did not ask ("coordinated omission").

wrk knows no rates. Half of the maximal rate is reached by a pause before each request, drawn at random and adjusted
until the rate fits; arrivals are then as irregular as those of many independent clients.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from support.bench_machine import BenchError, Server, program, run_on

_DONE = """
-- Without the connection that wrk would open and close first, only to see that it can: `openssl ocsp` dies of it.
function wrk.resolve(host, service) wrk.addrs = wrk.lookup(host, service) end
function done(summary, latency, requests)
  io.write(string.format('BENCH {"requests": %d, "micros": %d, "bytes": %d, "p50_us": %d, "p99_us": %d, ' ..
    '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.status, summary.errors.timeout))
end
"""
# n counts from the number that the command line gives, so that no request of any run is like another.
_COUNTED = """
local n = 0
local char, floor, rep, format = string.char, math.floor, string.rep, string.format
local function word(v) return char(floor(v / 16777216), floor(v / 65536) % 256, floor(v / 256) % 256, v % 256) end
function init(arguments) n = tonumber(arguments[1]) end
"""
# ECDSA signatures differ by a few octets from one to the next, and so do fractions of a second.
_SIZE_TOLERANCE = 12
_CLOSE_ENOUGH, _STILL_OF_USE = 0.05, 0.2
_ADJUSTMENTS = 6


@dataclass(frozen=True)
class Load:
    """How one kind of request is sent. `script`: Lua that gives the requests. `size`: octets of a response with its
    head, None: not compared. `counted`: the script takes the number of its first request.
    """

    server: Server
    script: Path
    connections: int
    size: float | None
    counted: bool = False


@dataclass(frozen=True)
class Outcome:
    """What wrk saw. Latencies in milliseconds."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    octets: float


def literal(octets: bytes) -> str:
    """A Lua string literal."""
    return '"' + "".join(f"\\{octet:03d}" for octet in octets) + '"'


def write_fixed(path: Path, request: bytes) -> Path:
    """A script that always sends the same octets."""
    path.write_text(f"local r = {literal(request)}\nfunction request() return r end\n{_DONE}")
    return path


def write_counted(path: Path, expression: str, helpers: str = "") -> Path:
    """A script whose request is a Lua expression of `n`; `helpers` may use `word(v)`: four octets, big endian."""
    path.write_text(f"{_COUNTED}{helpers}function request() n = n + 1; return {expression} end\n{_DONE}")
    return path


def http_post(port: int, path: str, media_type: str, body_octets: int) -> bytes:
    """The head of a POST; the body follows."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {media_type}\r\n"
        f"Content-Length: {body_octets}\r\n\r\n"
    ).encode()


def http_get(port: int, target: str, *, close: bool = False) -> bytes:
    """A whole GET."""
    connection = "Connection: close\r\n" if close else ""
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{connection}\r\n".encode()


class Counter:
    """Gives every run of a counted script numbers that no other run has. `requests`: how many were answered so far."""

    def __init__(self, first: int = 0) -> None:
        self.value = first
        self.requests = 0

    def skip(self, requests: int) -> None:
        """So many have been sent, and some more may be under way."""
        self.requests += requests
        self.value += requests + 4096


def run(
    load: Load, seconds: float, core: int, counter: Counter | None = None, pause_ms: float | None = None
) -> Outcome:
    """Send for so long. Raises `BenchError` when anything but good responses came."""
    script = load.script
    if pause_ms is not None:
        script = load.script.with_suffix(".paced.lua")
        paced = f"function delay() return math.random(0, {round(2 * pause_ms)}) end\n"
        script.write_text(load.script.read_text() + paced)
    command = [program("wrk"), "-t1", f"-c{load.connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    command.append(f"http://127.0.0.1:{load.server.port}/")
    if load.counted:
        if counter is None:
            raise ValueError("a counted script needs a counter")
        command += ["--", str(counter.value)]
    done = run_on(core, command)
    line = next((each for each in done.stdout.splitlines() if each.startswith("BENCH ")), None)
    if line is None:
        raise BenchError(f"wrk did not finish:\n{done.stdout}{done.stderr}")
    seen = json.loads(line.removeprefix("BENCH "))
    if counter is not None:
        counter.skip(seen["requests"])
    errors = {kind: seen[kind] for kind in ("connect", "read", "write", "status", "timeout") if seen[kind]}
    if errors or not seen["requests"]:
        raise BenchError(f"{load.script.stem}: {seen['requests']} responses, and errors {errors}")
    octets = seen["bytes"] / seen["requests"]
    if load.size is not None and abs(octets - load.size) > _SIZE_TOLERANCE:
        raise BenchError(f"{load.script.stem}: responses of {octets:.0f} octets; the verified one had {load.size:.0f}")
    rate = seen["requests"] / (seen["micros"] / 1e6)
    return Outcome(seen["requests"], rate, seen["p50_us"] / 1000, seen["p99_us"] / 1000, octets)


def run_paced(
    load: Load, rate: float, seconds: float, core: int, *, counter: Counter, pause_ms: float | None = None
) -> tuple[Outcome, float]:
    """Send at about this rate; gives the pause that did it too, to begin with the next time.

    Raises `BenchError` when the pause cannot be found, or as `run`.
    """
    pause_ms = pause_ms or load.connections / rate * 1000
    for attempt in range(_ADJUSTMENTS):
        seen = run(load, seconds, core, counter, pause_ms)
        # A busy neighbour may make it impossible to be exact; the report says which rate it was.
        enough = _CLOSE_ENOUGH if attempt < _ADJUSTMENTS // 2 else _STILL_OF_USE
        if abs(seen.per_second / rate - 1) <= enough:
            return seen, pause_ms
        # A connection asks once in its pause and the response time; only the first is ours to set.
        pause_ms = max(1.0, pause_ms + load.connections * 1000 * (1 / rate - 1 / seen.per_second))
    raise BenchError(f"{load.script.stem}: wrk cannot be slowed down to {rate:,.0f} requests per second")
