import os
import shlex
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.interpreter import quicken
from tests.ops.keep import keeping
from vqfast.ops import build, registry

settings.register_profile(
    "vqfast",
    derandomize=True,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("vqfast")
# a shell's background jobs ignore it, and so would the commands that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
if registry.interpreted():
    quicken()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", action="store_true", help="the longest cases too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest tests begin first, so that no process waits for another at the end."""
    if not config.getoption("--every"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("every")])
        items[:] = [item for item in items if not item.get_closest_marker("every")]
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means: more processes than this would only import PyTorch once more each."""
    return min(os.cpu_count() or 1, 8)


@pytest.fixture(scope="session")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``CXX`` of a compiler that keeps its objects for all tests of this run, of all its processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    try:
        return shlex.join(keeping(folder / "objects", build.find_compiler()))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers in every run."""
    torch.manual_seed(0)
