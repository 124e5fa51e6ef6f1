"""Starts the agent's runtime, tries new ones, and goes back by itself. Standard library only.

``python3 -I -S .../edgekit_runtime/supervisor/__main__.py STATE_DIR run --config FILE``. A copy of
this package beside the state outlives every runtime it starts. Runtimes lie in
``STATE_DIR/runtimes/<hex>``; which of them runs stands in ``STATE_DIR/runtime.a`` and
``runtime.b``, the two-copy format of `edgekit_runtime.twocopy`, written by this program alone.

* An agent that has a new runtime unpacked and verified leaves ``runtime.request`` and ends with
  `rules.EXIT_SWITCH`. The request is taken into the record, durably, before it is removed.
* On trial a try is persisted *before* each start. A runtime that ends too often, hangs, or has not
  reported in time is quarantined and the one before runs again. None of this needs a network.
* *Reported* means that the agent says so on the notify socket (``EDGEKIT=reported``): it has its
  state, serves what was deployed, and its control loop goes round. It must then stay alive for
  ``confirm_s``.
* Agents end with this program, however it ends (``PR_SET_PDEATHSIG``). What they tell the service
  manager is passed on; this program adds its own sign of life.

Nothing in here may import anything but the standard library and itself (tests/repo enforces it).
"""
