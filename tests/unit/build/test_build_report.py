"""The report is one page without outside resources; explain says why, and what each layer costs."""

import re
from html.parser import HTMLParser

import msgspec
import pytest

from edgekit.build import plots, report
from edgekit.build.ranges import Range, Ranges
from edgekit.build.record import (
    RECORD_FILE,
    BuildRecord,
    CandidateRecord,
    LayerRecord,
    LayersRecord,
    SearchRecord,
    VariantRecord,
)
from edgekit.cli.explain import describe, explain
from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, UsageError
from edgekit.contracts.evaluation import NodeTime
from edgekit.contracts.verdict import Outcome, Verdict


def candidate(name, outcome, drop=0.0, **more):
    figures = {
        "size_bytes": 1000,
        "quality": 0.9,
        "quality_drop": drop,
        "quality_drop_upper": drop + 0.01,
        "noise": drop,
    }
    return CandidateRecord(
        name=name, precision="int8", outcome=outcome, reason=f"why {name}", **{**figures, **more}
    )


CANDIDATES = (
    candidate("fp32", "passed_over"),
    candidate("int8<a>", "chosen", 0.001, pareto=True, reduced=("l3",)),
    CandidateRecord(name="fp16", precision="fp16", outcome="dropped", reason="invalid <graph>"),
    candidate("int8<a>~only(l1)", "probe", 0.002),
    candidate("int8<a>~only(l2)", "probe", 0.4),
)
VARIANT = VariantRecord(
    target="rpi5",
    precision="int8",
    candidate="int8<a>",
    outcome=Outcome.PASS,
    metric="top1",
    quality=0.9,
    original_quality=0.9,
    quality_drop=0.0,
    quality_drop_upper=0.01,
    evaluation_samples=500,
    size_bytes=1000,
    original_size_bytes=3000,
    latency_ms=None,
    latency_ms_p95=None,
    original_latency_ms=None,
    validated="none",
    emulated_on=None,
    quality_measured_on="x86_64",
    verdicts=(Verdict(metric="top1_drop", outcome=Outcome.PASS, reason="at most <2>"),),
    repository="m",
    digest=None,
    bundle_bytes=None,
    tag=None,
    candidates=CANDIDATES,
    search=SearchRecord(complete=False, tried=2, next="int8<a>+float(l2)"),
)
RECORD = BuildRecord(
    model="m",
    version="1",
    model_digest="sha256:0",
    inputs={},
    samples={"evaluation": 500},
    tools={"onnx": "1"},
    host={},
    normalised=("opset 11 upgraded",),
    variants=(VARIANT,),
)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "circle", "line", "rect", "path"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag != "circle":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_from_outside():
    text = report.page(RECORD).decode()
    page = Page()
    page.feed(text)
    assert page.open == []
    tags = {tag for tag, _ in page.seen}
    assert tags.isdisjoint({"script", "link", "img", "iframe"})
    assert not any({"src", "href"} & attrs.keys() for _, attrs in page.seen)
    assert not re.search(r"https?://|url\(|@import", text)
    words = " ".join(page.words)
    for expected in ("int8<a>", "invalid <graph>", "at most <2>", "opset 11 upgraded", "+0.4000"):
        assert expected in words
    assert sum(tag == "svg" for tag, _ in page.seen) == 3


def test_a_record_without_figures_still_makes_a_page():
    bare = codec.decode(
        BuildRecord, codec.encode(RECORD).replace(b'"probe"', b'"dropped"'), what="record"
    )
    assert b"Sensitivity" not in report.page(bare)


LAYERS = LayersRecord(
    samples=16,
    layers=(
        LayerRecord(
            name="first<0>", op="Conv", error=0.01, own_error=0.01, us=5.0, original_us=9.0
        ),
        LayerRecord(name="worst", op="MatMul", error=0.5, own_error=0.25, us=7.0, original_us=8.0),
        LayerRecord(name="behind", op="MatMul", error=0.75, own_error=0.02),
    ),
    nodes=(NodeTime(name="worst", op="QGemm", us=7.0), NodeTime(name="x_q", op="Pad", us=21.0)),
    original_nodes=(NodeTime(name="worst", op="Gemm", us=17.0),),
    unknown=("something: for <reasons>",),
)


def with_layers(layers):
    return msgspec.structs.replace(VARIANT, layers=layers)


def test_layers_are_plotted_worst_first_and_all_are_listed():
    record = msgspec.structs.replace(RECORD, variants=(with_layers(LAYERS),))
    page = Page()
    page.feed(report.page(record).decode())
    assert page.open == []
    words = " ".join(page.words)
    for expected in (
        "alone 25.00%, as it is 50.00%",
        "7.0 µs, before 8.0 µs",
        "something: for <reasons>",
        "Operators of the variant: 2, 28 µs a run",
        "Operators of the float model: 1, 17 µs a run",
    ):
        assert expected in words
    assert words.index("worst") < words.index("behind") < words.index("first<0>")
    assert sum(tag == "svg" for tag, _ in page.seen) == 5


def test_no_plot_of_what_is_not_known():
    layers = tuple(LayerRecord(name=each.name, op=each.op) for each in LAYERS.layers)
    record = msgspec.structs.replace(
        RECORD, variants=(with_layers(LayersRecord(samples=0, layers=layers)),)
    )
    page = Page()
    page.feed(report.page(record).decode())
    assert sum(tag == "svg" for tag, _ in page.seen) == 3
    assert "All weight layers: 3" in " ".join(page.words)


