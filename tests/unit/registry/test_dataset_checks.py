"""Data sets: every form is read, every kind of useless data is refused by name."""

import numpy as np
import pytest
from buildkit import graphs

from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget, Task
from edgekit.contracts.errors import BadInputError
from edgekit.registry import dataset, splits
from edgekit.registry.model import Split


def contract(metric="top1", shape=("batch", 4), dtype="float32"):
    return Contract(
        inputs=(InputSpec(name="x", dtype=dtype, shape=shape),),
        outputs=(
            OutputSpec(name="y", dtype="float32", shape=("batch", 3), task=Task.CLASSIFICATION),
        ),
        quality=QualityBudget(metric=metric, drop_max=0.02),
    )


def data(**arrays):
    return dataset.from_arrays(arrays, "data set d")


def rows(n=20, width=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def test_forms_agree(tmp_path):
    x, labels = rows().astype(np.float64), np.arange(20) % 3
    np.savez(tmp_path / "a.npz", x=x, labels=labels)
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "x.npy", x)
    np.save(tmp_path / "b" / "labels.npy", labels)
    lines = ["a,b,c,d,labels"]
    lines += [
        ",".join(repr(float(v)) for v in row) + f",{k}" for row, k in zip(x, labels, strict=True)
    ]
    (tmp_path / "c.csv").write_text("\n".join(lines))
    bound = [
        dataset.bind(dataset.load(tmp_path / name), contract())[0]
        for name in ("a.npz", "b", "c.csv")
    ]
    for other in bound[1:]:
        assert np.array_equal(other.arrays["x"], bound[0].arrays["x"])
        assert np.array_equal(other.labels, bound[0].labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((0, 4))}, "no samples"),
        ({"labels": np.zeros(3, int)}, "no input array"),
        ({"x": np.zeros((3, 4)), "labels": np.zeros(2, int)}, "differ in length: x 3, labels 2"),
        ({"x": np.float32(1.0)}, "'x' is a single number"),
        ({"x": np.asarray(["a", "b"])}, "'x' holds <U1, not numbers"),
    ],
)
def test_unusable_arrays_are_named(arrays, message):
    with pytest.raises(BadInputError, match=message):
        data(**{k: np.asarray(v) for k, v in arrays.items()})


@pytest.mark.parametrize("name", ["none.npz", "x.txt", "empty"])
def test_missing_or_unknown_files_say_what_is_expected(tmp_path, name):
    (tmp_path / "x.txt").write_text("1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError) as caught:
        dataset.load(tmp_path / name)
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3 has 1 columns"),
        ("a,b\n1,x\n", "numeric|could not convert"),
        ("a,b\n", "no samples"),
    ],
)
def test_csv_faults_are_located(tmp_path, text, message):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(BadInputError, match=message):
        dataset.load(tmp_path / "d.csv")


def test_wrong_shape_names_array_and_shapes():
    with pytest.raises(
        BadInputError, match=r"'x' has shape \[20, 5\], the contract says \[samples, 4\]"
    ):
        dataset.bind(data(x=rows(width=5)), contract())


def test_a_single_array_is_the_single_input_and_that_is_said():
    bound, notes = dataset.bind(data(signal=rows()), contract())
    assert list(bound.arrays) == ["x"]
    assert notes == ["array 'signal' is the input 'x': the model has only one"]


def test_flat_rows_take_a_fixed_inner_shape():
    bound, notes = dataset.bind(data(x=rows()), contract(shape=("batch", 2, 2)))
    assert bound.arrays["x"].shape == (20, 2, 2)
    assert len(notes) == 1


def test_lossy_types_are_refused_and_whole_floats_are_not():
    with pytest.raises(BadInputError, match="holds float32, the contract says int64"):
        dataset.bind(data(x=rows() + 0.5), contract(dtype="int64"))
    bound, _ = dataset.bind(data(x=np.arange(8.0).reshape(2, 4)), contract(dtype="int64"))
    assert bound.arrays["x"].dtype == np.int64
    with pytest.raises(BadInputError, match="int8"):
        dataset.bind(data(x=np.full((2, 4), 300)), contract(dtype="int8"))


