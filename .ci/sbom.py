"""What a user gets with promptembedder: each distribution that runs with it, as CycloneDX JSON and as pins.

python .ci/sbom.py FOLDER [EXTRA ...]

Names, versions, licences and who needs whom come from what is installed beside the Python that runs this. Hashes are
left out: of archives that pip has unpacked nothing remains to be hashed.
"""

import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "promptembedder"

Needs = dict[str, set[str]]


def closure(root: str, extras: Iterable[str] = ()) -> Needs:
    """What `root` with these extras needs to run, itself included, each with what it needs itself.

    Raises:
        importlib.metadata.PackageNotFoundError: A distribution that is needed is not installed.
    """
    found: Needs = {}
    asked: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(root), extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in asked:
            continue
        asked.add((name, extra))
        needs = found.setdefault(name, set())
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                other = canonicalize_name(requirement.name)
                needs.add(other)
                waiting += [(other, part) for part in ("", *requirement.extras)]
    return found


def licence_of(name: str) -> str | None:
    """What the distribution says of its licence, in its own words and in one line."""
    metadata = importlib.metadata.metadata(name)
    for field in ("License-Expression", "License"):
        text = metadata.get(field, "").strip()
        if text and "\n" not in text and text.upper() != "UNKNOWN":
            return text
    classified = [line for line in metadata.get_all("Classifier", []) if line.startswith("License :: ")]
    return classified[0].rpartition(" :: ")[2] if classified else None


def bill(needs: Needs) -> str:
    """The bill of materials, checked against CycloneDX' own schema.

    Raises:
        ValueError: It does not fit the schema.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL

    licences, components = LicenseFactory(), dict[str, Component]()
    for name in sorted(needs):
        version, licence = importlib.metadata.version(name), licence_of(name)
        url = PackageURL("pypi", name=name, version=version)
        components[name] = Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            purl=url,
            bom_ref=str(url),
            licenses=[] if licence is None else [licences.make_from_string(licence)],
        )
    bom = Bom(components=[component for name, component in components.items() if name != ROOT])
    bom.metadata.component = components[ROOT]
    for name, others in needs.items():
        bom.register_dependency(components[name], [components[other] for other in sorted(others)])
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise ValueError(f"the bill does not fit CycloneDX 1.6: {error}")
    return text


def main(folder: str, *extras: str) -> None:
    """Write `sbom.json` and `requirements.txt` into the folder."""
    needs = closure(ROOT, extras)
    pins = [f"{name}=={importlib.metadata.version(name)}\n" for name in sorted(needs) if name != ROOT]
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "sbom.json").write_text(bill(needs) + "\n", encoding="utf-8")
    (Path(folder) / "requirements.txt").write_text("".join(pins), encoding="utf-8")
    sys.stdout.write(f"{len(pins)} distributions in {folder}/sbom.json\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
