"""Writes bundles as OCI artifacts into OCI layout folders."""
