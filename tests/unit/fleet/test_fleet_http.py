"""HTTP API, artifact store and status page, through a real ASGI client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from fleetkit import messages as m

from edgekit.contracts import codec, digest, oci, topics
from edgekit.contracts.errors import BadInputError
from edgekit.contracts.messages import DeviceConfig, ImageRef, VariantRef
from edgekit.contracts.release import Release
from edgekit_fleet import views
from edgekit_fleet.api import create_app
from edgekit_fleet.artifacts import ArtifactStore, parse_range
from edgekit_fleet.ingest import Ingest
from edgekit_fleet.queries import Queries
from edgekit_fleet.store.engine import Database

BODY = bytes(range(256)) * 40


class Server:
    """The application with its parts at hand; requests go through httpx's ASGI transport."""

    def __init__(self, folder: Path) -> None:
        self.database = Database.open(folder)
        self.store = ArtifactStore.open(folder / "artifacts")
        queries = Queries(self.database, tenant=m.TENANT, report_s=30.0)
        part = views.Part(ok=True)
        names = ("broker", "ingest", "publisher", "controller")
        health = views.HealthView(
            status="ok",
            version="0",
            tenant=m.TENANT,
            pid=1,
            started=0.0,
            devices=0,
            online=0,
            **dict.fromkeys(names, part),
        )
        self.app = create_app(
            database=self.database, store=self.store, queries=queries, health=lambda: health
        )

    async def _send(self, method: str, path: str, **options: object) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://manager") as client:
            return await client.request(method, path, **options)

    def __call__(self, method: str, path: str, **options: object) -> httpx.Response:
        import asyncio

        return asyncio.run(self._send(method, path, **options))

    def push(self, data: bytes, name: str = "meter") -> str:
        blob = digest.of_bytes(data)
        answer = self("POST", f"/v2/{name}/blobs/uploads/", params={"digest": blob}, content=data)
        assert answer.status_code == 201
        return blob

    def push_bundle(self) -> str:
        layers = tuple(
            oci.Descriptor(media_type="x/y", digest=self.push(data), size=len(data))
            for data in (b"config", BODY)
        )
        raw = codec.encode(oci.Manifest(config=layers[0], layers=layers[1:]))
        manifest = digest.of_bytes(raw)
        answer = self("PUT", f"/v2/meter/manifests/{manifest}", content=raw)
        assert answer.status_code == 201, answer.text
        return manifest

    def publish(self) -> Release:
        variant = VariantRef(digest=self.push_bundle(), repository="meter", size=len(BODY))
        release = Release(name="v1", model="meter", version="1", variants={"x86-64-v3": variant})
        assert self("POST", "/api/v1/releases", content=codec.encode(release)).status_code == 201
        return release

    def refuses(self, release: Release, text: str) -> None:
        answer = self("POST", "/api/v1/releases", content=codec.encode(release))
        assert (answer.status_code, text in answer.text) == (422, True), answer.text

    def ingest(self, *messages: object) -> None:
        ingest = Ingest(
            self.database,
            tenant=m.TENANT,
            config=DeviceConfig(),
            on_owed=lambda: None,
            batch_s_max=0.01,
            batch_messages_max=10,
        )
        ingest.apply(messages)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.database.close()


# -- artifacts -------------------------------------------------------------------------------------


