"""``edgekit demo``: the main job end to end, on real data, with real processes and real faults.

Everything here is a user of edgekit: models are registered, built and published through the CLI,
the fleet is driven through its API, and the report's figures are read back from database, device
state and ``/proc``. Nothing in the product knows that the demo exists.
"""
