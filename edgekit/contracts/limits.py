"""Upper bounds on everything that is read from outside, units in the names.

A bound that is too low refuses honest input; one that is too high lets a broken or hostile
peer exhaust a small device. Each value says what it protects.
"""

from __future__ import annotations

DESIRED_BYTES_MAX = 64 * 1024  # retained per device in the broker; 32 KB proved too small elsewhere
REPORTED_BYTES_MAX = 64 * 1024
SMALL_MESSAGE_BYTES_MAX = 16 * 1024  # presence, ack
FRAME_BYTES_MAX = 128 * 1024  # AWS IoT Core refuses payloads above 128 KiB
FRAME_RECORDS_MAX = 200  # larger frames lose more to one damaged sector, smaller compress worse
FRAME_INFLATED_BYTES_MAX = 4 * 1024 * 1024  # zlib bombs stop here
OCI_MANIFEST_BYTES_MAX = 4 * 1024 * 1024  # the distribution spec asks registries to accept 4 MiB
DOCUMENT_BYTES_MAX = 16 * 1024 * 1024  # contracts, records, cards read from disk
BUNDLE_FILES_MAX = 256
MODEL_BYTES_MAX = 2 * 1024 * 1024 * 1024  # protobuf's own limit for a single ONNX file
ACK_INTERVALS_MAX = 256
LABELS_MAX = 64  # per device
DELTA_BLOCK_BYTES_MAX = 64 * 1024 * 1024  # of a patch: a device holds a block and what it refers to
DELTA_REACH_BYTES_MAX = 64 * 1024 * 1024
