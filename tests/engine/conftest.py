"""One engine for all tests that need a real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from enginekit.engine import Engine

WORK = Path(os.environ.get("EDGEKIT_ENGINE_WORK", "engine-work")).absolute()


@pytest.fixture(scope="session")
def work():
    assert (WORK / "amd64.tar").is_file(), f"no base in {WORK}: run `make engine`"
    return WORK


@pytest.fixture(scope="session")
def engine(work):
    engine = Engine(work / "tests-engine")
    engine.start()
    yield engine
    engine.close()
