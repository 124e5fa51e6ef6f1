"""Is a stored bundle fit to serve here? The work behind the slow steps; changes nothing."""

from __future__ import annotations

import contextlib

from edgekit.contracts.messages import SlotRef
from edgekit.contracts.oci import LayoutReader
from edgekit.contracts.verdict import Outcome
from edgekit_runtime import bundles, engines, predictor
from edgekit_runtime.bundles import Bundle
from edgekit_runtime.errors import EngineError, UnsuitableError
from edgekit_runtime.predictor import Predictor


def open_fit(blobs: LayoutReader, model: str, ref: SlotRef) -> Bundle:
    """The bundle, every blob hashed again, when it is what ``ref`` promises and the engine fits.

    Raises:
        BadInputError: a blob is missing or altered, a document malformed.
        UnsuitableError: another model, target, engine or engine version.
    """
    bundle = bundles.open_promised(blobs, model, ref)
    engine = bundle.manifest.engine
    bundles.check_engine(bundle.manifest, engine, engines.versions().get(engine, "0"))
    return bundle


def load(blobs: LayoutReader, model: str, ref: SlotRef, threads: int) -> Predictor:
    """A predictor of a bundle that passed before. Raises like `open_fit`."""
    return predictor.load(bundles.open_promised(blobs, model, ref), threads=threads)


def warm_up(loaded: Predictor) -> None:
    """Run a model before it meets traffic: its golden set, or once where the bundle has none.

    Raises:
        UnsuitableError: it does not reproduce its golden set.
        BadInputError: the golden set does not fit the contract.
    """
    golden = loaded.bundle.golden
    if golden is None:
        with contextlib.suppress(EngineError):  # an input that we make up proves nothing
            loaded.model.run(loaded.canary())
        return
    verdict = loaded.replay_golden(golden)
    if verdict.outcome is not Outcome.PASS:
        raise UnsuitableError(f"golden set: {verdict.reason}")
