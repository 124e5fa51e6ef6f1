"""From bytes to arrays: what is taken, and how the rest is refused."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from agentkit import layouts
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgekit.contracts.contract import InputSpec
from edgekit.contracts.errors import BadInputError
from edgekit.preprocess.resize import resize
from edgekit_runtime.pipelines import decode, images
from edgekit_runtime.pipelines.spec import Colour, Fit, FolderSource, MqttSource, Payload

METER = layouts.contract()
SEVERAL = msgspec.structs.replace(
    METER, inputs=(METER.inputs[0], msgspec.structs.replace(METER.inputs[0], name="y"))
)


def _arrays(payload, kind, contract=METER, **options):
    return decode.arrays_of(contract, MqttSource(topic="t", payload=kind, **options), payload)


def _input(shape, dtype="float32", layout=None):
    return InputSpec(name="x", dtype=dtype, shape=shape, layout=layout)


def _of(shape, **options):
    return msgspec.structs.replace(METER, inputs=(_input(shape, **options),))


def _npy(array, **options) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


ROW = np.array([[1, 2, 3, 4]], np.float32)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"[1, 2, 3, 4]", Payload.JSON),
        (b"[[1, 2, 3.0, 4]]", Payload.JSON),
        (b'{"x": [1, 2, 3, 4], "else": "ignored"}', Payload.JSON),
        (ROW.tobytes(), Payload.RAW),
        (_npy(ROW), Payload.NPY),
        (_npy(ROW[0].astype(np.float64)), Payload.NPY),
        (_npy(np.asfortranarray(ROW)), Payload.NPY),
        (_npy(ROW.astype(">f4")), Payload.NPY),
    ],
)
def test_every_kind_of_payload_becomes_one_sample(payload, kind):
    found = _arrays(payload, kind)
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], ROW)


def test_fields_of_an_object_become_a_row_and_objects_several_inputs():
    found = _arrays(b'{"c": 3, "b": 2, "d": 4, "a": 1}', Payload.JSON, fields=tuple("abcd"))
    np.testing.assert_array_equal(found["x"], ROW)
    found = _arrays(b'{"y": [4, 3, 2, 1], "x": [1, 2, 3, 4]}', Payload.JSON, SEVERAL)
    np.testing.assert_array_equal(found["y"], ROW[:, ::-1])


@pytest.mark.parametrize(
    ("payload", "kind", "options", "message"),
    [
        (b"", Payload.JSON, {}, "not JSON"),
        (b"\xff", Payload.JSON, {}, "not JSON"),
        (b"[1, NaN, 3, 4]", Payload.JSON, {}, "not JSON"),
        (b"[" * 100_000, Payload.JSON, {}, "not JSON"),
        (b'"text"', Payload.JSON, {}, "not a regular array"),
        (b"[]", Payload.JSON, {}, "not a regular array"),
        (b"[1, [2], 3, 4]", Payload.JSON, {}, "not a regular array"),
        (b"[1, null, 3, 4]", Payload.JSON, {}, "not a regular array"),
        (b'{"y": [1]}', Payload.JSON, {}, "input 'x' is missing"),
        (b"[1]", Payload.JSON, {"fields": ("a",)}, "not a JSON object"),
        (b'{"b": 1}', Payload.JSON, {"fields": ("a",)}, "field 'a' is missing"),
        (b'{"a": "1"}', Payload.JSON, {"fields": ("a",)}, "not a regular array"),
        (b"", Payload.RAW, {}, "no whole number"),
        (b"12345", Payload.RAW, {}, "no whole number"),
        (bytes(20), Payload.RAW, {}, "5 values"),
        (b"", Payload.NPY, {}, "not an npy"),
        (b"\x93NUMPY\x01\x00\xff\xff{", Payload.NPY, {}, "not an npy"),
        (_npy(ROW)[:-1], Payload.NPY, {}, "15 bytes for an npy"),
        (_npy(np.array([None])), Payload.NPY, {}, "dtype object"),
        (_npy(np.array(["a"])), Payload.NPY, {}, "dtype <U1"),
        (_npy(ROW.astype(complex)), Payload.NPY, {}, "dtype complex"),
        (_npy(np.zeros((0, 4), np.float32)), Payload.NPY, {}, "without values"),
        (_npy(ROW.astype(np.int32)), Payload.NPY, {}, "dtype int32"),
        (b"GIF89a", Payload.IMAGE, {}, "not an image"),
    ],
)
def test_what_cannot_be_read_is_refused_and_says_why(payload, kind, options, message):
    with pytest.raises(BadInputError, match=message):
        _arrays(payload, kind, **options)


def test_one_array_is_not_enough_for_several_inputs_nor_one_sample_for_a_batch():
    for kind in (Payload.RAW, Payload.NPY, Payload.IMAGE, Payload.JSON):
        with pytest.raises(BadInputError, match="inputs x, y"):
            _arrays(b"[1]", kind, SEVERAL)
    with pytest.raises(BadInputError, match="takes 8 at once"):
        _arrays(b"[1, 2, 3, 4]", Payload.JSON, layouts.contract(batch=8))
    with pytest.raises(BadInputError, match="holds values that are not int8"):
        _arrays(b"[1, 2.5]", Payload.JSON, _of(("n", 2), dtype="int8"))


@given(st.binary(max_size=200), st.sampled_from(list(Payload)))
def test_no_bytes_whatever_end_in_anything_but_arrays_or_a_reason(payload, kind):
    try:
        found = _arrays(payload, kind)
    except BadInputError:
        return
    assert set(found) == {"x"}


@given(st.binary(max_size=80), st.integers(0, 200))
def test_damaged_images_and_arrays_are_refused_too(noise, where):
    image = Image.new("RGB", (9, 7), (1, 2, 3))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    for good, kind in ((stream.getvalue(), Payload.IMAGE), (_npy(ROW), Payload.NPY)):
        at = min(where, len(good))
        damaged = good[:at] + noise + good[at + len(noise) :]
        try:
            _arrays(damaged, kind, _of(("n", 7, 9, 3)) if kind is Payload.IMAGE else METER)
        except BadInputError:
            continue


def test_json_ids_are_taken_from_where_the_table_says():
    assert decode.json_id(b'{"id": "a-1"}', "id") == "a-1"
    assert decode.json_id(b'{"id": 7}', "id") == "7"
    for payload in (b"{", b"[1]", b"{}", b'{"id": true}', b'{"id": ""}', b'{"id": 1.5}'):
        assert decode.json_id(payload, "id") is None


# --- images --------------------------------------------------------------------------------------

RED = np.zeros((10, 20, 3), np.uint8)
RED[..., 0] = 255


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        (("n", 5, 5, 3), None, (5, 5, 3)),
        (("n", 3, 5, 5), None, (3, 5, 5)),
        (("n", 3, 3, 3), "NCHW", (3, 3, 3)),
        (("n", "h", "w", 3), None, (10, 20, 3)),
        (("n", 5, 5, 1), "NHWC", (5, 5, 1)),
        (("n", 5, 5), None, (5, 5)),
    ],
)
def test_images_get_the_size_and_layout_of_the_contract(shape, layout, expected):
    spec = _input(shape, layout=layout)
    found = images.fitted(spec, RED, Fit.STRETCH, Colour.RGB)
    assert (found.shape, found.dtype) == (expected, np.float32)
    red = found[0] if expected[0] == 3 and layout != "NHWC" else found[..., 0]
    gray = len(expected) == 2 or expected[-1] == 1
    assert np.unique(found if gray else red).tolist() == [76.0 if gray else 255.0]


def test_channels_are_in_the_order_asked_for_and_fits_are_what_they_say():
    spec = _input(("n", 10, 10, 3), dtype="uint8")
    found = images.fitted(spec, RED, Fit.STRETCH, Colour.BGR)
    assert found[0, 0].tolist() == [0, 0, 255]
    padded = images.fitted(spec, RED, Fit.PAD, Colour.RGB)
    assert padded[:, 0, 0].tolist() == [0, 0, 255, 255, 255, 255, 255, 0, 0, 0]
    left, right = RED.copy(), RED
    left[:, :5] = 0
    cropped = images.fitted(spec, left, Fit.CROP, Colour.RGB)
    np.testing.assert_array_equal(cropped, right[:, :10])
    with pytest.raises(BadInputError, match="20 x 10, the model takes 10 x 10"):
        images.fitted(spec, RED, Fit.EXACT, Colour.RGB)
    with pytest.raises(BadInputError, match="gray"):
        images.fitted(spec, RED, Fit.STRETCH, Colour.GRAY)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [(("n", 4), "float32", None), (("n", 5, 5, 4), "float32", None), (("n", 5, 5, 3), "int8", None),
     (("n", 5, 5, 3), "float32", "NCHW"), (("n", 1, 5, 5, 3), "float32", None)],
)  # fmt: skip
def test_inputs_that_are_no_images_are_refused(shape, dtype, layout):
    with pytest.raises(BadInputError, match="input 'x'"):
        images.fitted(_input(shape, dtype, layout), RED, Fit.STRETCH, Colour.RGB)


def test_a_folder_source_takes_images_by_default():
    stream = io.BytesIO()
    Image.fromarray(RED).save(stream, "PNG")
    source = FolderSource(path="/in")
    found = decode.arrays_of(_of(("n", 10, 20, 3)), source, stream.getvalue())
    np.testing.assert_array_equal(found["x"][0], RED)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 2**32 - 1),
)
def test_resize_agrees_with_pillow(before, after, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*before, 3), np.uint8)
    found = resize(image, *after)
    expected = Image.fromarray(image).resize(after[::-1], Image.Resampling.BILINEAR)
    # Pillow rounds between the two axes, and weighs in fixed point.
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 2
