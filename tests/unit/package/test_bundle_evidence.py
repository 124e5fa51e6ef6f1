"""SBOM and provenance: they follow from the files, say what was gated, and stay equal."""

import email
import importlib.metadata
import json

import pytest

from edgekit.build.ports import BundleContent, BundleHead
from edgekit.contracts import codec, digest
from edgekit.contracts.bundle import Role
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.oci import LayoutReader
from edgekit.package import evidence, licences, reader
from edgekit.package.bundle import write_bundle

HEAD = BundleHead("waves", "1", "rpi5", "int8", "onnxruntime", ">=1.20")
RECORD = {
    "gates": [
        {"metric": "top1_drop", "outcome": "pass", "estimate": 0.01, "low": -0.01, "high": 0.02},
        {"metric": "size_bytes", "outcome": "pass", "estimate": 10.0, "low": None, "high": None},
    ],
    "inputs": {"evaluation": digest.of_bytes(b"data")},
    "tools": {"onnxruntime": "1.32.0", "python": "3.11"},
}


def write(layout, record=RECORD):
    files = [
        BundleContent("model.onnx", Role.MODEL, b"weights"),
        BundleContent("contract.json", Role.CONTRACT, b"{}"),
        BundleContent("evidence.json", Role.EVIDENCE, codec.encode(record)),
    ]
    write_bundle(layout, HEAD, files)
    return reader.find(str(layout))


def read(found, role):
    return json.loads(found.reader.blob_path(found.manifest.file(role).sha256).read_bytes())


def test_the_sbom_names_files_gates_and_tools(tmp_path):
    found = read(write(tmp_path / "a"), Role.SBOM)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    model = next(c for c in found["components"] if c["type"] == "machine-learning-model")
    assert model["hashes"][0]["content"] == digest.hex_of(digest.of_bytes(b"weights"))
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics[0] == {
        "type": "top1_drop",
        "value": "0.01",
        "confidenceInterval": {"lowerBound": "-0.01", "upperBound": "0.02"},
    }
    assert "confidenceInterval" not in metrics[1]
    tools = found["metadata"]["tools"]["components"]
    assert tools[0]["purl"] == "pkg:pypi/onnxruntime@1.32.0"
    listed = {c["bom-ref"] for c in found["components"]}
    assert set(found["dependencies"][0]["dependsOn"]) == listed


def test_provenance_is_about_the_files_and_their_inputs(tmp_path):
    found = read(write(tmp_path / "a"), Role.PROVENANCE)
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {s["name"]: s["digest"]["sha256"] for s in found["subject"]}
    assert subjects["model.onnx"] == digest.hex_of(digest.of_bytes(b"weights"))
    dependencies = found["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert dependencies == [
        {"name": "evaluation", "digest": {"sha256": digest.hex_of(digest.of_bytes(b"data"))}}
    ]


def test_equal_evidence_gives_equal_bundles_and_other_evidence_another_serial(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first.digest == second.digest
    third = write(tmp_path / "c", RECORD | {"gates": []})
    serials = {read(each, Role.SBOM)["serialNumber"] for each in (first, third)}
    assert len(serials) == 2
    oci = LayoutReader(tmp_path / "a").manifest(first.digest)
    assert [layer.media_type for layer in oci.layers[-2:]] == [
        "application/vnd.cyclonedx+json",
        "application/vnd.in-toto+json",
    ]


def test_the_sbom_of_an_image_lists_wheels_and_base():
    raw = evidence.image_sbom(
        {"numpy": "2.4.6"},
        digest.of_bytes(b"root"),
        "waves",
        "1",
        {"numpy": [{"expression": "BSD-3-Clause"}]},
    )
    found = json.loads(raw)
    assert [c["name"] for c in found["components"]] == ["base", "numpy"]
    assert found["components"][1]["purl"] == "pkg:pypi/numpy@2.4.6"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (
            "---\nlicense: apache-2.0\ntags: [x]\n---\n# Waves\n",
            [{"license": {"id": "Apache-2.0"}}],
        ),
        ("---\ntags: [x]\nlicense: 'my own terms'\n---\n", [{"license": {"name": "my own terms"}}]),
        ("# Waves\nlicense: mit\n", []),  # prose, not front matter
        ("---\nlicense:\n---\n", []),
        ("---\nlicense: mit\n", []),  # never closed
    ],
)
def test_a_model_declares_its_licence_in_its_card(tmp_path, card, expected):
    files = [
        BundleContent("model.onnx", Role.MODEL, b"weights"),
        BundleContent("contract.json", Role.CONTRACT, b"{}"),
        BundleContent("card.md", Role.CARD, card.encode()),
        BundleContent("evidence.json", Role.EVIDENCE, codec.encode({"tools": {"numpy": "1.0.0"}})),
    ]
    write_bundle(tmp_path, HEAD, files)
    found = read(reader.find(str(tmp_path)), Role.SBOM)
    model = next(c for c in found["components"] if c["type"] == "machine-learning-model")
    assert model.get("licenses", []) == expected
    assert "licenses" not in found["metadata"]["tools"]["components"][0]  # not that version here


def test_packages_declare_theirs_in_their_metadata(tmp_path):
    def metadata(*lines):
        message = email.message_from_string("\n".join(["Name: x", *lines]))
        return licences.declared(message)

    osi = "Classifier: License :: OSI Approved :: "
    assert metadata("License-Expression: BSD-3-Clause") == [{"expression": "BSD-3-Clause"}]
    assert metadata(f"{osi}MIT License", "License: see file") == [{"license": {"id": "MIT"}}]
    assert metadata("License: Zlib") == [{"license": {"name": "Zlib"}}]
    both = metadata(f"{osi}MIT License", f"{osi}BSD License")
    assert both == [{"license": {"name": "MIT License"}}, {"license": {"name": "BSD License"}}]
    assert metadata(f"License: {'long ' * 50}") == []
    version = importlib.metadata.version("numpy")
    assert licences.of_installed({"numpy": version, "none-such": "1"})["numpy"]
    (tmp_path / "x-1-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(BadInputError, match="not a wheel"):
        licences.of_wheels([tmp_path / "x-1-py3-none-any.whl"])
