"""The protocol of a key's installation or retirement, for the printer: the same parts as an offline root's ceremony."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from cryptography.hazmat.backends.openssl import backend

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import ConfigError
from lakthan_cli.ceremony.protocol import Code, Heading, Table, Text, groups, markdown, page
from lakthan_cli.commands.text import moment

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from lakthan.keys.approval import Approvers
    from lakthan_cli.ceremony.protocol import Part
    from lakthan_cli.keys.lists import Change

_EMPTY_LINES = 3


def check(path: Path) -> None:
    """Raise `ConfigError` unless the protocol can be written there: before anything is done that it would tell of."""
    if path.suffix not in {".md", ".html"}:
        raise ConfigError(f"{path}: a protocol is a .md or a .html file")
    if path.exists():
        raise ConfigError(f"{path} is there already, and a protocol is never overwritten: name another file")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder: make it")


def write(path: Path, change: Change, list_path: Path, approvers: Approvers | None, done_at: datetime) -> None:
    """The protocol as Markdown or as an HTML page, by the file's name. Raises `ConfigError`."""
    what = "Installation" if change.act.what == "install" else "Retirement"
    title = f"{what} of a key: {change.act.target}"
    parts = _parts(change, list_path, approvers, done_at)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(markdown(title, parts) if path.suffix == ".md" else page(title, parts))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. The act itself is done") from error


def _parts(change: Change, list_path: Path, approvers: Approvers | None, done_at: datetime) -> list[Part]:
    blank = [("", "", "") for _ in range(_EMPTY_LINES)]
    return [
        Text(
            f"Place: ____________________. The machine's clock: {moment(done_at)}. By a watch on the wall: __________"
        ),
        Heading("Present"),
        Table(("name", "role", "identity checked by"), blank),
        Heading("What was done"),
        Table(("what", ""), _facts(change)),
        Text("The act, in the words that were approved. Its SHA-256, to be compared aloud:"),
        Code(tuple(change.act.text.splitlines())),
        Code((groups(HashAlgorithm.SHA_256.digest(change.act.text.encode()).hex()),)),
        Heading("Approval"),
        *_approval(change, approvers),
        Heading("What came of it"),
        Text(f"The list {list_path.name} was replaced. Its SHA-256 now:"),
        Code((groups(HashAlgorithm.SHA_256.digest(list_path.read_bytes()).hex()),)),
        Text(
            f"Lakthan {version('lakthan')}, Python {platform.python_version()}, {backend.openssl_version_text()}, "
            f"on {platform.system()} {platform.release()} {platform.machine()}."
        ),
        Heading("Remarks"),
        Code(("", "", "")),
        Heading("Signatures"),
        Text("What is written above is what happened in this room."),
        Table(("name", "role", "time (UTC)", "signature"), [(*row, "") for row in blank]),
    ]


def _facts(change: Change) -> list[tuple[str, str]]:
    facts = [
        ("act", change.act.what),
        ("for", change.act.target),
        ("from", moment(change.act.at)),
        ("key", change.entry.key),
        ("certificate", change.entry.certificate),
        ("its SHA-256", groups(change.entry.sha256)),
    ]
    if change.view is not None:
        facts += [
            ("its subject", change.view.name),
            ("its issuer", change.view.issuer_name),
            ("in force", f"{moment(change.view.not_before)} to {moment(change.view.not_after)}"),
        ]
    return facts


def _approval(change: Change, approvers: Approvers | None) -> list[Part]:
    if approvers is None:
        return [Text("The configuration demands no signatures of approvers.")]
    return [
        Text(f"{approvers.required} of {len(approvers.approvers)} approvers had to sign the act. These did:"),
        Table(("approver", "key"), [(name, "☐ present") for name in change.approved_by]),
    ]
