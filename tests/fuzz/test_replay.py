"""What the fuzzer began with, and what once crashed a parser, read again with every run of the tests."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from support.fuzz_parsers import inputs
from support.fuzz_targets import FOLDER, TARGETS, Finding, der_reader, in_time

_MOST = timedelta(seconds=2)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_crashers(name: str) -> None:
    """Every seed and every former crasher is read or refused, as its parser says that it will be, in a short time."""
    there = list(inputs(name))
    assert there
    for octets in there:
        in_time(lambda octets=octets: TARGETS[name].run(octets), _MOST)  # type: ignore[misc]


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_seeds(name: str) -> None:
    """So is what a little damage makes of them, by a fixed chance: bits turned, parts cut out, doubled, exchanged."""
    chance, seeds = random.Random(name), list(inputs(name))
    for _ in range(60):
        octets = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(octets) + 1)
            match chance.randrange(4):
                case 0 if at < len(octets):
                    octets[at] ^= 1 << chance.randrange(8)
                case 1:
                    del octets[at : at + chance.randrange(1, 9)]
                case 2:
                    octets[at:at] = octets[: chance.randrange(9)]
                case _:
                    other = chance.choice(seeds)
                    octets[at:] = other[min(at, len(other)) :]
        TARGETS[name].run(bytes(octets[: TARGETS[name].largest]))


def test_deep_and_long() -> None:
    """What is nested a thousand times, or says that it is four gigabytes long, costs no more than its octets."""
    deep = b"\x30\x80" * 1000
    nested = b""
    for _ in range(1000):
        size = len(nested)
        nested = b"\x30" + (bytes((size,)) if size < 128 else b"\x82" + size.to_bytes(2, "big")) + nested
    brackets = (b"[" * 20_000, b'{"a":' * 20_000, b"a = " + b"[" * 5_000, b"\x30\x84\xff\xff\xff\xff", nested, deep)
    for name, target in TARGETS.items():
        for octets in brackets:
            if name != "http" or len(octets) < 2048:
                in_time(lambda target=target, octets=octets: target.run(octets), timedelta(seconds=5))  # type: ignore[misc]


def test_seeds_are_small_and_of_known_targets() -> None:
    """What is committed belongs to a parser, and to a fuzzer that wants it short."""
    folders = {path.name for path in (FOLDER / "seeds").iterdir()}
    assert folders == set(TARGETS)
    assert all(path.stat().st_size < 8192 for path in (FOLDER / "seeds").rglob("*") if path.is_file())


def test_the_harness_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that reads another length is caught by the other library."""
    monkeypatch.setattr("lakthan.der.Reader._long_length", lambda _self, start, octets: (start + octets, 3))
    with pytest.raises((Finding, ValueError)):
        der_reader(b"\x04\x82\x00\x01a" + bytes(200))
