import pytest

from vqfast.acceleration import search


@pytest.fixture(autouse=True)
def little_is_enough(monkeypatch):
    """So that small tensors are searched by ours."""
    monkeypatch.setattr(search, "LITTLE", 0)
