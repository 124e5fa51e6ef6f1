"""Licences of wheels, as their metadata declares them, for a CycloneDX document.

An expression (PEP 639) is taken as it stands, a classifier by its SPDX name where it has exactly
one, and free text by name. What declares nothing is left out: nothing is guessed.
"""

from __future__ import annotations

import email
import re
import zipfile
from collections.abc import Iterable
from email.message import Message
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from edgekit.contracts.errors import BadInputError

TEXT_CHARS_MAX = 80  # some packages put the whole licence into the field meant for its name
_CLASSIFIER = "License :: OSI Approved :: "
_SPDX = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
}
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA")


def declared(metadata: Message) -> list[dict[str, Any]]:
    """CycloneDX's ``licenses`` of a package; empty when it declares none."""
    expression = metadata.get("License-Expression")
    if expression:
        return [{"expression": str(expression)}]
    named = [
        str(line).removeprefix(_CLASSIFIER)
        for line in metadata.get_all("Classifier") or ()
        if str(line).startswith(_CLASSIFIER)
    ]
    if len(named) == 1 and named[0] in _SPDX:
        return [{"license": {"id": _SPDX[named[0]]}}]
    text = str(metadata.get("License") or "").strip()
    if text and len(text) <= TEXT_CHARS_MAX and "\n" not in text:
        return [{"license": {"name": text}}]
    return [{"license": {"name": name}} for name in named]


def of_wheels(wheels: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """Licences by normalised package name.

    Raises:
        BadInputError: a wheel is damaged.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                inside = next((n for n in archive.namelist() if _METADATA.fullmatch(n)), None)
                metadata = email.message_from_bytes(archive.read(inside) if inside else b"")
        except (zipfile.BadZipFile, OSError) as exc:
            raise BadInputError(f"{wheel}: not a wheel: {exc}", hint="delete it") from exc
        name = canonicalize_name(str(metadata.get("Name") or wheel.name.partition("-")[0]))
        found[name] = declared(metadata)
    return found