def test_a_pushed_blob_comes_back_whole_and_in_parts(server: Server) -> None:
    blob = server.push(BODY)
    path = f"/v2/meter/blobs/{blob}"
    whole = server("GET", path)
    assert (whole.status_code, whole.content) == (200, BODY)
    assert whole.headers["docker-content-digest"] == blob
    assert whole.headers["etag"] == f'"{blob}"'
    part = server("GET", path, headers={"Range": "bytes=100-"})
    assert (part.status_code, part.content) == (206, BODY[100:])
    assert part.headers["content-range"] == f"bytes 100-{len(BODY) - 1}/{len(BODY)}"
    head = server("HEAD", path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BODY)))
    beyond = server("GET", path, headers={"Range": f"bytes={len(BODY)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(BODY)}")
    assert server("GET", path, headers={"If-None-Match": f'"{blob}"'}).status_code == 304
    changed = server("GET", path, headers={"Range": "bytes=1-2", "If-Range": '"other"'})
    assert (changed.status_code, len(changed.content)) == (200, len(BODY))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=5-", (5, 9)),
        ("bytes=-3", (7, 9)),
        ("bytes=-300", (0, 9)),
        ("bytes=5-300", (5, 9)),
        ("bytes=5-4", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=-", None),
        ("bytes=x-", None),
    ],
)
def test_ranges(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=-1", 0)])
def test_ranges_outside(header: str, size: int) -> None:
    with pytest.raises(ValueError, match="range"):
        parse_range(header, size)


def test_an_upload_that_is_not_its_digest_leaves_nothing(server: Server) -> None:
    announced = digest.of_bytes(b"something else")
    answer = server(
        "POST", "/v2/meter/blobs/uploads/", params={"digest": announced}, content=b"altered"
    )
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["code"] == "DIGEST_INVALID"
    assert server("HEAD", f"/v2/meter/blobs/{announced}").status_code == 404
    assert list(server.store.uploads.iterdir()) == []


def test_a_manifest_needs_its_blobs(server: Server) -> None:
    layer = oci.Descriptor(media_type="x/y", digest=m.digest_of("d"), size=3)
    raw = codec.encode(oci.Manifest(config=layer, layers=(layer,)))
    reference = digest.of_bytes(raw)
    answer = server("PUT", f"/v2/meter/manifests/{reference}", content=raw)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN"
    assert server("GET", f"/v2/meter/manifests/{reference}").status_code == 404


def test_manifests_belong_to_their_repository_and_may_have_tags(server: Server) -> None:
    reference = server.push_bundle()
    found = server("GET", f"/v2/meter/manifests/{reference}")
    assert found.headers["content-type"].startswith(oci.MANIFEST_MEDIA_TYPE)
    assert digest.of_bytes(found.content) == reference
    assert server("GET", f"/v2/other/manifests/{reference}").status_code == 404
    assert server("PUT", "/v2/meter/manifests/latest", content=found.content).status_code == 201
    assert server("GET", "/v2/meter/manifests/latest").content == found.content
    assert server("GET", "/v2/meter/manifests/none").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v2/meter/blobs/sha256:../../../etc/passwd",
        "/v2/meter/blobs/sha256:" + "A" * 64,
        "/v2/..%2f..%2f/manifests/latest",
        "/v2/UPPER/manifests/latest",
        "/v2/meter/manifests/..%2ftag",
    ],
)
def test_no_path_leaves_the_store(server: Server, path: str) -> None:
    answer = server("GET", path)
    assert answer.status_code == 404


def test_what_a_crash_left_is_cleared(tmp_path: Path) -> None:
    store = ArtifactStore.open(tmp_path)
    (store.uploads / "torn").write_bytes(b"half")
    assert list(ArtifactStore.open(tmp_path).uploads.iterdir()) == []


# -- API -------------------------------------------------------------------------------------------


def test_a_release_needs_its_bundles_here(server: Server) -> None:
    refused = server("POST", "/api/v1/releases", content=codec.encode(m.release()))
    assert refused.status_code == 422
    assert "not in the artifact store" in refused.json()["error"]
    release = server.publish()
    again = server("POST", "/api/v1/releases", content=codec.encode(release))
    assert again.status_code == 200
    (listed,) = server("GET", "/api/v1/releases").json()
    assert listed["release"]["name"] == "v1"


SPEC = {"name": "r1", "release": "v1", "waves": [{"name": "all", "percent": 100.0}]}


