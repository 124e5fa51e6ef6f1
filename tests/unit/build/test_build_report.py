"""The report is one page without outside resources; explain says why, and what each layer costs."""

import re
from html.parser import HTMLParser

import pytest

from edgekit.build import report
from edgekit.build.record import (
    RECORD_FILE,
    BuildRecord,
    CandidateRecord,
    SearchRecord,
    VariantRecord,
)
from edgekit.cli.explain import describe, explain
from edgekit.contracts import codec
from edgekit.contracts.errors import BadInputError, UsageError
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
        if tag not in {"meta", "circle", "line", "rect"}:
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
