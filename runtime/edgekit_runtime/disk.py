"""The real `Disk`: POSIX files with the fsyncs that a power cut asks for."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.contracts.errors import translate_os_errors


class PosixDisk:
    """`edgekit_runtime.ports.Disk` on a local file system."""

    def read(self, path: Path, *, bytes_max: int) -> bytes | None:
        """See `Disk.read`."""
        try:
            with path.open("rb") as stream:
                return stream.read(bytes_max)
        except FileNotFoundError:
            return None
        except OSError:
            with translate_os_errors("read", path):
                raise

    def read_at(self, path: Path, offset: int, length: int) -> bytes:
        """See `Disk.read_at`."""
        with translate_os_errors("read", path), path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    def size(self, path: Path) -> int | None:
        """See `Disk.size`."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def append(self, path: Path, data: bytes, *, sync: bool) -> None:
        """See `Disk.append`."""
        with translate_os_errors("write", path):
            created = not path.exists()
            with path.open("ab", buffering=0) as stream:
                _write_all(stream.fileno(), data)
                if sync:
                    os.fdatasync(stream.fileno())
        if created and sync:
            self.sync_dir(path.parent)

    def sync(self, path: Path) -> None:
        """See `Disk.sync`."""
        with translate_os_errors("sync", path), path.open("rb") as stream:
            os.fsync(stream.fileno())

    def truncate(self, path: Path, length: int) -> None:
        """See `Disk.truncate`."""
        with translate_os_errors("truncate", path), path.open("r+b") as stream:
            stream.truncate(length)
            os.fsync(stream.fileno())

    def overwrite(self, path: Path, data: bytes) -> None:
        """See `Disk.overwrite`."""
        with translate_os_errors("write", path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _write_all(handle, data)
                os.ftruncate(handle, len(data))
                os.fsync(handle)
            finally:
                os.close(handle)
        self.sync_dir(path.parent)

    def replace(self, path: Path, data: bytes) -> None:
        """See `Disk.replace`."""
        partial = path.with_name(path.name + ".partial")
        with translate_os_errors("write", path):
            try:
                with partial.open("wb", buffering=0) as stream:
                    _write_all(stream.fileno(), data)
                    os.fsync(stream.fileno())
                partial.replace(path)
            except OSError:
                partial.unlink(missing_ok=True)
                raise
        self.sync_dir(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """See `Disk.rename`."""
        with translate_os_errors("rename", source):
            source.replace(target)
        self.sync_dir(target.parent)

    def unlink(self, path: Path) -> None:
        """See `Disk.unlink`."""
        with translate_os_errors("remove", path):
            path.unlink(missing_ok=True)

    def sync_dir(self, path: Path) -> None:
        """See `Disk.sync_dir`."""
        with translate_os_errors("sync", path):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def make_dir(self, path: Path) -> None:
        """See `Disk.make_dir`."""
        with translate_os_errors("create", path):
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
        # What is stored in a folder is only as safe as the folder's own name.
        for folder in reversed(missing):
            self.sync_dir(folder.parent)

    def names(self, path: Path) -> list[str]:
        """See `Disk.names`."""
        try:
            return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []
        except OSError:
            with translate_os_errors("list", path):
                raise

    def free_bytes(self, path: Path) -> int:
        """See `Disk.free_bytes`."""
        with translate_os_errors("inspect", path):
            facts = os.statvfs(path)
        return facts.f_bavail * facts.f_frsize


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
