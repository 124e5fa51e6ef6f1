"""How a bundle asks its engine to run it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from agentkit.layouts import LayoutWriter
from buildkit import graphs

from edgekit.contracts.oci import LayoutReader
from edgekit_runtime import bundles, engines, predictor
from edgekit_runtime.errors import UnsuitableError


def test_a_layout_for_the_processor_changes_no_answer_beyond_rounding(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(graphs.convolution(channels=32), path)
    plain = engines.create("onnxruntime").load(path)
    laid_out = engines.create("onnxruntime", {"graph_optimization": "all"}).load(path)
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    (expected,) = plain.run({plain.input_names[0]: x}).values()
    (found,) = laid_out.run({plain.input_names[0]: x}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"graph_optimization": "most"}, {"blocks": "16"}])
def test_an_option_from_the_future_is_refused(tmp_path, options):
    writer = LayoutWriter(tmp_path)
    digest = writer.add(engine_options=options)
    bundle = bundles.open_bundle(LayoutReader(tmp_path), digest)
    with pytest.raises(UnsuitableError, match="not known to this agent") as caught:
        predictor.load(bundle)
    assert "update the agent's runtime" in caught.value.hint
