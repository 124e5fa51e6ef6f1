"""What does a device that holds the last version transfer for the next one?

Networks are trained here (`delta_models.py`), built by `edgekit build`, and fetched by the device's
own store. Every byte counts: manifests, the list of deltas, patches, and files that come whole.
Beside the goals, peers make a patch of the same two model files: bsdiff4 and xdelta3 with the old
file, plain zstd without. A peer that is not installed is left out, and its row says so.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import delta_models
import harness
import numpy as np

from edgekit.cli.demo import data
from edgekit.contracts import delta as rules
from edgekit.contracts import zstd
from edgekit.contracts.bundle import Role
from edgekit.package import delta, reader
from edgekit.package.reader import VerifiedBundle

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from agentkit.fetchers import LocalFetcher

from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.store import BlobStore
from edgekit_runtime.verifier import DigestVerifier

TARGETS = ("x86-64-v3", "rpi5")
EPOCHS, TUNING_EPOCHS = 60, 40
LAST_LAYER_MAX, MEMORY_MB_MAX = 0.10, 128.0
MEMORY_FILE_MB = 96
EDGEKIT = (sys.executable, "-c", "from edgekit.cli.main import main; main()")


def train(folder: Path, meters: data.MeterData) -> dict[str, tuple[Path, float]]:
    """Model files by name, with their accuracy on data none of them has seen."""
    first = delta_models.train(delta_models.fresh(1), meters.train, epochs=EPOCHS, last_only=False)
    tuned = delta_models.train(first, meters.field, epochs=TUNING_EPOCHS, last_only=True)
    again = delta_models.train(delta_models.fresh(2), meters.train, epochs=EPOCHS, last_only=False)
    found = {}
    for name, parts in (("v1", first), ("last layer", tuned), ("retrained", again)):
        path = folder / f"{name.replace(' ', '-')}.onnx"
        delta_models.save(parts, path)
        found[name] = (path, delta_models.accuracy(parts, meters.evaluation))
    return found


def build(folder: Path, model: Path, samples: Path) -> Path:
    """Bundles of ``model`` for every target."""
    out = folder / f"out-{model.stem}"
    words = ["build", str(model), "--data", str(samples), "--out", str(out)]
    words += [word for target in TARGETS for word in ("-t", target)]
    environment = {
        "EDGEKIT_CACHE": str(folder / "cache"),
        "EDGEKIT_REGISTRY": str(folder / f"registry-{model.stem}"),
    }
    subprocess.run(
        [*EDGEKIT, *words], check=True, capture_output=True, env={**os.environ, **environment}
    )
    return out


def bundle(out: Path, target: str) -> VerifiedBundle:
    return next(each for each in reader.find_all(str(out)) if each.manifest.target == target)


def model_file(source: VerifiedBundle) -> Path:
    return source.reader.blob_path(source.manifest.required(Role.MODEL).sha256)


def transferred(folder: Path, old: VerifiedBundle, new: VerifiedBundle) -> tuple[int, int]:
    """Bytes a device fetches for ``new``: with the delta from ``old``, and as a new device."""
    facts = delta.make(old, new, new.reader.root, tag=f"d-{new.digest[7:19]}")
    assert facts.subject == new.digest
    work = Path(tempfile.mkdtemp(dir=folder))
    device, bare = (BlobStore(PosixDisk(), work / n, DigestVerifier()) for n in ("a", "b"))
    device.fetch_bundle(LocalFetcher(old.reader.root), "m", old.digest)
    fetcher = LocalFetcher(new.reader.root)
    found = device.fetch_bundle(fetcher, "m", new.digest, held=[old.digest])
    assert not found.note, found.note
    return found.transferred, bare.fetch_bundle(fetcher, "m", new.digest).transferred


def _bsdiff(old: bytes, new: bytes, _folder: Path) -> int | None:
    try:
        import bsdiff4  # noqa: PLC0415 - a peer, not a dependency
    except ImportError:
        return None
    return len(bsdiff4.diff(old, new))


def _xdelta(old: bytes, new: bytes, folder: Path) -> int | None:
    if shutil.which("xdelta3") is None:
        return None
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    files = [str(folder / name) for name in ("old", "new", "patch")]
    subprocess.run(["xdelta3", "-e", "-9", "-f", "-B", "536870912", "-s", *files], check=True)
    return (folder / "patch").stat().st_size


def _plain(_old: bytes, new: bytes, _folder: Path) -> int | None:
    return len(zstd.compress(new, b""))


PEERS: dict[str, Callable[[bytes, bytes, Path], int | None]] = {
    "bsdiff4": _bsdiff,
    "xdelta3 -9": _xdelta,
    "zstd, no base": _plain,
}


def peer_rows(case: str, old: bytes, new: bytes, folder: Path) -> list[harness.Row]:
    """Our patch of the model file beside the peers'."""
    frames = rules.spans(len(old), len(new), delta.BLOCK_BYTES, delta.REACH_BYTES)
    at, ours = 0, 0
    for frame in frames:
        ours += len(zstd.compress(new[at : at + frame.size], old[frame.start : frame.end]))
        at += frame.size
    rows = []
    for name, make in PEERS.items():
        size = make(old, new, folder)
        ratio = None if size is None else ours / size
        note = f"of {len(new)} bytes" if size is not None else "not installed here"
        rows.append(
            harness.Row(case, "patch of the model file, bytes", ours, "none: for comparison",
                        size is not None, peer=name, peer_value=size, ratio=ratio, note=note)
        )  # fmt: skip
    return rows


