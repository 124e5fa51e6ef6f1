"""Package: bundles as OCI artifacts in a layout folder."""
