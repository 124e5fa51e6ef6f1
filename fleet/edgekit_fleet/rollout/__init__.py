"""Staged rollouts: a pure core decides, the controller carries out.

`core.step(state, observation, now)` is the whole logic; nothing in this package but `controller`
does I/O, and that only through `ports`.
"""
