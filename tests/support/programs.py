"""The foreign programs that judge our answers: where they are, and what to do when one is missing.

A test asks with `need("openssl")`. A program that is not there skips the test and says which Debian package has it;
`pytest --require=openssl,curl` (or `--require=all`, as CI does) turns that skip into a failure.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

# Program → the Debian package that has it. A program that is not listed here cannot be asked for.
PACKAGES = {
    "apache2": "apache2-bin",
    "bash": "bash",
    "buildah": "buildah",
    "certtool": "gnutls-bin",
    "cfssl": "golang-cfssl",
    "cfssljson": "golang-cfssl",
    "chronyd": "chrony",
    "curl": "curl",
    "easyrsa": "easy-rsa",
    "faketime": "faketime",
    "gcc": "gcc, with libc6-dev",
    "git": "git",
    "gnutls-cli": "gnutls-bin",
    "go": "golang-go, with golang-golang-x-crypto-dev",
    "ip": "iproute2",
    "jarsigner": "openjdk-17-jdk-headless",
    "java": "openjdk-17-jre-headless",
    "javac": "openjdk-17-jdk-headless",
    "mmdebstrap": "mmdebstrap",
    "moto_server": "none in Debian; the dev environment of ./run has it",
    "haproxy": "haproxy",
    "nginx": "nginx",
    "nmap": "nmap",
    "nsenter": "util-linux",
    "ocsptool": "gnutls-bin",
    "npm": "npm",
    "openssl": "openssl",
    "osslsigncode": "osslsigncode",
    "p11-kit": "p11-kit, with p11-kit-modules",
    "pdfsig": "poppler-utils",
    "pkcs11-tool": "opensc",
    "kubectl": "kubectl, of Kubernetes",
    "kubernetes-validate": "none in Debian; the dev environment of ./run has it",
    "podman": "podman",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "psql": "postgresql-client",
    "runc": "runc",
    "setpriv": "util-linux",
    "strace": "strace",
    "softhsm2-util": "softhsm2",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
    "uv": "none in Debian; the dev environment of ./run has it",
}

# Not a program but three files.
BOUNCY_CASTLE = {
    Path("/usr/share/java/bcprov.jar"): "libbcprov-java",
    Path("/usr/share/java/bcutil.jar"): "libbcutil-java",
    Path("/usr/share/java/bcpkix.jar"): "libbcpkix-java",
}

# "all", or the names after --require; tests/conftest.py fills it.
required: set[str] = set()


def need(name: str) -> Path:
    """Give the path of a program; without it the test is skipped, or fails if --require names it.

    Raises KeyError for a program that PACKAGES does not list.
    """
    package = PACKAGES[name]
    # Where an ordinary user of Debian does not look.
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/share/easy-rsa")
    if found is None:
        absent(name, f"the program {name} is not installed (Debian package: {package})")
    return Path(found)


def need_bouncy_castle() -> list[Path]:
    """The jars of Bouncy Castle (name for --require: "bouncycastle")."""
    for path, package in BOUNCY_CASTLE.items():
        if not path.is_file():
            absent("bouncycastle", f"{path} is not there (Debian package: {package})")
    return [*BOUNCY_CASTLE]


def need_root() -> None:
    """Skip the test (name for --require: "root") unless it runs as root."""
    if os.geteuid() != 0:
        absent("root", "only root can build and enter another root folder")


def our_program(folder: Path) -> Path:
    """Write `folder/lakthan`, as a page types it: the environment of ./run has the packages, not the program."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "lakthan"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m lakthan_cli "$@"\n')
    script.chmod(0o755)
    return script


def absent(name: str, reason: str) -> NoReturn:
    """Skip because `name` is missing, or fail if it is required."""
    if required & {name, "all"}:
        pytest.fail(f"{reason}, and --require={name} demands it", pytrace=False)
    pytest.skip(reason)
