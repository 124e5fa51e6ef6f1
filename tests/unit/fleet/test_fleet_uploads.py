"""Upload sessions, tags and mounts of the distribution API, at the level of HTTP."""

import httpx
import pytest
from packagekit.servers import serving

from edgekit.contracts import codec, digest, oci
from edgekit.contracts.errors import ResourceError
from edgekit_fleet.artifacts import ArtifactStore
from edgekit_fleet.uploads import SESSIONS_MAX, Uploads

DATA = b"0123456789"
BLOB = digest.of_bytes(DATA)


@pytest.fixture
def http(tmp_path):
    with serving(tmp_path) as served, httpx.Client(base_url=f"http://{served.host}") as client:
        yield client


@pytest.fixture
def place(http):
    started = http.post("/v2/meter/blobs/uploads/")
    assert started.status_code == 202
    return started.headers["location"]


def test_chunks_in_order_make_a_blob(http, place, tmp_path):
    first = http.patch(place, content=DATA[:4], headers={"Content-Range": "0-3"})
    assert (first.status_code, first.headers["range"]) == (202, "0-3")
    assert http.get(place).headers["range"] == "0-3"
    for wrong in ("0-3", "5-9", "x"):
        again = http.patch(place, content=DATA[5:], headers={"Content-Range": wrong})
        assert (again.status_code, again.headers["range"]) == (416, "0-3")
    done = http.put(place, params={"digest": BLOB}, content=DATA[4:])
    assert (done.status_code, done.headers["docker-content-digest"]) == (201, BLOB)
    assert http.get(done.headers["location"]).content == DATA
    assert http.get(place).status_code == 404
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_session_that_ends_badly_leaves_nothing(http, place, tmp_path):
    http.patch(place, content=DATA)
    assert http.put(place, params={"digest": "sha256:1"}).status_code == 400
    wrong = http.put(place, params={"digest": digest.of_bytes(b"other")})
    assert wrong.json()["errors"][0]["code"] == "DIGEST_INVALID"
    assert http.get(place).status_code == 404
    other = http.post("/v2/meter/blobs/uploads/").headers["location"]
    assert http.get(other.replace("meter", "else")).status_code == 404
    assert http.delete(other).status_code == 204
    assert http.patch(other, content=DATA).status_code == 404
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_held_blob_is_mounted(http):
    assert http.post("/v2/a/blobs/uploads/", params={"digest": BLOB}, content=DATA).is_success
    mounted = http.post("/v2/b/blobs/uploads/", params={"mount": BLOB, "from": "a"})
    assert mounted.status_code == 201
    missing = digest.of_bytes(b"x")
    started = http.post("/v2/b/blobs/uploads/", params={"mount": missing})
    assert started.status_code == 202
    http.delete(started.headers["location"])


def test_sessions_are_bounded_and_idle_ones_make_room(tmp_path):
    now = [0.0]
    uploads = Uploads(ArtifactStore.open(tmp_path), clock=lambda: now[0])
    for _ in range(SESSIONS_MAX):
        uploads.start("meter")
    with pytest.raises(ResourceError):
        uploads.start("meter")
    now[0] = 4000.0
    last = uploads.start("meter")
    assert len(list((tmp_path / "uploads").iterdir())) == 1
    uploads.end(last)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_tags_come_in_pages_and_move(http):
    http.post("/v2/meter/blobs/uploads/", params={"digest": BLOB}, content=DATA)
    layer = oci.Descriptor(media_type="x/y", digest=BLOB, size=len(DATA))
    for tag in ("b", "a", "C"):
        manifest = oci.Manifest(config=layer, layers=(layer,), annotations={"tag": tag})
        raw = codec.encode(manifest)
        assert http.put(f"/v2/meter/manifests/{tag}", content=raw).status_code == 201
    assert http.get("/v2/meter/tags/list").json() == {"name": "meter", "tags": ["C", "a", "b"]}
    page = http.get("/v2/meter/tags/list", params={"n": 2})
    assert page.json()["tags"] == ["C", "a"]
    assert http.get(page.links["next"]["url"]).json()["tags"] == ["b"]
    assert http.get("/v2/none/tags/list").status_code == 404
    moving = http.get("/v2/meter/manifests/a")
    assert moving.headers["cache-control"] == "no-cache"
    fixed = http.get(f"/v2/meter/manifests/{digest.of_bytes(moving.content)}")
    assert "immutable" in fixed.headers["cache-control"]
    assert (
        http.get(
            "/v2/meter/manifests/a", headers={"If-None-Match": moving.headers["etag"]}
        ).status_code
        == 304
    )


def test_an_index_needs_its_manifests(http):
    http.post("/v2/meter/blobs/uploads/", params={"digest": BLOB}, content=DATA)
    layer = oci.Descriptor(media_type="x/y", digest=BLOB, size=len(DATA))
    raw = codec.encode(oci.Manifest(config=layer, layers=(layer,)))
    entry = oci.Descriptor(
        media_type=oci.MANIFEST_MEDIA_TYPE, digest=digest.of_bytes(raw), size=len(raw)
    )
    index = codec.encode(oci.Index(manifests=(entry,)))
    refused = http.put("/v2/meter/manifests/all", content=index)
    assert refused.json()["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN"
    assert http.put(f"/v2/meter/manifests/{entry.digest}", content=raw).status_code == 201
    assert http.put("/v2/meter/manifests/all", content=index).status_code == 201
    found = http.get("/v2/meter/manifests/all")
    assert found.headers["content-type"] == oci.INDEX_MEDIA_TYPE
    for bad in (b"{}", b'{"schemaVersion": 1, "manifests": [{}]}', b'{"mediaType": "x/y"}', b"["):
        assert http.put("/v2/meter/manifests/bad", content=bad).status_code == 400
