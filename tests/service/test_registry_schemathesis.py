"""The registry against its own OpenAPI document: a foreign program makes up requests and judges the answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from lakthan_registry.api import ROUTES
from lakthan_registry.openapi import document
from support.pki import issue
from support.registry import Registry, pem, running_registry

# positive_data_acceptance is left out: whether a certificate can be held is the store's business, not the document's.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry that has something to tell."""
    async with running_registry(database_url, tmp_path) as running:
        changes = [{"change": "issue", "certificate": pem(issue("alice", running.a))}]
        changes.append({"change": "issue", "serial_number": "00"})
        assert (await running.post("/v1/changes", {"changes": changes})).http_status == 200
        yield running


@pytest.mark.parametrize(
    ("who", "tags"),
    [
        ("a", ("changes", "certificates", "ejbca")),
        ("registrar", ("authorities", "credentials")),
        ("auditor", ("audit", "certificates")),
    ],
)
async def test_conformance(registry: Registry, tmp_path: Path, who: str, tags: tuple[str, ...]) -> None:
    """Whatever is sent by whoever is let in: no server error, and every answer is as the document says."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{registry.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {registry.tokens[who]}"),
        *("--tls-verify", str(registry.tls_root)),
        *("--checks", ",".join(CHECKS)),
        *(argument for tag in tags for argument in ("--include-tag", tag)),
        *("--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "8", "--seed", "6960", "--no-shrink", "--request-timeout", "20", "--warnings", "off"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await program.communicate()
    assert program.returncode == 0, said.decode()
    assert b"No issues found" in said, said.decode()


def test_the_document_is_valid() -> None:
    """The document is OpenAPI 3.1, and tells of every route that there is."""
    OpenAPIV31SpecValidator(document()).validate()
    told = {(method.upper(), path) for path, item in document()["paths"].items() for method in item}
    assert told == {(route.method, route.path) for route in ROUTES}


async def test_the_document_is_served(registry: Registry) -> None:
    """Everybody may read the document."""
    reply = await registry.get("/openapi.json", who=None)
    assert reply.json == document()
