"""Turns counter regions into telemetry windows."""
