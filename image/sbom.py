# ruff: noqa: INP001 - a script of its own, run while the image is built
"""What is in the image, as a CycloneDX 1.6 document: `python sbom.py ENVIRONMENT > sbom.cdx.json`.

The Python packages of the environment, from their own metadata, and Debian's packages around it, from dpkg's records.
The same contents give the same document: its serial number is a digest of them, and there is no time of making.
"""

from __future__ import annotations

import json
import sys
from email import message_from_string
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

if TYPE_CHECKING:
    from collections.abc import Iterator

_DPKG = Path("/var/lib/dpkg/status")
_OURS = "lakthan"
# Some packages state the whole text of their licence.
_LONGEST_NAME = 60


def python_packages(environment: Path) -> Iterator[Component]:
    """The packages of a virtual environment, with their licences as they state them."""
    folders = [str(folder) for folder in environment.glob("lib/python3*/site-packages")]
    for distribution in distributions(path=folders):
        name = distribution.metadata["Name"].lower()
        purl = PackageURL("pypi", None, name, distribution.version)
        component = Component(
            name=name, version=distribution.version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl)
        )
        stated = _licence(distribution)
        if stated:
            component.licenses.add(LicenseFactory().make_from_string(stated))
        yield component


def debian_packages(status: Path) -> Iterator[Component]:
    """The installed packages of the base; none where it was not made from packages."""
    if not status.exists():
        return
    for paragraph in status.read_text().split("\n\n"):
        fields = message_from_string(paragraph)
        if fields["Status"] != "install ok installed":
            continue
        purl = PackageURL("deb", "debian", fields["Package"], fields["Version"], {"arch": fields["Architecture"]})
        yield Component(
            name=fields["Package"],
            version=fields["Version"],
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=str(purl),
        )


def document(environment: Path) -> str:
    """The whole document, JSON."""
    bom = Bom()
    components = [*python_packages(environment), *debian_packages(_DPKG)]
    bom.metadata.component = next(each for each in components if each.name == _OURS)
    bom.components.update(each for each in components if each.name != _OURS)
    bom.register_dependency(bom.metadata.component, bom.components)
    made = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    del made["metadata"]["timestamp"], made["serialNumber"]
    made["serialNumber"] = f"urn:uuid:{uuid5(NAMESPACE_URL, json.dumps(made, sort_keys=True))}"
    return json.dumps(made, indent=1, sort_keys=True)


def _licence(distribution: Distribution) -> str:
    """An SPDX expression where the package has one, else its licence's name; '' when it says nothing short."""
    metadata = distribution.metadata.json
    expression = metadata.get("license_expression")
    if expression:
        return str(expression)
    classifiers = [each for each in metadata.get("classifier", []) if each.startswith("License :: ")]
    if classifiers:
        return classifiers[0].rsplit(" :: ", 1)[1]
    stated = str(metadata.get("license", ""))
    return stated if len(stated) < _LONGEST_NAME and "\n" not in stated else ""


if __name__ == "__main__":
    sys.stdout.write(document(Path(sys.argv[1])) + "\n")
