"""Configuration, profile and HTTP bodies: what is refused, and how it is said."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgekit.contracts.errors import BadInputError, EdgekitError, UsageError
from edgekit_runtime import config, oip, profile

GOOD = '[device]\nid = "dev-1"\nstate_dir = "{state}"\n'


def _load(tmp_path, text: str, **environ: str):
    path = tmp_path / "agent.toml"
    path.write_text(text.replace("{state}", str(tmp_path / "state")))
    return config.load(path, environ)


def test_load_reads_defaults_and_environment(tmp_path):
    found = _load(tmp_path, GOOD, EDGEKIT_BROKER_PORT="1999", EDGEKIT_DEVICE_TARGETS="a,b")
    assert found.device.tenant == "default"
    assert found.broker.port == 1999
    assert found.device.targets == ("a", "b")
    assert found.serve.cores == ()
    core = min(os.sched_getaffinity(0))
    assert _load(tmp_path, GOOD, EDGEKIT_SERVE_CORES=str(core)).serve.cores == (core,)
    assert found.socket_path == tmp_path / "state" / "agent.sock"
    assert found.address.identity == f"default/{found.address.shard}/dev-1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "device"),
        ('[device]\nid = "a"\n', "state_dir"),
        (GOOD + 'colour = "red"\n', "colour"),
        (GOOD + "[brocker]\nport = 1\n", "brocker"),
        (GOOD + "[broker]\nport = 70000\n", "port 70000"),
        (GOOD + "[serve]\nport = 0\n", "port 0"),
        (GOOD + "[serve]\ncores = [5000]\n", "cores \\[5000\\], here are"),
        (GOOD + "[serve]\nsessions_max = -1\n", "sessions_max -1"),
        (GOOD + "[serve]\nsessions_max = 0\nworkers = false\n", "nothing could hold a model"),
        (
            GOOD + '[serve]\nworkers = false\n[containers]\nengine = "unix:///x"\n',
            "images run in workers",
        ),
        (GOOD + "[spool]\nbytes_max = 10\n", "bytes_max 10"),
        (GOOD + '[containers]\nengine = "docker"\n', "neither unix"),
        (GOOD + f'[serve]\nsocket = "/tmp/{"x" * 120}"\n', "socket path"),
        (GOOD.replace("dev-1", "Dev 1"), "device id"),
        (GOOD.replace("dev-1", "a/b"), "device id"),
        ("[device\n", "not TOML"),
        (GOOD + "[device.labels]\nsite = 3\n", "labels"),
    ],
)
def test_load_refuses_and_names_the_key(tmp_path, text, message):
    with pytest.raises(EdgekitError, match=message):
        _load(tmp_path, text)


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(BadInputError, match=r"absent\.toml"):
        config.load(tmp_path / "absent.toml", {})


V3 = ("avx2", "fma", "f16c", "bmi1", "bmi2")


@pytest.mark.parametrize(
    ("arch", "isa", "board", "expected"),
    [
        ("x86_64", ("sse2",), "", ()),
        ("x86_64", V3, "", ("x86-64-v3",)),
        ("x86_64", (*V3, "avx_vnni"), "", ("x86-64-vnni", "x86-64-v3")),
        ("x86_64", (*V3, "avx512_vnni"), "", ("x86-64-vnni", "x86-64-v3")),
        ("aarch64", ("asimd",), "", ("arm64-generic",)),
        ("aarch64", ("asimd",), "Raspberry Pi 4 Model B", ("rpi4", "arm64-generic")),
        ("aarch64", ("asimd", "asimddp"), "Raspberry Pi 5 Model B", ("rpi5", "arm64-generic")),
        ("riscv64", (), "", ()),
    ],
)
def test_targets_are_those_the_processor_runs_best_first(arch, isa, board, expected):
    assert profile.targets(arch, isa, board) == expected


def test_targets_for_another_engine_need_that_engine():
    isa = (*V3, "avx_vnni")
    assert profile.targets("x86_64", isa, installed={"openvino"}) == (
        "x86-64-vnni-openvino",
        "x86-64-vnni",
        "x86-64-v3-openvino",
        "x86-64-v3",
    )
    wanted = ("x86-64-v3-openvino",)
    assert profile.choose(wanted, "x86_64", isa, "", {"openvino"}) == wanted
    with pytest.raises(UsageError, match="needs openvino, which is not installed"):
        profile.choose(wanted, "x86_64", isa, "")


def test_configured_targets_may_restrict_but_not_invent_instructions():
    assert profile.choose(("x86-64-v3",), "x86_64", (*V3, "avx_vnni"), "") == ("x86-64-v3",)
    assert profile.choose(("own-board",), "x86_64", (), "") == ("own-board",)
    with pytest.raises(UsageError, match="x86-64-vnni"):
        profile.choose(("x86-64-vnni",), "x86_64", V3, "")
    with pytest.raises(UsageError, match="rpi5"):
        profile.choose(("rpi5",), "x86_64", V3, "")


def _body(**tensor: object) -> bytes:
    import json

    base = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    return json.dumps({"inputs": [{**base, **tensor}]}).encode()


def test_parse_infer_takes_flat_and_nested_data():
    for data in ([1, 2.5], [[1, 2.5]]):
        _, arrays = oip.parse_infer(_body(data=data), 1000)
        assert arrays["x"].dtype == np.float32
        assert arrays["x"].tolist() == [[1.0, 2.5]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "request"),
        (b"{}", "inputs"),
        (_body(data=[1]), "1 values"),
        (_body(datatype="FP8"), "FP8"),
        (_body(datatype="BYTES"), "BYTES"),
        (_body(data=[1, "a"]), "not"),
        (_body(data=[[1, 2], [3]]), "regular"),
        (_body(data=[1.5, 2], datatype="INT32"), "not INT32"),
        (_body(data=[300, 2], datatype="UINT8"), "UINT8"),
        (_body(data=[None, 2]), "not"),
        (_body(shape=[-1, 2]), "shape"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "request"),
        (b'{"id":"' + b"i" * 300 + b'","inputs":[]}', "id must"),
        (b" " * 2000, "2000 bytes"),
    ],
)
def test_parse_infer_refuses_and_names_the_problem(raw, message):
    with pytest.raises(BadInputError, match=message):
        oip.parse_infer(raw, 1000)
