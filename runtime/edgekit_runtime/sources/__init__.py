"""Sources: where a pipeline's items come from. ``python -m edgekit_runtime.sources`` runs one."""
