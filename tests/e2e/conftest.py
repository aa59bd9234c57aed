"""What the stories share: terminals that are gone when a test ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.tmux import Terminal


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Terminals a test opened; all are gone afterwards."""
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.drop()
