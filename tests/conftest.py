import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "vqfast",
    derandomize=True,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("vqfast")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers in every run."""
    torch.manual_seed(0)