def test_nan_in_calibration_names_the_array_and_the_sample():
    x = rows()
    x[7, 2] = np.nan
    with pytest.raises(BadInputError, match=r"calibration: array 'x', 1 of 20 .*sample 7"):
        dataset.check(data(x=x), contract("agreement"), "calibration")


def test_constant_data_is_refused():
    with pytest.raises(BadInputError, match="'x': all 20 samples are the same"):
        dataset.check(data(x=np.ones((20, 4), np.float32)), contract("agreement"), "calibration")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels"),
        (np.full(20, 3), "run from 3 to 3.*classes 0 to 2"),
        (np.full(20, -1), "run from -1"),
        (np.zeros(20), "labels are float64"),
    ],
)
def test_labels_must_fit_the_output(labels, message):
    arrays = {"x": rows()} if labels is None else {"x": rows(), "labels": labels}
    with pytest.raises(BadInputError, match=message):
        dataset.check(data(**arrays), contract(), "evaluation")


def test_split_is_deterministic_disjoint_and_keeps_duplicates_together():
    x, labels = graphs.waves(400)
    whole = data(x=np.concatenate([x, x[:50]]), labels=np.concatenate([labels, labels[:50]]))
    parts, sentence = splits.split(whole)
    again, _ = splits.split(whole)
    splits.check_disjoint(parts)
    for kind in Split:
        assert np.array_equal(parts[kind].arrays["x"], again[kind].arrays["x"])
        assert f"{parts[kind].n} {kind.value}" in sentence
    # 450 rows, of which the duplicates of golden samples add nothing and are left out
    golden = set(parts[Split.GOLDEN].hashes())
    repeated = sum(sample in golden for sample in whole.hashes()[400:])
    assert sum(part.n for part in parts.values()) == 450 - repeated
    assert parts[Split.GOLDEN].n == 32


def test_a_sample_keeps_its_split_when_the_data_grows():
    x, labels = graphs.waves(800)
    small, _ = splits.split(data(x=x[:400], labels=labels[:400]))
    large, _ = splits.split(data(x=x, labels=labels))
    golden = set(large[Split.GOLDEN].hashes())
    for kind in (Split.CALIBRATION, Split.TUNING, Split.EVALUATION):
        assert set(small[kind].hashes()) <= set(large[kind].hashes()) | golden


def test_overlapping_splits_are_refused_with_count_and_names():
    one, other = data(x=rows(seed=1)), data(x=np.concatenate([rows(seed=2), rows(seed=1)[:3]]))
    parts = {Split.CALIBRATION: one, Split.EVALUATION: other}
    parts |= {Split.TUNING: data(x=rows(seed=3)), Split.GOLDEN: data(x=rows(seed=4))}
    with pytest.raises(BadInputError, match="calibration and evaluation data share 3 samples"):
        splits.check_disjoint(parts)


def test_missing_splits_are_taken_from_the_ones_that_may_give():
    given = {Split.CALIBRATION: data(x=rows(80)), Split.EVALUATION: data(x=rows(80, seed=5))}
    parts, notes = splits.complete(given)
    splits.check_disjoint(parts)
    assert parts[Split.EVALUATION].n == 80  # never shared
    assert sum(parts[k].n for k in Split) == 160
    assert len(notes) == 2
    with pytest.raises(BadInputError, match="no calibration data"):
        splits.complete({Split.EVALUATION: data(x=rows())})


def test_too_few_samples_to_split():
    with pytest.raises(BadInputError, match="too few"):
        splits.split(data(x=rows(4)))


@pytest.mark.parametrize(("metric", "needed"), [("top1", 197), ("cosine", 1857)])
def test_evaluation_set_must_be_able_to_resolve_the_budget(metric, needed):
    budget = QualityBudget(metric=metric, drop_max=0.02)
    dataset.check_resolvable(budget, needed)
    with pytest.raises(BadInputError, match=f"at least {needed} samples.* has {needed - 1}"):
        dataset.check_resolvable(budget, needed - 1)
