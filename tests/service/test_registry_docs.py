"""The registry's page for engineers: its examples are typed into a shell against a running registry."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from support.pki import issue
from support.programs import need
from support.registry import Registry, crl_of, new_client, running_registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "registry.md"


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry, and beside it the files that the examples speak of."""
    async with running_registry(database_url, tmp_path) as running:
        user = issue("user", running.a)
        (tmp_path / "user.pem").write_bytes(user.certificate.public_bytes(Encoding.PEM))
        robot = new_client(running.clients)
        robot.write(tmp_path, "client")
        await running.bind("robot", robot)
        (tmp_path / "public-ca.token").write_text(running.tokens["a"] + "\n")
        (tmp_path / "public-ca.crl").write_bytes(crl_of(running.a, 1, issue("lost", running.a)))
        yield running


async def test_the_examples(registry: Registry) -> None:
    """Every example of the page works as it stands, one after the other."""
    need("curl")
    need("openssl")
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script.replace("\ncurl", "\necho; curl")),
        cwd=registry.folder,
        env={**os.environ, "REGISTRY": registry.url, "CA_FILE": str(registry.tls_root)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await shell.communicate()
    assert shell.returncode == 0, said.decode()
    replies = [json.loads(each) for each in re.findall(r"\{.*?\}(?=\{|\s|$)", said.decode())]
    assert [each["name"] for each in replies if "role" in each] == ["a", "robot"]
    assert '"cert_status":"revoked"' in said.decode()
    assert '"outcome":"imported"' in said.decode()
    assert said.decode().count('"served":') == 2
