"""What `./run soak` makes of its diary: a run that is well, and everything that it has to find."""

from __future__ import annotations

import copy
import json
import random
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from support.soak_diary import Diary, Line, read
from support.soak_judge import MEBIBYTE, judge
from support.soak_report import BEGIN, END, markdown, put_into, write_svg

HOUR = 3600.0
GET, TOKEN = "GET", "token"


def process(t: float, pid: int, *, memory: float = 60.0, descriptors: int = 20) -> dict[str, object]:
    """A process in a sample. `memory` in MiB, which goes up and down a little."""
    noise = random.Random(int(t) * 31 + pid).uniform(-0.8, 0.8)
    octets = int((memory + noise) * MEBIBYTE)
    return {
        "pid": pid,
        "memory": octets,
        "resident": octets + 40 * MEBIBYTE,
        "descriptors": descriptors + int(t) % 3,
        "threads": 4,
        "cpu": t * 0.05,
    }


def sound(seconds: float = HOUR) -> list[Line]:
    """The diary of a run in which all was well: warming up, a worker replaced, a database restarted."""
    lines: list[Line] = [
        {
            "kind": "begin",
            "t": 0.0,
            "rotations": {"key": 2, "database restarted": 1},
            "how": {"key": "an answer by it"},
            "seconds": seconds,
        }
    ]
    step = seconds / 720
    for number in range(721):
        t = number * step
        warm = 20 * min(1.0, 4 * t / seconds)
        worker = 11 if t < seconds / 4 else 12
        lines.append(
            {
                "kind": "sample",
                "t": t,
                "processes": {
                    "ocsp worker 0": process(t, worker, memory=50 + warm),
                    "registry": process(t, 20, memory=60 + warm / 4),
                    "clients": process(t, 1, memory=100 + t / 20),
                },
                "database": {"connections": 30, "octets": int(1e7 + 1000 * t), "cpu": t / 30, "memory": 0},
            }
        )
        if number % 12 == 11:
            lines.append({"kind": "scrape", "t": t, "series": {"ocsp": 500, "registry": 200}})
            of = {
                GET: {"count": 600, "p50": 0.5, "p99": 2.0 + t / seconds},
                TOKEN: {"count": 60, "p50": 3.0, "p99": 9.0},
            }
            lines.append({"kind": "latency", "t": t, "of": of})
    at = seconds / 5
    lines += [
        {"kind": "rotation", "t": 10.0, "what": "key", "times": 2},
        {"kind": "rotation", "t": at + 9, "what": "database restarted", "times": 1},
        {
            "kind": "event",
            "t": at,
            "until": at + 9,
            "what": "database restarted",
            "allows": ["*"],
            "recovered": 1.5,
        },
        # It was sent before and heard of its end after: it was under way.
        {"kind": "trouble", "t": at + 1, "sent": at - 1, "of": TOKEN, "words": "systemFailure"},
        {"kind": "trouble", "t": at + 10, "sent": at + 8.5, "of": GET, "words": "try_later"},
        {"kind": "end", "t": seconds, "totals": {"OCSP answers": 36000}},
    ]
    return lines


def every(lines: list[Line], kind: str, change: Callable[[Line], None]) -> list[Line]:
    """The diary with each line of a kind changed."""
    for line in lines:
        if line["kind"] == kind:
            change(line)
    return lines


def test_a_run_that_is_well() -> None:
    """No faults; what happened during the restart is excused, and what the clients need is nobody's business."""
    verdict = judge(sound())
    assert verdict.faults == []
    assert verdict.excused == {"database restarted": 2}
    assert {growth.name for growth in verdict.growths} == {"ocsp worker 0", "registry", "clients"}


@pytest.mark.parametrize("mebibytes_per_hour", [8, 20, 200])
def test_a_leak_is_found(mebibytes_per_hour: float) -> None:
    """A worker that grows steadily: 8 MiB an hour are 23 octets for each of its 100 requests a second."""

    def leak(line: Line) -> None:
        line["processes"]["ocsp worker 0"]["memory"] += int(line["t"] / HOUR * mebibytes_per_hour * MEBIBYTE)

    [fault] = judge(every(sound(), "sample", leak)).faults
    assert "ocsp worker 0" in fault
    assert "MiB more" in fault


