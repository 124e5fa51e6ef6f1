"""Folders of images, hostile files, a video file and a stream that breaks off, by a real agent."""

from __future__ import annotations

import http.server
import io
import os
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from agentkit import layouts
from agentkit.pipelines import balanced, image_bundle, lines
from agentkit.world import World, wait_for

from edgekit_runtime import config as configuration
from edgekit_runtime.disk import PosixDisk
from edgekit_runtime.pipelines import counts

pytestmark = pytest.mark.integration
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Stream:
    """A camera on the network: motion JPEG over HTTP, which breaks off after some frames."""

    def __init__(self, frames_max: int) -> None:
        self.connections = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.connections += 1
                self.send_response(200)
                kind = "multipart/x-mixed-replace; boundary=frame"
                self.send_header("Content-Type", kind)
                self.end_headers()
                picture = _encoded("blue", "JPEG", 64)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}"
                try:
                    for _ in range(frames_max):
                        self.wfile.write(head.encode() + b"\r\n\r\n" + picture + b"\r\n")
                except OSError:
                    return  # hung up on

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/stream.mjpg"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _encoded(colour: str, kind: str, side: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (side, side), COLOURS[colour]).save(stream, kind)
    return stream.getvalue()


def _video(path: Path, frames: int) -> None:
    """Thirds of red, green and blue frames, in this order."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (32, 32))
    assert writer.isOpened()
    for number in range(frames):
        rgb = list(COLOURS.values())[number * 3 // frames]
        writer.write(np.full((32, 32, 3), rgb[::-1], np.uint8))
    writer.release()


def _figures(agent, name):
    specs = configuration.load(agent.config, {}).pipeline
    spec = next(each for each in specs if each.name == name)
    return msgspec.to_builtins(counts.read(PosixDisk(), agent.state, spec))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cameras")
    writer = layouts.LayoutWriter(folder / "layout")
    world = World(folder, writer.root)
    (folder / "inbox").mkdir()
    _video(folder / "film.avi", 60)
    stream = Stream(frames_max=30)
    tables = [
        ("inbox", f'kind = "folder", path = "{folder}/inbox", settle_s = 0.2, bytes_max = 100000'),
        ("film", f'kind = "camera", device = "{folder}/film.avi"'),
        ("live", f'kind = "camera", device = "{stream.url}", reopen_s = 0.1'),
        ("nowhere", f'kind = "camera", device = "{folder}/absent.avi"'),
    ]
    extra = "".join(
        f'[[pipeline]]\nname = "{name}"\nmodel = "meter"\n'
        + ('drop = "block"\n' if name == "film" else "")
        + f'source = {{{source}}}\nsinks = [{{kind = "file", path = "{folder}/{name}.jsonl"}}]\n'
        for name, source in tables
    )
    agent = world.agent(extra=extra)
    world.manager.deploy("dev-1", image_bundle(writer), release="v1")
    world.manager.wait_state("dev-1", "TRIAL")
    yield folder, agent, stream
    stream.close()
    world.close()


def test_every_frame_of_a_video_file_is_answered_when_none_may_be_dropped(served):
    folder, agent, _ = served
    wait_for(lambda: _figures(agent, "film")["state"] == "ended", what="at its end")
    wait_for(lambda: balanced(_figures(agent, "film")), what="delivered")
    found = _figures(agent, "film")
    assert (found["received"], found["inferred"]) == (60, 60)
    written = lines(folder / "film.jsonl")
    assert [each["source"]["frame"] for each in written] == list(range(1, 61))
    assert [each["label"] for each in written[::20]] == ["red", "green", "blue"]


def test_a_stream_that_breaks_off_is_opened_again_and_the_newest_frame_wins(served):
    folder, agent, stream = served
    wait_for(lambda: stream.connections >= 3, what="opened again")
    wait_for(lambda: _figures(agent, "live")["inferred"] >= 5, what="answers")
    assert _figures(agent, "live")["starts"] == 1  # a lost camera is no crash
    wait_for((folder / "live.jsonl").exists, what="a line")
    assert {each["label"] for each in lines(folder / "live.jsonl")} == {"blue"}


def test_a_camera_that_is_not_there_is_away_and_hurts_nobody(served):
    _, agent, _ = served
    wait_for(lambda: _figures(agent, "nowhere")["state"] == "away", what="away")
    assert _figures(agent, "nowhere")["starts"] == 1


def test_images_are_sorted_into_done_and_hostile_files_into_failed(served):
    folder, agent, _ = served
    inbox = folder / "inbox"
    for kind, name in (("JPEG", "a.jpg"), ("PNG", "b.png"), ("BMP", "c.bmp"), ("WEBP", "d.webp")):
        (inbox / name).write_bytes(_encoded("green", kind, 40))
    whole = _encoded("red", "PNG", 40)
    (inbox / "torn.png").write_bytes(whole[: len(whole) // 2])
    (inbox / "text.jpg").write_text("not an image")
    (inbox / "empty.png").write_bytes(b"")
    (inbox / "huge.png").write_bytes(bytes(100_001))
    (inbox / "bomb.png").write_bytes(_bomb())
    (inbox / "link.png").symlink_to(folder / "film.avi")
    (inbox / "loop.png").symlink_to("loop.png")
    os.mkfifo(inbox / "pipe.png")
    (inbox / "half.png.tmp").write_bytes(whole)
    (inbox / ".hidden.png").write_bytes(whole)
    wait_for(lambda: len(list((inbox / "done").glob("*"))) == 4, what="done")
    failed = inbox / "failed"
    wait_for(lambda: len(list(failed.glob("*.reason"))) == 8, what="failed")
    reasons = {
        path.name.removesuffix(".reason"): path.read_text() for path in failed.glob("*.reason")
    }
    assert "damaged image" in reasons["torn.png"]
    assert "not an image" in reasons["text.jpg"]
    assert "not an image" in reasons["empty.png"]
    assert reasons["huge.png"] == "too_large: 100001 bytes, allowed are 100000\n"
    assert "pixels" in reasons["bomb.png"]
    assert reasons["link.png"] == reasons["loop.png"] == "unreadable: it is a symbolic link\n"
    assert "regular" in reasons["pipe.png"]
    assert all(os.path.lexists(failed / name) for name in reasons)
    assert sorted(p.name for p in inbox.iterdir() if not p.is_dir()) == [
        ".hidden.png", "half.png.tmp",
    ]  # fmt: skip
    found = _figures(agent, "inbox")
    assert balanced(found)
    assert found["refused"] == {
        "decode": 4, "contract": 0, "too_large": 1, "unreadable": 3, "engine": 0, "internal": 0,
    }  # fmt: skip
    assert {each["label"] for each in lines(folder / "inbox.jsonl")} == {"green"}
    # The same name again is another file; an old one is flagged as the contract says.
    old = inbox / "a.jpg.tmp"
    old.write_bytes(_encoded("red", "JPEG", 40))
    os.utime(old, (1e9, 1e9))
    old.rename(inbox / "a.jpg")
    wait_for(lambda: len(list((inbox / "done").glob("a*.jpg"))) == 2, what="both kept")
    *fresh, flagged = lines(folder / "inbox.jsonl")
    assert flagged["flags"] == ["input_age"]
    assert {tuple(each["flags"]) for each in fresh} == {()}


def test_an_agent_that_stops_leaves_nothing_uncounted(served):
    _, agent, _ = served
    assert agent.stop() == 0
    for name in ("inbox", "film", "live", "nowhere"):
        found = _figures(agent, name)
        assert found["state"] == "stopped"
        assert balanced(found), (name, found)


def _bomb() -> bytes:
    """A small file that announces 400 million pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
