"""Small root file systems with what a base is judged by: a C library's marks and a Python."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

MACHINES = {"amd64": (62, "x86_64-linux-gnu"), "arm64": (183, "aarch64-linux-gnu")}


def libc(arch: str, glibc: str = "2.36") -> bytes:
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 3, MACHINES[arch][0])
    return header + f"GNU C Library (made up) stable release version {glibc}.".encode()


def member(name: str, data: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def base(arch: str = "arm64", glibc: str = "2.36", python: str = "3.11") -> list:
    triple = MACHINES[arch][1]
    return [
        member("./", type=tarfile.DIRTYPE, mode=0o755),
        member(f"./lib/{triple}/libc.so.6", libc(arch, glibc), mode=0o755, mtime=5),
        member(f"./usr/bin/python{python}", b"#!python", mode=0o4755, uid=12, uname="me"),
        member("./usr/bin/python3", type=tarfile.SYMTYPE, linkname=f"python{python}"),
        member("./etc/alternatives/awk", type=tarfile.SYMTYPE, linkname="/usr/bin/mawk"),
        member("./dev/null", type=tarfile.CHRTYPE),
        member("./usr/share/doc/libc6/copyright", b"LGPL"),
        member("./usr/share/doc/libc6/changelog.gz", b"long"),
    ]


def write(path: Path, members: list) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path