def test_what_is_no_leak() -> None:
    """Memory that is filled in the first third, and a mebibyte in all that comes afterwards."""

    def settle(line: Line) -> None:
        more = 80 * min(1.0, 3 * line["t"] / HOUR) + line["t"] / HOUR
        line["processes"]["registry"]["memory"] += int(more * MEBIBYTE)

    assert judge(every(sound(), "sample", settle)).faults == []


@pytest.mark.parametrize(("what", "words"), [("descriptors", "descriptors grew"), ("threads", "threads grew")])
def test_descriptors_and_threads_are_flat(what: str, words: str) -> None:
    """One more every five minutes, as from a connection that is lost at each rotation."""

    def leak(line: Line) -> None:
        line["processes"]["registry"][what] += int(line["t"] // 300)

    [fault] = judge(every(sound(), "sample", leak)).faults
    assert words in fault


def test_connections_and_series_are_flat() -> None:
    """A connection to the database that stays with each restart; a label value for each key that ever was."""

    def connect(line: Line) -> None:
        line["database"]["connections"] += int(line["t"] // 300)

    def name(line: Line) -> None:
        line["series"]["ocsp"] += int(line["t"] // 60)

    faults = judge(every(every(sound(), "sample", connect), "scrape", name)).faults
    assert [fault.partition(" grew")[0] for fault in faults] == [
        "connections to the database",
        "series of all /metrics",
    ]


def test_trouble_needs_an_excuse() -> None:
    """After the event, before it, of another kind than it may touch, and by the operator: each is a fault."""
    lines = sound()
    [event] = [line for line in lines if line["kind"] == "event"]
    event["allows"] = [TOKEN]
    for number, (of, sent) in enumerate([(TOKEN, event["until"] + 1), (TOKEN, 1.0), (GET, event["t"] + 1)]):
        lines.append({"kind": "trouble", "t": sent + 0.1, "sent": sent, "of": of, "words": f"no answer {number}"})
    lines.append({"kind": "trouble", "t": event["t"], "sent": event["t"], "of": "operator", "words": "roll_keys: no"})
    faults = judge(lines).faults
    # The first of the run that is well was a token's; the one of the GETs is none any more.
    assert len(faults) == 5
    assert all("without an announced event" in fault for fault in faults)


def test_what_must_never_be() -> None:
    """Something wrong, a rotation that was not seen often enough, another process, a run that was broken off."""
    lines = [line for line in sound() if line["kind"] not in ("end", "rotation")]
    lines.append({"kind": "wrong", "t": 3.0, "words": "good, which cannot be"})

    def replace(line: Line) -> None:
        if line["t"] > HOUR / 2:
            line["processes"]["registry"]["pid"] = 21

    faults = judge(every(lines, "sample", replace)).faults
    assert "good, which cannot be" in faults
    assert "the run was broken off" in faults
    assert "rotation: key: seen 0 times of 2" in faults
    assert any("registry: not one process" in fault for fault in faults)


def test_a_diary_that_was_cut_off(tmp_path: Path) -> None:
    """What is there is read: a machine that loses its power has written whole lines but for the last one."""
    diary = Diary(tmp_path / "diary.jsonl")
    diary.begin(rotations={}, seconds=1)
    diary.trouble(GET, "broken")
    diary.close()
    with (tmp_path / "diary.jsonl").open("a") as file:
        file.write('{"kind": "samp')
    assert read(tmp_path / "diary.jsonl") == diary.lines
    assert [line["kind"] for line in diary.lines] == ["begin", "trouble"]


def test_the_page_and_the_picture(tmp_path: Path) -> None:
    """The table goes between the marks and nowhere else; the picture is XML with a line for every process and kind."""
    lines = json.loads(json.dumps(sound()))
    verdict = judge(copy.deepcopy(lines))
    page = tmp_path / "soak.md"
    page.write_text(f"before\n{BEGIN}\nwhat was there\n{END}\nafter\n")
    put_into(page, markdown(lines, verdict, "two cores"))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "what was there" not in text
    assert "| ocsp worker 0 | 70." in text
    assert "| GET |" in text
    assert "| ocsp workers | 5,000 µs | 5,000 µs | 1.00 |" in text
    write_svg(tmp_path / "soak.svg", lines, verdict)
    drawn = ET.parse(tmp_path / "soak.svg").getroot()  # noqa: S314 - our own
    polylines = [each for each in drawn.iter() if each.tag.endswith("polyline")]
    assert len(polylines) == 2 * 2 + 2
    with pytest.raises(ValueError, match="has no"):
        put_into(tmp_path / "soak.svg", "text")