def test_many_layers_are_counted_and_not_plotted():
    layers = [
        LayerRecord(name="long" * 20 + str(n), op="Conv", error=0.1, own_error=0.1)
        for n in range(plots.LAYERS_MAX + 5)
    ]
    drawn = plots.errors(layers)
    assert drawn.count("<rect") == 2 * plots.LAYERS_MAX
    assert "and 5 more" in drawn
    assert all(len(text) <= 34 for text in re.findall(r">([^<]*long[^<]*)<", drawn))


def test_histograms_show_where_rules_differ_and_count_what_is_left_out():
    def seen(clipped):
        return Range((-2.0, 4.0), (-clipped, clipped), (-2.0, 3.0), histogram=(0,) * 32 + (9,) * 32)

    tensors = {f"t{n}": seen(1.0 + n / 100) for n in range(plots.HISTOGRAMS_MAX + 3)}
    tensors["none"] = Range((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
    text = report.page(RECORD, Ranges(50, tensors)).decode()
    page = Page()
    page.feed(text)
    assert page.open == []
    shown = re.findall(r"<g><title>(t\d+)</title>", text)
    assert shown == [f"t{n}" for n in range(plots.HISTOGRAMS_MAX)]  # the tightest bounds first
    assert "3 more are left out" in text
    drawn = text[text.index("<g><title>t0<") : text.index("<g><title>t1<")]
    bars = [
        tuple(map(float, found)) for found in re.findall(r"x='(\S+)' y='\S+' width='(\S+)'", drawn)
    ]
    marks = {
        rule: [float(x) for x in re.findall(r"M(\S+) ", found)]
        for rule, found in re.findall(r"<path class='(\w+)' d='([^']*)'", drawn)
    }
    left, right = marks["minmax"]
    per_unit = (right - left) / 6
    assert marks["entropy"] == pytest.approx([left + per_unit, left + 3 * per_unit], abs=0.2)
    assert marks["percentile"] == pytest.approx([left, left + 5 * per_unit], abs=0.2)
    # Nothing was below zero, and the last bin ends at the largest value.
    assert bars[0][0] == pytest.approx(left + 2 * per_unit, abs=0.2)
    assert sum(bars[-1]) == pytest.approx(right, abs=0.2)


def table_of(text, head):
    rows = text.splitlines()
    begin = next(index for index, row in enumerate(rows) if row.startswith(head))
    return [rows[begin].split(), *(row.split() for row in rows[begin + 1 :])]


def test_explain_tells_layers_worst_first_and_operators_slowest_first():
    text = describe(with_layers(LAYERS))
    layers = table_of(text, "LAYER  ")
    assert layers[0] == ["LAYER", "OPERATOR", "OWN", "ERROR", "ERROR", "US", "BEFORE", "US"]
    assert layers[1] == ["worst", "MatMul", "0.2500", "0.5000", "8.0", "7.0"]
    assert layers[2] == ["behind", "MatMul", "0.0200", "0.7500", "-", "-"]
    nodes = table_of(text, "NODE")
    assert nodes[1] == ["x_q", "Pad", "21.0", "75%"]
    assert "all nodes: 28 us a run, of the float model: 17 us" in text
    assert "not known: something: for <reasons>" in text


def test_explain_leaves_out_columns_and_rows():
    many = tuple(
        LayerRecord(name=f"layer{n}", op="Conv", error=0.1, own_error=0.1) for n in range(40)
    )
    text = describe(with_layers(LayersRecord(samples=3, layers=many)))
    assert table_of(text, "LAYER  ")[0] == ["LAYER", "OPERATOR", "OWN", "ERROR", "ERROR"]
    assert "and 28 more" in text
    assert "layer12" not in text
    assert "NODE" not in text
    unknown = tuple(LayerRecord(name=each.name, op=each.op) for each in many)
    assert "LAYER  " not in describe(with_layers(LayersRecord(samples=0, layers=unknown)))


def test_a_record_of_before_reads_and_is_explained():
    raw = codec.encode(RECORD).replace(b',"layers":null', b"")
    assert b"layers" not in raw
    old = codec.decode(BuildRecord, raw, what="record")
    assert old == RECORD
    assert "LAYER  " not in describe(old.variants[0])


def test_explain_ranks_layers_and_gives_reasons():
    text = describe(VARIANT)
    assert text.index("l2") > 0
    rows = text.splitlines()
    layers = [row.split()[0] for row in rows[rows.index(next(r for r in rows if "ALONE" in r)) :]]
    assert layers.index("l2") < layers.index("l1")
    for expected in ("ran out of time before int8<a>+float(l2)", "why fp32", "7-bit weights in l3"):
        assert expected in text


def test_explain_reads_a_folder_and_names_unknown_targets(tmp_path, capsys):
    (tmp_path / RECORD_FILE).write_bytes(codec.encode(RECORD))
    explain(tmp_path, target=None, json=False)
    assert "rpi5: int8<a>" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no target 'rpi4'"):
        explain(tmp_path / RECORD_FILE, target="rpi4", json=False)
    with pytest.raises(BadInputError):
        explain(tmp_path / "none", target=None, json=False)
