"""Writes tiny, real ONNX bundles as OCI layouts by hand (the product's writer is another part)."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.contracts import bundle, codec, digest, oci
from edgekit.contracts.bundle import BundleFile, BundleManifest
from edgekit.contracts.contract import (
    Contract,
    InputSpec,
    Normalise,
    OnViolation,
    OutputSpec,
    QualityBudget,
    Task,
)
from edgekit.contracts.golden import Tolerance

FEATURES, CLASSES = 4, 3


def contract(batch: int | str = "n", **changes: object) -> Contract:
    value = InputSpec(
        name="x",
        dtype="float32",
        shape=(batch, FEATURES),
        range=(-100.0, 100.0),
        on_nan=OnViolation.REJECT,
        on_range=OnViolation.FLAG,
        preprocess=(Normalise(mean=(1.0,), std=(2.0,)),),
    )
    spec = OutputSpec(
        name="scores",
        dtype="float32",
        shape=(batch, CLASSES),
        task=Task.CLASSIFICATION,
        labels=("low", "mid", "high"),
    )
    base = Contract(
        inputs=(value,), outputs=(spec,), quality=QualityBudget(metric="top1", drop_max=0.02)
    )
    return msgspec.structs.replace(base, **changes)


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def model_bytes(seed: int, batch: int | str = "n", backbone: int = 0) -> bytes:
    """A linear classifier with softmax, and ``backbone`` further weights that are never trained."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"])]
    more = []
    if backbone:
        noise = np.random.default_rng(0).normal(size=backbone).astype(np.float32)
        more = [
            numpy_helper.from_array(noise, "b"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ]
        nodes += [
            helper.make_node("ReduceMean", ["b"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Add", ["h", "nothing"], ["h2"]),
        ]
    last = nodes[-1].output[0]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Softmax", [last], ["scores"], axis=-1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])],
        [*more, numpy_helper.from_array(weights(seed), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.ModelProto.SerializeToString(model)


def reference(seed: int, x: np.ndarray) -> np.ndarray:
    """What the model must answer, computed without the engine."""
    hidden = ((x.astype(np.float64) - 1.0) / 2.0) @ weights(seed).astype(np.float64)
    shares = np.exp(hidden - hidden.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


class LayoutWriter:
    """An OCI layout that grows bundle by bundle."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / oci.LAYOUT_FILE).write_text('{"imageLayoutVersion":"1.0.0"}')
        self._manifests: list[oci.Descriptor] = []

    def blob(self, data: bytes) -> tuple[str, int]:
        name = digest.of_bytes(data)
        (self.root / "blobs" / "sha256" / digest.hex_of(name)).write_bytes(data)
        return name, len(data)

    def add(
        self,
        *,
        seed: int = 1,
        version: str = "1",
        target: str = "x86-64-v3",
        model: str = "meter",
        files: dict[str, bytes] | None = None,
        batch: int | str = "n",
        golden_seed: int | None = None,
        engine_versions: str = ">=1.18",
        found: Contract | None = None,
        tag: str | None = None,
        labels: dict[str, str] | None = None,
        engine_options: dict[str, str] | None = None,
    ) -> str:
        """Adds a bundle; returns the digest of its OCI manifest. ``files`` replaces by role."""
        x = np.random.default_rng(7).normal(size=(8, FEATURES)).astype(np.float32)
        expected = reference(seed if golden_seed is None else golden_seed, x).astype(np.float32)
        contents = {
            "model": model_bytes(seed, batch),
            "contract": codec.encode(found or contract(batch)),
            "golden": npz({"in.x": x, "out.scores": expected}),
            "tolerance": codec.encode(Tolerance()),
        } | (files or {})
        entries, layers = [], []
        for role, data in contents.items():
            name, size = self.blob(data)
            entries.append(BundleFile(path=role, role=role, sha256=name, size=size))
            layers.append(oci.Descriptor(media_type=bundle.FILE_MEDIA_TYPE, digest=name, size=size))
        config = BundleManifest(
            model=model,
            version=version,
            target=target,
            precision="fp32",
            engine="onnxruntime",
            engine_versions=engine_versions,
            files=tuple(entries),
            labels=labels or {},
            engine_options=engine_options or {},
        )
        name, size = self.blob(codec.encode(config))
        manifest = oci.Manifest(
            artifact_type=bundle.ARTIFACT_TYPE,
            config=oci.Descriptor(media_type=bundle.CONFIG_MEDIA_TYPE, digest=name, size=size),
            layers=tuple(layers),
        )
        name, size = self.blob(codec.encode(manifest))
        self._manifests.append(
            oci.Descriptor(
                media_type=oci.MANIFEST_MEDIA_TYPE,
                digest=name,
                size=size,
                annotations={oci.REF_NAME: tag or version},
            )
        )
        index = oci.Index(manifests=tuple(self._manifests))
        (self.root / oci.INDEX_FILE).write_bytes(codec.encode(index))
        return name
