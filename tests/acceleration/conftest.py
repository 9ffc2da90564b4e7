import pytest

from vqfast.acceleration import search


@pytest.fixture(autouse=True)
def small_calls_are_searched(monkeypatch):
    """Small tensors are searched by vqfast too."""
    monkeypatch.setattr(search, "MIN_WORK", 0)
