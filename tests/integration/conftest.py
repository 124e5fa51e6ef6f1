"""A manager's side with one broker, and bundles to deploy from it."""

from __future__ import annotations

import pytest
from agentkit import layouts
from agentkit.world import World


@pytest.fixture
def writer(tmp_path):
    return layouts.LayoutWriter(tmp_path / "layout")


@pytest.fixture
def world(tmp_path, writer):
    world = World(tmp_path, writer.root)
    yield world
    world.close()
