"""Build pipeline: normalise, quantize, measure, gate, for each target profile."""
