"""Shared vocabulary of builder, agent and manager.

Everything that crosses a process or machine boundary is defined here, once. This package
imports nothing heavier than ``msgspec`` and runs on Python 3.10 (JetPack 6).
"""
