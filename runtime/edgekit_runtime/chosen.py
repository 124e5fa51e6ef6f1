"""The model a command names: a bundle in a layout, or what the device has active."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, fitness, predictor
from edgekit_runtime import config as configuration
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.errors import NotServingError, UnsuitableError
from edgekit_runtime.predictor import Predictor
from edgekit_runtime.record import NAME as RECORD
from edgekit_runtime.record import DeploymentRecord
from edgekit_runtime.twocopy import TwoCopy


def layout_of(reference: str) -> tuple[Path, str | None] | None:
    """Folder and tag of ``LAYOUT[@REF]``; None when there is no such folder."""
    folder, _, tag = reference.rpartition("@")
    if Path(reference).is_dir():
        return Path(reference), None
    return (Path(folder), tag or None) if folder and Path(folder).is_dir() else None


def from_layout(folder: Path, tag: str | None, threads: int) -> Predictor:
    """The bundle, every blob hashed. Raises like `predictor.load`."""
    reader = LayoutReader(folder)
    return predictor.load(bundles.open_bundle(reader, reader.resolve(tag)), threads=threads)


def load(reference: str, config: Path | None, threads: int) -> Predictor:
    """A bundle ``LAYOUT[@REF]``, or the active bundle of the model called so.

    Raises:
        BadInputError: neither, or it is damaged.
        UsageError: it is a model's name, and no configuration says which device.
        NotServingError: the device has nothing of it active.
        UnsuitableError: it cannot run here.
    """
    found = layout_of(reference)
    if found is not None:
        return from_layout(*found, threads)
    if config is None:
        raise UsageError(
            f"{reference}: no such folder", hint="a deployed model needs --config, too"
        )
    state = configuration.load(config, os.environ).device.state_dir
    record = TwoCopy(PosixDisk(), state, RECORD, DeploymentRecord).peek().value
    models = record.models if record is not None else {}
    model = models.get(reference)
    if model is None:
        known = ", ".join(sorted(models)) or "none"
        raise BadInputError(f"model {reference!r} is not deployed here", hint=f"models: {known}")
    if model.active is None:
        raise NotServingError(f"model {reference!r} is {model.state.value}: nothing is active")
    if model.active.image is not None:
        raise UnsuitableError(f"model {reference!r} is deployed as an image")
    return fitness.load(LayoutReader(state), reference, model.active, threads)
