"""Pipelines: from a source through a model into sinks, for devices without an application.

`spec` is what the configuration says, `keeper` the agent's side: it starts one process for each
pipeline (``python -m edgekit_runtime.sources``) and starts it again. In that process `run` moves
items from the source (`edgekit_runtime.sources`) through the agent's own endpoint into the sinks
(`edgekit_runtime.sinks`); `counts` is the page both sides read.
"""
