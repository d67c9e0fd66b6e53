"""`python -m support.licences --write`: docs/licences.md, the licences of everything that the image ships.

What is shipped comes from `uv.lock`: all that the project needs to run, with the embedded database, on any platform.
What its licence is comes from the installed distributions. Tools that only tests use are not shipped and not listed.
"""

from __future__ import annotations

import argparse
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "licences.md"
# Of what is shipped. Another one is a decision: docs/decisions/0002-dependencies.md.
ALLOWED = frozenset({"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-0", "PSF-2.0", "CNRI-Python"})
# What older distributions write instead of an SPDX expression.
_SPELLINGS = {
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "Python Software Foundation License": "PSF-2.0",
}
_HEAD = """# Licences

Everything that an installation of Lakthan contains beside itself, Python, and the packages of the base image: the
locked distributions, with the version of `uv.lock`. Made by `python -m support.licences --write`; a test holds that it
is current, and that nobody brings in a licence that is not one of {allowed}.

| distribution | version | licence |
| --- | --- | --- |
"""


def shipped() -> dict[str, str]:
    """The version of every distribution that is needed to run."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))
    packages: dict[str, dict[str, Any]] = {package["name"]: package for package in lock["package"]}
    found: dict[str, str] = {}
    waiting = [("lakthan", "embedded")]
    while waiting:
        name, extra = waiting.pop()
        package = packages[name]
        wanted = list(package.get("dependencies", ()))
        wanted += package.get("optional-dependencies", {}).get(extra, ())
        for each in wanted:
            extras = each.get("extra", [""])
            if each["name"] not in found or extras != [""]:
                if each["name"] not in found:
                    found[each["name"]] = packages[each["name"]]["version"]
                waiting += [(each["name"], one) for one in extras]
    return dict(sorted(found.items()))


def licence(name: str) -> str | None:
    """The SPDX expression of an installed distribution's licence; None when it is not installed here."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None  # for another platform
    words = said.json
    expression = str(words.get("license_expression") or words.get("license", "")).strip().partition("\n")[0]
    if not expression:
        classifiers = said.get_all("Classifier") or []
        kinds = [line.rpartition("::")[2].strip() for line in classifiers if line.startswith("License")]
        expression = " OR ".join(_SPELLINGS.get(kind, kind) for kind in kinds)
    return _SPELLINGS.get(expression, expression)


def parts(expression: str) -> set[str]:
    """The licences in an expression."""
    return set(expression.replace("(", " ").replace(")", " ").replace(" AND ", " ").replace(" OR ", " ").split())


def page() -> str:
    """The text of docs/licences.md."""
    allowed = ", ".join(sorted(ALLOWED))
    rows = [
        f"| {name} | {version} | {licence(name) or 'not for Linux'} |\n" for name, version in shipped().items()
    ]  # fmt: skip
    return _HEAD.format(allowed=allowed) + "".join(rows)


def main() -> None:
    """Write or show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(page(), "utf-8")
    else:
        print(page())


if __name__ == "__main__":
    main()
