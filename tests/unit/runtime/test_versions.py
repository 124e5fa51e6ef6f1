"""Versions are compared as ``packaging`` does, whichever way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from edgekit.contracts.errors import BadInputError
from edgekit_runtime.versions import satisfies

NUMBERS = st.lists(st.sampled_from(["0", "1", "2", "01", "10"]), min_size=1, max_size=4).map(
    ".".join
)
SUFFIXES = st.sampled_from(["", "", "", "rc1", ".post1", "+cu12", ".dev3"])
VERSIONS = st.builds("".join, st.tuples(NUMBERS, SUFFIXES))
CLAUSES = st.builds(
    "".join, st.tuples(st.sampled_from([">=", "<=", ">", "<", "==", "!="]), st.just(""), NUMBERS)
)
SPECIFIERS = st.lists(CLAUSES, min_size=1, max_size=3).map(" , ".join)


@given(VERSIONS, SPECIFIERS)
def test_the_answer_is_that_of_packaging(version, specifier):
    assert satisfies(version, specifier) == (
        Version(version) in SpecifierSet(specifier, prereleases=True)
    )


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("1.32.0", ">=1.18,<2", True),
        ("2.0", ">=1.18,<2", False),
        ("1.20.3", "~=1.20.1", True),
        ("1.20.3", "==1.20.*", True),
        ("1.20.3", "", True),
    ],
)
def test_forms_that_bundles_have(version, specifier, expected):
    assert satisfies(version, specifier) is expected


@pytest.mark.parametrize(("version", "specifier"), [("1.2", "about 1"), ("one", ">=1")])
def test_what_is_no_version_is_said(version, specifier):
    with pytest.raises(BadInputError, match=r"about 1|one"):
        satisfies(version, specifier)
