"""A bare Debian 12 in a folder: python3, pip and CA certificates, nothing else, with a copy of this checkout in it.

It shares this machine's network, so a server inside answers programs outside. The pip and uv settings and the CA
certificates of this machine are copied in at run time, because without them some networks give no packages.

Trusted: what runs inside runs on this machine's kernel, as root if the test says so; it is a clean room, not a jail.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.programs import need, need_root

CHECKOUT = Path(__file__).parents[2]
PACKAGES = "python3,python3-pip,ca-certificates"
# Settings of the network, not of places on this machine.
SETTINGS = ("PIP_", "UV_", "SSL_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "REQUESTS_CA", "CURL_CA")
PLACES = ("_CACHE_DIR", "_TARGET", "_PYTHON", "_PROJECT_ENVIRONMENT", "_INSTALL_DIR", "_TOOL_DIR", "_FIND_LINKS")


class BareDebian:
    """One root folder; `run` and `start` run commands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, *command: str, user: str = "root", folder: str = "/", **options: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and give what it said, stdout and stderr apart."""
        with self.start(*command, user=user, folder=folder, **options) as process:
            stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    @contextmanager
    def start(
        self, *command: str, user: str = "root", folder: str = "/", network: str = "shared", **options: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a command in a process group of its own; at the end of the block whatever is left of it is killed.

        `options` in capitals are environment variables of the command, except READ_ONLY and TINY: enter_root.sh.
        `network="none"` gives it a network namespace with nothing in it.
        """
        outside = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        outside.update({name: options.pop(name) for name in ("READ_ONLY", "TINY") if name in options})
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"HOME": home, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **network_settings()}
        environ = [f"{name}={value}" for name, value in {**variables, **options}.items()]
        unshare = [str(need("unshare")), "--mount", "--pid", "--fork", "--kill-child"]
        unshare += ["--net"] if network == "none" else []
        enter = ["sh", str(Path(__file__).with_name("enter_root.sh")), str(self.root), user]
        inside = ["env", "-i", f"--chdir={folder}", *environ, *command]
        with subprocess.Popen(
            [*unshare, *enter, *inside],
            env=outside,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                # unshare's child is the first process of a namespace: with it, everything in there goes.
                process.kill()

    def copy_checkout(self, folder: str, owner: str) -> None:
        """Put a copy of what git knows, or would know, of this checkout into `folder`, owned by `owner`."""
        listing = subprocess.run(
            [need("git"), "-c", f"safe.directory={CHECKOUT}", "ls-files", "-z", "-co", "--exclude-standard"],
            cwd=CHECKOUT,
            check=True,
            capture_output=True,
        )
        target = self.root / folder.lstrip("/")
        for name in filter(None, listing.stdout.decode().split("\0")):
            if (CHECKOUT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, target / name)
        self.run("chown", "-R", f"{owner}:{owner}", folder).check_returncode()


def interrupt(process: subprocess.Popen[str]) -> None:
    """Do what Ctrl-C in a terminal does: SIGINT to the whole process group."""
    os.killpg(process.pid, signal.SIGINT)


def network_settings() -> dict[str, str]:
    """Give the environment variables by which this machine's pip and uv reach their index."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper().startswith(SETTINGS) and not name.endswith(PLACES)
    }


@contextmanager
def bare_debian() -> Iterator[BareDebian]:
    """Give a fresh root with the users root and tester; it is gone after the block. Skips the test if not root."""
    need_root()
    archive = build_archive()
    with tempfile.TemporaryDirectory(prefix="lakthan-debian-") as place:
        root = Path(place)
        root.chmod(0o755)
        subprocess.run(["tar", "--extract", "--numeric-owner", "--file", archive, "--directory", root], check=True)
        copy_network_files(root)
        debian = BareDebian(root)
        debian.run("/usr/sbin/useradd", "--create-home", "tester").check_returncode()
        yield debian


def build_archive() -> Path:
    """Give the root as a tar file, made by mmdebstrap the first time (half a minute) and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lakthan"
    archive = cache / "bare-debian-12.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        half_done = cache / f"half-done-{os.getpid()}.tar"
        options = ["--quiet", "--variant=minbase", f"--include={PACKAGES}"]
        subprocess.run([need("mmdebstrap"), *options, "bookworm", half_done], check=True)
        half_done.replace(archive)
    return archive


def copy_network_files(root: Path) -> None:
    """Bring this machine's resolver, pip settings and CA certificates into the root, each at its usual place."""
    named = [value for name, value in network_settings().items() if "CERT" in name or "CA_BUNDLE" in name]
    files = ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt", *named]
    for name in files:
        if Path(name).is_file():
            target = root / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(name, target)
    own = Path.home() / ".config" / "pip" / "pip.conf"
    if own.is_file() and not (root / "etc" / "pip.conf").exists():
        shutil.copyfile(own, root / "etc" / "pip.conf")
