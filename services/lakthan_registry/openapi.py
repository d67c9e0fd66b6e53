"""The API for programs: an OpenAPI 3.1 document, made of the table in `api` and the types in `messages`."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from lakthan_registry.api import CRL_MEDIA_TYPES, JSON, ROUTES, NoQuery, Route
from lakthan_registry.messages import SerialNumber, Text
from lakthan_registry.problems import KINDS, MEDIA_TYPE, ProblemDetails

_REF = "#/components/schemas/{name}"
_PATH_TYPES = {"serial_number": SerialNumber, "authority": Text, "name": Text}
_EVERYBODY_MAY_HEAR = {400, 404, 405, 413, 415, 429, 500, 503}
_DESCRIPTION = (
    "Where certification authorities tell what became of their certificates. Every refusal is a problem document "
    "(RFC 9457) with a `hint`; its `type` ends in one of: " + ", ".join(KINDS) + "."
)


def document() -> dict[str, Any]:
    """The whole document, as it is served at /openapi.json."""
    types: list[type[msgspec.Struct]] = [ProblemDetails]
    for route in ROUTES:
        types += [each for each in (route.request, route.response) if each is not None]
    unique = list(dict.fromkeys(types))
    _, schemas = msgspec.json.schema_components(unique, ref_template=_REF)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    document = {
        "openapi": "3.1.0",
        "info": {"title": "Lakthan registry", "version": "1.0", "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"certificate": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`lak_` and 43 more characters."},
                "certificate": {"type": "mutualTLS", "description": "A client certificate."},
            },
        },
    }
    # In a JSON Schema `$` is the end, and needs no word about a line break behind it.
    plain: dict[str, Any] = json.loads(json.dumps(document).replace("$(?!\\\\n)", "$"))
    return plain


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "tags": list(route.tags),
        "responses": {**_success(route), **_refusals(route)},
    }
    parameters = [*_path_parameters(route), *_query_parameters(route)]
    if route.keyed:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The same key with the same request changes nothing twice and gives the same versions.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            }
        )
    if parameters:
        operation["parameters"] = parameters
    if route.raw:
        binary = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(CRL_MEDIA_TYPES, binary)}
    elif route.request is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": _schema(route.request)}}}
    if not route.roles:
        operation["security"] = []
    return operation


def _success(route: Route) -> dict[str, Any]:
    said: dict[str, Any] = {"description": route.summary}
    if route.response is not None:
        said["content"] = {JSON: {"schema": _schema(route.response)}}
    elif route.status != 204:
        said["content"] = {JSON: {"schema": {"type": "object"}}}
    return {str(route.status): said}


def _refusals(route: Route) -> dict[str, Any]:
    statuses = set(_EVERYBODY_MAY_HEAR)
    if route.roles:
        statuses |= {401, 403, 409, 422}
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(name=ProblemDetails.__name__)}}}
    titles = {
        status: ", ".join(kind for kind, (each, _) in KINDS.items() if each == status) for status in sorted(statuses)
    }
    return {str(status): {"description": kinds, "content": content} for status, kinds in titles.items()}


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)\}", route.path)
    return [
        {"name": name, "in": "path", "required": True, "schema": msgspec.json.schema(_PATH_TYPES[name])}
        for name in names
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is NoQuery:
        return []
    _, components = msgspec.json.schema_components([route.query])
    properties = components[route.query.__name__]["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in properties.items()]


def _schema(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
