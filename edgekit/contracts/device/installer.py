"""The install script and the program it runs, as bytes. Equal sources give equal bytes."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from importlib import resources

PROGRAM = "edgekit-install.pyz"
SCRIPT = "install.sh"
_MODULES = (
    "edgekit/__init__.py",
    "edgekit/contracts/__init__.py",
    "edgekit/contracts/device/__init__.py",
    "edgekit/contracts/device/bootstrap.py",
    "edgekit/contracts/device/joining.py",
    "edgekit/contracts/device/edgekit-agent.service",
)
_MAIN = b"from edgekit.contracts.device.joining import main\nraise SystemExit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~/-]*)?")


def program() -> bytes:
    """A zip archive that Python runs: the modules of this folder, as source."""
    root = resources.files("edgekit")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _MODULES:
            data = root.joinpath(name.partition("/")[2]).read_bytes()
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _MAIN, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def script(manager: str, program_bytes: bytes) -> bytes:
    """The install script for devices of ``manager``; for an export when that is empty.

    Raises:
        ValueError: ``manager`` is no plain URL: it would become a part of a shell script.
    """
    if manager and not _URL.fullmatch(manager):
        raise ValueError(f"{manager[:200]!r} is no plain URL")
    text = resources.files("edgekit.contracts.device").joinpath(SCRIPT).read_text()
    digest = hashlib.sha256(program_bytes).hexdigest()
    return text.replace("@MANAGER@", manager).replace("@SHA256@", digest).encode()
