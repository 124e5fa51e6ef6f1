"""Laying out a runtime: whatever comes, a folder is complete and verified or not there."""

from __future__ import annotations

import io
import json
import sys
import zipfile

import pytest

from edgekit.contracts import digest
from edgekit.contracts.device import bootstrap, installer
from edgekit.contracts.device.bootstrap import BootstrapError


def wheel(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


class Source:
    """Blobs by digest, as a registry has them."""

    def __init__(self, *wheels: bytes, python: str = "", **changes: object) -> None:
        self.blobs: dict[str, bytes] = {}
        files = [{"path": f"a-{i}-py3-none-any.whl", **self.put(w)} for i, w in enumerate(wheels)]
        for file in files:
            file["sha256"] = file.pop("digest")
        config = self.put(json.dumps({"files": files, "python": python}).encode())
        config["mediaType"] = bootstrap.CONFIG_MEDIA_TYPE
        layers = [{"digest": f["sha256"], "size": f["size"]} for f in files]
        manifest = {"config": config, "layers": layers} | changes
        self.digest = str(self.put(json.dumps(manifest).encode())["digest"])

    def put(self, data: bytes) -> dict[str, object]:
        found = digest.of_bytes(data)
        self.blobs[found] = data
        return {"digest": found, "size": len(data)}

    def read(self, wanted: str):
        data = self.blobs[wanted]
        yield data[:7]
        yield data[7:]

    def install(self, root):
        return bootstrap.install(self.read, self.read, self.digest, root, lambda _: None)


GOOD = {
    "edgekit/__init__.py": b"x = 1\n",
    "lib/core.so.1": b"\x7fELF",
    "lib/tests/test.py": b"no",
    "a-1.data/platlib/more.py": b"y = 2\n",
    "a-1.data/scripts/tool": b"#!",
}


def test_a_runtime_is_laid_out_once_and_verified_ever_after(tmp_path):
    source = Source(wheel(**GOOD))
    folder = source.install(tmp_path)
    assert folder.name == digest.hex_of(source.digest)
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == [
        "agent.py",
        "contents.sha256",
        "runtime.json",
        "site/edgekit/__init__.py",
        "site/lib/core.so.1",
        "site/more.py",
    ]
    assert bootstrap.verify(folder) == 5
    source.blobs.clear()
    assert source.install(tmp_path) == folder  # nothing is fetched again
    (folder / "site" / "added.py").write_bytes(b"")
    with pytest.raises(BootstrapError, match="added"):
        source.install(tmp_path)
    (folder / "contents.sha256").unlink()
    with pytest.raises(BootstrapError, match="no runtime"):
        bootstrap.verify(folder)


def test_byte_code_for_this_python_is_laid_out_and_verified_like_the_rest(tmp_path):
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    members = {**GOOD, "lib/template.py": b"print 'of another Python'"}
    folder = Source(wheel(**members), python=here).install(tmp_path)
    (code,) = folder.glob("site/edgekit/__pycache__/__init__.*.pyc")
    assert bootstrap.verify(folder) == 5 + 3
    code.write_bytes(code.read_bytes() + b"?")
    with pytest.raises(BootstrapError, match="altered"):
        bootstrap.verify(folder)


def altered(source):
    first = next(iter(source.blobs))
    source.blobs[first] = b"?" + source.blobs[first][1:]


def longer(source):
    first = next(iter(source.blobs))
    source.blobs[first] += b"more"


def cut(source):
    first = next(iter(source.blobs))
    source.blobs[first] = source.blobs[first][:-1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Source(wheel(**{"../evil.py": b""})), "leaves its folder"),
        (Source(wheel(**{"/etc/passwd": b""})), "leaves its folder"),
        (Source(wheel(**{"a\\b": b""})), "leaves its folder"),
        (Source(wheel(**{"a-1.data/platlib/../../../x": b""})), "leaves its folder"),
        (Source(b"no zip at all"), "malformed"),
        (Source(wheel(**GOOD), layers=[]), "no layer of its manifest"),
        (Source(wheel(**GOOD), config={"mediaType": "x"}), "not a runtime"),
        (Source(wheel(**GOOD), config=None), "malformed"),
    ],
)
def test_what_is_no_runtime_is_refused_and_leaves_nothing(tmp_path, source, reason):
    with pytest.raises(BootstrapError, match=reason):
        source.install(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [altered, longer, cut])
def test_damage_on_the_way_is_found(tmp_path, damage):
    source = Source(wheel(**GOOD))
    damage(source)
    with pytest.raises(BootstrapError):
        source.install(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "UNPACKED_BYTES_MAX", 1000)
    source = Source(wheel(big=bytes(1001)))
    with pytest.raises(BootstrapError, match="more than a device takes"):
        source.install(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_program_is_the_same_bytes_every_time_and_the_script_names_them():
    program = installer.program()
    assert program == installer.program()
    script = installer.script("http://10.0.0.1:8470", program).decode()
    assert f"SHA256='{digest.hex_of(digest.of_bytes(program))}'" in script
    assert "@" not in script.replace('"$@"', "")
    for bad in ("http://x';reboot;'", "ftp://x", "http://a b"):
        with pytest.raises(ValueError, match="no plain URL"):
            installer.script(bad, program)
