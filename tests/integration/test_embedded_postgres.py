"""The embedded PostgreSQL: it starts, it keeps what was committed, it dies with its parent, and only its owner gets in.

Every test starts real servers. Each way of running is tried where it can be: as root through a user namespace and as
*nobody*, as an ordinary user, with the wheel's programs and with the system's.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lakthan.errors import ConfigError
from lakthan.store import embedded_binaries, embedded_process
from lakthan.store.embedded import EmbeddedPostgres
from support import programs

GONE_LIMIT_SECONDS = 20.0
AS_ROOT = ["namespace", "nobody"] if os.geteuid() == 0 else [None]
SYSTEM_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

# A parent that starts the server, says so, and writes until it is killed. Each number is printed after its commit.
WRITER = """
import asyncio, sys
from pathlib import Path
import asyncpg
from lakthan.store.embedded import EmbeddedPostgres

async def write(url):
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE IF NOT EXISTS line (number integer PRIMARY KEY)")
    number = await connection.fetchval("SELECT coalesce(max(number), 0) FROM line")
    while True:
        number += 1
        await connection.execute("INSERT INTO line VALUES ($1)", number)
        print(number, flush=True)

server = EmbeddedPostgres(Path(sys.argv[1]), as_root=sys.argv[2] or None)
server.start()
asyncio.run(write(server.url()))
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder with a short path, as pytest's own may be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="lakthan-test-") as folder:
        yield Path(folder)


def query(url: str, statement: str, *arguments: object) -> Any:  # noqa: ANN401 (asyncpg's own answer)
    """Run one statement on a connection of its own and give the first value of its answer."""

    async def run() -> Any:  # noqa: ANN401 (as above)
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()

    return asyncio.run(run())


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; a bound that is far too long still ends a hanging test with a reason."""
    deadline = time.monotonic() + GONE_LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"still waiting: {what}"
        time.sleep(0.01)


def is_gone(directory: Path) -> bool:
    """Whether no PostgreSQL process works in the directory's cluster any more."""
    return not embedded_process.server_processes(directory / "postgres" / "data")


