"""The one way to turn documents into bytes and back.

* Canonical bytes: JSON, keys sorted, no insignificant white space, UTF-8. Two equal values
  encode to equal bytes on every machine, so a digest over them identifies the value.
* Every decode names what was read, is bounded in size and raises `BadInputError`.
* Unknown fields: structs ignore what they do not know. A document that must *survive* (signed or
  relayed) therefore travels in an `Envelope`, whose payload stays the raw bytes and is never
  decoded and re-encoded.
* NaN and infinities have no JSON form; msgspec writes ``null``. Fields that may lack a
  value are declared ``float | None``, so a figure that was not measured reads back as None.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.limits import DOCUMENT_BYTES_MAX

T = TypeVar("T")


class Envelope(msgspec.Struct, frozen=True):
    """A document that is relayed byte for byte: ``payload`` is kept raw.

    ``sig`` is reserved for the signature that the trust layer adds; None means unsigned.
    """

    payload: msgspec.Raw
    sig: str | None = None


def _enc_hook(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot encode {type(value).__name__}")


def encode(value: Any) -> bytes:
    """Canonical JSON bytes of ``value``."""
    return msgspec.json.encode(value, order="deterministic", enc_hook=_enc_hook)


def encode_pretty(value: Any) -> bytes:
    """Canonical JSON, indented for people, ending in a newline."""
    return msgspec.json.format(encode(value), indent=2) + b"\n"


def decode(
    kind: type[T],
    raw: bytes | bytearray | memoryview | msgspec.Raw,
    *,
    what: str,
    bytes_max: int = DOCUMENT_BYTES_MAX,
    hint: str | None = None,
) -> T:
    """Decode ``raw`` as ``kind``.

    Args:
        kind: the msgspec type expected.
        raw: JSON bytes.
        what: how the message calls this input, e.g. ``"contract contract.json"``.
        bytes_max: larger input is refused unread.
        hint: how to mend it, when the caller knows.

    Raises:
        BadInputError: too large, not JSON, or a field does not fit; names the field.
    """
    size = memoryview(raw).nbytes
    if size > bytes_max:
        raise BadInputError(f"{what}: {size} bytes, more than the {bytes_max} allowed", hint=hint)
    try:
        value: T = msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        # Broken UTF-8 and deep nesting are not of msgspec's own family.
        raise BadInputError(f"{what}: {exc}", hint=hint) from exc
    return value


def read(kind: type[T], path: Path, *, bytes_max: int = DOCUMENT_BYTES_MAX) -> T:
    """Read and decode the document at ``path``.

    Raises:
        BadInputError: missing, unreadable, too large or malformed.
    """
    with translate_os_errors("read", path):
        size = path.stat().st_size
        if size > bytes_max:
            raise BadInputError(f"{path}: {size} bytes, more than the {bytes_max} allowed")
        raw = path.read_bytes()
    return decode(kind, raw, what=str(path), bytes_max=bytes_max)


def seal(document: Any) -> bytes:
    """Wrap ``document`` in an unsigned `Envelope`; returns the bytes to relay or store."""
    return encode(Envelope(payload=msgspec.Raw(encode(document))))


def open_envelope(raw: bytes, *, what: str, bytes_max: int = DOCUMENT_BYTES_MAX) -> Envelope:
    """Decode the outer layer only; the payload keeps its bytes, unknown fields included.

    Raises:
        BadInputError: not an envelope.
    """
    envelope = decode(Envelope, raw, what=what, bytes_max=bytes_max)
    # A Raw decoded from a message may be a view on it: copy, so that the buffer can be freed.
    return Envelope(payload=envelope.payload.copy(), sig=envelope.sig)
