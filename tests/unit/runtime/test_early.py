"""A model that was loaded ahead is used as it was ordered, or not at all."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from agentkit.layouts import LayoutWriter

from edgekit.contracts.errors import BadInputError, BugError
from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, predictor
from edgekit_runtime.early import Early
from edgekit_runtime.errors import UnsuitableError


@pytest.fixture
def bundle(tmp_path):
    return bundles.open_bundle(LayoutReader(tmp_path), LayoutWriter(tmp_path).add())


def test_what_was_loaded_ahead_answers(bundle):
    engine = Early(bundle, 1).engine(1)
    assert engine is not None
    loaded = predictor.load(bundle, threads=1, engine=engine)
    assert loaded.model is engine.load(bundle.model_path)
    assert loaded.canary()


@pytest.mark.parametrize("threads", [None, 2])
def test_limits_and_other_orders_leave_the_loading_to_the_worker(bundle, threads):
    assert Early(bundle, threads).engine(1) is None


def test_nothing_else_is_loaded_by_it(bundle):
    engine = Early(bundle, 1).engine(1)
    assert engine is not None
    with pytest.raises(BugError, match="loaded ahead"):
        engine.load(Path("/other.onnx"))


def test_a_bundle_for_another_engine_is_refused_before_it_is_loaded(bundle):
    bundle.model_path.write_bytes(b"no model")
    manifest = msgspec.structs.replace(bundle.manifest, engine_versions=">=99")
    early = Early(msgspec.structs.replace(bundle, manifest=manifest), 1)
    with pytest.raises(UnsuitableError, match="needs onnxruntime >=99"):
        early.engine(1)


def test_what_is_wrong_is_said_when_it_is_asked_for(bundle):
    bundle.model_path.write_bytes(b"no model")
    early = Early(bundle, 1)
    with pytest.raises(BadInputError, match="cannot load this model"):
        early.engine(1)
