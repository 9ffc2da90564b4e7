"""The table of versions against what a spy sees of the installed ones."""

import sys
from importlib.metadata import version
from types import ModuleType

import pytest

from tests.matrix.__main__ import VERSIONS
from tests.matrix.environments import TABLE
from tests.matrix.spy import seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", VERSIONS)
def test_a_spy_sees_what_the_report_and_the_table_claim(library, monkeypatch):
    pytest.importorskip(library.replace("-", "_"), reason=f"{library} is not installed")
    monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
    cells = seen(library)
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines()]
    head = next(row for row in rows if row[0] == library)
    assert head[1:] == list(VERSIONS[library])
    if version(library) not in head:
        pytest.skip(f"{library} {version(library)} is not in the table")
    column = head.index(version(library))
    written = {row[0].strip("`"): row[column].strip() for row in rows[rows.index(head) + 2 :][: len(cells)]}
    assert written == cells
