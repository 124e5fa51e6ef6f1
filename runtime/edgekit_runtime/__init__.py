"""On-device runtime: offline inference, deployment machine, store-and-forward telemetry."""