def test_a_rollout_starts_once_and_can_be_aborted(server: Server) -> None:
    server.publish()
    started = server("POST", "/api/v1/rollouts", content=json.dumps(SPEC).encode())
    assert started.status_code == 201
    assert started.json()["waves"][0]["phase"] == "waiting"
    again = server("POST", "/api/v1/rollouts", content=json.dumps(SPEC).encode())
    assert again.status_code == 422
    aborted = server("POST", "/api/v1/rollouts/r1/abort", content=b'{"reason": "smoke"}')
    assert aborted.status_code == 200
    assert [r["name"] for r in server("GET", "/api/v1/rollouts").json()] == ["r1"]
    assert server("GET", "/api/v1/rollouts/nope").status_code == 404
    assert server("POST", "/api/v1/rollouts/nope/abort").status_code == 404


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"waves": []}, "waves"),
        ({"waves": [{"name": "a", "percent": 120.0}]}, "percent"),
        ({"waves": [{"name": "a", "percent": 50.0, "count": 2}]}, "exactly one"),
        ({"unheard": 1}, "unheard"),
        ({"name": "Bad Name"}, "Bad Name"),
        ({"abort": [{"percent": 0.0}]}, "abort[0].percent"),
        ({"release": "nope"}, "nope"),
    ],
)
def test_a_spec_is_refused_with_the_field_in_words(
    server: Server, change: dict[str, object], named: str
) -> None:
    server.publish()
    answer = server("POST", "/api/v1/rollouts", content=json.dumps(SPEC | change).encode())
    assert answer.status_code == 422
    assert named in answer.json()["error"]
    assert server("GET", "/api/v1/rollouts").json() == []


def test_bad_requests_are_answered_in_one_form(server: Server) -> None:
    for method, path, content in (
        ("POST", "/api/v1/rollouts", b"not json"),
        ("POST", "/api/v1/releases", b"{}"),
        ("POST", "/api/v1/rollouts", b"x" * 70_000),
        ("GET", "/api/v1/devices/nope", b""),
        ("GET", "/nowhere", b""),
        ("DELETE", "/api/v1/devices", b""),
        ("GET", "/api/v1/events?limit=0", b""),
    ):
        answer = server(method, path, content=content)
        assert 400 <= answer.status_code < 500, path
        assert answer.json()["error"], path


def test_devices_and_counts_are_shown(server: Server) -> None:
    hostile = {"site": "<script>alert(1)</script>"}
    server.ingest(
        m.incoming("d1", topics.REPORTED, m.reported(0, labels=hostile)),
        m.live("d1", m.frame(9, m.window(), m.tombstone(5))),
    )
    (device,) = server("GET", "/api/v1/devices").json()
    assert (device["device"], device["labels"], device["gen"]) == ("d1", hostile, 1)
    detail = server("GET", "/api/v1/devices/d1").json()
    assert detail["reported"]["profile"]["arch"] == "x86_64"
    assert detail["desired"]["gen"] == 1
    counts = server("GET", "/api/v1/inferences").json()
    assert counts["totals"]["n"] == 10
    assert counts["totals"]["evicted"] == 5
    assert counts["releases"]["v1"]["correct"] == 3
    assert counts["devices"]["d1"]["n"] == 10


def test_the_status_page_loads_nothing_and_renders_no_markup(server: Server) -> None:
    answer = server("GET", "/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in page
    for outside in ("http://", "https://", "//cdn", "src=", "<link"):
        assert outside not in page


def test_openapi_describes_every_answer(server: Server) -> None:
    schema = server("GET", "/openapi.json").json()
    names = schema["components"]["schemas"]
    assert {"HealthView", "DeviceSummary", "RolloutDetail", "Problem", "Verdict"} <= names.keys()
    text = json.dumps(schema)
    for reference in set(text.split('"#/components/schemas/')[1:]):
        assert reference.partition('"')[0] in names


def test_repository_names_are_checked() -> None:
    from edgekit_fleet.artifacts import check_repository

    assert check_repository("team/meter") == "team/meter"
    for bad in ("", "a//b", "../a", "a/..", "A"):
        with pytest.raises(BadInputError):
            check_repository(bad)


def test_a_release_whose_image_was_not_pushed_is_refused(server: Server) -> None:
    release = server.publish()
    missing = ImageRef(digest="sha256:" + "0" * 64, repository="meter", size=1)
    for image, known in ((missing, False), (msgspec.structs.replace(missing, registry="r"), True)):
        variants = {
            target: msgspec.structs.replace(variant, image=image)
            for target, variant in release.variants.items()
        }
        changed = msgspec.structs.replace(release, name="v2", variants=variants)
        if known:  # it lies in a registry elsewhere, which the devices ask
            sent = server("POST", "/api/v1/releases", content=codec.encode(changed))
            assert sent.status_code == 201
        else:
            server.refuses(changed, "is not in the artifact store")
