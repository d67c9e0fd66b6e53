"""`./run image`: the container image built with buildah, its size and contents printed, and it run with podman.

Where there is Docker, `docker build .` does the same. This way needs no daemon and no registry: the base image is a
Debian 12 that mmdebstrap makes here, and everything is kept in one folder, by default a temporary one.

Trusted: as root, what runs in a container runs on this machine's kernel with its network.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from support.programs import need

CHECKOUT = Path(__file__).parents[2]
BASE, TAG = "localhost/lakthan-base:bookworm", "localhost/lakthan:dev"
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_CONTAINERS_CONF = '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\nnetns = "host"\n'
SBOM = "/opt/lakthan/sbom.cdx.json"


class Images:
    """A storage of images in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._storage = [f"--root={folder / 'root'}", f"--runroot={folder / 'run'}", "--storage-driver=vfs"]
        self._conf = folder / "containers.conf"
        self._conf.write_text(_CONTAINERS_CONF)

    def build(self, *, base: str | None = None) -> None:
        """Build the Dockerfile of this checkout as `TAG`, on a Debian 12 of this machine's making unless `base` says
        otherwise.
        """
        if base is None:
            base = BASE
            if not self._buildah("images", "--quiet", "--filter", f"reference={BASE}"):
                self._import_base()
        pip_conf = self._folder / "pip.conf"
        pip_conf.write_text("[global]\ncert = /run/build-ca.crt\n")
        options = [f"--volume={_CERTIFICATES}:/run/build-ca.crt:ro", f"--volume={pip_conf}:/etc/pip.conf:ro"]
        arguments = [f"--build-arg=BASE_IMAGE={base}", f"--build-arg=REVISION={_revision()}"]
        how = ["--isolation=chroot", "--network=host", "--format=docker"]
        self._buildah("bud", *how, *options, *arguments, f"--tag={TAG}", str(CHECKOUT))

    def podman(self, *arguments: str) -> list[str]:
        """The command line of podman on this storage."""
        how = ["--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"]
        return [str(need("podman")), *self._storage, *how, *arguments]

    @property
    def environ(self) -> dict[str, str]:
        """The environment that `podman` needs."""
        return {**os.environ, "CONTAINERS_CONF": str(self._conf)}

    def run(self, *command: str, entrypoint: str | None = None) -> str:
        """What a command in a new container says: no capabilities, nothing writable."""
        need("runc")
        chosen = [] if entrypoint is None else [f"--entrypoint={entrypoint}"]
        arguments = ["run", "--rm", "--no-healthcheck", "--read-only", "--cap-drop=all", *chosen, TAG, *command]
        return _said(self.podman(*arguments), env=self.environ)

    def inspect(self) -> dict[str, Any]:
        """What podman says about the image."""
        described: list[dict[str, Any]] = json.loads(_said(self.podman("image", "inspect", TAG), env=self.environ))
        return described[0]

    def sbom(self) -> dict[str, Any]:
        """The list of what is in the image, as the image itself has it."""
        document: dict[str, Any] = json.loads(self.run(SBOM, entrypoint="cat"))
        return document

    def _import_base(self) -> None:
        container = self._buildah("from", "scratch").strip()
        self._buildah("add", "--quiet", container, str(_base_archive()), "/")
        self._buildah("commit", "--quiet", container, BASE)
        self._buildah("rm", container)

    def _buildah(self, *arguments: str) -> str:
        return _said([str(need("buildah")), *self._storage, *arguments])


@contextmanager
def temporary_images() -> Iterator[Images]:
    """A storage that is gone after the block, with the image built."""
    with tempfile.TemporaryDirectory(prefix="lakthan-images-") as folder:
        images = Images(Path(folder))
        images.build()
        yield images


def _base_archive() -> Path:
    """The base as a tar file, made by mmdebstrap the first time and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lakthan"
    archive = cache / "image-base-debian-12.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        half_done = cache / f"half-done-{os.getpid()}.tar"
        options = ["--quiet", "--variant=minbase", f"--include={_BASE_PACKAGES}"]
        _said([str(need("mmdebstrap")), *options, "bookworm", str(half_done)])
        half_done.replace(archive)
    return archive


def _revision() -> str:
    options = ["-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT)]
    return _said([str(need("git")), *options, "describe", "--always", "--dirty"]).strip()


def _said(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last_lines = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{last_lines}")
    return done.stdout


@click.command()
@click.option("--base", help="The base image.  [default: a Debian 12 made here]")
@click.option("--storage", type=click.Path(file_okay=False, path_type=Path), help="Keep the images in this folder.")
def main(base: str | None, storage: Path | None) -> None:
    """Build the image, and print its size and what is in it."""
    with tempfile.TemporaryDirectory(prefix="lakthan-images-") as temporary:
        folder = storage or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        images = Images(folder)
        console = Console()
        with console.status("building the image …"):
            images.build(base=base)
        described, sbom = images.inspect(), images.sbom()
        console.print(f"{TAG} {described['Id'][:12]}: {described['Size'] / 1e6:.0f} MB, user {described['User']}")
        console.print(f"SBOM {SBOM}: CycloneDX {sbom['specVersion']}, {sbom['serialNumber']}")
        table = Table("packages", "from", "licences, as the packages state them")
        for kind, said in (("pypi", "uv.lock"), ("deb", "the base image")):
            chosen = [each for each in sbom["components"] if each["purl"].startswith(f"pkg:{kind}/")]
            licences = Counter(_licence(each) for each in chosen)
            stated = ", ".join(f"{count} {name}" for name, count in licences.most_common() if name)
            table.add_row(str(len(chosen)), said, stated or "in /usr/share/doc of each")
        console.print(table)


def _licence(component: dict[str, Any]) -> str:
    for stated in component.get("licenses", ()):
        licence = stated.get("license", {})
        return str(stated.get("expression") or licence.get("id") or licence.get("name"))
    return ""


if __name__ == "__main__":
    main()
