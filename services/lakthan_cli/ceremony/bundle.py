"""The folder that a ceremony leaves, on its way from the offline machine to the online one.

    MANIFEST            SHA-256 and name of every file below, as `sha256sum -c MANIFEST` reads it
    answers/*.ors       one OCSPResponse each (DER)
    arl.crl             the ARL (DER)
    root.pem            whose it is, for people; nobody who verifies the bundle relies on it
    responder.pem       likewise, with a delegated responder
    plan.toml           the plan as it was read
    protocol.md, .html  the protocol; it quotes the fingerprint of MANIFEST, so MANIFEST cannot list it

Promises: a folder appears whole, by one rename, or not at all. A folder is read whole or refused: a file that differs
from the manifest, is missing, or is not listed spoils it.

Trusted: nothing. The manifest finds accidents on the way; whose the contents are is for `verification` to say, by their
signatures alone.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan_cli.ceremony.verification import (
    ARL,
    CeremonyRefused,
    StaticAnswer,
    check_together,
    fingerprint,
    read_answer,
    read_arl,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lakthan_cli.ocsp.certificate import Certificate

MANIFEST = "MANIFEST"
ARL_NAME = "arl.crl"
PROTOCOLS = ("protocol.md", "protocol.html")
_ANSWERS = "answers"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?)")
_LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was read from a folder. `files`: the octets of every listed file by its name. `manifest`: its octets."""

    manifest: bytes
    files: Mapping[str, bytes]

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the manifest, which stands for everything in the bundle."""
        return fingerprint(self.manifest)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a bundle's signatures prove: its answers, and its ARL."""

    answers: tuple[StaticAnswer, ...]
    arl: ARL


def manifest_of(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files."""
    return "".join(f"{fingerprint(files[name])}  {name}\n" for name in sorted(files)).encode()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends well, and vanishes when it does not.

    Raises `ConfigError` when `target` is there already, or its place cannot be written to.
    """
    if target.exists():
        raise ConfigError(f"{target} is there already: name a new folder, so that no two ceremonies mix")
    scratch = target.absolute().with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        scratch.mkdir()
    except OSError as error:
        raise ConfigError(f"nothing can be written beside {target}: {error.strerror}") from error
    try:
        yield scratch
        for folder, _, names in os.walk(scratch, topdown=False):
            for name in names:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        scratch.rename(target)
        _sync(target.absolute().parent)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write these files into a folder, without their manifest."""
    for name, octets in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(octets)


def answer_name(name: str) -> str:
    """The place of an answer in the bundle."""
    return f"{_ANSWERS}/{name}"


def read(folder: Path) -> Bundle:
    """Read a whole folder. Raises `CeremonyRefused` when it is not exactly what its manifest says."""
    try:
        manifest = _octets(folder / MANIFEST)
        present = {
            str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
        }
        listed = _listed(manifest)
        if missing := listed.keys() - present:
            raise CeremonyRefused(f"{folder} is not complete: {min(missing)} is listed and not there")
        if strange := present - listed.keys() - {MANIFEST, *PROTOCOLS}:
            raise CeremonyRefused(f"{folder} has {min(strange)}, which its {MANIFEST} does not list")
        files = {name: _octets(folder / name) for name in listed}
    except OSError as error:
        raise CeremonyRefused(f"{error.filename} cannot be read: {error.strerror}") from error
    for name, digest in listed.items():
        if fingerprint(files[name]) != digest:
            raise CeremonyRefused(f"{folder / name} is not the file that {MANIFEST} lists: its SHA-256 differs")
    return Bundle(manifest, files)


def verify(bundle: Bundle, issuers: Sequence[Certificate], advance: Callable[[], None] = lambda: None) -> Contents:
    """Verify every signature in a bundle, and that answers and ARL agree. Raises `CeremonyRefused` with the file."""
    if ARL_NAME not in bundle.files:
        raise CeremonyRefused(f"there is no {ARL_NAME} in it")
    answers = []
    seen: dict[tuple[object, ...], str] = {}
    for name, octets in bundle.files.items():
        if not name.startswith(f"{_ANSWERS}/"):
            continue
        with _about(name):
            answer = read_answer(octets, issuers)
            which = (answer.serial_number, answer.hash_algorithm, answer.this_update)
            if which in seen:
                raise CeremonyRefused(f"it says the same as {seen[which]}, for the same time")
        seen[which] = name
        answers.append(answer)
        advance()
    if not answers:
        raise CeremonyRefused("there is no answer in it")
    with _about(ARL_NAME):
        arl = read_arl(bundle.files[ARL_NAME], issuers)
        advance()
    check_together(answers, arl)
    return Contents(tuple(answers), arl)


@contextmanager
def _about(name: str) -> Iterator[None]:
    try:
        yield
    except CeremonyRefused as error:
        raise CeremonyRefused(f"{name}: {error}") from error


def _listed(manifest: bytes) -> dict[str, str]:
    listed: dict[str, str] = {}
    for number, line in enumerate(manifest.decode("utf-8", "replace").splitlines(), 1):
        found = _LINE.fullmatch(line)
        if not found or found[2] in listed or found[2] == MANIFEST:
            raise CeremonyRefused(f"line {number} of {MANIFEST} is not a SHA-256 and the name of a file, each once")
        listed[found[2]] = found[1]
    return listed


def _octets(path: Path) -> bytes:
    if path.is_symlink() or (path.exists() and not path.is_file()) or path.stat().st_size > _LARGEST:
        raise CeremonyRefused(f"{path} is a link, no plain file, or larger than anything that a ceremony makes")
    return path.read_bytes()


def _sync(path: Path) -> None:
    """On disk before the rename says that it is: the medium is pulled out next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
