"""Is a stored bundle fit to serve here? The work behind the slow steps; changes nothing."""

from __future__ import annotations

from edgekit.contracts import digest as digests
from edgekit.contracts.messages import SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.verdict import Outcome
from edgekit_runtime import bundles, engines, predictor
from edgekit_runtime.bundles import Bundle
from edgekit_runtime.errors import UnsuitableError
from edgekit_runtime.predictor import Predictor


def open_fit(blobs: LayoutReader, model: str, ref: SlotRef) -> Bundle:
    """The bundle, every blob hashed again, when it is what ``ref`` promises and the engine fits.

    Raises:
        BadInputError: a blob is missing or altered, a document malformed.
        UnsuitableError: another model, target, engine or engine version.
    """
    bundle = _open_promised(blobs, model, ref)
    engine = bundle.manifest.engine
    bundles.check_engine(bundle.manifest, engine, engines.versions().get(engine, "0"))
    return bundle


def _open_promised(blobs: LayoutReader, model: str, ref: SlotRef) -> Bundle:
    bundle = bundles.open_bundle(blobs, ref.digest)
    manifest = bundle.manifest
    if manifest.model != model or manifest.target != ref.target:
        raise UnsuitableError(
            f"bundle {digests.short(ref.digest)} is {manifest.model} for {manifest.target}, "
            f"not {model} for {ref.target}"
        )
    return bundle


def load(blobs: LayoutReader, model: str, ref: SlotRef, threads: int) -> Predictor:
    """A predictor of a bundle that passed before. Raises like `open_fit`."""
    return predictor.load(_open_promised(blobs, model, ref), threads=threads)


def load_tested(blobs: LayoutReader, model: str, ref: SlotRef, threads: int) -> Predictor:
    """A predictor that reproduced its golden set, where the bundle has one.

    Raises:
        UnsuitableError: it did not, or see `open_fit`.
        BadInputError: see `open_fit`.
    """
    loaded = load(blobs, model, ref, threads)
    if loaded.bundle.golden is not None:
        verdict = loaded.replay_golden(loaded.bundle.golden)
        if verdict.outcome is not Outcome.PASS:
            raise UnsuitableError(f"golden set: {verdict.reason}")
    return loaded
