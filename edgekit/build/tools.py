"""Versions of everything that can change a result, for cache keys and evidence."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from edgekit import __version__
from edgekit.build.candidates import Candidate, Engine, Scheme
from edgekit.contracts.errors import BadInputError

_MEASURING = ("edgekit_runtime", "edgekit.preprocess", "edgekit.stats", "edgekit.contracts")


@cache
def versions() -> dict[str, str]:
    """Versions recorded with every build."""
    found = {name: metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"edgekit": __version__, "python": python, **found}


def used_by(candidate: Candidate) -> dict[str, str]:
    """Versions of the optional tools that make ``candidate``; another version makes it anew."""
    names = ["nncf"] if candidate.scheme is Scheme.NNCF else []
    names += ["openvino"] if candidate.engine is Engine.OPENVINO else []
    return {name: version_of(name) for name in names}


def engine_versions(engine: str) -> dict[str, str]:
    """Version of the engine that measures."""
    return {engine: version_of(engine)}


@cache
def version_of(name: str) -> str:
    """Of an optional tool; "absent" where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


@cache
def measuring_code() -> str:
    """Digest of the device code that measures: an edited agent measures anew."""
    hasher = hashlib.sha256()
    for folder in (Path(place) for name in _MEASURING for place in _places(name)):
        for path in sorted(folder.rglob("*.py")):
            hasher.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()


def _places(package: str) -> Sequence[str]:
    spec = importlib.util.find_spec(package)
    return (spec.submodule_search_locations or ()) if spec else ()


def python() -> list[str]:
    """Command prefix that runs one of our modules with this interpreter."""
    return [sys.executable, "-m"]


def unusable_original(reason: str) -> BadInputError:
    """The error for a registered model that the device code cannot run."""
    return BadInputError(
        f"the original model cannot be run: {reason}",
        hint="the model must load and run in ONNX Runtime before it can be compared with",
    )