def start_writer(
    directory: Path, as_root: str | None, lines: int, prefix: Sequence[str] = ()
) -> tuple[subprocess.Popen[str], int]:
    """Start the writing parent and let it commit some lines; give it and the last number seen."""
    writer = subprocess.Popen(
        [*prefix, sys.executable, "-c", WRITER, str(directory), as_root or ""], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    number = 0
    for _ in range(lines):
        number = int(writer.stdout.readline())
    return writer, number


def kill(writer: subprocess.Popen[str]) -> int:
    """Kill the parent without warning; give the last number that it reported as committed."""
    writer.kill()
    assert writer.stdout is not None
    with writer.stdout as stdout:
        # The last line may be cut: only a whole one was reported.
        reported = [int(line) for line in stdout if line.endswith("\n")]
    writer.wait()
    return reported[-1] if reported else 0


@pytest.mark.parametrize("as_root", AS_ROOT)
def test_a_fresh_server_answers_and_a_second_start_finds_its_data(
    directory: Path, as_root: embedded_binaries.AsRoot | None
) -> None:
    """A new folder becomes a durable UTF-8 cluster without TCP, and what was written is there at the next start."""
    with EmbeddedPostgres(directory, as_root=as_root) as server:
        settings = (
            "SELECT string_agg(current_setting(name), ' ' ORDER BY place) FROM unnest(ARRAY['server_encoding', "
            "'fsync', 'data_checksums', 'TimeZone', 'password_encryption', 'listen_addresses']) "
            "WITH ORDINALITY AS wanted (name, place)"
        )
        assert query(server.url(), settings) == "UTF8 on on UTC scram-sha-256 "
        assert query(server.url(), "SELECT datcollate FROM pg_database WHERE datname = 'lakthan'") == "C"
        query(server.url(), "CREATE TABLE word AS SELECT 'ຫຼັກຖານ' AS text")
    assert is_gone(directory)
    with EmbeddedPostgres(directory, as_root=as_root) as server:
        assert query(server.url(), "SELECT text FROM word") == "ຫຼັກຖານ"


def test_without_being_forced_it_starts_too(directory: Path) -> None:
    """The way of running is found without being told, and tests may trade durability for speed."""
    with EmbeddedPostgres(directory, durable=False) as server:
        assert query(server.url(), "SHOW fsync") == "off"


@pytest.mark.parametrize("binaries", SYSTEM_BINARIES, ids=lambda folder: folder.parent.name)
@pytest.mark.parametrize("as_root", AS_ROOT)
def test_the_systems_programs_do_as_well(
    directory: Path, binaries: Path, as_root: embedded_binaries.AsRoot | None
) -> None:
    """A cluster made by the system's PostgreSQL is opened by that major version again, without being told which."""
    with EmbeddedPostgres(directory, binaries=binaries, as_root=as_root) as server:
        query(server.url(), "CREATE TABLE word AS SELECT 1 AS number")
    with EmbeddedPostgres(directory, as_root=as_root) as server:
        assert query(server.url(), "SHOW server_version").split(".")[0] == binaries.parent.name
        assert query(server.url(), "SELECT number FROM word") == 1


@pytest.mark.parametrize("as_root", AS_ROOT)
def test_killed_parent_takes_the_server_along_and_loses_no_commit(directory: Path, as_root: str | None) -> None:
    """After kill -9 of the parent the server ends by itself, and the next start has every row that was committed."""
    writer, number = start_writer(directory, as_root, 50)
    number = max(number, kill(writer))
    until(lambda: is_gone(directory), "the server notices that its parent is dead")
    with EmbeddedPostgres(directory) as server:
        assert query(server.url(), "SELECT max(number) FROM line") >= number
        assert query(server.url(), "SELECT max(number) - count(*) FROM line") == 0


@pytest.mark.parametrize("as_root", AS_ROOT)
def test_everything_killed_at_once_still_loses_no_commit(directory: Path, as_root: str | None) -> None:
    """Parent, guardian and every server process die at one blow, as in a power cut; the next start recovers."""
    writer, number = start_writer(directory, as_root, 50)
    for pid in [*guardians_of(writer.pid), *embedded_process.server_processes(directory / "postgres" / "data")]:
        os.kill(pid, signal.SIGKILL)
    number = max(number, kill(writer))
    assert (directory / "postgres" / "data" / "postmaster.pid").exists()
    with EmbeddedPostgres(directory) as server:
        assert query(server.url(), "SELECT max(number) FROM line") >= number


@pytest.mark.parametrize("as_root", AS_ROOT)
def test_orphaned_server_is_stopped_and_replaced(directory: Path, as_root: str | None) -> None:
    """With the guardian killed too the server stays behind; the next start stops it in good order and takes over."""
    writer, number = start_writer(directory, as_root, 5)
    for pid in guardians_of(writer.pid):
        os.kill(pid, signal.SIGKILL)
    number = max(number, kill(writer))
    assert not is_gone(directory)
    with EmbeddedPostgres(directory) as server:
        assert query(server.url(), "SELECT max(number) FROM line") >= number
    assert "database system was not properly shut down" not in (directory / "postgres" / "log").read_text()
    assert is_gone(directory)


def test_orphan_is_found_without_the_right_to_trace(directory: Path) -> None:
    """In a usual container root may not look into processes of *nobody*; it finds and stops its orphan nevertheless."""
    programs.need_root()
    limited = [str(programs.need("setpriv")), "--bounding-set=-sys_ptrace", "--"]
    writer, number = start_writer(directory, "nobody", 5, limited)
    orphan = embedded_process.postmaster_state(directory / "postgres" / "data")[0]
    for pid in guardians_of(writer.pid):
        os.kill(pid, signal.SIGKILL)
    number = max(number, kill(writer))
    data = directory / "postgres" / "data"
    assert orphan in embedded_process.server_processes(data)
    writer, after = start_writer(directory, "nobody", 1, limited)
    left = orphan in embedded_process.server_processes(data)
    kill(writer)
    assert after > number
    assert not left
    until(lambda: is_gone(directory), "the server notices that its parent is dead")


def test_killed_postmaster_leaves_no_obstacle(directory: Path) -> None:
    """The postmaster alone is killed under a living parent: stopping is quiet and starting again works."""
    server = EmbeddedPostgres(directory)
    server.start()
    query(server.url(), "CREATE TABLE word AS SELECT 1 AS number")
    os.kill(embedded_process.postmaster_state(directory / "postgres" / "data")[0], signal.SIGKILL)
    server.stop()
    assert is_gone(directory)
    with server:
        assert query(server.url(), "SELECT number FROM word") == 1


def test_number_in_the_pid_file_that_is_in_use_again_does_not_matter(directory: Path) -> None:
    """A stale ``postmaster.pid`` names a process that is by now another; it is not harmed, the server starts."""
    with EmbeddedPostgres(directory, durable=False):
        pid_file = (directory / "postgres" / "data" / "postmaster.pid").read_text()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        stale = "\n".join([str(stranger.pid), *pid_file.split("\n")[1:]])
        (directory / "postgres" / "data" / "postmaster.pid").write_text(stale)
        with EmbeddedPostgres(directory, durable=False) as server:
            assert query(server.url(), "SELECT 1") == 1
        assert stranger.poll() is None
        stranger.terminate()


def test_second_owner_is_refused_by_name(directory: Path) -> None:
    """One process owns a folder; another hears the number of the owner, and the owner goes on undisturbed."""
    writer, _ = start_writer(directory, None, 1)
    with pytest.raises(ConfigError, match=f"in use by process {writer.pid}; stop that process"):
        EmbeddedPostgres(directory).start()
    assert writer.poll() is None
    assert not is_gone(directory)
    kill(writer)
    until(lambda: is_gone(directory), "the server to end before its folder is removed")


def test_forked_child_does_not_keep_the_server_alive(directory: Path) -> None:
    """A forked worker outlives the killed parent; the server ends nevertheless, for the worker holds no lifeline."""
    script = (
        "import os, sys, time; from pathlib import Path; from lakthan.store.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1])); server.start()\n"
        "child = os.fork()\n"
        "if child: print(child, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(directory)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        until(lambda: is_gone(directory), "the server notices that its parent is dead")
        assert embedded_process.is_alive(child)
        with EmbeddedPostgres(directory) as server:
            assert query(server.url(), "SELECT 1") == 1
        os.kill(child, signal.SIGKILL)


def test_parent_killed_in_the_middle_of_initdb(directory: Path) -> None:
    """A cluster that is half made when its maker is killed is thrown away; the next start makes a whole one."""
    script = (
        "import sys; from pathlib import Path; from lakthan.store.embedded import EmbeddedPostgres\n"
        "EmbeddedPostgres(Path(sys.argv[1])).start()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(directory)]) as parent:
        until(lambda: any((directory / "postgres").glob("data.new.*/base")), "initdb has begun")
        parent.kill()
    assert not (directory / "postgres" / "data").exists()
    with EmbeddedPostgres(directory) as server:
        assert query(server.url(), "SELECT 1") == 1
    assert not list((directory / "postgres").glob("data.new.*"))


@pytest.mark.parametrize("as_root", AS_ROOT)
@pytest.mark.parametrize("name", ["x" * 110, "a,b", "ເອກະສານ ທົດລອງ"], ids=["long", "comma", "lao"])
def test_unusual_paths(directory: Path, name: str, as_root: embedded_binaries.AsRoot | None) -> None:
    """A path too long for a socket, or with signs that have a meaning in a DSN, works; what lay outside is removed."""
    with EmbeddedPostgres(directory / name, durable=False, as_root=as_root) as server:
        assert query(server.url(), "SELECT 1") == 1
        assert stat.S_IMODE(server.socket_directory.stat().st_mode) == 0o700
        outside = server.socket_directory
    assert not outside.exists() or outside.is_relative_to(directory)


def test_scratch_folder_of_a_killed_owner_is_removed(directory: Path) -> None:
    """The folder outside that a long path needs goes at the next start even if everything was killed."""
    writer, _ = start_writer(directory / ("x" * 110), None, 1)
    home = directory / ("x" * 110) / "postgres"
    scratch = Path((home / "lock").read_text().splitlines()[1])
    for pid in [*guardians_of(writer.pid), *embedded_process.server_processes(home / "data")]:
        os.kill(pid, signal.SIGKILL)
    kill(writer)
    assert scratch.is_dir()
    with EmbeddedPostgres(directory / ("x" * 110)) as server:
        assert query(server.url(), "SELECT count(*) > 0 FROM line")
    assert not scratch.exists()


def test_only_the_password_opens_the_door(directory: Path) -> None:
    """Even the local superuser needs the password; the DSN does not contain it, and the folder is private."""
    with EmbeddedPostgres(directory, durable=False) as server:
        password = next(
            line.split(":")[4] for line in server.passfile.read_text().splitlines() if line.split(":")[3] == "owner"
        )
        assert password not in server.url()
        url = server.url().split("&passfile=")[0]
        assert query(f"{url}&password={password}", "SELECT current_user::text") == "owner"
        for wrong in (f"{url}&password={password}x", server.url("postgres", "postgres").replace("pgpass", "none")):
            with pytest.raises(asyncpg.InvalidPasswordError):
                query(f"{wrong}", "SELECT 1")
        home = directory / "postgres"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.iterdir())}
    private_file, private_folder = 0o600, 0o700
    assert modes == {
        "postgres": private_folder,
        "data": private_folder,
        "run": private_folder,
        "pgpass": private_file,
        "log": private_file,
        "lock": private_file,
    }
    assert password not in (home / "log").read_text()


def test_logins_get_their_roles_and_no_more(directory: Path) -> None:
    """The logins appear once the group roles exist, as often as asked, and each is a member of its own groups only."""
    logins = {
        "ocsp": ["lakthan_responder"],
        "tsa": ["lakthan_tsa"],
        "registry": ["lakthan_registry"],
        "publisher": ["lakthan_auditor", "lakthan_publisher", "lakthan_registrar"],
    }
    with EmbeddedPostgres(directory, durable=False) as server:
        with pytest.raises(ConfigError, match="run `lakthan db migrate` first"):
            asyncio.run(server.ensure_logins(logins))
        for groups in logins.values():
            for group in groups:
                query(server.url(), f"CREATE ROLE {group} NOLOGIN")
        asyncio.run(server.ensure_logins(logins))
        asyncio.run(server.ensure_logins(logins))
        for login, groups in logins.items():
            mine = (
                "SELECT array_agg(rolname::text ORDER BY rolname) FROM pg_roles"
                " WHERE pg_has_role(oid, 'MEMBER') AND rolname <> $1"
            )
            assert query(server.url(login), mine, login) == groups
        with pytest.raises(ConfigError, match="unknown logins"):
            asyncio.run(server.ensure_logins({"stranger": "lakthan_tsa"}))
        assert "SCRAM-SHA-256$" not in (directory / "postgres" / "log").read_text()


def test_a_login_that_is_new_gets_its_password(directory: Path) -> None:
    """A folder of an older Lakthan has no line for a newer login: it gets one, and the others keep their passwords."""
    with EmbeddedPostgres(directory, durable=False) as server:
        passfile = server.passfile
        query(server.url(), "CREATE ROLE lakthan_publisher NOLOGIN")
    lines = passfile.read_text().splitlines(keepends=True)
    older = [line for line in lines if ":publisher:" not in line]
    assert len(older) == len(lines) - 1
    passfile.write_text("".join(older))
    with server:
        asyncio.run(server.ensure_logins({"publisher": "lakthan_publisher"}))
        assert query(server.url("publisher"), "SELECT session_user::text") == "publisher"
        assert query(server.url(), "SELECT session_user::text") == "owner"
    assert passfile.read_text().startswith("".join(older))
    assert passfile.stat().st_mode & 0o777 == 0o600
    passfile.write_text("".join(older[1:]))
    with pytest.raises(ConfigError, match="no line for owner"):
        server.start()


def test_starting_twice_is_an_error_and_stopping_twice_is_not(directory: Path) -> None:
    """One object is one server: a second start is refused without harm, a second stop does nothing."""
    server = EmbeddedPostgres(directory, durable=False)
    server.start()
    with pytest.raises(ConfigError, match="already started"):
        server.start()
    assert query(server.url(), "SELECT 1") == 1
    server.stop()
    server.stop()
    assert is_gone(directory)


def test_missing_version_says_what_to_install(directory: Path) -> None:
    """A cluster of a version that is not installed is left alone, and the message names the package."""
    with EmbeddedPostgres(directory, durable=False):
        pass
    version = directory / "postgres" / "data" / "PG_VERSION"
    made_by = version.read_text()
    version.write_text("11\n")
    with pytest.raises(ConfigError, match=r"PostgreSQL 11, which made this cluster, is not installed.*postgresql-11"):
        EmbeddedPostgres(directory).start()
    version.write_text(made_by)
    with EmbeddedPostgres(directory, durable=False) as server:
        assert query(server.url(), "SELECT 1") == 1


def test_failing_start_shows_the_end_of_the_log(directory: Path) -> None:
    """A damaged setting stops the start; the message carries the server's own words, and the folder is free again."""
    with EmbeddedPostgres(directory, durable=False):
        pass
    settings = directory / "postgres" / "data" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(good + "\nno_such_setting = 1\n")
    with pytest.raises(ConfigError, match=r"instead of starting(.|\n)*no_such_setting"):
        EmbeddedPostgres(directory).start()
    settings.write_text(good)
    with EmbeddedPostgres(directory, durable=False) as server:
        assert query(server.url(), "SELECT 1") == 1


def test_failing_initdb_shows_why(directory: Path) -> None:
    """When initdb fails its own words are in the message and nothing half made is taken for a cluster."""
    broken = directory / "broken" / "bin"
    broken.mkdir(parents=True)
    for folder in (directory, broken.parent):
        folder.chmod(0o755)
    for program in ("postgres", "initdb"):
        (broken / program).write_text(
            "#!/bin/sh\n[ $1 = --version ] && echo 'x (PostgreSQL) 18.0' || { echo full; exit 3; }\n"
        )
        (broken / program).chmod(0o755)
    with pytest.raises(ConfigError, match=r"initdb ended with status 3(.|\n)*full"):
        EmbeddedPostgres(directory, binaries=broken).start()
    with EmbeddedPostgres(directory, durable=False) as server:
        assert query(server.url(), "SELECT 1") == 1


def test_lost_passwords_are_reported_before_anything_is_touched(directory: Path) -> None:
    """Without its password file a cluster is not started and not replaced; putting the file back is enough."""
    with EmbeddedPostgres(directory, durable=False) as server:
        passfile = server.passfile
    kept = passfile.rename(directory / "kept")
    with pytest.raises(ConfigError, match="pgpass is missing"):
        server.start()
    kept.rename(passfile)
    with server:
        assert query(server.url(), "SELECT 1") == 1


def test_folder_that_cannot_be_made_is_a_clear_error(directory: Path) -> None:
    """A file where the folder should be gives a sentence, not a traceback."""
    (directory / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot use .*choose another directory"):
        EmbeddedPostgres(directory / "file").start()


def test_root_changes_from_namespace_to_nobody_and_back(directory: Path) -> None:
    """A cluster that one way of running made is given over to the other, in both directions."""
    programs.need_root()
    programs.need("unshare")
    programs.need("setpriv")
    with EmbeddedPostgres(directory, as_root="namespace") as server:
        query(server.url(), "CREATE TABLE word AS SELECT 1 AS number")
    nobody = pwd.getpwnam("nobody").pw_uid
    ways: list[tuple[embedded_binaries.AsRoot | None, int]] = [
        ("nobody", nobody),
        (None, nobody),
        ("namespace", 0),
        (None, 0),
    ]
    for as_root, owner in ways:
        with EmbeddedPostgres(directory, as_root=as_root) as server:
            assert query(server.url(), "SELECT number FROM word") == 1
        assert (directory / "postgres" / "data").stat().st_uid == owner


def test_refused_namespaces_lead_to_nobody(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where namespaces are refused root takes the other way by itself."""
    programs.need_root()
    # The whole machine's setting is not a test's to change, so the refusal is played.
    commands = directory / "commands"
    commands.mkdir()
    (commands / "unshare").write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    (commands / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    with EmbeddedPostgres(directory, durable=False) as server:
        assert query(server.url(), "SELECT 1") == 1
        assert (directory / "postgres" / "data").stat().st_uid == pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize("as_root", AS_ROOT)
def test_root_below_private_homes_of_others(directory: Path, as_root: embedded_binaries.AsRoot | None) -> None:
    """Programs and data lie below a 0700 home of another user, as after sudo: copied out, handed in, nothing opened."""
    programs.need_root()
    home = directory / "home"
    home.mkdir(mode=0o700)
    wheel = embedded_binaries.find_binaries(None).folder
    package = wheel.parent.parent
    shutil.copytree(package, home / package.name)
    shutil.copytree(package.with_name(f"{package.name}.libs"), home / f"{package.name}.libs")
    os.chown(home, 1000, 1000)
    binaries = home / package.name / wheel.parent.name / "bin"
    with EmbeddedPostgres(home / "work", durable=False, binaries=binaries, as_root=as_root) as server:
        assert query(server.url(), "SELECT 1") == 1
        scratch = Path((home / "work" / "postgres" / "lock").read_text().splitlines()[1])
        assert (scratch / package.name).is_dir()
    assert not scratch.exists()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("uid", [pwd.getpwnam("nobody").pw_uid, 54321], ids=["named", "nameless"])
def test_ordinary_user_starts_it_directly(directory: Path, uid: int) -> None:
    """An ordinary user needs no rights, not even a name in the system (as in some containers)."""
    programs.need_root()
    directory.chmod(0o755)
    (directory / "mine").mkdir()
    os.chown(directory / "mine", uid, uid)
    # The environment of the tests may lie below a private home.
    binaries = embedded_binaries.copy_binaries(embedded_binaries.find_binaries(None), directory / "programs").folder

    def as_user() -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        for _ in range(2):
            with EmbeddedPostgres(directory / "mine", binaries=binaries) as server:
                assert query(server.url(), "SELECT 1") == 1

    # A fork, because the interpreter of the tests may lie there as well.
    child = multiprocessing.get_context("fork").Process(target=as_user)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert (directory / "mine" / "postgres").stat().st_uid == uid


def test_somebody_elses_folder_is_refused(directory: Path) -> None:
    """Root does not write into a folder that another user controls."""
    programs.need_root()
    (directory / "postgres").mkdir()
    os.chown(directory / "postgres", 1000, 1000)
    with pytest.raises(ConfigError, match="belongs to user 1000"):
        EmbeddedPostgres(directory).start()


def guardians_of(parent: int) -> list[int]:
    """The guardian and its watcher: the children of a process, and the shells among their children."""
    found: list[int] = []
    for pid in children(parent):
        found += [pid, *(child for child in children(pid) if Path(f"/proc/{child}/comm").read_text() == "sh\n")]
    return found


def children(parent: int) -> list[int]:
    """The processes whose parent this is."""
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
