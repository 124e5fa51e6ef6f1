"""Push and pull against a real server: resumption, logins, refusals, damage; nothing stays."""

import base64
import json

import msgspec
import pytest
from packagekit.servers import PASSWORD, USER, serving

from edgekit.build.ports import BundleContent, BundleHead
from edgekit.contracts import codec, digest
from edgekit.contracts.bundle import Role
from edgekit.contracts.errors import BadInputError, ResourceError, UnavailableError, UsageError
from edgekit.contracts.oci import Index, LayoutReader
from edgekit.package import reader, reference, transfer
from edgekit.package.bundle import write_bundle
from edgekit.package.layout import transaction
from edgekit.package.registry import Registry
from edgekit_fleet.artifacts import blob_key

MODEL = bytes(range(256)) * 4096  # 1 MiB
LOGIN = {"EDGEKIT_REGISTRY_USER": USER, "EDGEKIT_REGISTRY_PASSWORD": PASSWORD}


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path / "store") as served:
        yield served


@pytest.fixture
def layout(tmp_path):
    head = BundleHead("meter", "1", "rpi5", "int8", "onnxruntime", ">=1.20")
    write_bundle(
        tmp_path / "layout",
        head,
        [
            BundleContent("model.onnx", Role.MODEL, MODEL),
            BundleContent("contract.json", Role.CONTRACT, b"{}"),
        ],
    )
    return LayoutReader(tmp_path / "layout")


def client(served, name="meter:1", **options):
    options = {"environ": {}, "timeout_s": 5.0} | options
    return Registry(reference.parse(f"{served.host}/{name}"), **options)


def push(served, layout, names=("1",), **options):
    moved = []
    with client(served, **options) as registry:
        transfer.push(registry, layout, layout.resolve(), list(names), moved.append)
    return [item.transferred for item in moved]


def pull(served, out, name="meter:1", **options):
    moved = []
    with client(served, name, **options) as registry:
        entry = transfer.pull(registry, out, "1", moved.append)
    return entry, [item.transferred for item in moved]


def test_what_was_pushed_is_pulled_and_sent_once(served, layout, tmp_path):
    assert push(served, layout) == [True, True, True, True]
    assert push(served, layout) == [False, False, False, True]
    entry, moved = pull(served, tmp_path / "out")
    assert (entry.digest, moved) == (layout.resolve(), [True] * 4)
    assert reader.find(f"{tmp_path / 'out'}@1").manifest == reader.find(str(layout.root)).manifest
    again, moved = pull(served, tmp_path / "out")
    assert (again.digest, moved) == (entry.digest, [False] * 3 + [True])
    assert pull(served, tmp_path / "two", f"meter@{entry.digest}")[0].digest == entry.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layout", "out", "store", "two"]


def test_large_blobs_go_in_chunks_and_go_on_after_a_failure(served, layout, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 300_000)
    with client(served) as registry:
        send = registry.send

        def flaky(method, url, **options):
            done = send(method, url, **options)
            if method == "PATCH" and len([m for m, _ in served.seen if m == "PATCH"]) == 2:
                raise UnavailableError("the answer was lost")  # the registry holds the chunk
            return done

        monkeypatch.setattr(registry, "send", flaky)
        transfer.push(registry, layout, layout.resolve(), ["1"], lambda _: None)
    assert len([m for m, _ in served.seen if m == "PATCH"]) == 4
    pull(served, tmp_path / "out")
    reader.find(str(tmp_path / "out"))


def test_a_broken_download_goes_on_where_it_ended(served, layout, tmp_path):
    push(served, layout)
    served.cut_after = 5
    pull(served, tmp_path / "out")
    reader.find(str(tmp_path / "out"))
    blobs = [path for method, path in served.seen if method == "GET" and "/blobs/" in path]
    assert len(blobs) == 4  # three blobs, one of them in two parts


