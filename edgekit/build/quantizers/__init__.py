"""Quantizers behind one Protocol, one per module; they run in a process of their own."""
