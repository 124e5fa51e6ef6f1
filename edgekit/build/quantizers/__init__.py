"""Quantizers, one per module; each runs in its own process."""
