"""What images stand on: layers, configuration and facts of a base. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.package import tar
from edgekit.package.rootfs import BaseFacts
from edgekit.package.tar import LayerFacts


@dataclass(frozen=True)
class Layer:
    """A layer that lies in a file, and what it is for."""

    path: Path
    facts: LayerFacts
    purpose: str
    media_type: str = tar.LAYER_MEDIA_TYPE


@dataclass(frozen=True)
class Base:
    """A checked base. ``digest`` is the root tar's, or that of the image's manifest."""

    digest: str
    facts: BaseFacts
    layers: tuple[Layer, ...]
    env: tuple[str, ...] = ()  # NAME=value, as its configuration says