def memory_row() -> harness.Row:
    """Peak memory of applying a patch to a large file, above what the process had."""
    code = f"import delta; print(delta.memory_mb({MEMORY_FILE_MB}))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    peak = float(done.stdout)
    metric = f"memory to patch a file of {MEMORY_FILE_MB} MB, MB"
    met = peak <= MEMORY_MB_MAX
    return harness.Row("device", metric, peak, f"<= {MEMORY_MB_MAX:g} MB", met)


def memory_mb(size_mb: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        old, patch = Path(name) / "old", Path(name) / "patch"
        rng, part = np.random.default_rng(1), 1024 * 1024
        with old.open("wb") as file:
            for _ in range(size_mb):
                file.write(rng.bytes(part))
        size = old.stat().st_size
        frames = rules.spans(size, size, delta.BLOCK_BYTES, delta.REACH_BYTES)
        child = os.fork()
        if child == 0:  # making a patch takes more memory than applying it: not in this process
            with old.open("rb") as file, patch.open("wb") as out:
                for number, frame in enumerate(frames):
                    file.seek(number * delta.BLOCK_BYTES)
                    new = bytearray(file.read(frame.size))
                    new[:1000] = rng.bytes(1000)
                    file.seek(frame.start)
                    out.write(zstd.compress(bytes(new), file.read(frame.end - frame.start)))
            os._exit(0)
        os.waitpid(child, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        disk = PosixDisk()
        made = sum(
            len(chunk)
            for chunk in zstd.apply(
                lambda at, count: disk.read_at(old, at, count), frames, [patch.read_bytes()]
            )
        )
        assert made == size
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def rows(folder: Path) -> list[harness.Row]:
    meters = data.load(data.cache_folder())
    parts = [meters.calibration, meters.tuning, meters.evaluation, meters.golden]
    samples = folder / "data.npz"
    np.savez(samples, allow_pickle=False, power=np.concatenate([part.x for part in parts]),
             labels=np.concatenate([part.y for part in parts]))  # fmt: skip
    trained = train(folder, meters)
    outs = {name: build(folder, path, samples) for name, (path, _) in trained.items()}
    found = []
    for target in TARGETS:
        old = bundle(outs["v1"], target)
        for name, limit in (("last layer", LAST_LAYER_MAX), ("retrained", 1.0)):
            new = bundle(outs[name], target)
            with_delta, whole = transferred(folder, old, new)
            share = with_delta / whole
            note = (
                f"{with_delta} of {whole} bytes; {old.manifest.precision} to "
                f"{new.manifest.precision}; accuracy {trained['v1'][1]:.3f} to "
                f"{trained[name][1]:.3f}"
            )
            case = f"{target}, {name}"
            met = share <= limit
            found.append(
                harness.Row(case, "transfer, share of the variant", share, f"<= {limit:g}", met,
                            note=note)
            )  # fmt: skip
            files = (model_file(old).read_bytes(), model_file(new).read_bytes())
            found += peer_rows(case, *files, folder)
    return [*found, memory_row()]


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        found = rows(Path(name))
    title = "Deltas: what an update transfers to a device that holds the last version"
    return 0 if harness.write("delta", title, found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