@pytest.mark.parametrize("login", ["basic", "bearer"])
def test_logins(served, layout, tmp_path, login):
    served.login = login
    with pytest.raises(BadInputError, match="401") as caught:
        push(served, layout)
    assert "docker login" in caught.value.hint
    push(served, layout, environ=LOGIN)
    stored = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    folder = tmp_path / "docker"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auths": {served.host: {"auth": stored}}}))
    pull(served, tmp_path / "out", environ={"DOCKER_CONFIG": str(folder)})
    with pytest.raises(BadInputError, match="401"):
        pull(served, tmp_path / "two", environ=LOGIN | {"EDGEKIT_REGISTRY_PASSWORD": "wrong"})
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, BadInputError),
        (403, BadInputError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
        (507, ResourceError),
    ],
)
def test_refusals_are_told_apart_and_leave_nothing(served, layout, tmp_path, status, error):
    push(served, layout)
    served.statuses = [status]
    with pytest.raises(error, match=f"HTTP {status}") as caught:
        pull(served, tmp_path / "deep" / "out")
    assert caught.value.hint
    assert not any((tmp_path / "deep").iterdir())


def test_a_registry_that_stalls_or_is_gone_is_unavailable(served, layout, tmp_path):
    served.stall_s = 0.5
    with pytest.raises(UnavailableError, match="no answer in time"):
        pull(served, tmp_path / "out", timeout_s=0.1)
    served.stall_s = 0.0
    gone = reference.parse("127.0.0.1:1/meter:1")
    with pytest.raises(UnavailableError, match="not reachable"), Registry(gone) as registry:
        transfer.pull(registry, tmp_path / "out", "1", lambda _: None)
    with pytest.raises(BadInputError, match="MANIFEST_UNKNOWN"):
        pull(served, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layout", "store"]


@pytest.mark.parametrize("damage", ["altered", "cut", "longer", "gone"])
def test_a_damaged_blob_in_the_registry_is_refused(served, layout, tmp_path, damage):
    push(served, layout)
    blob = served.store.objects.root / blob_key(digest.of_bytes(MODEL))
    if damage == "gone":
        blob.unlink()
    else:
        changed = {"altered": b"x" + MODEL[1:], "cut": MODEL[:-1], "longer": MODEL + b"x"}
        blob.write_bytes(changed[damage])
    with pytest.raises((BadInputError, UnavailableError), match=r"altered|more than|cut short|404"):
        pull(served, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_blob_here_is_not_pushed_and_one_held_is_fetched_anew(served, layout, tmp_path):
    push(served, layout)
    pull(served, tmp_path / "out")
    for where in (tmp_path / "out", layout.root):
        LayoutReader(where).blob_path(digest.of_bytes(MODEL)).write_bytes(MODEL[:-1] + b"!")
    pull(served, tmp_path / "out")
    reader.find(str(tmp_path / "out"))
    with pytest.raises(BadInputError, match="corrupted"):
        push(served, layout)


def test_an_index_travels_with_all_it_names(served, layout, tmp_path):
    entry = LayoutReader(layout.root).index().manifests[0]
    with transaction(layout.root) as change:
        index = Index(manifests=(msgspec.structs.replace(entry, annotations={}),))
        change.point("all", change.put(codec.encode(index), index.media_type))
    top = LayoutReader(layout.root)
    change_digest = digest.of_bytes(codec.encode(index))
    assert isinstance(top.manifest_or_index(change_digest), Index)
    with client(served) as registry:
        transfer.push(registry, top, change_digest, ["1"], lambda _: None)
    pulled, _ = pull(served, tmp_path / "out")
    assert pulled.digest == change_digest
    assert reader.read(LayoutReader(tmp_path / "out"), entry.digest).manifest.model == "meter"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("meter:1", "names no registry host"),
        ("ftp://host.x/meter", "no scheme"),
        ("host.x/UPPER", "no repository name"),
        ("host.x/a/../b", "no repository name"),
        ("host.x/meter:a b", "no tag"),
        ("ho st.x/meter", "names no registry host"),
    ],
)
def test_references_that_cannot_be(text, problem):
    with pytest.raises(UsageError, match=problem):
        reference.parse(text)


def test_references():
    assert reference.parse("127.0.0.1:8470/a/b:2").base == "http://127.0.0.1:8470"
    assert reference.parse("[::1]:8470/a").base == "http://[::1]:8470"
    assert reference.parse("ghcr.io/a/b").base == "https://ghcr.io"
    assert reference.parse("ghcr.io/a/b", plain_http=True).scheme == "http"
    assert str(reference.parse("ghcr.io/a/b")) == "ghcr.io/a/b:latest"
    with pytest.raises(BadInputError, match="not a sha256 digest"):
        reference.parse("ghcr.io/a/b@sha256:12")
