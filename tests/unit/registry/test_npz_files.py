"""Canonical npz files: deterministic, mapped, refusing what is not one."""

import numpy as np
import pytest

from edgekit.contracts.errors import BadInputError
from edgekit.registry import npz


def test_equal_arrays_give_equal_bytes_in_any_order():
    a, b = np.arange(6.0).reshape(2, 3), np.asarray([1, 2])
    assert npz.to_bytes({"a": a, "b": b}) == npz.to_bytes(
        {"b": b.copy(), "a": np.asfortranarray(a)}
    )


def test_mapped_arrays_equal_what_was_written(tmp_path):
    arrays = {"x": np.random.default_rng(0).normal(size=(5, 2, 3)), "labels": np.arange(5)}
    npz.write(tmp_path / "d.npz", arrays)
    mapped = npz.open_mapped(tmp_path / "d.npz")
    assert isinstance(mapped["x"], np.memmap)
    assert set(mapped) == set(arrays)
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        assert np.array_equal(mapped[name], array)


def test_numpy_reads_what_was_written(tmp_path):
    npz.write(tmp_path / "d.npz", {"x": np.arange(3)})
    with np.load(tmp_path / "d.npz") as archive:
        assert archive["x"].tolist() == [0, 1, 2]


def test_compressed_file_is_not_mapped(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros(100))
    with pytest.raises(BadInputError, match="compressed"):
        npz.open_mapped(tmp_path / "d.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(BadInputError, match="npz"):
        npz.read(tmp_path / "d.npz")


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(BadInputError, match="Python objects"):
        npz.read(tmp_path / "d.npz")
