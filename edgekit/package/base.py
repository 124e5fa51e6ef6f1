"""What images stand on: layers, configuration and facts of a base. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekit.package import evidence, tar
from edgekit.package.rootfs import BaseFacts
from edgekit.package.tar import LayerFacts


@dataclass(frozen=True)
class Layer:
    """A layer that lies in a file, and what it is for."""

    path: Path
    facts: LayerFacts
    purpose: str
    media_type: str = tar.LAYER_MEDIA_TYPE
    licences: evidence.Licences = field(default_factory=dict)  # of the packages in it


@dataclass(frozen=True)
class Base:
    """A checked base. ``digest`` is the root tar's, or that of the image's manifest."""

    digest: str
    facts: BaseFacts
    layers: tuple[Layer, ...]
    env: tuple[str, ...] = ()  # NAME=value, as its configuration says
