"""A few of the cases of ``tests.fuzz.run``: each file some six times."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import TARGETS, case, workspace


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        workspace(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", range(len(TARGETS)), ids=sorted(TARGETS))
def test_files_that_are_damaged_or_hostile(base: Path, target: int) -> None:
    """Each is used or refused in one line, in time and within bounds of memory."""
    for number in range(target, 6 * len(TARGETS), len(TARGETS)):
        name, outcome = case(base, number)
        assert outcome.good, (number, name, outcome)
