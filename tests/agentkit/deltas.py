"""Two versions of one bundle, and the delta between them."""

from __future__ import annotations

import numpy as np
from agentkit.layouts import LayoutWriter

from edgekit.contracts import oci
from edgekit.package import delta, reader

SIZE = 60_000


def weights(seed: int, changed: int = 0) -> bytes:
    """Noise, as weights are; the last ``changed`` bytes differ."""
    data = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
    if changed:
        other = np.random.default_rng(seed + 1000).integers(0, 256, changed, dtype=np.uint8)
        data[-changed:] = other
    return data.tobytes()


def versions(root, *, changed: int = 2000) -> tuple[LayoutWriter, str, str]:
    """A layout with both versions; the second one's end was trained again."""
    writer = LayoutWriter(root)
    old = writer.add(version="1", files={"model": weights(1)})
    new = writer.add(version="2", files={"model": weights(1, changed)})
    return writer, old, new


def add(writer: LayoutWriter, old: str, new: str) -> delta.DeltaFacts:
    layout = oci.LayoutReader(writer.root)
    return delta.make(reader.read(layout, old), reader.read(layout, new), writer.root, tag="d")
