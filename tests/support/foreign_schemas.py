"""`./run foreign-schemas`: what the manifests say to other people's operators, judged by those operators' own types.

Kubernetes' schemas know nothing of a PodMonitor or of CloudNativePG's Cluster, and a misspelt field there is silently
ignored. npm has types made from the operators' definitions, and the TypeScript compiler refuses a field that they do
not have. This needs npm and its registry, so it is a command; what passed is kept in a list of fields
(`tests/deploy/foreign_fields.txt`), and a test finds every field of the manifests in that list.

Run it when the test finds one that is not there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.manifests import Manifest, is_foreign, render, render_with
from support.programs import need

FIELDS = Path(__file__).parents[1] / "deploy" / "foreign_fields.txt"
PACKAGES = (
    "@kubernetes-models/cloudnative-pg@2.0.0",
    "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
    "typescript@5.9.3",
)
_FROM = {
    "postgresql.cnpg.io": "@kubernetes-models/cloudnative-pg",
    "keda.sh": "@kubernetes-models/keda",
    "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
}
# Below these the names are the writer's own.
_OPEN = ("annotations", "labels", "matchLabels", "parameters", "metadata.*")


def foreign() -> list[Manifest]:
    """Every object of the overlays and components that an operator reads, and Kubernetes only keeps."""
    everything = [*render("overlays/production"), *render("overlays/edge")]
    everything += [*render_with("keda"), *render_with("postgres-cnpg", "postgres-backup")]
    return [each for each in everything if is_foreign(each)]


def fields(manifest: Manifest) -> set[str]:
    """Its fields, as `apiVersion/kind path: type`; elements of lists are `[]`."""
    name = f"{manifest['apiVersion']}/{manifest['kind']}"
    return {f"{name} {path}: {kind}" for path, kind in _walk({**manifest, "metadata": {}}, "")}


def _walk(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        is_open = path.endswith(_OPEN) or (path.endswith("triggers[].metadata"))
        for key, inner in value.items():
            yield from _walk(inner, f"{path}.*" if is_open else f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, f"{path}[]")
    else:
        yield path, {str: "string", bool: "boolean", int: "integer", float: "number"}[type(value)]


def _program(manifests: Iterable[Manifest]) -> str:
    """TypeScript that compiles when every object is what its type says, with no field besides."""
    lines = []
    for number, each in enumerate(manifests):
        group, _, version = each["apiVersion"].partition("/")
        module = f"{_FROM[group]}/{group}/{version}"
        lines.append(f'import type {{ I{each["kind"]} as T{number} }} from "{module}";')
        lines.append(f"export const object{number}: T{number} = {json.dumps(each, indent=1)};")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Fetch the types, compile, write the list; give the exit code."""
    found = foreign()
    with tempfile.TemporaryDirectory(prefix="lakthan-types-") as name:
        folder = Path(name)
        (folder / "check.ts").write_text(_program(found))
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        subprocess.run([need("npm"), "install", *quiet, *PACKAGES], check=True, cwd=folder)
        compiler = ["npx", "--no-install", "tsc", "--noEmit", "--strict", "--skipLibCheck"]
        how = ["--module", "nodenext", "--moduleResolution", "nodenext", "check.ts"]
        judged = subprocess.run([*compiler, *how], check=False, cwd=folder)
    if judged.returncode:
        return 1
    FIELDS.write_text("".join(f"{line}\n" for line in sorted(set().union(*map(fields, found)))))
    for each in found:
        print(f"{each['apiVersion']} {each['kind']} {each['metadata']['name']}: as its operator's types say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
