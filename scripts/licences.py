"""What bissl-fast installs with it: a table of licences, and a bill of materials.

    python scripts/licences.py                      writes docs/licences.md
    python scripts/licences.py --sbom dist/sbom.json     and CycloneDX 1.6 of this environment

Read from the metadata of what is installed here, for what bissl-fast needs without its extras.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import tomllib
from packaging.requirements import Requirement

PACKAGE = "bissl-fast"
ROOT = Path(__file__).parents[1]
OWN = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LONGEST = 60  # characters of a licence's name
HEAD = """# Licences

bissl-fast is under Apache-2.0 ([LICENSE](../LICENSE)). It holds no other code: what it needs is installed beside it,
each under its own licence. The table is written by `python scripts/licences.py`, from the metadata of the packages as
they are installed on Linux with torch for CUDA, without extras; `--sbom dist/sbom.json` adds a bill of materials.
"""


def name_of(text: str) -> str:
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def needed(package: str, extras: frozenset[str] = frozenset()) -> Iterator[str]:
    """What a package asks for on this platform; of bissl-fast what pyproject.toml says, installed or not."""
    for line in OWN if package == PACKAGE else distribution(package).requires or ():
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield name_of(wanted.name)


def all_needed(package: str) -> dict[str, Distribution]:
    """Everything that is installed because of a package, itself left out."""
    found: dict[str, Distribution] = {}
    waiting = list(needed(package))
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another platform, or an extra
            continue
        waiting += needed(name)
    return dict(sorted(found.items()))


def licence(package: Distribution) -> str:
    """An SPDX expression where the package has one, else the words of its metadata."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    named = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith("License ::")]
    words = str(about.get("License") or "").strip()  # of some packages the whole text
    exact = [name for name in named if name not in ("OSI Approved", "Other/Proprietary License")]
    chosen = words if 0 < len(words) <= LONGEST else "; ".join(exact or named)
    return chosen or "not told in its metadata"


def table(packages: dict[str, Distribution]) -> str:
    rows = [f"| {name} | {licence(found).replace('|', '/')} |" for name, found in packages.items()]
    return "\n".join((HEAD, "| Package | Licence |", "|---|---|", *rows, ""))


def bill(packages: dict[str, Distribution]) -> dict[str, Any]:
    """CycloneDX 1.6, without a date or a serial number: the same environment gives the same bytes."""

    def component(name: str, found: Distribution) -> dict[str, Any]:
        reference = f"pkg:pypi/{name}@{found.version}"
        told = {"type": "library", "bom-ref": reference, "name": name, "version": found.version, "purl": reference}
        return {**told, "licenses": [{"license": {"name": licence(found)}}]}

    own = distribution(PACKAGE)
    main = {**component(PACKAGE, own), "type": "application", "licenses": [{"license": {"id": "Apache-2.0"}}]}
    references = {name: f"pkg:pypi/{name}@{found.version}" for name, found in {PACKAGE: own, **packages}.items()}
    graph = [
        {"ref": references[name], "dependsOn": sorted({references[n] for n in needed(name) if n in references})}
        for name in references
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": main},
        "components": [component(name, found) for name, found in packages.items()],
        "dependencies": graph,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "licences.md")
    parser.add_argument("--sbom", type=Path)
    given = parser.parse_args()
    packages = all_needed(PACKAGE)
    given.output.write_text(table(packages))
    if given.sbom:
        given.sbom.parent.mkdir(parents=True, exist_ok=True)
        given.sbom.write_text(json.dumps(bill(packages), indent=1) + "\n")


if __name__ == "__main__":
    main()
