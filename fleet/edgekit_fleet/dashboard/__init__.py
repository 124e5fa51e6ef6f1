"""The status page: one file, nothing loaded from elsewhere."""
