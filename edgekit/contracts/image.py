"""What an image of a bundle says about itself, as builder and agent agree on it."""

from __future__ import annotations

TITLE_LABEL = "org.opencontainers.image.title"  # the model
VERSION_LABEL = "org.opencontainers.image.version"  # of the model
TARGET_LABEL = "edgekit.target"
BUNDLE_LABEL = "edgekit.bundle"  # digest of the bundle's OCI manifest
WORKER_LABEL = "edgekit.worker"

# Spoken between an agent and the worker in an image, which may be of another release: raised with
# every change of `edgekit_runtime.wire` that one side would misunderstand.
WORKER_PROTOCOL = "2"

BUNDLE_FOLDER = "/opt/edgekit/bundle"  # a layout of its own
WORKER_COMMAND = "worker"  # of the image's entry point; its argument is the socket to connect to
