"""What a bundle is made of and how it was made, in the forms other tools read. Pure.

A CycloneDX 1.6 document with its machine-learning part, and an in-toto statement with a SLSA v1
provenance predicate. Both follow from the bundle's own files: no time, no random serial number, so
equal builds stay equal. Neither is signed yet: a statement without a signature says what the
builder says, and proves nothing about who said it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit import __version__
from edgekit.build.ports import BundleHead
from edgekit.contracts import codec, digest
from edgekit.contracts.bundle import BundleFile, Role

BUILD_TYPE = "urn:edgekit:build:v1"  # names the meaning of the parameters
Licences = Mapping[str, Sequence[Mapping[str, Any]]]  # by package: CycloneDX's ``licenses``
_NAMESPACE = uuid.UUID("8f0f2c1e-5d0a-5b7e-9a56-3f3c0b2d7a11")  # ours; any fixed one would do


def _component(file: BundleFile) -> dict[str, Any]:
    kind = "machine-learning-model" if file.role == Role.MODEL.value else "data"
    content = {"hashes": [{"alg": "SHA-256", "content": digest.hex_of(file.sha256)}]}
    reference = f"file:{file.path}"
    return {"type": kind, "bom-ref": reference, "name": file.path, **content}


def _tool(name: str, version: str) -> dict[str, Any]:
    found = {"type": "application", "name": name, "version": version}
    return found | ({} if name == "python" else {"purl": f"pkg:pypi/{name}@{version}"})


def _licensed(component: dict[str, Any], told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return component | ({"licenses": [dict(each) for each in told]} if told else {})


def _metrics(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gate results as CycloneDX performance metrics; bounds where they were computed."""
    found = []
    for gate in evidence.get("gates", ()):
        metric: dict[str, Any] = {"type": str(gate["metric"]), "value": str(gate.get("estimate"))}
        low, high = gate.get("low"), gate.get("high")
        if low is not None and high is not None:
            metric["confidenceInterval"] = {"lowerBound": str(low), "upperBound": str(high)}
        found.append(metric)
    return found


def tools_of(evidence: Mapping[str, Any]) -> dict[str, str]:
    """Name and version of what made a bundle."""
    return {name: str(version) for name, version in sorted(_tools(evidence).items())}


def sbom(
    head: BundleHead,
    files: Sequence[BundleFile],
    evidence: Mapping[str, Any],
    *,
    licence: Sequence[Mapping[str, Any]] = (),
    tool_licences: Licences | None = None,
) -> dict[str, Any]:
    """CycloneDX 1.6 (ECMA-424): the files, the model's card, the tools that made them.

    Args:
        head: of the bundle.
        files: in it.
        evidence: of its build.
        licence: of the model, as CycloneDX has it.
        tool_licences: of the tools, by name.
    """
    components = [_component(file) for file in files]
    for component in components:
        if component["type"] == "machine-learning-model":
            component["version"] = head.version
            component.update(_licensed({}, licence))
            component["modelCard"] = {
                "bom-ref": "card",
                "quantitativeAnalysis": {"performanceMetrics": _metrics(evidence)},
                "properties": [
                    {"name": "edgekit:gate", "value": f"{gate['metric']} {gate['outcome']}"}
                    for gate in evidence.get("gates", ())
                ],
            }
    known = tool_licences or {}
    tools = [_licensed(_tool(*tool), known.get(tool[0], ())) for tool in tools_of(evidence).items()]
    subject = {
        "type": "machine-learning-model",
        "bom-ref": "bundle",
        "name": head.model,
        "version": head.version,
        "properties": [
            {"name": "edgekit:target", "value": head.target},
            {"name": "edgekit:precision", "value": head.precision},
            {"name": "edgekit:engine", "value": f"{head.engine} {head.engine_versions}"},
        ],
    }
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject, "tools": {"components": tools}},
        "components": components,
        "dependencies": [{"ref": "bundle", "dependsOn": [c["bom-ref"] for c in components]}],
    }
    serial = uuid.uuid5(_NAMESPACE, digest.of_bytes(codec.encode(body)))
    return {**body, "serialNumber": f"urn:uuid:{serial}"}


def _tools(evidence: Mapping[str, Any]) -> Mapping[str, Any]:
    tools = evidence.get("tools")
    return tools if isinstance(tools, dict) else {"edgekit-ml": __version__}


def provenance(
    head: BundleHead, files: Sequence[BundleFile], evidence: Mapping[str, Any]
) -> dict[str, Any]:
    """in-toto Statement v1 about the files, predicate SLSA provenance v1.

    Inputs become resolved dependencies by digest; start and end times are left out on purpose.
    """
    inputs = evidence.get("inputs")
    dependencies = [
        {"name": name, "digest": {"sha256": digest.hex_of(str(found))}}
        for name, found in sorted((inputs if isinstance(inputs, dict) else {}).items())
    ]
    versions = {name: str(version) for name, version in _tools(evidence).items()}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": file.path, "digest": {"sha256": digest.hex_of(file.sha256)}} for file in files
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "model": head.model,
                    "version": head.version,
                    "target": head.target,
                },
                "internalParameters": {"precision": head.precision, "engine": head.engine},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": BUILD_TYPE, "version": versions}},
        },
    }


def _library(name: str, version: str, licences: Licences) -> dict[str, Any]:
    component = {**_tool(name, version), "type": "library", "bom-ref": f"pkg:pypi/{name}@{version}"}
    return _licensed(component, licences.get(name, ()))


def _document(subject: Mapping[str, Any], components: Sequence[Mapping[str, Any]]) -> bytes:
    """A CycloneDX document of one thing that depends on all others."""
    refs = [str(component["bom-ref"]) for component in components]
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": [{"ref": subject["bom-ref"], "dependsOn": refs}],
    }
    serial = uuid.uuid5(_NAMESPACE, digest.of_bytes(codec.encode(body)))
    return codec.encode_pretty({**body, "serialNumber": f"urn:uuid:{serial}"})


def image_sbom(
    pins: Mapping[str, str], base_digest: str, model: str, version: str, licences: Licences
) -> bytes:
    """CycloneDX of an image: the wheels in it and the base they stand on."""
    content = {"hashes": [{"alg": "SHA-256", "content": digest.hex_of(base_digest)}]}
    base = {"type": "operating-system", "bom-ref": "base", "name": "base", **content}
    subject = {"type": "container", "bom-ref": "image", "name": model, "version": version}
    return _document(subject, [base, *(_library(*pin, licences) for pin in pins.items())])


def runtime_sbom(pins: Mapping[str, str], licences: Licences, version: str) -> bytes:
    """CycloneDX of a runtime: the agent and the wheels beside it."""
    subject = {"type": "application", "bom-ref": "runtime", "name": "edgekit-ml",
               "version": version, "licenses": [{"expression": "Apache-2.0"}]}  # fmt: skip
    return _document(subject, [_library(*pin, licences) for pin in pins.items()])
