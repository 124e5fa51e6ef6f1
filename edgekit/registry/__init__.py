"""Model registry: immutable versions, datasets by digest, lineage."""
