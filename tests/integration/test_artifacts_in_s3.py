"""Artifacts in a bucket: a real S3 client against a server that speaks S3 over HTTP (moto's)."""

import subprocess
import sys

import httpx
import pytest
from agentkit import deltas
from agentkit.ports import free_port
from fleetkit.processes import wait_for
from packagekit.servers import serving

from edgekit.contracts import codec, delta
from edgekit.contracts.errors import BadInputError, UnavailableError, UsageError
from edgekit.contracts.oci import Index, LayoutReader
from edgekit.package import reader, reference, transfer
from edgekit.package.registry import Registry
from edgekit_fleet.s3 import S3Objects
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.download import HttpFetcher
from edgekit_runtime.store import BlobStore
from edgekit_runtime.verifier import DigestVerifier

pytestmark = pytest.mark.integration
URL = "s3://models/fleet/one"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """A server with one bucket."""
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log"
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)

    def made() -> bool:
        try:
            return httpx.put(f"{url}/models", timeout=5).status_code == 200
        except httpx.HTTPError:
            assert child.poll() is None, log.read_text()
            return False

    with pytest.MonkeyPatch.context() as patch:
        for key, value in (("ACCESS_KEY_ID", "me"), ("SECRET_ACCESS_KEY", "x"), ("REGION", "eu")):
            patch.setenv(f"AWS_{key}", value)
        try:
            wait_for(made, "a bucket", timeout_s=60)
            yield url
        finally:
            child.kill()
            child.wait(20)


def push(host, layout, digest, name="meter"):
    with Registry(reference.parse(f"{host}/{name}:1"), environ={}) as registry:
        transfer.push(registry, LayoutReader(layout), digest, ["1", digest], lambda _: None)


def test_everything_a_registry_serves_comes_from_the_bucket(tmp_path, endpoint):
    writer, old, new = deltas.versions(tmp_path / "layout")
    facts = deltas.add(writer, old, new)
    with serving(tmp_path / "local", S3Objects.open(URL, endpoint)) as served:
        for digest in (old, new, facts.digest):
            push(served.host, writer.root, digest)
        base = f"http://{served.host}/v2/meter"
        assert httpx.get(f"{base}/tags/list").json()["tags"] == ["1"]
        model = reader.read(LayoutReader(writer.root), new).manifest.files[0]
        blob = f"{base}/blobs/{model.sha256}"
        part = httpx.get(blob, headers={"Range": "bytes=59990-"})
        assert (part.status_code, part.content) == (206, deltas.weights(1, 2000)[59990:])
        assert part.headers["etag"] == f'"{model.sha256}"'
        assert httpx.get(blob, headers={"If-None-Match": part.headers["etag"]}).status_code == 304
        assert httpx.get(blob.replace(model.sha256[-4:], "0000")).status_code == 404
        raw = httpx.get(f"{base}/referrers/{new}", params={"artifactType": delta.ARTIFACT_TYPE})
        assert [e.digest for e in codec.decode(Index, raw.content, what="x").manifests] == [
            facts.digest
        ]
        assert raw.headers["oci-filters-applied"] == "artifactType"
        other = httpx.get(f"{base}/referrers/{new}", params={"artifactType": "x"}).content
        assert codec.decode(Index, other, what="x").manifests == ()
        device = BlobStore(PosixDisk(), tmp_path / "device", DigestVerifier())
        fetcher = HttpFetcher(f"http://{served.host}")
        device.fetch_bundle(fetcher, "meter", old)
        found = device.fetch_bundle(fetcher, "meter", new, held=[old])
        assert found.note == ""
        assert found.transferred < 0.1 * deltas.SIZE
        assert list((tmp_path / "local").rglob("*")) == [tmp_path / "local" / "uploads"]


def test_a_bucket_that_cannot_be_used_is_said_at_the_start(endpoint):
    with pytest.raises(BadInputError, match="no such bucket") as caught:
        S3Objects.open("s3://no-such-bucket", endpoint)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    for text in ("http://models", "s3://", "s3://UPPER/x", "models"):
        with pytest.raises(UsageError, match="is no bucket"):
            S3Objects.open(text, endpoint)
    with pytest.raises(UsageError, match="is no URL"):
        S3Objects.open(URL, "minio:9000")
    with pytest.raises(UnavailableError):
        S3Objects.open(URL, "http://127.0.0.1:1")


def test_large_objects_go_in_parts(tmp_path, endpoint):
    objects = S3Objects.open(URL, endpoint)
    data = bytes(range(256)) * 4 * 1024 * 12  # 12 MiB: above the client's size of a part
    path = tmp_path / "large"
    path.write_bytes(data)
    objects.adopt("parts/large", path)
    assert not path.exists()
    assert objects.size("parts/large") == len(data)
    assert b"".join(objects.stream("parts/large", 5, len(data) - 1)) == data[5:]
    assert objects.names("parts") == ["large"]
    assert objects.read("parts/none", 10) is None
