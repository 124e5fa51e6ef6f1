"""A folder from which devices install themselves without any network: a stick.

::

    install.sh            sh install.sh, on the device
    edgekit-install.pyz   what it runs, with its SHA-256 in the script
    site.json             settings, and a runtime for each platform
    layout/               the runtimes
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgekit.contracts import codec
from edgekit.contracts.device import installer
from edgekit.contracts.device.joining import SITE_FILE
from edgekit.contracts.errors import BadInputError, translate_os_errors
from edgekit.contracts.oci import REF_NAME
from edgekit.contracts.runtime import tag_of
from edgekit.package.layout import transaction
from edgekit.package.runtime import VerifiedRuntime
from edgekit.registry import files


class ExportedRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """One platform's runtime."""

    digest: str
    glibc: str


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """``site.json``. ``broker`` has a host and a port."""

    schema: int = 1
    tenant: str
    broker: dict[str, str | int]
    runtimes: dict[str, ExportedRuntime]


def write(
    runtimes: Sequence[VerifiedRuntime], out: Path, *, tenant: str, host: str, port: int
) -> Site:
    """Write the folder ``out``, complete or not at all.

    Raises:
        BadInputError: ``out`` exists, two runtimes for one platform, or none at all.
        ResourceError: disk full.
    """
    if out.exists() or out.is_symlink():
        raise BadInputError(f"{out}: exists already", hint="choose a folder that does not")
    tags = [tag_of(each.manifest.arch, each.manifest.python) for each in runtimes]
    if not tags or len(set(tags)) != len(tags):
        raise BadInputError(
            f"{out}: one runtime a platform is exported, these are {', '.join(tags) or 'none'}",
            hint="build them into one layout with `edgekit runtime build`",
        )
    site = Site(
        tenant=tenant,
        broker={"host": host, "port": port},
        runtimes={
            tag: ExportedRuntime(digest=each.digest, glibc=each.manifest.glibc)
            for tag, each in zip(tags, runtimes, strict=True)
        },
    )
    with translate_os_errors("write", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:40]}."))
    try:
        _fill(partial, runtimes, site)
        with translate_os_errors("write", out):
            partial.chmod(0o755)
            partial.rename(out)
            files.sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return site


def _fill(folder: Path, runtimes: Sequence[VerifiedRuntime], site: Site) -> None:
    with transaction(folder / "layout") as change:
        for each in runtimes:
            for blob in each.descriptors:
                change.put(each.reader.blob_path(blob.digest), blob.media_type)
            tag = tag_of(each.manifest.arch, each.manifest.python)
            top = each.descriptors[0]
            change.point(tag, msgspec.structs.replace(top, annotations={REF_NAME: tag}))
    program = installer.program()
    files.write_atomic(folder / installer.PROGRAM, program)
    files.write_atomic(folder / installer.SCRIPT, installer.script("", program))
    files.write_atomic(folder / SITE_FILE, codec.encode_pretty(site))
