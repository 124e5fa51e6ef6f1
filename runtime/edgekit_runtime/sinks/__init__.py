"""Sinks: where a pipeline's answers go. Each has a bounded queue and a thread of its own."""
