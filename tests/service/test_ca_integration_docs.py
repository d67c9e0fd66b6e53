"""The page about connecting a CA: what it tells to type into a shell works as it stands."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import click
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan_cli.__main__ import main
from support.pki import issue
from support.programs import need
from support.registry import crl_of, running_registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ca-integration.md"


def examples(heading: str) -> str:
    """The shell of a section."""
    section = re.split(r"^##+ ", PAGE.read_text(encoding="utf-8").split(heading + "\n", 1)[1], flags=re.MULTILINE)[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


async def test_a_cas_script_announces_and_publishes(database_url: str, tmp_path: Path) -> None:
    """The two functions of the page, against a running registry: twice each, and the second time nothing changes."""
    need("curl")
    need("openssl")
    async with running_registry(database_url, tmp_path) as registry:
        user = issue("user", registry.a)
        (tmp_path / "user.pem").write_bytes(user.certificate.public_bytes(Encoding.PEM))
        (tmp_path / "public-ca.token").write_text(registry.tokens["a"] + "\n")
        (tmp_path / "public-ca.crl").write_bytes(crl_of(registry.a, 1, issue("lost", registry.a)))
        script = examples("## Push by HTTPS").replace("https://registry.gov.la:8443", registry.url)
        calls = "announce user.pem; echo; publish public-ca.crl; echo"
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", f"{script}\n{calls}\n{calls}"),
            cwd=tmp_path,
            env={**os.environ, "CURL_CA_BUNDLE": str(registry.tls_root)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await shell.communicate()
        assert shell.returncode == 0, said.decode()
        first, imported, second, nothing_new = filter(None, said.decode().splitlines())
        assert first == second
        assert "imported" in imported
        assert "nothing new" in nothing_new


def test_every_lakthan_command_of_the_page_is_one() -> None:
    """The command line knows each `lakthan …` of the page with its options; nothing is run."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^lakthan (.+)$", "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)), re.MULTILINE)
    assert len(commands) > 8
    for command in commands:
        words = command.split()
        found: click.Command = main
        while isinstance(found, click.Group):
            below = found.get_command(click.Context(found), words.pop(0))
            assert below is not None, command
            found = below
        known = {name for parameter in found.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, command
