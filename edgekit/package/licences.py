"""Licences of packages and models, as they declare them, for a CycloneDX document.

A model declares its own in the front matter of its card (``license: apache-2.0``), as model hubs
have it. A package's metadata says: an expression (PEP 639) is taken as it stands, a classifier by
its SPDX name where it has exactly one, and free text by name. What declares nothing is left out:
nothing is guessed.
"""

from __future__ import annotations

import email
import re
import zipfile
from collections.abc import Iterable, Mapping
from email.message import Message
from importlib import metadata as importlib_metadata
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
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LICENCE = re.compile(r"^license:[ \t]*[\"']?([^\s\"'#][^\"'#\n]*?)[\"']?[ \t]*$", re.MULTILINE)
_IDENTIFIERS = {
    name.lower(): name
    for name in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MPL-2.0", "CC0-1.0"),
        *("CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "LGPL-3.0-only", "Unlicense"),
    )
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


def of_card(card: str) -> list[dict[str, Any]]:
    """Licence that a model's card declares; empty when it declares none."""
    front = _FRONT_MATTER.search(card)
    found = _LICENCE.search(front[1]) if front else None
    if found is None or len(found[1]) > TEXT_CHARS_MAX:
        return []
    identifier = _IDENTIFIERS.get(found[1].lower())
    return [{"license": {"id": identifier} if identifier else {"name": found[1]}}]


def of_installed(versions: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Licences of those packages that are installed here in exactly these versions."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, version in versions.items():
        try:
            distribution = importlib_metadata.distribution(name)
        except importlib_metadata.PackageNotFoundError:
            continue
        if distribution.version == version:
            # The same headers as an e-mail message, behind a narrower type.
            found[name] = declared(
                email.message_from_string(str(distribution.read_text("METADATA")))
            )
    return found
