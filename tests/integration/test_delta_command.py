"""`edgekit bundle delta`, any registry, a device; and zstd's own program on what we write."""

import json
import os
import shutil
import subprocess

import pytest
from agentkit import deltas
from fleetkit.processes import edgekit
from packagekit.servers import serving

from edgekit.contracts import delta, oci
from edgekit.contracts.errors import UnavailableError
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.download import HttpFetcher
from edgekit_runtime.store import BlobStore
from edgekit_runtime.verifier import DigestVerifier

pytestmark = pytest.mark.integration


@pytest.fixture
def made(tmp_path):
    """A layout with two versions and the delta between them, written by the command."""
    writer, old, new = deltas.versions(tmp_path / "layout")
    words = ["bundle", "delta", f"{writer.root}@1", f"{writer.root}@2", "--out", str(writer.root)]
    done = edgekit(*words, "--tag", "d", "--json")
    assert done.returncode == 0, done.stderr
    return writer, old, new, json.loads(done.stdout)


def test_a_delta_goes_through_any_registry(tmp_path, made):
    writer, old, new, facts = made
    assert facts["transfer_bytes"] < 0.1 * facts["full_bytes"]
    with serving(tmp_path / "store") as served:
        for tag in ("1", "2", "d"):
            done = edgekit("push", f"{writer.root}@{tag}", f"{served.host}/meter:{tag}")
            assert done.returncode == 0, done.stderr
        fetcher = HttpFetcher(f"http://{served.host}")
        device = BlobStore(PosixDisk(), tmp_path / "device", DigestVerifier())
        device.fetch_bundle(fetcher, "meter", old)
        served.cut_after = 100  # of the patch, which goes on where it ended
        with pytest.raises(UnavailableError):
            device.fetch_bundle(fetcher, "meter", new, held=[old])
        served.statuses = [503]
        with pytest.raises(UnavailableError):
            device.fetch_bundle(fetcher, "meter", new, held=[old])
        found = device.fetch_bundle(fetcher, "meter", new, held=[old])
        assert found.note == ""
        assert found.transferred < facts["transfer_bytes"] + 1000
    text = edgekit("bundle", "delta", f"{writer.root}@1", f"{writer.root}@2", "--out",
                   str(tmp_path / "other"))  # fmt: skip
    assert "to transfer " in text.stdout
    both = edgekit("release", "publish", "x", "--no-delta", "--delta-from", str(writer.root))
    assert both.returncode == 2


def test_a_patch_of_one_frame_is_what_zstd_writes(tmp_path, made):
    program = shutil.which("zstd")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("zstd is not on PATH, and CI shows that patches are its own format")
        pytest.skip("zstd is not on PATH (apt-get install zstd)")
    writer, old, new, facts = made
    layout = oci.LayoutReader(writer.root)
    (patch,) = delta.read(layout.manifest(facts["digest"]), old, new).values()
    out = tmp_path / "out"
    command = [program, "-d", "--long=27", "--patch-from", str(layout.blob_path(patch.base))]
    subprocess.run([*command, str(layout.blob_path(patch.blob.digest)), "-o", str(out)], check=True)
    assert out.read_bytes() == deltas.weights(1, 2000)
