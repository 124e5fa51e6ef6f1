"""What an expert would try by hand, each tool's defaults: ``python peers.py PEER MODEL DATA OUT``.

Runs in the peer's own Python. OUT gets ``model.onnx`` or ``model.xml`` with its ``.bin``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PEERS = ("ort-fp32", "ort-static", "ort-dynamic", "nncf-onnx", "ov-fp32", "nncf-ov", "olive")
SAMPLES_MAX = 300


def _feeds(data: Path, names: set[str]) -> Iterator[dict[str, np.ndarray]]:
    with np.load(data) as found:
        arrays = {name: found[name] for name in found.files if name in names}
    for index in range(min(SAMPLES_MAX, len(next(iter(arrays.values()))))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def _inputs(model: Path) -> set[str]:
    import onnx

    return {value.name for value in onnx.load(model).graph.input}


def _reader(model: Path, data: Path):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = _feeds(data, _inputs(model))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    return Reader()


def _ort_static(model: Path, data: Path, out: Path) -> None:
    from onnxruntime.quantization import quantize_static

    quantize_static(str(model), str(out / "model.onnx"), _reader(model, data))


def _ort_dynamic(model: Path, _: Path, out: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(model), str(out / "model.onnx"))


def _nncf(model: object, feeds: list[dict[str, np.ndarray]]) -> object:
    os.environ["NNCF_CI"] = "ON"  # no reports to its makers
    import nncf

    return nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))


def _nncf_onnx(model: Path, data: Path, out: Path) -> None:
    import onnx

    made = _nncf(onnx.load(model), list(_feeds(data, _inputs(model))))
    onnx.save(made, out / "model.onnx")


def _openvino(model: Path, data: Path, out: Path, *, quantize: bool) -> None:
    import openvino as ov

    made = ov.Core().read_model(str(model))
    if quantize:
        made = _nncf(made, list(_feeds(data, _inputs(model))))
    ov.save_model(made, str(out / "model.xml"), compress_to_fp16=False)


def _olive(model: Path, data: Path, out: Path) -> None:
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.data.config import DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    class Rows:
        def __init__(self) -> None:
            self.feeds = list(_feeds(data, _inputs(model)))

        def __len__(self) -> int:
            return len(self.feeds)

        def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
            return {k: v[0] for k, v in self.feeds[index].items()}, 0

    @Registry.register_dataset()
    def edgekit_rows(**_: object) -> Rows:
        return Rows()

    config = DataConfig(
        name="rows", type="DataContainer", load_dataset_config={"type": "edgekit_rows"}
    )
    made = create_pass_from_dict(
        OnnxStaticQuantization, {"data_config": config}, disable_search=True
    ).run(ONNXModelHandler(str(model)), str(out / "olive"))
    shutil.copyfile(made.model_path, out / "model.onnx")


def main(peer: str, model: str, data: str, out: str) -> None:
    paths = Path(model), Path(data), Path(out)
    paths[2].mkdir(parents=True, exist_ok=True)
    match peer:
        case "ort-fp32":
            shutil.copyfile(model, paths[2] / "model.onnx")
        case "ort-static":
            _ort_static(*paths)
        case "ort-dynamic":
            _ort_dynamic(*paths)
        case "nncf-onnx":
            _nncf_onnx(*paths)
        case "ov-fp32" | "nncf-ov":
            _openvino(*paths, quantize=peer == "nncf-ov")
        case "olive":
            _olive(*paths)
        case _:
            raise SystemExit(f"unknown peer {peer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
