"""Build: quantize for each target, measure with the device's own code, gate, keep the evidence."""
