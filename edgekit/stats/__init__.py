"""Shared maths of build gates, device monitors and rollout gates. numpy only, no I/O."""
