"""What stands in the protocol of a ceremony: the occasion, what was used and done, what came of it, signatures."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from cryptography.hazmat.backends.openssl import backend

from lakthan_cli.ceremony.bundle import MANIFEST
from lakthan_cli.ceremony.programme import status_of
from lakthan_cli.ceremony.protocol import Code, Heading, Part, Table, Text, aloud, groups, signatures, steps
from lakthan_cli.ceremony.verification import fingerprint
from lakthan_cli.commands.certificate import hexadecimal
from lakthan_cli.commands.text import moment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from lakthan_cli.ceremony.plan import Person, SubCA
    from lakthan_cli.ceremony.programme import Programme


def parts(
    programme: Programme, files: Mapping[str, bytes], manifest: bytes, done: Sequence[tuple[datetime, str]]
) -> list[Part]:
    """The protocol, part by part. `files`: the outputs. `done`: the steps with their times."""
    plan, ceremony = programme.plan, programme.plan.ceremony
    required = ""
    if ceremony.witnesses:
        required = f"At least {ceremony.witnesses_required} of the {len(ceremony.witnesses)} witnesses sign."
    return [
        Text(
            f"Place: {ceremony.place or '____________________'}. The machine's clock at the beginning: "
            f"{moment(programme.now)}. By a watch on the wall: ____________________"
        ),
        Heading("Present"),
        Table(("name", "role", "identity checked by"), [(each.name, each.role, "") for each in _everybody(programme)]),
        Heading("What was used"),
        Table(("what", "SHA-256"), _used(programme)),
        Text(
            f"Lakthan {version('lakthan')}, Python {platform.python_version()}, {backend.openssl_version_text()}, "
            f"on {platform.system()} {platform.release()} {platform.machine()}."
        ),
        Heading("What was decided"),
        Table(
            ("certificate", "serial number", "status", "answers", "until"),
            [_decided(programme, sub_ca) for sub_ca in plan.sub_cas],
        ),
        Text(f"The ARL has the number {plan.arl.number} and is valid until {moment(programme.arl_next_update)}."),
        Heading("What was done"),
        steps(done),
        Heading("What came of it"),
        Text(
            f"The SHA-256 of {MANIFEST}, which stands for every file below. One reads it aloud from the machine, "
            "another follows on this paper and ticks each group; the import shows the same groups."
        ),
        Code((groups(fingerprint(manifest)),)),
        Code(aloud(fingerprint(manifest))),
        Text(f"{len(files)} files; the SHA-256 of each stands at the end."),
        Heading("Remarks"),
        Code(("", "", "", "")),
        Heading("Signatures"),
        Text(f"What is written above is what happened in this room. {required}"),
        signatures(_everybody(programme)),
        Heading("Files"),
        Code(tuple(manifest.decode().splitlines())),
    ]


def _everybody(programme: Programme) -> list[Person]:
    return [*programme.plan.ceremony.people, *programme.plan.ceremony.witnesses]


def _used(programme: Programme) -> list[tuple[str, str]]:
    plan = programme.plan
    used = [("the plan", plan.text), (f"certificate: {plan.root_view.name}", plan.root_view.encoded)]
    if plan.responder_view is not None:
        used.append((f"responder certificate: {plan.responder_view.name}", plan.responder_view.encoded))
    rows = [(what, groups(fingerprint(octets))) for what, octets in used]
    rows += [(f"certificate: {each.name}", groups(each.sha256.hex())) for each in plan.sub_cas if each.sha256]
    return rows


def _decided(programme: Programme, sub_ca: SubCA) -> tuple[str, ...]:
    answers = programme.of(sub_ca)
    status = status_of(sub_ca).label
    if sub_ca.revocation_reason is not None:
        status += f" {moment(sub_ca.revocation_time)}, {sub_ca.revocation_reason.label}"
    until = max((answer.period.next_update for answer in answers), default=None)
    return sub_ca.name, hexadecimal(sub_ca.serial_number), status, str(len(answers)), moment(until)
