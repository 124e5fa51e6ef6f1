"""How large is an arm64 image, how long does it take, and what does a new model transfer?

Builds images of one small model (two versions) on a bookworm root made by mmdebstrap, wheels cached
beforehand. No peer: the Docker builder gives other layer digests for the same inputs each time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

from edgekit.build.cache import Cache
from edgekit.contracts.oci import LayoutReader
from edgekit.package import image, reader

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from agentkit.layouts import LayoutWriter

MB_MAX, UNPACKED_MB_MAX = 75.0, 210.0
BUILD_S_MAX, AGAIN_S_MAX = 20.0, 3.0
BESIDE_MODEL_BYTES_MAX = 20_000
PACKAGES = "python3-minimal,libpython3.11-stdlib,libstdc++6,ca-certificates"


def root(folder: Path) -> Path | None:
    """A fresh arm64 root; None where mmdebstrap is not installed."""
    out = folder / "arm64.tar"
    command = ["mmdebstrap", "--quiet", "--architectures=arm64", "--variant=extract"]
    command += [f"--include={PACKAGES}", "bookworm", str(out)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return out


def build(
    bundles: Path, cache: Path, wheels: Path, base: Path, out: Path
) -> tuple[float, image.Written]:
    begun = time.perf_counter()
    builder = image.Builder(Cache(cache), wheels, epoch=0, on_step=lambda _: None)
    plan = builder.plan(reader.find(str(bundles)), "arm64", builder.rootfs(base))
    (written,) = builder.write([plan], out)
    return time.perf_counter() - begun, written


def transferred(old: Path, new: Path) -> tuple[int, int]:
    """Bytes of the new image that a holder of the old one lacks: model layer, and all else."""
    held = {path.name for path in (old / "blobs" / "sha256").iterdir()}
    layout = LayoutReader(new)
    top = layout.manifest(layout.resolve()).layers[-1].digest.removeprefix("sha256:")
    fresh = [p for p in (new / "blobs" / "sha256").iterdir() if p.name not in held]
    model = sum(p.stat().st_size for p in fresh if p.name == top)
    return model, sum(p.stat().st_size for p in fresh) - model


def rows(folder: Path, base: Path) -> list[harness.Row]:
    for version in (1, 2):
        layout = LayoutWriter(folder / f"v{version}")
        layout.add(target="rpi5", version=str(version), seed=version)
    wheels = folder / "wheels"
    build(folder / "v1", folder / "warm", wheels, base, folder / "warm-image")  # fetches wheels
    cold, first = build(folder / "v1", folder / "cache", wheels, base, folder / "one")
    again, _ = build(folder / "v2", folder / "cache", wheels, base, folder / "two")
    packed, unpacked = first.compressed / 1e6, first.unpacked / 1e6
    model, beside = transferred(folder / "one", folder / "two")
    case = "rpi5, onnxruntime, bookworm"
    figures = [
        ("compressed MB", packed, MB_MAX, "MB"),
        ("unpacked MB", unpacked, UNPACKED_MB_MAX, "MB"),
        ("build, wheels cached, s", cold, BUILD_S_MAX, "s"),
        ("build of the next model, s", again, AGAIN_S_MAX, "s"),
        ("beside the model layer, bytes", float(beside), BESIDE_MODEL_BYTES_MAX, "bytes"),
    ]
    note = f"the model layer itself is {model} bytes"
    return [
        harness.Row(case, metric, value, f"<= {limit:g} {unit}", value <= limit,
                    note=note if unit == "bytes" else "")
        for metric, value, limit, unit in figures
    ]  # fmt: skip


def main() -> int:
    title = "Images: size, time, and what an update transfers"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = root(folder)
        found = rows(folder, base) if base else [
            harness.Row("rpi5", "all", None, "all of them", met=False,
                        note="mmdebstrap could not make a root")
        ]  # fmt: skip
    return 0 if harness.write("package", title, found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
