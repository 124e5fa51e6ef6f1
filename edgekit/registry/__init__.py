"""Registry: immutable model versions, data sets by digest, contracts, lineage."""
