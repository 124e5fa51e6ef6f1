"""Links between models: what makes sense, what fits, and what goes round in a circle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.composition import (
    Link,
    check_acyclic,
    check_fit,
    check_links,
    request_inputs,
)
from edgekit.contracts.contract import Contract, InputSpec, OutputSpec, QualityBudget
from edgekit.contracts.errors import BadInputError

QUALITY = QualityBudget(metric="top1", drop_max=0.02)


def _link(fed="s", model="a", output="scores", inputs=("x",)) -> Link:
    return Link(input=fed, model=model, output=output, inputs=inputs)


def _contract(inputs, outputs) -> Contract:
    return Contract(
        inputs=tuple(InputSpec(name=n, dtype=d, shape=s) for n, d, s in inputs),
        outputs=tuple(OutputSpec(name=n, dtype=d, shape=s) for n, d, s in outputs),
        quality=QUALITY,
    )


A = _contract([("x", "float32", ("n", 4))], [("scores", "float32", ("n", 3))])


@pytest.mark.parametrize(
    ("links", "problem"),
    [
        ([_link(model="b")], "cannot feed itself"),
        ([_link(), _link(model="c")], "two sources"),
        ([_link(model="A b")], "model"),
        ([_link(inputs=())], "takes nothing"),
        ([_link(fed=str(n)) for n in range(17)], "at most 16"),
    ],
)
def test_links_that_make_no_sense_are_refused(links, problem):
    with pytest.raises(BadInputError, match=problem):
        check_links("b", links)
    check_links("b", [_link(), _link(fed="t")])


@pytest.mark.parametrize(
    ("inputs", "link", "problem"),
    [
        ([("s", "float32", ("n", 3))], _link(), None),
        ([("s", "float32", ("n", "k"))], _link(), None),
        ([("s", "float64", ("n", 3))], _link(), "it is float32, b wants float64"),
        ([("s", "float32", ("n", 4))], _link(), "is not always"),
        ([("s", "float32", (1, 3))], _link(), "is not always"),
        ([("s", "float32", (3,))], _link(), "is not always"),
        ([("s", "float32", ("n", 3))], _link(fed="t"), "no such input"),
        ([("s", "float32", ("n", 3))], _link(output="mask"), "no such output"),
        ([("s", "float32", ("n", 3)), ("x", "float32", ("n", 9))], _link(), None),
        ([("s", "float32", ("n", 3)), ("x", "int64", ("n", 4))], _link(), "not alike"),
    ],
)
def test_a_link_must_fit_both_contracts(inputs, link, problem):
    contract = _contract(inputs, [("y", "float32", ("n", 1))])
    if problem is None:
        check_fit("b", contract, [link], {"a": A})
        return
    with pytest.raises(BadInputError, match=problem):
        check_fit("b", contract, [link], {"a": A})


def test_a_request_carries_what_nobody_makes():
    contract = _contract(
        [("s", "float32", ("n", 3)), ("t", "float32", ("n", 1))], [("y", "float32", ("n", 1))]
    )
    assert request_inputs(contract, [_link()]) == ("t", "x")
    assert request_inputs(A, []) == ("x",)


def test_circles_are_named():
    links = {"a": [_link(model="c")], "b": [_link(model="a")], "c": [_link(model="b")]}
    with pytest.raises(BadInputError, match="a <- c <- b <- a"):
        check_acyclic(links)


@given(st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"), max_size=3)))
def test_a_circle_is_found_exactly_when_there_is_one(graph):
    links = {name: [_link(model=each) for each in sorted(made)] for name, made in graph.items()}
    # Independently: take away models that nothing feeds, until none is left or none can go.
    left = {name: set(made) & set(graph) for name, made in graph.items()}
    while free := [name for name, made in left.items() if not made]:
        left = {name: made - set(free) for name, made in left.items() if name not in free}
    if left:
        with pytest.raises(BadInputError, match="circle"):
            check_acyclic(links)
    else:
        check_acyclic(links)
